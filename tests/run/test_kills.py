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

import compiler_options
import pytest
from tiny import METHODS

from ctssl_jax.files import read_json
from ctssl_jax.log import read_metrics
from data_prep import folder
from data_prep.phantom import source as phantom

SCRIPT = Path(__file__).parent / "killed_run.py"
KINDS = (*METHODS, "finetune", "evaluate", "sweep", "cases", "predict")
TABLES = ("predictions.csv", "results.csv", "cases.csv", "slices.csv", "seen.npy", "STATUS")
TIMES = ("images_per_second", "input_wait", "elapsed_s")
JSON = ("results.json", "config.json", "data.json", "subset.json")
KILLS = int(os.environ.get("CTSSL_JAX_KILLS", 8))


def start(kind, data, workdir, encoder):
    environment = {
        **os.environ,
        "XLA_FLAGS": compiler_options.flags(),
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
        elif path.name in TABLES or path.parent.name == "pictures":
            found[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            rows = read_metrics(path.parent)
            found[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return json.loads(json.dumps(found, default=bytes.hex))


@pytest.fixture
def scans(tmp_path):
    """The labelled dataset of a few scans, and their DICOM files."""
    shape = {"patients": 8, "slices": 6, "size": 64, "seed": 0, "lesion_slices": 2}
    phantom.write_dicom(tmp_path / "dicom", **shape)
    labels = tmp_path / "dicom" / "labels.csv"
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    words = [f"--source={tmp_path / 'dicom'}", f"--labels={labels}", "--positive=lesion"]
    words += [f"--out={tmp_path / 'scans'}", f"--key={tmp_path / 'key'}", "--workers=0"]
    assert folder.main([*words, "--val_fraction=0.25", "--test_fraction=0.25"]) == 0
    return tmp_path / "scans", tmp_path / "dicom"


@pytest.mark.slow
def test_killed_at_any_moment_and_repeated_the_outcome_is_the_same(tmp_path, phantom_path, scans):
    random.seed(os.environ.get("CTSSL_JAX_SEED", "0"))
    kills, ended = Counter(), Counter()
    encoder = dict.fromkeys(KINDS, tmp_path / "simclr") | {"predict": tmp_path / "cases"}
    of = dict.fromkeys(KINDS, phantom_path) | dict(zip(("cases", "predict"), scans, strict=True))
    wanted, lasts = {}, {}
    for kind in KINDS:
        lasts[kind] = complete(kind, of[kind], tmp_path / kind, encoder[kind])
        wanted[kind] = outcome(tmp_path / kind)
    number = 0
    tried = os.environ.get("CTSSL_JAX_KINDS", ",".join(KINDS)).split(",")
    while kills.total() < KILLS:
        kind = tried[number % len(tried)]
        number += 1
        workdir = tmp_path / f"killed{number}"
        for _ in range(4):  # kills of one run at most
            process = start(kind, of[kind], workdir, encoder[kind])
            try:
                _, said = process.communicate(timeout=random.uniform(0.3, lasts[kind]))
                assert process.returncode == 0, f"{kind}: {said[-2000:]}"
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills[kind] += 1
                ended["before the folder" if not workdir.exists() else "in the run"] += 1
        complete(kind, of[kind], workdir, encoder[kind])
        assert outcome(workdir) == wanted[kind], kind
        print(f"{kills.total()} kills in {number} runs: {dict(kills)}; {dict(ended)}", flush=True)
