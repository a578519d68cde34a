"""All that is worth knowing of a new device, the most important first, within some minutes.

    python -m launch.benchmark gpu --minutes=10 --workdir=OUT [--data=DATASET] [--small]

Each measurement is a process of its own: one that fails, or takes too much memory, keeps none of
the others. What is done is kept in OUT, so that repeating the command goes on. Those for which no
time is left are named. OUT/gpu.json has every number, OUT/gpu.md the tables.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ctssl_jax import command as frame
from ctssl_jax.errors import ConfigError
from ctssl_jax.files import make_private, write_json, write_text
from ctssl_jax.log import duration

METHODS = ("spark", "moco", "swav", "byol")
LEAST = 20.0
"""Seconds below which no further measurement is begun."""


class Measurement(NamedTuple):
    """A part of the benchmark with its config.

    Attributes:
      name: of its file and of its heading.
      words: of the command, after `python -m launch.benchmark`.
      limit: seconds after which it is given up.
    """

    name: str
    words: tuple[str, ...]
    limit: float

    def file(self, workdir: Path) -> Path:
        """Where its numbers are kept."""
        return workdir / f"{self.name.replace(' ', '-')}.json"


def measurements(small: bool, data: str) -> Iterator[Measurement]:
    """What is measured, the most important first.

    Args:
      small: with the networks of `:smoke`, to try the command.
      data: a dataset whose reading is set beside a step; "" for none.
    """
    preset, repeats = (":smoke", "--repeats=2") if small else ("", "--repeats=10")
    batch = () if small else ("--config.batch_size=256",)  # of each method alike: MoCo's own

    def of(method: str, *more: str) -> tuple[str, ...]:
        queue = ("--config.method.queue_size=0",) if method == "swav" and not small else ()
        return (f"--config=configs/{method}.py{preset}", *batch, *queue, *more)

    yield Measurement("peak", ("peak", *of("spark")), 60)
    for method in METHODS:
        yield Measurement(
            f"parity {method}", ("parity", f"--config=configs/{method}.py:smoke"), 120
        )
    for method in METHODS:
        yield Measurement(f"step {method}", ("augment", *of(method), repeats), 180)
    masked = of("spark", "--config.method.sparse=masked")
    yield Measurement("step spark masked", ("augment", *masked, repeats), 180)
    if data:
        reading = of("spark", f"--config.data.path={data}")
        yield Measurement("reading", ("reading", *reading, repeats), 120)
    for method in ("spark", "moco"):
        yield Measurement(f"breakdown {method}", ("breakdown", *of(method), repeats), 240)
    for method in METHODS:
        float32 = of(method, "--config.precision=float32")
        yield Measurement(f"step {method} float32", ("augment", *float32, repeats), 180)


def measure(argv: list[str]) -> None:
    """Makes what is not yet made and writes both files after each.

    Raises:
      ConfigError: a wrong flag.
      StorageError: the folder cannot be written.
    """
    parser = frame.Parser(prog="python -m launch.benchmark gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it (10)")
    parser.add_argument("--workdir", type=Path, required=True, help="a folder for what is found")
    parser.add_argument("--data", default="", help="a prepared dataset, whose reading is timed")
    parser.add_argument("--small", action="store_true", help="small networks, to try the command")
    asked = parser.parse_args(argv)
    if asked.minutes <= 0:
        raise ConfigError(f"--minutes={asked.minutes:g}: must be above 0")
    make_private(asked.workdir)
    end, plan = time.monotonic() + 60 * asked.minutes, list(measurements(asked.small, asked.data))
    failed, skipped = [], []
    for each in plan:
        file, left = each.file(asked.workdir), end - time.monotonic()
        if file.exists():
            continue
        if left < LEAST:
            skipped.append(each.name)
            continue
        print(f"{each.name} ({duration(left)} left)", flush=True)
        if said := attempt(each, file, min(each.limit, left)):
            failed.append(f"{each.name}: {said}")
            print(f"  {said}", flush=True)
        write(asked.workdir, plan)
    write(asked.workdir, plan)
    for name in skipped:
        print(f"no time was left for {name}: repeat the command")
    print(f"{asked.workdir}/gpu.md: {len(failed)} failed, {len(skipped)} left to do")


def attempt(each: Measurement, file: Path, seconds: float) -> str:
    """Makes one measurement; returns what went wrong with it, "" for nothing."""
    command = [sys.executable, "-m", "launch.benchmark", *each.words, f"--out={file}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return f"exit code {done.returncode}: {lines[-1][:200] if lines else ''}"
    return ""


def write(workdir: Path, plan: list[Measurement]) -> None:
    """Writes gpu.json and gpu.md of what there is."""
    found: dict[str, Any] = {}
    for each in plan:
        if (file := each.file(workdir)).exists():
            found[each.name] = json.loads(file.read_text())
    write_json(workdir / "gpu.json", found)
    write_text(workdir / "gpu.md", page(found))


def page(found: dict[str, Any]) -> str:
    """The tables."""
    if not found:
        return "Nothing was measured.\n"
    environment = next(iter(found.values()))["environment"]
    names = ("device", "device_count", "jax", "jaxlib", "python", "commit")
    said = ", ".join(f"{name} {environment[name]}" for name in names if name in environment)
    lines = [f"{said}.", "", *steps(found), ""]
    for name, record in found.items():
        if not name.startswith("step"):
            lines += [f"**{name}**: {record['title']}", "", record["table"], ""]
    return "\n".join(lines)


def steps(found: dict[str, Any]) -> list[str]:
    """A row for each timed step; MFU is of the matrix products that the device did at best."""
    peak = found.get("peak", {}).get("found", {})
    lines = [
        "| step | ms | images/s | augmentation | TFLOP | MFU | memory at most, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, record in found.items():
        if not name.startswith("step"):
            continue
        row, views = record["rows"]["training step"], record["rows"]["augmentation"]
        best = peak.get(f"tflops_{record['config']['config']['precision']}")
        rate = row["flops"] / row["ms_per_batch"] / 1e9  # TFLOP/s
        memory = record.get("peak_bytes")
        cells = [
            *(name.removeprefix("step "), f"{row['ms_per_batch']:,.1f}"),
            *(f"{row['images_per_second']:,.0f}", f"{views['share_of_step']:.1%}"),
            *(f"{row['flops'] / 1e12:.2f}", f"{rate / best:.1%}" if best else "–"),
            f"{memory / 2**30:.1f}" if memory else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
