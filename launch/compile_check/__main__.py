"""Whether a pre-training config fits a TPU slice, and what a step would cost, without any TPU.

    python -m launch.compile_check --topology=v5e:16x16 --config=configs/spark.py
        [--config.FIELD=VALUE] [--chips=N] [--out=FILE.json]

Compiles the training step of `pretrain.run` ahead of time with the TPU's own compiler
(`pip install -e ".[tpu]"`, on any Linux machine) for every chip of the slice, or the first N, and
prints what the compiler says of one chip: memory, FLOPs, bytes, collectives, cycles. Time, images/s
and MFU are computed from these: an estimate, not a measurement. A config that does not fit is
refused with a change that was compiled and does fit (exit code 2). It takes minutes.
"""

import copy
import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ctssl_jax import command as frame
from ctssl_jax.config import PretrainConfig
from ctssl_jax.config_record import config_record
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import platform, sharding
from ctssl_jax.run import folder as run_folder
from launch import measuring
from launch.benchmark.steps import KIND, SLICES
from launch.compile_check import hlo as compiled
from launch.compile_check.estimate import CHIPS, Cost, Slice, summary, table

EXAMPLES = "v5e:1x1, v5e:4x4, v5e:16x16, v6e:16x16, v5p:8x8x8"


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's own flags; `chips` 0 = all of the topology."""

    topology: str
    chips: int
    out: Path | None


class OutOfMemory(Exception):
    """The compiler found no way to fit; `needed` GiB of temporaries, where it says how many."""

    def __init__(self, needed: float) -> None:
        super().__init__(needed)
        self.needed = needed


def find_slice(options: Options) -> tuple[Slice, Sequence[Any]]:
    """The slice and its chips to compile for. A slice of one chip is part of the smallest.

    Raises:
      ConfigError: no libtpu, or no such slice, or too many chips asked for.
    """
    generation, _, layout = options.topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", layout):
        raise ConfigError(f"--topology={options.topology}: give one such as {EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('libtpu, the TPU\'s compiler, is missing: pip install -e ".[tpu]"')
    from jax.experimental import topologies

    alone = set(layout.split("x")) == {"1"}
    name = f"{generation}:{CHIPS[generation].smallest}" if alone else options.topology
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--topology={options.topology}: {reason}; give one such as {EXAMPLES}"
        ) from None
    exist = 1 if alone else len(found)
    if options.chips > exist:
        raise ConfigError(f"--chips={options.chips}: {options.topology} has {exist}")
    where = Slice(options.topology, options.chips or exist)
    return where, found[: where.chips]


