"""The launcher of several processes, with a toy in place of the training."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctssl_jax.errors import ConfigError
from launch import local

ROOT = Path(__file__).parents[2]
TOY = """
import os, signal, subprocess, sys, time
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
number = int(flags["process"])

def mark(name):
    open(os.path.join(flags["dir"], f"{name}{number}"), "w").write(str(os.getpid()))

what = flags["do"].split(",")[number]
if what == "show":
    print("flags", flags["coordinator"], flags["processes"])
    print("devices", os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("XLA_FLAGS"))
    sys.stdout.write("no newline")
    sys.stderr.write("to stderr\\n")
elif what.startswith("exit"):
    time.sleep(float(flags.get("after", 0)))
    sys.exit(int(what[4:]))
elif what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "catch":
    def caught(code, frame):
        mark(f"caught{code}-")
        sys.exit(75)
    for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, caught)
    mark("ready")
    time.sleep(60)
elif what == "parent":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(os.path.join(flags["dir"], "grandchild"), "w").write(str(child.pid))
    mark("ready")
    time.sleep(60)
elif what == "stay":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark("ready")
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher with the toy; each process does one of the comma-separated things."""
    (tmp_path / "toy.py").write_text(TOY)
    launchers = []

    def start(do, *flags, launcher_flags=()):
        processes = len(do.split(","))
        command = [sys.executable, "-m", "launch.local", "--module=toy", f"--processes={processes}"]
        launchers.append(
            subprocess.Popen(
                [*command, *launcher_flags, "--", f"--do={do}", f"--dir={tmp_path}", *flags],
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.kill()
        launcher.communicate()


def wait_for(*files: Path) -> list[int]:
    """The process ids in the files, once all are there."""
    for _ in range(500):
        if all(file.exists() and file.read_text() for file in files):
            return [int(file.read_text()) for file in files]
        time.sleep(0.02)
    raise AssertionError(f"no {files}")


def gone(*ids: int) -> bool:
    """Whether the processes end within five seconds (a zombie has ended)."""

    def runs(number):
        try:
            return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    for _ in range(250):
        if not any(map(runs, ids)):
            return True
        time.sleep(0.02)
    return False


def test_output_has_the_number_of_its_process_and_each_gets_its_flags(start):
    out, err = (launcher := start("show,show")).communicate(timeout=20)
    assert launcher.returncode == 0
    assert sorted(err.splitlines()) == ["[0] to stderr", "[1] to stderr"]
    lines = out.splitlines()
    assert len(lines) == 6
    for number in "01":
        mine = [line for line in lines if line.startswith(f"[{number}] ")]
        assert mine[0].startswith(f"[{number}] flags 127.0.0.1:")
        assert mine[0].endswith(" 2")
        assert mine[2] == f"[{number}] no newline"
    assert len({line.split()[2] for line in lines if " flags " in line}) == 1


@pytest.mark.parametrize(
    ("do", "code"), [("exit0,exit0", 0), ("exit0,exit3", 3), ("exit75,exit75", 75), ("die", 137)]
)
def test_exit_code_is_that_of_who_failed(start, do, code):
    assert start(do).wait(timeout=20) == code


def test_whoever_does_not_end_after_a_failure_is_killed_with_its_children(start, tmp_path):
    launcher = start("exit4,parent,stay", "--after=0.5", launcher_flags=["--grace=1"])
    ids = wait_for(tmp_path / "ready1", tmp_path / "ready2", tmp_path / "grandchild")
    assert launcher.wait(timeout=10) == 4
    assert gone(*ids)


def test_others_have_time_to_end_by_themselves(start, tmp_path):
    launcher = start("exit6,catch", launcher_flags=["--grace=30"])
    (other,) = wait_for(tmp_path / "ready1")
    time.sleep(0.3)
    os.kill(other, signal.SIGTERM)
    assert launcher.wait(timeout=10) == 6
    assert (tmp_path / f"caught{signal.SIGTERM.value}-1").exists()


@pytest.mark.parametrize("number", local.FORWARDED)
@pytest.mark.usefixtures("no_nohup")
def test_signals_reach_all_processes_once(start, tmp_path, number):
    launcher = start("catch,catch")
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    time.sleep(0.2)  # the launcher listens once all are started
    launcher.send_signal(number)
    assert launcher.wait(timeout=10) == 75
    assert {path.name for path in tmp_path.glob("caught*")} == {
        f"caught{number.value}-0",
        f"caught{number.value}-1",
    }


def test_processes_are_in_sessions_of_their_own(start, tmp_path):
    launcher = start("catch,catch")
    for child in wait_for(tmp_path / "ready0", tmp_path / "ready1"):
        assert os.getsid(child) == child != os.getsid(launcher.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_no_process_outlives_a_launcher_that_is_killed(start, tmp_path):
    launcher = start("stay,stay")
    ids = wait_for(tmp_path / "ready0", tmp_path / "ready1")
    launcher.kill()
    assert gone(*ids)


def test_devices_are_shared_out():
    base = {"XLA_FLAGS": f"--a=b {local.DEVICE_COUNT}=9", "KEPT": "1"}
    first, second = local.environments(base, 2, 0, ["0", "1", "5", "6"])
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("0,1", "5,6")
    assert first["XLA_FLAGS"] == base["XLA_FLAGS"]
    for environment in local.environments(base, 2, 4, []):
        assert environment["XLA_FLAGS"] == f"--a=b {local.DEVICE_COUNT}=4"
        assert environment["JAX_PLATFORMS"] == "cpu"
        assert environment["KEPT"] == "1"
        assert "CUDA_VISIBLE_DEVICES" not in environment


@pytest.mark.parametrize(("cpus", "gpus"), [(0, "012"), (4, "01"), (0, "00")])
def test_devices_that_cannot_be_shared_out_are_refused(cpus, gpus):
    with pytest.raises(ConfigError):
        local.environments({}, 2, cpus, list(gpus))


@pytest.mark.parametrize(
    "flags",
    [
        ["--processes=0"],
        ["--processes=2", "--gpus=0,1,2"],
        ["--cpu_devices=-1"],
        ["--grace=-1"],
    ],
)
def test_mistakes_are_one_line(capsys, flags):
    assert local.main(flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("launch.local: --")
    assert err.count("\n") == 1


def test_last_lines_of_a_process_are_not_lost(tmp_path):
    """They may come after the launcher has looked at its output and before it sees it ended."""
    code = """
import sys, time
from launch import local
pass_on = local._pass_on
def late(selector, timeout):
    if timeout:
        time.sleep(0.5)
        return False
    return pass_on(selector, timeout)
local._pass_on = late
local.run([[sys.executable, "-c", "print(1); print(2)"]], [{}], 1)
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "[0] 1\n[0] 2\n", found.stderr


def test_both_ports_are_free(monkeypatch):
    class Taken(socket.socket):
        """Gives ports 5000, 5002, …; 5001 is another's."""

        given = itertools.count(5000, 2)

        def bind(self, address):
            if address[1] == 5001:
                raise OSError("in use")

        def getsockname(self):
            return "127.0.0.1", next(self.given)

    monkeypatch.setattr(socket, "socket", Taken)
    assert local.free_port() == 5002
