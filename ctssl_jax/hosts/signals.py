"""What may end a run from outside: signals of a scheduler, a step that does not come.

SIGTERM, SIGUSR1 and SIGHUP (a terminal that closes) ask for the machine (exit code 75), Ctrl-C for
an end (130). While a run has nothing that a checkpoint lacks (start-up, compilation, a test after
the last step) it ends at once; while it trains, the step under way is finished and saved first, on
all hosts the same. A second signal ends it at once, but not within `AGAIN_S`: `timeout` and
schedulers signal a process and its group, and mean one. Periodic checkpoints are the guarantee, the
save at a signal saves time.

A process has one `Supervisor`. It hears signals in a thread of its own, because Python's handlers
wait until the main thread comes back from compiled code.
"""

import contextlib
import faulthandler
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

from ctssl_jax.errors import DeviceError, Interrupted, Preempted

T = TypeVar("T")
AGAIN_S = 2.0  # seconds within which signals are the first one, told again
CODES = {
    signal.SIGTERM: Preempted.exit_code,
    signal.SIGUSR1: Preempted.exit_code,
    signal.SIGHUP: Preempted.exit_code,
    signal.SIGINT: Interrupted.exit_code,
}


def heard(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those that are heard: all, but SIGHUP where it is ignored, as under nohup.

    A shell has SIGINT ignored in what it runs in the background; who sends it there means it.
    """
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if not (number is signal.SIGHUP and nohup)]


def end_at_signals() -> None:
    """From now on a signal ends the program with its code: comes first, before long imports.

    `Supervisor.listen` takes over.
    """
    for number in heard(CODES):
        signal.signal(number, functools.partial(_end, CODES[number]))


def _end(code: int, number: int, frame: FrameType | None) -> None:
    os._exit(code)


class Supervisor:
    """Hears signals and watches the clock.

    Args:
      leave: called, from another thread, to end the process at once with an exit code; must not
        return. The default leaves other processes and the run folder's status alone.

    Attributes:
      resumable: the run holds steps that no checkpoint has, so that a signal is left to the loop,
        which asks `asked` after each step.
    """

    def __init__(self, leave: Callable[[int], None] = os._exit):
        self._leave = leave
        self._lock = threading.Lock()
        self._asked: int | None = None
        self._asked_at = 0.0
        self._waiting = False
        self._beat = time.monotonic()
        self._watched = False
        self.resumable = False

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked is not None

    def stopped(self) -> Preempted:
        """The exception to raise once the state is saved; another process may have been asked."""
        return _stopped(self._asked or Preempted.exit_code)

    def leave_if_asked(self) -> None:
        """Ends the process if a signal came; call when all is saved."""
        if self._asked is not None:
            self._leave(self._asked)

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Hears signals within the block; does nothing outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        inbox, outbox = socket.socketpair()
        outbox.setblocking(False)
        before = {number: signal.signal(number, self._interrupt_wait) for number in heard(CODES)}
        # Python's C handler writes the signal's number there even while the main thread is busy.
        wakeup = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(inbox,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            outbox.close()

    def _hear(self, inbox: socket.socket) -> None:
        with inbox:
            while numbers := inbox.recv(1):
                if numbers[0] in CODES:
                    self._ask(CODES[signal.Signals(numbers[0])])

    def _ask(self, code: int) -> None:
        with self._lock:
            first, now = self._asked is None, time.monotonic()
            if first:
                self._asked, self._asked_at = code, now
            told_again = not first and now - self._asked_at < AGAIN_S
            wait = self.resumable and (first or told_again)
        if not wait:
            self._leave(code)
        elif first:
            print("signal received: saving after this step", file=sys.stderr, flush=True)

    def _interrupt_wait(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, once that is back from compiled code."""
        if self._waiting:
            raise _stopped(CODES[signal.Signals(number)])

    def next(self, items: Iterator[T], alone: bool) -> T:
        """The next item; where this process is `alone`, a signal ends the wait for it.

        Several processes must save the same step, which only those that have the data can make.

        Raises:
          Preempted: a signal came; nothing was taken that `items` cannot give again after
            `set_state`.
        """
        self._waiting = alone and self.resumable
        try:
            if self._waiting and self.asked:
                raise self.stopped()
            return next(items)
        finally:
            self._waiting = False

    def beat(self) -> None:
        """Tells the watchdog that the run goes on."""
        self._beat = time.monotonic()

    @contextlib.contextmanager
    def watch(self, seconds: float | int) -> Iterator[None]:
        """Within the block, ends the process when nothing beats for `seconds`; 0: never.

        Within such a block another one does nothing.
        """
        self.beat()
        if self._watched:
            yield
            return
        self._watched, stop = True, threading.Event()
        if seconds:
            thread = threading.Thread(target=self._watch, args=(seconds, stop), name="watchdog")
            thread.daemon = True
            thread.start()
        try:
            yield
        finally:
            self._watched = False
            stop.set()

    def _watch(self, seconds: float | int, stop: threading.Event) -> None:
        while not stop.wait(min(seconds / 10, 5.0)):
            silence = time.monotonic() - self._beat
            if silence > seconds:
                print(
                    f"ctssl_jax: no step for {silence:.0f} s (hang_after_s={seconds:g}): the run "
                    "hangs, what every thread does follows; repeat the command to go on from the "
                    "last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                dump_stacks()
                self._leave(DeviceError.exit_code)


def _stopped(code: int) -> Preempted:
    if code == Interrupted.exit_code:
        return Interrupted("interrupted; repeat the command to go on")
    return Preempted("pre-empted; repeat the command to go on")


def dump_stacks() -> None:
    """What every thread is doing, to stderr."""
    with contextlib.suppress(OSError, ValueError):  # a stderr without a file, as under pytest
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
