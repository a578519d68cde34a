"""Child processes: their number at a time, their exit codes, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctssl_jax.errors import Preempted
from ctssl_jax.hosts.signals import Supervisor
from launch.sweep import pool

ROOT = Path(__file__).parents[2]


def python(name, code):
    return name, [sys.executable, "-c", code]


def test_commands_end_with_their_codes_and_last_words(no_nohup):
    commands = [
        python("good", "print('never seen')"),
        python("bad", "import sys; print('one\\nlast', file=sys.stderr); sys.exit(4)"),
        python("killed", "import os; os.kill(os.getpid(), 9)"),
        python("hung up", "import os; os.kill(os.getpid(), 1)"),
    ]
    ends = {end.name: end[1:] for end in pool.run(commands, [dict(os.environ)] * 2, Supervisor())}
    assert ends == {
        "good": (0, ""),
        "bad": (4, "last"),
        "killed": (137, "killed (memory?)"),
        "hung up": (129, "ended by SIGHUP"),
    }


def test_so_many_at_a_time_each_with_its_environment_and_cpus(tmp_path):
    code = """
import os, time
place, folder = os.environ["PLACE"], os.environ["FOLDER"]
os.mkdir(f"{folder}/{place}")  # fails where another of this place runs
time.sleep(0.1)
os.rmdir(f"{folder}/{place}")
cpus = getattr(os, "sched_getaffinity", lambda _: [])(0)
print(place, *cpus, file=open(f"{folder}/log", "a"))
"""
    places = [{**os.environ, "PLACE": str(place), "FOLDER": str(tmp_path)} for place in (0, 1)]
    ends = list(pool.run([python(str(i), code) for i in range(5)], places, Supervisor()))
    assert [end.code for end in ends] == [0] * 5
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert {place for place, *_ in lines} == {"0", "1"}
    if hasattr(os, "sched_getaffinity"):
        mine = {str(cpu) for cpu in os.sched_getaffinity(0)}
        shares = {place: set(cpus) for place, *cpus in lines}
        assert shares["0"] | shares["1"] == mine
        assert len(mine) == 1 or not shares["0"] & shares["1"]


SLEEPER = """
import signal, sys, time, pathlib
def save(number, frame):
    print(number, file=open(sys.argv[1] + ".saved", "a"))
    time.sleep(1)  # saving takes a while
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
PARENT = """
import os, sys
from ctssl_jax.errors import Preempted
from ctssl_jax.hosts.signals import Supervisor
from launch.sweep import pool
supervisor = Supervisor()
commands = [(name, [sys.executable, "-c", SLEEPER, f"{sys.argv[1]}/{name}"]) for name in "abc"]
with supervisor.listen():
    try:
        for end in pool.run(commands, [dict(os.environ)] * 2, supervisor):
            print(end)
    except Preempted as error:
        print("stopped", error.exit_code)
"""


def parent(folder):
    code = f"SLEEPER = {SLEEPER!r}\n{PARENT}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not ((folder / "a").exists() and (folder / "b").exists()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_a_signal_goes_on_to_the_children_once_and_no_other_starts(tmp_path):
    process = parent(tmp_path)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert out == "stopped 75\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.saved", "b", "b.saved"]
    assert {(tmp_path / f"{name}.saved").read_text() for name in "ab"} == {f"{signal.SIGTERM:d}\n"}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends children with their parent")
def test_no_child_outlives_its_parent(tmp_path):
    process = parent(tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while any(_runs(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_stopped_pool_raises_what_the_supervisor_says():
    supervisor = Supervisor()
    supervisor._asked = 75
    with pytest.raises(Preempted):
        list(pool.run([python("a", "")], [dict(os.environ)], supervisor))
