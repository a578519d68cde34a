"""How fast training is on this machine. It measures only; what is fast enough is for you to say.

    python -m launch.benchmark PART --config=configs/spark.py [--config.FIELD=VALUE]
        [--repeats=20] [--out=FILE.json]

Parts:
  augment     augmentation alone (stored slices to network input) beside the training step
  breakdown   augmentation, loss and gradients and what they are made of, optimizer, step
  compare     whole steps in processes that take turns: as configured, and each --against:
              FIELD=VALUE[,FIELD=VALUE] of the config, `torch` or `torch:channels_last`.
              Augmentation is left out. --starts: how often the processes are started anew
  reading     reading, decoding and batching of config.data.path beside the step
  startup     from the command to the first step, with an empty compilation cache and a full one
  peak        what the device does at best: matrix products, and bytes copied
  parity      a step on the device, in both precisions, beside the CPU's
  gpu         all that is worth knowing of a new device, within --minutes, without a config:
              python -m launch.benchmark gpu --minutes=10 --workdir=OUT; `gpu --help` has the rest

A config of a fine-tuning that learns slices is measured with all layers learning.

All but `reading` and `startup` take random slices and need no data. With --out it writes a JSON
file of every number and, of parts of the step, a picture beside it.
"""

if __name__ == "__main__":
    from ctssl_jax.hosts import platform

    platform.use_huge_pages()  # and PyTorch's steps too

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax

from ctssl_jax import command as frame
from ctssl_jax.config import PretrainConfig
from ctssl_jax.config_record import config_record
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import platform, sharding
from ctssl_jax.run import folder as run_folder
from launch import measuring
from launch.benchmark import compare, device, parity, parts, peak, picture, reading, startup
from launch.benchmark.steps import SLICES


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's own flags; `arguments` are the config's."""

    part: str
    repeats: int
    starts: int
    variants: list[compare.Variant]  # of `compare`
    out: Path | None
    arguments: tuple[str, ...]


def parse(argv: list[str]) -> tuple[Options, PretrainConfig]:
    """The command's own flags, and the config.

    Raises:
      ConfigError: a wrong flag, key or value, or a config whose step cannot be measured.
    """
    parser = measuring.Parser("launch.benchmark", __doc__)
    known = [*parts.PARTS, "compare", "reading", "startup", "peak", "parity"]
    parser.add_argument("part", choices=known, metavar="PART")
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each (default: 20)")
    parser.add_argument("--starts", type=int, default=3, help="of `compare` (default: 3)")
    parser.add_argument("--against", action="append", default=[], help="of `compare`; may repeat")
    own, config = parser.parse(argv)
    for name in ("repeats", "starts"):
        if getattr(own, name) < 1:
            raise ConfigError(f"--{name}={getattr(own, name)}: must be at least 1")
    if own.against and own.part != "compare":
        raise ConfigError(f"--against={own.against[0]}: is for `compare`")
    config.validate()
    against = compare.variants(own.against)
    arguments = tuple(word for word in argv[1:] if word.startswith("--config"))
    return Options(own.part, own.repeats, own.starts, against, own.out, arguments), config


def measure(options: Options, config: PretrainConfig) -> None:
    """Times one part, prints the table and writes the files."""
    sharding.check_batch(config.batch_size, config.accumulate)
    config.method.validate_run(config.microbatch, SLICES)
    environment = run_folder.environment(config.precision.value)
    title = (
        f"{type(config.method).__name__}, ResNet-{config.encoder.depth}, "
        f"{config.method.views[0].size} px, batch {config.batch_size}, {config.precision.value}"
    )
    # Compared steps have the canvas of their views: `steps.without_augmentation`.
    canvas = "" if options.part == "compare" else f", canvas {config.data.canvas}"
    print(
        f"{environment['device_count']} x {environment['device']}, jax {environment['jax']}, "
        f"commit {environment['commit']}: {title}{canvas}",
        flush=True,
    )
    found, table = timed(options, config)
    print(table, flush=True)
    record = {
        "part": options.part,
        "title": title,
        "repeats": options.repeats,
        "environment": environment,
        "config": config_record(config),
        "peak_bytes": peak_bytes(),
        "table": table,
        **found,
    }
    measuring.write(options.out, record)
    if options.out and "rows" in record:
        picture.draw(record, options.out.with_suffix(".png"))


def timed(options: Options, config: PretrainConfig) -> tuple[dict[str, Any], str]:
    """What one part found, and its table."""
    if options.part == "peak":
        best = peak.measure()
        return {"found": best}, peak.table(best)
    if options.part == "parity":
        apart = parity.measure(config)
        return {"found": apart}, parity.table(apart)
    if options.part == "startup":
        starts = startup.measure(options.arguments, options.repeats)
        return {"seconds": starts}, startup.table(starts)
    if options.part == "compare":
        measured = compare.measure(
            options.variants, options.arguments, options.repeats, options.starts
        )
        rows = compare.summary(measured, config.batch_size)
        seconds = {name: one.seconds for name, one in measured.items()}
        return {"starts": options.starts, "rows": rows, "seconds": seconds}, compare.table(rows)
    if options.part == "reading":
        timed_parts, times = reading.measure(config, options.repeats)
    else:
        timed_parts = parts.PARTS[options.part](config)
        times = parts.interleave(timed_parts, options.repeats)
    shares = parts.summary(timed_parts, times, config.batch_size)
    return {"rows": shares, "seconds": times}, parts.table(shares)


def peak_bytes() -> int | None:
    """The most memory of the first device that was taken at once; None where it does not say."""
    known = jax.local_devices()[0].memory_stats()
    return int(known["peak_bytes_in_use"]) if known and "peak_bytes_in_use" in known else None


def command(argv: list[str]) -> int:
    """The command; returns its exit code."""
    if argv[1:2] == ["gpu"]:
        return frame.run("launch.benchmark", lambda: device.measure(argv[2:]))
    platform.set_cpu_flags()
    platform.quiet_libraries()

    def work() -> None:
        options, config = parse(argv)
        platform.enable_compilation_cache()
        measure(options, config)

    return frame.run("launch.benchmark", work)


if __name__ == "__main__":
    sys.exit(command(sys.argv))
