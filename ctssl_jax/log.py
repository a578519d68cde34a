"""What a run writes down while it goes on: numbers by step, lines for people, its speed."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ctssl_jax.errors import StorageError
from ctssl_jax.files import read_bytes, write_text


class MetricWriter:
    """Scalars to `metrics.jsonl` and TensorBoard events, and lines to stdout and `log.txt`.

    Args:
      run: the run folder.
      step: the step that the run starts from; later rows of an interrupted run are dropped, since
        they will be written again.
    """

    def __init__(self, run: Path, step: int = 0):
        self._run, self._path = run, run / "metrics.jsonl"
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = Events(run / "events", step)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """One row, flushed, so that a killed run keeps it."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._events.scalars(step, values)

    def line(self, text: str) -> None:
        """A line for people."""
        log_line(self._run, text)

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


def log_line(run: Path, text: str) -> None:
    """A line for people, on stdout and in the run's `log.txt`."""
    print(text, flush=True)
    with (run / "log.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text + "\n")


class Events:
    """TensorBoard's file of scalars.

    Written here and not by tensorboardX's `SummaryWriter`, which puts the name of the machine into
    that of the file, and writes in a thread, where a full disk is a traceback.

    Args:
      folder: which is made.
      step: rows after it that are there already are taken back.
    """

    def __init__(self, folder: Path, step: int):
        # Imported here: processes that do not write, and evaluation, do without it.
        with without("torch"):
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        self._event = event_pb2.Event
        name = f"events.out.tfevents.{int(time.time())}.{step}"
        while (folder / name).exists():
            name += "+"
        self._records = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=step + 1, session_log=started)

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """One row, flushed."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))
        self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        self._records.close()


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Imports in this block do without a module that they would only use if it is there.

    tensorboardX imports PyTorch wherever it is installed, which takes more of a start than all of
    JAX, for what nobody here asks of it.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # so Python knows that there is none
    try:
        yield
    finally:
        del sys.modules[module]


class SilentWriter:
    """A `MetricWriter` that writes nothing: of a process that does not speak for the run."""

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


Writer = MetricWriter | SilentWriter


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` by which a step is known; a kill may cut the last one short.

    Raises:
      StorageError: the file cannot be read.
    """
    path = run / "metrics.jsonl"
    try:
        lines = read_bytes(path).splitlines() if path.exists() else []
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): restore it") from None
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows


def time_of_end(seconds_left: float) -> str:
    """When what takes so long will be done, on this machine's clock: "Sun 17:30"."""
    return time.strftime("%a %H:%M", time.localtime(time.time() + seconds_left))


def duration(seconds: float | int) -> str:
    """Seconds as people read them.

    >>> [duration(seconds) for seconds in (45.2, 720, 9660)]
    ['45s', '12m', '2h41m']
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f}s"
    return f"{minutes}m" if minutes < 90 else f"{minutes // 60}h{minutes % 60:02}m"


class Throughput:
    """Images per second, the share of time spent waiting for input, and the time left."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forgets the past: after compilation, evaluation or saving."""
        self._since, self._steps, self._waited = time.monotonic(), 0, 0.0

    def step(self, waited: float) -> None:
        """Counts one step and the seconds that it waited for its batch."""
        self._steps += 1
        self._waited += waited

    def read(self, steps_left: int) -> dict[str, float]:
        """Images per second, input wait (fraction) and seconds left, since the last restart."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        seconds_per_step = elapsed / max(self._steps, 1)
        return {
            "images_per_second": self._steps * self._batch_size / elapsed,
            "input_wait": self._waited / elapsed,
            "seconds_left": steps_left * seconds_per_step,
        }
