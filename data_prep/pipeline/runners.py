"""Who does the tasks of a preparation: this process, all cores of this machine, or Apache Beam.

    runner.run(function, context, tasks)  ->  (task, result) of each, in any order

A task is done by `function(context, task)`. The context is handed to each process once.
"""

import resource
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.synchronize import Semaphore
from typing import Any, Protocol, runtime_checkable

from ctssl_jax.errors import ConfigError

WORKER_MEMORY = 8 * 2**30  # bytes of address space; a unit that wants more is given up
WORKER_SECONDS = 1800.0  # for one task
OURS = "data_prep."  # modules
START_SECONDS = 10.0  # in which a process has started, or has failed to

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class GaveUp:
    """The result of a task that took its process with it, or its time: a fixed phrase."""

    reason: str


@runtime_checkable
class Runner(Protocol):
    """Does tasks."""

    def run(
        self, function: Function, context: Any, tasks: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """Yields each task with the function's result, or with `GaveUp`."""


@dataclass(frozen=True)
class Inline:
    """One task after another in this process: for tests and small sets."""

    def run(
        self, function: Function, context: Any, tasks: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """See `Runner`."""
        for task in tasks:
            yield task, function(context, task)


@dataclass(frozen=True)
class Pool:
    """Processes on this machine. One that a decoder kills is replaced, and only its task given up.

    Attributes:
        workers: Number of processes.
        seconds: Limit for one task.
        memory: Limit of each process's address space in bytes.
    """

    workers: int
    seconds: float = WORKER_SECONDS
    memory: int = WORKER_MEMORY

    def run(
        self, function: Function, context: Any, tasks: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """See `Runner`. A few tasks per process are under way at any time, however many come."""
        from pebble import ProcessPool

        remaining = iter(tasks)
        first = list(islice(remaining, self.workers))
        if not first:
            return
        # Not fork: libraries of this process have threads that are at work. A server forks clean
        # copies instead, of itself with all that is imported here, which takes seconds.
        processes = get_context("forkserver")
        processes.set_forkserver_preload([name for name in sys.modules if name.startswith(OURS)])
        begun = processes.Semaphore(0)
        pool = ProcessPool(
            len(first),
            initializer=_begin,
            initargs=(context, self.memory, begun),
            context=processes,
        )
        waiting: dict[Any, Any] = {}
        try:
            for task in chain(first, remaining):
                future = pool.schedule(_call, args=[function, task], timeout=self.seconds)
                waiting[future] = task
                if len(waiting) >= 3 * self.workers:
                    yield from _done(waiting)
            while waiting:
                yield from _done(waiting)
            # One that is stopped while it starts would end with a traceback on the terminal.
            for _ in first:
                begun.acquire(timeout=START_SECONDS)
        finally:
            pool.stop()
            pool.join()


@dataclass(frozen=True)
class Beam:
    """An Apache Beam pipeline, on the runner that its options name.

    Source and dataset must lie where every worker sees them under the same path.

    Attributes:
        options: As on a Beam command line, e.g. "--runner=FlinkRunner --parallelism=64".
    """

    options: str

    def run(
        self, function: Function, context: Any, tasks: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """See `Runner`. The results are files: a task yields None when all are done.

        Raises:
            ConfigError: If Apache Beam is not installed.
        """
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ConfigError('--beam needs Apache Beam: pip install "ctssl_jax[beam]"') from error
        tasks = list(tasks)
        if not tasks:
            return
        options = PipelineOptions(shlex.split(self.options))
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "tasks" >> beam.Create(tasks)
                | "spread" >> beam.Reshuffle()
                | function.__name__ >> beam.Map(partial(function, context))
            )
        for task in tasks:
            yield task, None


_context: Any = None  # of a worker process


def _begin(context: Any, memory: int, begun: Semaphore) -> None:
    global _context
    _context = context
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
    begun.release()


def _call(function: Function, task: Any) -> Any:
    return function(_context, task)


def _done(waiting: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yields, and takes out, what has ended of the futures that are waited for."""
    from pebble import ProcessExpired

    ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in ended:
        task = waiting.pop(future)
        try:
            yield task, future.result()
        except TimeoutError:
            yield task, GaveUp("the reader took too long")
        except ProcessExpired:
            yield task, GaveUp("the reader crashed")
