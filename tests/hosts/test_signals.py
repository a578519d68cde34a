"""Signals and the watchdog, within one process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ctssl_jax.errors import Interrupted, Preempted
from ctssl_jax.hosts import signals
from ctssl_jax.hosts.signals import Supervisor

pytestmark = pytest.mark.usefixtures("no_nohup")
ROOT = Path(__file__).parents[2]


class Left:
    """Stands for the end of the process."""

    def __init__(self):
        self.codes = []
        self.happened = threading.Event()

    def __call__(self, code):
        self.codes.append(code)
        self.happened.set()


@pytest.fixture
def left():
    return Left()


def wait_until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
)
def test_a_signal_ends_at_once_what_has_nothing_to_save(left, number, code):
    with Supervisor(left).listen():
        os.kill(os.getpid(), number)
        assert left.happened.wait(10)
    assert left.codes == [code]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGUSR1, Preempted), (signal.SIGHUP, Preempted), (signal.SIGINT, Interrupted)],
)
def test_a_signal_is_left_to_the_loop_and_a_second_ends_at_once(
    left, capsys, monkeypatch, number, kind
):
    monkeypatch.setattr(signals, "AGAIN_S", 0.0)
    supervisor = Supervisor(left)
    supervisor.resumable = True
    with supervisor.listen():
        assert not supervisor.asked
        os.kill(os.getpid(), number)
        wait_until(lambda: supervisor.asked)
        assert type(supervisor.stopped()) is kind
        assert left.codes == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert left.happened.wait(10)
    assert left.codes == [75]
    assert "saving after this step" in capsys.readouterr().err


def test_a_signal_is_heard_while_the_main_thread_is_in_compiled_code(left):
    """Python's own handlers wait until it is back; matrix products of two seconds are not."""
    import numpy as np

    with Supervisor(left).listen():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        big, began = np.ones((3000, 3000)), time.monotonic()
        heard = []
        threading.Thread(
            target=lambda: heard.append(left.happened.wait(20) and time.monotonic() - began)
        ).start()
        while not heard:
            big @ big
    assert heard[0] < 10


def test_waiting_for_data_ends_with_a_signal_where_the_process_is_alone(left):
    class Never:
        def __iter__(self):
            return self

        def __next__(self):
            time.sleep(30)

    supervisor = Supervisor(left)
    supervisor.resumable = True
    with supervisor.listen():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with pytest.raises(Preempted):
            supervisor.next(Never(), alone=True)
        assert time.monotonic() - began < 10
    assert left.codes == []


def test_waiting_for_data_goes_on_where_others_depend_on_it(left):
    def slow():
        time.sleep(0.5)
        yield "batch"

    supervisor = Supervisor(left)
    supervisor.resumable = True
    with supervisor.listen():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert supervisor.next(slow(), alone=False) == "batch"
        wait_until(lambda: supervisor.asked)


def test_handlers_are_put_back(left):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Supervisor(left).listen():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_other_threads_are_left_to_themselves(left):
    found = []

    def elsewhere():
        with Supervisor(left).listen():
            found.append("no error")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == ["no error"]


def test_a_signal_after_all_is_saved_ends_before_the_next_work(left):
    supervisor = Supervisor(left)
    supervisor.leave_if_asked()
    assert left.codes == []
    supervisor.resumable = True
    with supervisor.listen():
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: supervisor.asked)
    supervisor.leave_if_asked()
    assert left.codes == [75]


def test_the_watchdog_ends_what_does_not_beat(left, capsys):
    with Supervisor(left).watch(0.2):
        assert left.happened.wait(10)
    assert left.codes[0] == 6
    assert "no step for" in capsys.readouterr().err


def test_the_watchdog_leaves_alone_what_beats_and_what_is_over(left):
    supervisor = Supervisor(left)
    with supervisor.watch(0.5):
        for _ in range(20):
            time.sleep(0.05)
            supervisor.beat()
    time.sleep(0.8)
    with supervisor.watch(0):  # never
        time.sleep(0.2)
    assert left.codes == []


def test_the_same_signal_told_again_is_no_second_one(left, capsys):
    """As `timeout` does it, and schedulers: to the child, and to its group."""
    supervisor = Supervisor(left)
    supervisor.resumable = True
    with supervisor.listen():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        wait_until(lambda: supervisor.asked)
        assert not left.happened.wait(0.5)
        supervisor._asked_at -= signals.AGAIN_S
        os.kill(os.getpid(), signal.SIGTERM)
        assert left.happened.wait(10)
    assert left.codes == [75]
    assert capsys.readouterr().err.count("saving after this step") == 1


def test_nohup_is_heeded_and_an_interrupt_is_heard_in_the_background(left):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `command &`
    try:
        with Supervisor(left).listen():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not left.happened.wait(0.3)
            os.kill(os.getpid(), signal.SIGINT)
            assert left.happened.wait(10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.codes == [130]


@pytest.mark.parametrize(
    "module",
    [
        "ctssl_jax.main",
        "launch.sweep",
        "ctssl_jax.report",
        "ctssl_jax.interop",
        "ctssl_jax.predict",
    ],
)
def test_from_the_first_instruction_on_a_signal_ends_with_its_code(module):
    """Before anything else of ours is imported: the import is held up, and the signal comes."""
    script = (
        "import os, runpy, signal, sys\n"
        "from ctssl_jax.hosts import signals\n"
        "once = signals.end_at_signals\n"
        "def then():\n"
        "    once()\n"
        "    loaded = [n for n in ('jax', 'ctssl_jax.command', 'absl') if n in sys.modules]\n"
        "    assert not loaded, loaded\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "signals.end_at_signals = then\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")
