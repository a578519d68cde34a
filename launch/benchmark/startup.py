"""From the command to the first training step: the ordinary command, watched from outside.

First with an empty compilation cache, then with what that left. A run's folder, and the cache, are
in a scratch folder that is removed; a run is ended after its first step.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ctssl_jax.errors import DataError

MARKS = {
    "first line": re.compile(r"."),
    "model built": re.compile(r"compiling the training step"),
    "first step": re.compile(r"compiled and first step done"),
}


def measure(arguments: Sequence[str], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Seconds from the command to each mark: of cold starts, and of a warm one after each.

    Raises:
      DataError: the run ended before its first step; its own words are above.
    """
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as scratch:
            for kind, seconds in found.items():
                seconds.append(start(arguments, Path(scratch), kind))
    return found


def start(arguments: Sequence[str], scratch: Path, name: str) -> dict[str, float]:
    """Runs the command up to its first step."""
    workdir = scratch / name
    began, seconds = time.monotonic(), dict[str, float]()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "ctssl_jax.main", *arguments, f"--workdir={workdir}"],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(scratch / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            for mark, pattern in MARKS.items():
                if mark not in seconds and pattern.search(line):
                    seconds[mark] = time.monotonic() - began
            if len(seconds) == len(MARKS):
                break
        process.kill()
    shutil.rmtree(workdir, ignore_errors=True)
    if len(seconds) == len(MARKS):
        return seconds
    raise DataError("the run ended before its first step: what it said is above")


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The medians as Markdown."""
    lines = [f"| start | {' | '.join(MARKS)} |", "|---" * (len(MARKS) + 1) + "|"]
    for kind, runs in found.items():
        cells = [f"{sorted(run[mark] for run in runs)[len(runs) // 2]:.1f} s" for mark in MARKS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)
