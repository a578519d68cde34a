"""SIGKILL at random moments: what comes of it in the end is what an uninterrupted run gives.

`CTSSL_JAX_KILLS=100 pytest tests/run/test_kills.py -m slow -s` prints how many there were, of which
kind, and where a start ended. docs/runs.md has the count.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ctssl_jax.files import read_json
from ctssl_jax.metrics import read_metrics

SCRIPT = Path(__file__).parent / "killed_run.py"
KINDS = ("simclr", "moco", "swav", "byol", "spark", "finetune", "evaluate", "sweep")
TIMES = ("images_per_second", "input_wait", "elapsed_s")
JSON = ("results.json", "config.json", "data.json", "subset.json")
KILLS = int(os.environ.get("CTSSL_JAX_KILLS", 8))


def start(kind, data, workdir, encoder):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "ENCODER": str(encoder),
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), kind, str(data), str(workdir)],
        env=environment,
        cwd=SCRIPT.parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(kind, data, workdir, encoder):
    """Runs to the end; how long that took."""
    began, process = time.monotonic(), start(kind, data, workdir, encoder)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, f"{kind}: {said[-2000:]}"
    return time.monotonic() - began


def is_last(step):
    """Whether a folder is the last checkpoint; a kill may leave one more of those before it."""
    return step.name.isdecimal() and not [
        other for other in step.parent.iterdir() if int(other.name) > int(step.name)
    ]


def outcome(run):
    """What must be the same: arrays by their sums, results, predictions, and metrics but times."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.name in JSON or (path.name == "metadata" and is_last(path.parents[1])):
            found[name] = read_json(path)
        elif path.name in ("predictions.csv", "results.csv", "seen.npy", "STATUS"):
            found[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            rows = read_metrics(path.parent)
            found[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return json.loads(json.dumps(found, default=bytes.hex))


@pytest.mark.slow
def test_killed_at_any_moment_and_repeated_the_outcome_is_the_same(tmp_path, phantom_path):
    random.seed(os.environ.get("CTSSL_JAX_SEED", "0"))
    encoder, kills, ended = tmp_path / "simclr", Counter(), Counter()
    wanted, lasts = {}, {}
    for kind in KINDS:
        lasts[kind] = complete(kind, phantom_path, tmp_path / kind, encoder)
        wanted[kind] = outcome(tmp_path / kind)
    number = 0
    while kills.total() < KILLS:
        kind = KINDS[number % len(KINDS)]
        number += 1
        workdir = tmp_path / f"killed{number}"
        for _ in range(4):  # kills of one run at most
            process = start(kind, phantom_path, workdir, encoder)
            try:
                _, said = process.communicate(timeout=random.uniform(0.3, lasts[kind]))
                assert process.returncode == 0, f"{kind}: {said[-2000:]}"
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills[kind] += 1
                ended["before the folder" if not workdir.exists() else "in the run"] += 1
        complete(kind, phantom_path, workdir, encoder)
        assert outcome(workdir) == wanted[kind], kind
        print(f"{kills.total()} kills in {number} runs: {dict(kills)}; {dict(ended)}", flush=True)
