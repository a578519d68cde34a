"""The training step of a config on random slices: what is timed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from ctssl_jax.augment import IntensityKind, ViewGroup, image_keys, make_views, normalise, to_unit
from ctssl_jax.config import PretrainConfig
from ctssl_jax.hosts import sharding

SLICES = 250_000  # of the imagined training split: schedules need its length
KIND: IntensityKind = "hu"


class Prepared(NamedTuple):
    """A jitted training step with what it is called with."""

    step: Any  # jitted
    state: Any
    batch: dict[str, Array]
    key: Key[Array, ""]


def prepare(config: PretrainConfig) -> Prepared:
    """The step as `pretrain.run` makes it, its state at the beginning, and a batch."""
    # Imported late, with all of training: a mistyped flag is answered before.
    from ctssl_jax.pretrain import make_program

    mesh, program = sharding.make_mesh(), make_program(config, SLICES, KIND)
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(program.init, key)
    places = sharding.state_shardings(abstract, mesh, config.shard_state)
    return Prepared(
        sharding.jit_step(program.step, mesh, places),
        sharding.jit_init(program.init, places)(key),
        sharding.put_batch(random_batch(config), mesh),
        sharding.replicate(key, mesh),
    )


def compile_step(prepared: Prepared) -> tuple[Callable[[], None], jax.stages.Compiled]:
    """The step, waited for and ready to go on from its own state, and its program.

    The state of `prepared` is used up: the step writes the next one over it.
    """
    step, state, batch, key = prepared
    program = step.lower(state, batch, key).compile()

    def run() -> None:
        nonlocal state
        state, metrics = program(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run, program


def random_batch(config: PretrainConfig) -> dict[str, np.ndarray]:
    """A batch as `data.pretrain_batches` gives it."""
    rng, size, canvas = np.random.default_rng(0), config.batch_size, config.data.canvas
    rows = np.arange(size, dtype=np.int32)
    image = rng.integers(-1024, 1500, (size, canvas, canvas), dtype=np.int16)
    return {"image": image, "index": rows, "record": rows, "label": np.full_like(rows, -1)}


def views(
    config: PretrainConfig, key: Key[Array, ""], batch: Mapping[str, jax.Array]
) -> tuple[Float[Array, "_ b _ _ c"], ...]:
    """Stored slices to network input, as at the beginning of `train.make_step`."""
    unit = to_unit(batch["image"], config.intensity, KIND)
    made = make_views(image_keys(key, 0, batch["index"]), unit, config.method.views)
    return tuple(normalise(view, config.intensity) for view in made)


def without_augmentation(config: PretrainConfig) -> PretrainConfig:
    """The config with views of the same number and size, each the whole slice, resized.

    The canvas is the largest view, for a reduction from 512 px would be work that others lack.
    """
    method: Any = config.method
    plain = {
        name: ViewGroup(value.count, value.size, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
        for name, value in vars(method).items()
        if isinstance(value, ViewGroup)
    }
    canvas = max(view.size for view in plain.values())
    return dataclasses.replace(
        config,
        method=dataclasses.replace(method, **plain),
        data=dataclasses.replace(config.data, canvas=canvas),
    )


def flops(program: jax.stages.Compiled) -> float:
    """Floating-point operations of a compiled program, as its compiler counts them."""
    cost: Any = program.cost_analysis()
    return float(cost["flops"])
