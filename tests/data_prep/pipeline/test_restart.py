"""A preparation that is killed again and again gives the bytes of one that is not."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.phantom import source as phantom


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(source: Path, out: Path, key: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_prep.dicom", f"--source={source}", f"--out={out}"]
    return subprocess.Popen(
        [*command, f"--key={key}", "--workers=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> float:
    began = time.monotonic()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return time.monotonic() - began


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_changes_nothing(tmp_path, key_file, kills):
    source = tmp_path / "dicom"
    phantom.write_dicom(source, patients=12, slices=10, size=64, seed=0)
    whole = finish(start(source, tmp_path / "whole", key_file))
    expected = tree(tmp_path / "whole")
    rng = random.Random(kills)
    for number in range(kills):
        out = tmp_path / f"killed{number}"
        process = start(source, out, key_file)
        # One draw in each part of the time, so that all steps are met.
        time.sleep((number + rng.uniform(0.1, 0.9)) / kills * whole)
        # By turns all of its processes, as a machine that goes down, and the first alone.
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
        # There is the whole dataset or none; of one that was just complete, the rest goes.
        again = start(source, out, key_file)
        if out.exists():
            again.communicate()
            assert again.returncode == 3
        else:
            finish(again)
        assert tree(out) == expected
        assert [path.name for path in tmp_path.glob(".*")] == []