def batch_shapes(config: PretrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch as `data.pretrain_batches` gives it, without content."""
    size, canvas = config.batch_size, config.data.canvas
    row = jax.ShapeDtypeStruct((size,), jnp.int32)
    image = jax.ShapeDtypeStruct((size, canvas, canvas), jnp.int16)
    return {"image": image, "index": row, "record": row, "label": row}


def compile_step(config: PretrainConfig, chips: Sequence[Any]) -> Cost:
    """Compiles the step that `pretrain.run` runs, for these chips.

    Raises:
      OutOfMemory: it does not fit.
    """
    # Imported late, with all of training: a mistyped flag is answered before.
    from ctssl_jax.pretrain import make_program

    program = make_program(config, SLICES, KIND)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(program.init, key)
    batch = batch_shapes(config)

    def flops() -> float:
        # XLA counts a program before it is split on the CPU's client, TPU's compiler after.
        lowered: Any = jax.jit(program.step).lower(state, batch, key)
        return lowered.cost_analysis()["flops"]

    plain = flops()
    with jax.sharding.use_abstract_mesh(sharding.make_mesh(chips[:1]).abstract_mesh):
        written = flops()
    mesh = sharding.make_mesh(chips)
    shardings = sharding.state_shardings(state, mesh, config.shard_state)
    step: Any = sharding.jit_step(program.step, mesh, shardings)
    began = time.monotonic()
    try:
        built = step.lower(sharding.abstract(state, shardings), batch, key).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(temporaries_of(str(error))) from None
    memory, cost = built.memory_analysis(), built.cost_analysis()
    return Cost(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        cost["flops"],
        cost["bytes accessed"],
        compiled.read(built.as_text()),
        written,
        plain,
        time.monotonic() - began,
    )


def temporaries_of(message: str) -> float:
    """GiB that the compiler asks for where it gives up; 0 if it does not say."""
    found = re.search(r"\((\d+(?:\.\d+)?)([MGT])\) exceeds", message)
    return float(found[1]) * {"M": 2**-10, "G": 1.0, "T": 2.0**10}[found[2]] if found else 0.0


def mends(config: PretrainConfig, chips: int) -> Iterator[tuple[str, PretrainConfig]]:
    """Changes that need less memory, each alone, the mildest first.

    Recomputing stages costs time only. Microbatches change what BatchNorm sees, and a smaller batch
    the recipe.
    """

    def changed(flag: str, value: Any) -> tuple[str, PretrainConfig]:
        other = copy.deepcopy(config)
        *path, name = flag.split(".")
        holder: Any = other
        for part in path:
            holder = getattr(holder, part)
        setattr(holder, name, value)
        return f"--config.{flag}={str(value).lower()}", other

    candidates = [
        changed("encoder.remat_stages", stages)
        for stages in range(config.encoder.remat_stages + 1, 5)
    ]
    candidates += [changed("accumulate", config.accumulate * times) for times in (2, 4, 8)]
    if not config.shard_state:
        candidates.append(changed("shard_state", True))
    size = config.batch_size // 2
    while size >= chips * config.accumulate:
        candidates.append(changed("batch_size", size))
        size //= 2
    for flag, other in candidates:
        try:
            check_config(other, chips)
        except ConfigError:
            continue
        yield flag, other


def check_config(config: PretrainConfig, chips: int) -> None:
    """Raises `ConfigError` where the config is wrong or its batch does not divide over chips."""
    config.validate()
    sharding.check_batch(config.batch_size, config.accumulate, chips)
    config.method.validate_run(config.microbatch, SLICES)


Compile = Callable[[PretrainConfig, Sequence[Any]], Cost]


def fitting(where: Slice, config: PretrainConfig, chips: Sequence[Any], build: Compile) -> Cost:
    """What a step costs.

    Raises:
      ConfigError: it does not fit; names a change that does.
    """
    available = where.chip.hbm

    def attempt(config: PretrainConfig) -> tuple[Cost | None, float]:
        try:
            cost = build(config, chips)
        except OutOfMemory as error:
            return None, error.needed
        return (cost if cost.needed <= available else None), cost.needed

    cost, needed = attempt(config)
    if cost is not None:
        return cost
    amount = f"{needed:.2f} GiB of the" if needed else "more than the"
    reason = (
        f"batch_size={config.batch_size} on {where.chips} chips of {where.topology} needs "
        f"{amount} {available:.2f} GiB HBM of a chip"
    )
    print(f"{reason}: looking for a change that fits", flush=True)
    for flag, other in mends(config, where.chips):
        print(f"trying {flag}", flush=True)
        cost, needed = attempt(other)
        if cost is not None:
            raise ConfigError(f"{reason}: {flag} fits ({needed:.2f} GiB)")
    raise ConfigError(f"{reason}, and no single change fits: take a larger slice")


def parse(argv: list[str]) -> tuple[Options, PretrainConfig]:
    """The command's own flags, and the config.

    Raises:
      ConfigError: a wrong flag, key or value, or a config whose step cannot be measured.
    """
    parser = measuring.Parser("launch.compile_check", __doc__)
    parser.add_argument("--topology", required=True, help=f"such as {EXAMPLES}")
    parser.add_argument("--chips", type=int, default=0, help="the first N of them (default: all)")
    own, config = parser.parse(argv)
    if own.chips < 0:
        raise ConfigError(f"--chips={own.chips}: must be at least 1")
    return Options(own.topology, own.chips, own.out), config


def check(options: Options, config: PretrainConfig, build: Compile = compile_step) -> None:
    """Compiles, prints what was found and writes the file.

    Raises:
      ConfigError: the config is wrong or does not fit.
      StorageError: the file cannot be written.
    """
    where, chips = find_slice(options)
    check_config(config, where.chips)
    environment = {
        **run_folder.environment(config.precision.value),
        "libtpu": importlib.metadata.version("libtpu"),
        "device": chips[0].device_kind,
        "device_count": where.chips,
    }
    print(
        f"{where.chips} chips of {where.topology}, jax {environment['jax']}, libtpu "
        f"{environment['libtpu']}, commit {environment['commit']}: {type(config.method).__name__}, "
        f"ResNet-{config.encoder.depth}, {config.precision.value}, batch {config.batch_size} "
        f"({config.batch_size / where.chips:g} a chip), canvas {config.data.canvas}",
        flush=True,
    )
    print("compiling: this takes minutes", flush=True)
    cost = fitting(where, config, chips, build)
    found = summary(where, cost, config.batch_size)
    print(f"compiled in {cost.seconds:.0f} s\n{table(found)}", flush=True)
    record = {"environment": environment, "config": config_record(config), **found}
    measuring.write(options.out, record)


def set_up() -> None:
    """Has JAX compile on this machine's CPU and libtpu ask nothing of a network or a TPU."""
    jax.config.update("jax_platforms", "cpu")
    asked = {
        "TPU_SKIP_MDS_QUERY": "1",  # of the cloud's metadata server, which is waited for
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a training run on this machine may hold it
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any: libtpu warns where it knows none
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    for name, value in asked.items():
        os.environ.setdefault(name, value)


def command(argv: list[str]) -> int:
    """The command; returns its exit code."""
    platform.quiet_libraries()
    set_up()
    return frame.run("launch.compile_check", lambda: check(*parse(argv)))


if __name__ == "__main__":
    sys.exit(command(sys.argv))
