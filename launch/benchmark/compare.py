"""Whole training steps side by side: variants of ours, and PyTorch's.

Each variant has a process of its own, since two frameworks would fight for one process's threads.
The processes take turns in changing order, while the others sleep, so that a change of the
machine's speed meets all. A turn is two steps, of which the second is timed: the first pays for
memory that the system took back during the pause. A ratio is of two steps of one round; quoted is
the median over rounds, and of those the median over several starts of all processes.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ctssl_jax.errors import ConfigError, DeviceError
from ctssl_jax.log import duration

OURS, TORCH = "ours", ("torch", "torch:channels_last")


class Variant(NamedTuple):
    """A step to time: its name, what the worker is told, and more settings of the config."""

    name: str
    kind: str
    settings: tuple[str, ...] = ()


class Measured(NamedTuple):
    """Of one variant: facts and seconds of each round, by start of the processes."""

    facts: list[dict[str, Any]]
    seconds: list[list[float]]


def variants(against: Sequence[str]) -> list[Variant]:
    """The config as it is, and what it is compared with.

    Raises:
      ConfigError: an entry that is neither of PyTorch nor a setting.
    """
    found = [Variant(OURS, OURS)]
    for text in against:
        settings = tuple(f"--config.{part}" for part in text.split(","))
        if text in TORCH:
            found.append(Variant(text, text))
        elif all("=" in part for part in settings):
            found.append(Variant(text, OURS, settings))
        else:
            raise ConfigError(f"--against={text}: give FIELD=VALUE, {' or '.join(TORCH)}")
    return found


class Worker:
    """A process that makes a step when asked."""

    def __init__(self, variant: Variant, arguments: Sequence[str]):
        self._name = variant.name
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.benchmark.worker", variant.kind),
                *(*arguments, *variant.settings),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = {}

    def start(self) -> None:
        """Waits until the step is compiled and warm; the facts are what is known of it."""
        self.facts = self._answer()

    def step(self) -> float:
        """Seconds of one step."""
        return self._ask("step")["seconds"]

    def end(self) -> None:
        """Ends the process; the facts then hold its peak memory."""
        self.facts |= self._ask("end")

    def close(self) -> None:
        """Ends it at once, if it still runs."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer is missing then
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise DeviceError(f"the process of {self._name} ended: what it said is above")
        return json.loads(line)


@contextmanager
def working(variants: Sequence[Variant], arguments: Sequence[str]) -> Iterator[list[Worker]]:
    """Starts the processes one after the other: none compiles beside another."""
    workers: list[Worker] = []
    try:
        for variant in variants:
            workers.append(Worker(variant, arguments))
            workers[-1].start()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def measure(
    variants: Sequence[Variant], arguments: Sequence[str], rounds: int, starts: int
) -> dict[str, Measured]:
    """Times every variant; says how far it is.

    Raises:
      DeviceError: a process ended by itself.
    """
    found = {variant.name: Measured([], []) for variant in variants}
    for start in range(starts):
        with working(variants, arguments) as workers:
            seconds: list[list[float]] = [[] for _ in workers]
            for number in range(rounds):
                turn = number % len(workers)
                for index in [*range(turn, len(workers)), *range(turn)]:
                    seconds[index].append(workers[index].step())
                left = 2 * sum(map(statistics.mean, seconds)) * (rounds - number - 1)
                print(
                    f"start {start + 1}/{starts}, round {number + 1}/{rounds}, about "
                    f"{duration(left)} left of this start",
                    file=sys.stderr,
                    flush=True,
                )
            for variant, worker, values in zip(variants, workers, seconds, strict=True):
                worker.end()
                found[variant.name].facts.append(worker.facts)
                found[variant.name].seconds.append(values)
    return found


def summary(found: dict[str, Measured], batch_size: int) -> dict[str, dict[str, Any]]:
    """By variant: median ms and images per second, what a step of ours is of it, facts.

    `ratio` is ours to the variant's: below 1, ours is faster. `ratio_low` and `ratio_high` are the
    extremes over the starts of the processes.
    """
    ours, rows = found[OURS], {}
    for name, one in found.items():
        median = statistics.median(value for values in one.seconds for value in values)
        ratios = [
            statistics.median(a / b for a, b in zip(*pair, strict=True))
            for pair in zip(ours.seconds, one.seconds, strict=True)
        ]
        peaks = [facts["peak_bytes"] for facts in one.facts if facts.get("peak_bytes")]
        rows[name] = {
            "ms": 1e3 * median,
            "images_per_second": batch_size / median,
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "peak_bytes": statistics.median(peaks) if peaks else None,
            "start_seconds": statistics.median(facts["start_seconds"] for facts in one.facts),
            **{name: one.facts[0].get(name) for name in ("flops", "temporary_bytes", "parameters")},
        }
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The summary as Markdown."""

    def scaled(value: float | int | None, unit: float, digits: int) -> str:
        return "–" if value is None else f"{value / unit:,.{digits}f}"

    lines = [
        "| step | ms | images/s | ours to it (over starts) | GFLOP | peak GB | temporaries GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
        cells = [
            *(f"`{name}`", f"{row['ms']:,.0f}", f"{row['images_per_second']:,.1f}"),
            "1" if name == OURS else ratio,
            scaled(row["flops"], 1e9, 1),
            scaled(row["peak_bytes"], 1e9, 2),
            scaled(row["temporary_bytes"], 1e9, 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
