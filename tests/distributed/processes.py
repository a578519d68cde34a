"""Runs of `tiny_run.py` on several processes of this machine."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import compiler_options

from launch.local import free_port

HERE = Path(__file__).parent


def environment(devices, **changes):
    """Of a process with so many fake devices, and the suite's compilation cache."""
    flags = compiler_options.flags(devices)
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **changes}


class Group:
    """The processes of a run, with what each has printed."""

    def __init__(self, command, processes, devices, env=None):
        flags = [[]]
        if processes > 1:
            where = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}"]
            flags = [[*where, "--start_timeout=60", f"--process={i}"] for i in range(processes)]
        self.lines = [[] for _ in flags]
        self.children, self.readers = [], []
        for more, lines in zip(flags, self.lines, strict=True):
            child = subprocess.Popen(
                [*command, *more],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(devices, **(env or {})),
                cwd=HERE.parent.parent,
            )
            reader = threading.Thread(target=self._read, args=(child, lines), daemon=True)
            reader.start()
            self.children.append(child)
            self.readers.append(reader)

    @staticmethod
    def _read(child, lines):
        with child.stdout:
            for line in child.stdout:
                lines.append(line)

    @property
    def text(self):
        """What all have printed."""
        return "".join(f"[{i}] {line}" for i, lines in enumerate(self.lines) for line in lines)

    def wait_for(self, word, process=0, timeout=240):
        """Until a process has printed something."""
        end = time.monotonic() + timeout
        while not any(word in line for line in self.lines[process]):
            running = self.children[process].poll() is None
            assert running, f"{word!r} never came:\n{self.text}"
            assert time.monotonic() < end, f"no {word!r} in {timeout} s:\n{self.text}"
            time.sleep(0.01)

    def signal(self, number, *processes):
        """Sends a signal to some, or to all."""
        for i in processes or range(len(self.children)):
            self.children[i].send_signal(number)

    def end(self, timeout=300):
        """Exit codes, once all have ended."""
        try:
            codes = [child.wait(timeout) for child in self.children]
        except subprocess.TimeoutExpired:
            for child in self.children:
                child.kill()
            raise AssertionError(f"still running:\n{self.text}") from None
        for reader in self.readers:
            reader.join(10)
        return codes


def tiny(workdir, ask, processes=2, devices=4, env=None):
    """Starts a tiny run."""
    script = [sys.executable, str(HERE / "tiny_run.py"), json.dumps(ask)]
    return Group([*script, f"--workdir={workdir}"], processes, devices, env)


def rows(workdir):
    """The global batch's records of each step, from all processes' files; the last of repeats."""
    found = {}
    for file in sorted(workdir.parent.glob(f"{workdir.name}.rows*")):
        for line in file.read_text().splitlines():
            step, records = json.loads(line)
            found.setdefault(step, {})[file.suffix] = records
    return {
        step: [record for part in sorted(parts) for record in parts[part]]
        for step, parts in found.items()
    }
