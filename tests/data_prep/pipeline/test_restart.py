"""A preparation that is killed again and again gives the bytes of one that is not."""

import hashlib
import os
import random
import shutil
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


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
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


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


@pytest.mark.parametrize("at", ["ready", "old", "rmtree", "out"])
def test_killed_in_its_last_clean_up_it_is_completed_by_the_same_command(tmp_path, monkeypatch, at):
    def prepared(out):
        phantom.prepare(out, patients=6, slices=8, size=64, val=0.17, test=0.17)
        return tree(out)

    expected, out = prepared(tmp_path / "whole"), tmp_path / "out"
    replace, rmtree = os.replace, shutil.rmtree

    def replace_or_die(source, target):
        names = {f".{out.name}.ready": "ready", f".{out.name}.old": "old", out.name: "out"}
        if names.get(Path(target).name) == at:
            raise Killed
        replace(source, target)

    def rmtree_or_die(folder, **settings):
        if at == "rmtree" and Path(folder).name == f".{out.name}.old" and Path(folder).exists():
            rmtree(next(path for path in Path(folder).iterdir() if path.is_dir()))
            raise Killed
        rmtree(folder, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        patch.setattr(shutil, "rmtree", rmtree_or_die)
        with pytest.raises(Killed):
            prepared(out)
    assert not out.exists()
    assert prepared(out) == expected
    assert [path.name for path in tmp_path.glob(".*")] == []
