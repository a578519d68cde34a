"""Commands as child processes, some at a time, each with its share of the CPUs."""

import os
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ctssl_jax.errors import Interrupted
from ctssl_jax.hosts.signals import Supervisor
from launch.local import die_with

POLL_S = 0.2


class Ended(NamedTuple):
    """A command that has ended: its exit code as a shell gives it, its last line on stderr."""

    name: str
    code: int
    last_line: str


class _Child:
    """A running command. What it says is left to its run folder, but for its last error."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], cpus: set[int]
    ):
        self._name, parent = name, os.getpid()
        # A file, since a pipe that nobody reads would block it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`close` does)

        def before() -> None:
            die_with(parent)
            if cpus:
                os.sched_setaffinity(0, cpus)  # by which XLA sizes its thread pools, too

        with warnings.catch_warnings():
            # JAX warns of any fork in its process. Nothing is computed in this one.
            warnings.filterwarnings("ignore", r"os\.fork", RuntimeWarning)
            # A session of its own: a terminal's Ctrl-C reaches it once, through the parent.
            self.popen = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
                preexec_fn=before,
            )

    def ended(self) -> Ended | None:
        """How it ended, once it has."""
        code = self.popen.poll()
        if code is None:
            return None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last_line = next((line for line in reversed(lines) if line.strip()), "")
        if code == -signal.SIGKILL:  # which lets nobody say why
            last_line = "killed (memory?)"
        elif code < 0:
            last_line = last_line or f"ended by {signal.Signals(-code).name}"
        return Ended(self._name, 128 - code if code < 0 else code, last_line)

    def close(self) -> None:
        """Ends it and its own children, where they still run, at once."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._errors.close()


def run(
    commands: Iterable[tuple[str, Sequence[str]]],
    environments: Sequence[Mapping[str, str]],
    supervisor: Supervisor,
) -> Iterator[Ended]:
    """Runs named commands, as many at a time as there are environments; yields each as it ends.

    At a signal to this process the children save and end, and no other is started; only those that
    were done all the same are then yielded.

    Raises:
      Preempted: after a signal, once all children have ended.
    """
    waiting, running, told = iter(commands), dict[int, _Child](), False
    supervisor.resumable = True  # the children save
    try:
        while True:
            if supervisor.asked and not told:  # once: a second signal would end them at once
                told = True
                _stop(running.values(), supervisor)
            for place in range(0 if told else len(environments)):
                if place not in running and (found := next(waiting, None)):
                    cpus = _cpus(place, len(environments))
                    running[place] = _Child(*found, environments[place], cpus)
            if not running:
                break
            time.sleep(POLL_S)
            for place, child in list(running.items()):
                if end := child.ended():
                    running.pop(place).close()
                    if not (told and end.code):
                        yield end
    finally:
        supervisor.resumable = False
        for child in running.values():
            child.close()
    if told:
        raise supervisor.stopped()


def _stop(children: Iterable[_Child], supervisor: Supervisor) -> None:
    number = signal.SIGINT if isinstance(supervisor.stopped(), Interrupted) else signal.SIGTERM
    for child in children:
        child.popen.send_signal(number)  # does nothing to one that has ended


def _cpus(place: int, places: int) -> set[int]:
    """The CPUs of a place, where the system lets one choose."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    cpus = sorted(os.sched_getaffinity(0))
    return set(cpus[place::places]) or {cpus[place % len(cpus)]}
