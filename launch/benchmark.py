"""How long parts of the training step take, on this machine.

    python -m launch.benchmark augment --config=configs/spark.py [--config.FIELD=VALUE]
        [--repeats=20] [--out=FILE.json]

`augment`: the augmentation alone (stored slices to network input) and the whole training step of a
pre-training config, on random slices at its batch size and canvas. It needs no data and measures
only; what is fast enough is for the reader to say.

Another part is one more entry of PARTS: a function of the config and the number of repeats that
returns seconds by row of the table.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from ctssl_jax import platform, run_folder, sharding
from ctssl_jax.augment import IntensityKind, image_keys, make_views, normalise, to_unit
from ctssl_jax.config import PretrainConfig, config_record
from ctssl_jax.errors import ConfigError
from launch import measuring

SLICES = 250_000  # of the imagined training split: schedules need its length
KIND: IntensityKind = "hu"
STEP = "training step"  # the row that shares are of

Seconds = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's own flags."""

    part: str
    repeats: int
    out: Path | None


def augment(config: PretrainConfig, repeats: int) -> Seconds:
    """Times augmentation and training step by turns, each run waited for."""
    mesh = sharding.make_mesh()
    key = sharding.replicate(jax.random.key(config.seed), mesh)
    batch = sharding.put_batch(_random_batch(config), mesh)
    same, shared = sharding.replicated(mesh), sharding.split(mesh)
    views = jax.jit(partial(_views, config), in_shardings=(same, shared))
    step, state = _training_step(config, mesh)

    def run_views() -> None:
        jax.block_until_ready(views(key, batch))

    def run_step() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return interleave({"augmentation": run_views, STEP: run_step}, repeats)


PARTS: dict[str, Callable[[PretrainConfig, int], Seconds]] = {"augment": augment}


def _random_batch(config: PretrainConfig) -> dict[str, np.ndarray]:
    """A batch as `data.pretrain_batches` gives it."""
    rng, size, canvas = np.random.default_rng(0), config.batch_size, config.data.canvas
    rows = np.arange(size, dtype=np.int32)
    image = rng.integers(-1024, 1500, (size, canvas, canvas), dtype=np.int16)
    return {"image": image, "index": rows, "record": rows, "label": np.full_like(rows, -1)}


def _views(
    config: PretrainConfig, key: Key[Array, ""], batch: Mapping[str, jax.Array]
) -> tuple[Float[Array, "_ b _ _ c"], ...]:
    """Stored slices to network input, as at the beginning of `train.make_step`."""
    unit = to_unit(batch["image"], config.intensity, KIND)
    views = make_views(image_keys(key, 0, batch["index"]), unit, config.method.views)
    return tuple(normalise(view, config.intensity) for view in views)


def _training_step(config: PretrainConfig, mesh: Mesh) -> tuple[Callable[..., Any], Any]:
    """The compiled step and the state at its beginning, as `pretrain.run` makes them."""
    # Imported late, with all of training: a mistyped flag is answered before.
    from ctssl_jax.pretrain import make_program

    program = make_program(config, SLICES, KIND)
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(program.init, key)
    shardings = sharding.state_shardings(abstract, mesh, config.shard_state)
    state = sharding.jit_init(program.init, shardings)(key)
    return sharding.jit_step(program.step, mesh, shardings), state


def interleave(runs: Mapping[str, Callable[[], None]], repeats: int) -> Seconds:
    """Seconds of each run, taken by turns so that a change of the machine's speed meets all.

    Each runs once before, to compile.
    """
    for run in runs.values():
        run()
    seconds: Seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def summary(seconds: Seconds, batch_size: int) -> dict[str, dict[str, float]]:
    """By row: median, fastest and slowest ms per batch, images per second, share of the step."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "ms_per_batch": 1e3 * medians[name],
            "ms_min": 1e3 * min(values),
            "ms_max": 1e3 * max(values),
            "images_per_second": batch_size / medians[name],
            "share_of_step": medians[name] / medians[STEP],
        }
        for name, values in seconds.items()
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The summary for the eye."""
    lines = [f"{'':16}{'ms/batch':>10}{'min':>10}{'max':>10}{'images/s':>12}{'of the step':>13}"]
    for name, row in rows.items():
        lines.append(
            f"{name:16}{row['ms_per_batch']:10.2f}{row['ms_min']:10.2f}{row['ms_max']:10.2f}"
            f"{row['images_per_second']:12,.1f}{row['share_of_step']:13.1%}"
        )
    return "\n".join(lines)


def parse(argv: list[str]) -> tuple[Options, PretrainConfig]:
    """The command's own flags, and the config.

    Raises:
      ConfigError: a wrong flag, key or value, or a config that is not of a pre-training run.
    """
    parser = measuring.Parser("launch.benchmark", __doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each (default: 20)")
    own, config = parser.parse(argv)
    if own.repeats < 1:
        raise ConfigError(f"--repeats={own.repeats}: must be at least 1")
    config.validate()
    return Options(own.part, own.repeats, own.out), config


def measure(options: Options, config: PretrainConfig) -> None:
    """Times one part, prints the table and writes the file."""
    sharding.check_batch(config.batch_size, config.accumulate)
    config.method.validate_run(config.microbatch, SLICES)
    environment = run_folder.environment(config.precision.value)
    method, canvas = type(config.method).__name__, config.data.canvas
    print(
        f"{environment['device_count']} x {environment['device']}, jax {environment['jax']}, "
        f"commit {environment['commit']}: {method}, ResNet-{config.encoder.depth}, "
        f"{config.precision.value}, batch {config.batch_size}, canvas {canvas}",
        flush=True,
    )
    seconds = PARTS[options.part](config, options.repeats)
    rows = summary(seconds, config.batch_size)
    print(table(rows), flush=True)
    measuring.write(
        options.out,
        {
            "part": options.part,
            "repeats": options.repeats,
            "environment": environment,
            "config": config_record(config),
            "rows": rows,
            "seconds": seconds,
        },
    )


def command(argv: list[str]) -> int:
    """The command; returns its exit code."""
    platform.set_cpu_flags()
    platform.quiet_libraries()

    def work() -> None:
        options, config = parse(argv)
        platform.enable_compilation_cache()
        measure(options, config)

    return measuring.exit_code("launch.benchmark", work)


if __name__ == "__main__":
    sys.exit(command(sys.argv))
