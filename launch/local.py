"""One run as several processes of this machine.

    python -m launch.local --processes=2 --cpu_devices=4 -- --config=configs/spark.py:smoke
    python -m launch.local --processes=2 --gpus=0,1,2,3 -- --config=configs/spark.py --workdir=RUN

What follows `--` goes to each process, beside `--coordinator --processes --process`. One process
drives all accelerators of a machine by itself (`ctssl_jax.main` alone): this is for trying a run of
several hosts on one machine, and for one process per GPU.

`[i]` stands before each line of process i. SIGTERM, SIGUSR1 and Ctrl-C go to all processes. When
one fails, the others have `--grace` seconds to end by themselves, then they are killed. The exit
code is that of the first to fail, 128 + the signal's number if a signal ended it.
"""

import ctypes
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import IO, BinaryIO

from ctssl_jax import command
from ctssl_jax.errors import ConfigError, DeviceError
from ctssl_jax.hosts.cluster import TOKEN
from ctssl_jax.hosts.signals import heard

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
DEVICE_COUNT = "--xla_force_host_platform_device_count"
POLL_S = 0.1
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Process:
    """A process of the run, whose output is passed on line by line."""

    def __init__(self, number: int, command: Sequence[str], environment: Mapping[str, str]):
        self._prefix = f"[{number}] ".encode()
        self._rest: dict[int, bytes] = {}
        launcher = os.getpid()
        # A session of its own: a terminal's Ctrl-C reaches it once, through the launcher. (A second
        # one would end it without a save.)
        self.popen = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            preexec_fn=lambda: die_with(launcher),
        )

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    @property
    def code(self) -> int:
        """Its exit code, as a shell gives it."""
        code = self.popen.returncode
        return 128 - code if code < 0 else code

    def streams(self) -> list[tuple[IO[bytes], BinaryIO]]:
        """Its outputs, each with where it goes."""
        assert self.popen.stdout
        assert self.popen.stderr
        return [
            (self.popen.stdout, sys.stdout.buffer),
            (self.popen.stderr, sys.stderr.buffer),
        ]

    def pass_on(self, source: IO[bytes], target: BinaryIO) -> bool:
        """Copies the lines that have come; False at the end of the stream."""
        text = os.read(source.fileno(), 1 << 16)
        *lines, rest = (self._rest.get(source.fileno(), b"") + text).split(b"\n")
        if not text and rest:
            lines, rest = [*lines, rest], b""
        self._rest[source.fileno()] = rest
        target.write(b"".join(self._prefix + line + b"\n" for line in lines))
        target.flush()
        return bool(text)

    def kill(self) -> None:
        """Ends it and its own children at once."""
        if self.alive:
            os.killpg(self.popen.pid, signal.SIGKILL)


def die_with(launcher: int) -> None:
    """Asks Linux, in the new process, to kill it when the launcher is no more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it went before the call
            os._exit(1)


def run(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], grace: float
) -> int:
    """Runs the commands side by side; returns the exit code of the first to fail, else 0."""
    processes: list[Process] = []
    try:
        for number, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            processes.append(Process(number, command, environment))
        with _forwarding(processes):
            return _follow(processes, grace)
    finally:
        for process in processes:
            process.kill()
            process.popen.wait()


def _follow(processes: Sequence[Process], grace: float) -> int:
    """Passes output on until all have ended."""
    code, deadline = 0, float("inf")
    with selectors.DefaultSelector() as selector:
        for process in processes:
            for source, target in process.streams():
                selector.register(source, selectors.EVENT_READ, (process, target))
        running = list(processes)
        while running:
            _pass_on(selector, POLL_S)
            for process in [process for process in running if not process.alive]:
                running.remove(process)
                if process.code and not code:
                    code, deadline = process.code, time.monotonic() + grace
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
        # What is left in the pipes. Not until their end: a grandchild may hold one open.
        while _pass_on(selector, 0):
            pass
    return code


def _pass_on(selector: selectors.BaseSelector, timeout: float) -> bool:
    """Copies what has come; False if there was nothing."""
    if not selector.get_map():
        time.sleep(timeout)
        return False
    ready = selector.select(timeout)
    for key, _ in ready:
        process, target = key.data
        if not process.pass_on(key.fileobj, target):
            selector.unregister(key.fileobj)
    return bool(ready)


@contextmanager
def _forwarding(processes: Sequence[Process]) -> Iterator[None]:
    """Passes signals on to the processes."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.popen.send_signal(number)  # does nothing to one that has ended

    before = {number: signal.signal(number, forward) for number in heard(FORWARDED)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port() -> int:
    """A port of the loopback interface that is free, and the next one too."""
    for _ in range(100):
        with closing(socket.socket()) as first, closing(socket.socket()) as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise DeviceError("no two free ports beside each other on this machine")


def environments(
    base: Mapping[str, str], processes: int, cpu_devices: int, gpus: Sequence[str]
) -> list[dict[str, str]]:
    """The environment of each process: its devices.

    Raises:
      ConfigError: the GPUs do not divide over the processes, or are given beside CPU devices.
    """
    if cpu_devices and gpus:
        raise ConfigError("--cpu_devices and --gpus: give one of them")
    if len(gpus) % processes or len(set(gpus)) < len(gpus):
        raise ConfigError(f"--gpus={','.join(gpus)}: must be different and divide by {processes}")
    share, made = len(gpus) // processes, []
    for number in range(processes):
        environment = {**base, "PYTHONUNBUFFERED": "1"}
        if gpus:
            mine = gpus[number * share : (number + 1) * share]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        if cpu_devices:
            others = [f for f in base.get("XLA_FLAGS", "").split() if DEVICE_COUNT not in f]
            environment["XLA_FLAGS"] = " ".join([*others, f"{DEVICE_COUNT}={cpu_devices}"])
            environment["JAX_PLATFORMS"] = "cpu"
        made.append(environment)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.Parser(prog="python -m launch.local", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cpu_devices", type=int, default=0, help="fake CPU devices of each")
    parser.add_argument(
        "--gpus", action=command.List, default="", help="comma-separated; split over the processes"
    )
    parser.add_argument("--module", default="ctssl_jax.main", help="or launch.sweep")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds; see above")
    parser.add_argument("arguments", nargs="*", help="after --, of the module")

    def work() -> int:
        args = parser.parse_args(argv)
        if args.processes < 1:
            raise ConfigError(f"--processes={args.processes}: must be 1 or more")
        for name in ("cpu_devices", "grace"):
            if (value := getattr(args, name)) < 0:
                raise ConfigError(f"--{name}={value:g}: must not be negative")
        gpus = [gpu.strip() for gpu in args.gpus.split(",") if gpu.strip()]
        token = {TOKEN: secrets.token_hex(16)}
        each = environments(token | os.environ, args.processes, args.cpu_devices, gpus)
        common = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={args.processes}"]
        start = [sys.executable, "-m", args.module, *args.arguments, *common]
        commands = [[*start, f"--process={number}"] for number in range(args.processes)]
        return run(commands, each, args.grace)

    return command.run("launch.local", work)


if __name__ == "__main__":
    sys.exit(main())
