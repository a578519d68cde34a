"""What a method is: a dataclass of numbers with a few pure functions.

A method owns its hyperparameters, its head and what it remembers (`aux`: teacher, queue); the step
and the loop are shared and know none of them. `params` and `batch_stats` hold the keys `encoder`
(the ResNet, the same tree for all methods) and `head`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from ctssl_jax.augment import ViewGroup
from ctssl_jax.nn.normalisation import batch_norm_groups
from ctssl_jax.nn.resnet import STRIDE, ResNet, pool

PyTree = Any
Batch = Mapping[str, Any]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a run needs to continue; nothing else exists."""

    step: Any  # int32 scalar; like all fields, an array, its abstract form or its sharding
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    aux: PyTree


class Progress(NamedTuple):
    """How far a run is when a step begins."""

    step: Any  # int32 scalar: updates done before
    total_steps: int
    steps_per_epoch: float | int
    microbatches: int = 1  # in which a step's batch comes, each a loss of its own

    @property
    def fraction(self) -> Float[Array, ""]:
        """Of the run, from 0 to just below 1."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> Float[Array, ""]:
        """Passes over the data, with their fraction."""
        return self.step / self.steps_per_epoch

    def reached(self, epoch: float) -> Bool[Array, ""]:
        """Whether that many epochs are over; exact, where a division by XLA is rounded."""
        return self.step >= epoch * self.steps_per_epoch


class Out(NamedTuple):
    """What one evaluation of a loss changed, and its scalar metrics."""

    batch_stats: PyTree
    aux: PyTree
    metrics: dict[str, Float[Array, ""]]


class Initial(NamedTuple):
    """What a method starts from."""

    params: PyTree
    batch_stats: PyTree
    aux: PyTree


class Start(NamedTuple):
    """Weights that were trained before, to start from: an `encoder`, perhaps with a `head`."""

    params: dict[str, PyTree]
    batch_stats: dict[str, PyTree]


def started(initial: Initial, start: Start) -> Initial:
    """`initial` with those weights in place of fresh ones; a teacher (in `aux`) copies the encoder.

    Nothing else changes: moments of the optimizer are still to be made, of zeros.
    """
    aux = initial.aux
    if isinstance(aux, Mapping) and "encoder" in aux.get("params", {}):
        teacher = {
            name: {**aux[name], "encoder": getattr(start, name)["encoder"]}
            for name in Start._fields
        }
        aux = {**aux, **teacher}
    return Initial(
        {**initial.params, **start.params}, {**initial.batch_stats, **start.batch_stats}, aux
    )


def split_as_batch(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """`x`, told to lie over the devices as the batch does: each holds a part of the leading axis.

    The devices are those of the program that is traced (`sharding.jit_step`); elsewhere `x` is
    returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(mesh.axis_names))


@runtime_checkable
class Method(Protocol):
    """The interface; `simclr.SimCLR` is the shortest example.

    Attributes:
      zero_init_residual: whether the encoder's residual blocks start as the identity, as its
        literature has it. Nothing else decides that; docs/deviations.md lists it.
    """

    zero_init_residual: ClassVar[bool]

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """The groups of views that a loss reads from `batch['views']`."""
        ...

    def validate(self) -> None:
        """Raises `ConfigError` where hyperparameters make no sense."""
        ...

    def validate_run(self, batch_size: int, slices: int) -> None:
        """Raises `ConfigError` where they do not fit the batch or the number of slices."""
        ...

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh parameters of encoder and head, and the method's own memory."""
        ...

    def loss(
        self,
        encoder: ResNet,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        progress: Progress,
    ) -> tuple[Float[Array, ""], Out]:
        """The scalar to minimise, in fp32.

        `batch` holds `views` (one array `[count, b, h, w, c]` for each group), `keys` (one PRNG key
        per image, independent of the number of devices), `record` (row numbers, int32) and `label`
        where there is one. Metrics named as in `gauges.py` are read aloud in the log.
        """
        ...

    def after_update(self, state: TrainState, progress: Progress) -> TrainState:
        """What follows the optimizer (EMA, normalisation), at the `progress` of the loss."""
        ...


def init_encoder(
    encoder: ResNet, key: jax.Array, size: int, channels: int
) -> tuple[PyTree, PyTree]:
    """Fresh encoder parameters and batch statistics."""
    sample = jnp.zeros((1, size, size, channels), encoder.param_dtype)
    variables = encoder.init({"params": key, "drop_path": key}, sample)
    return variables["params"], variables["batch_stats"]


def abstract_encoder(encoder: ResNet, channels: int) -> tuple[PyTree, PyTree]:
    """What `init_encoder` gives, as shapes and dtypes; they depend on no size of image."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda key: init_encoder(encoder, key, STRIDE, channels), key)


def init_head(head: nn.Module, key: jax.Array, features: int) -> tuple[PyTree, PyTree]:
    """Fresh parameters and batch statistics of a module on vectors of `features` numbers."""
    variables = head.init(key, jnp.zeros((1, features)), False)
    return variables["params"], variables.get("batch_stats", {})


def apply_in_groups(
    module: nn.Module, params: PyTree, stats: PyTree, x: Float[Array, "g b *d"], key: jax.Array
) -> tuple[Any, PyTree]:
    """A module in training mode, each of `g` groups with BatchNorm statistics of its own.

    Returns:
      The outputs, with the groups leading, and new running statistics: the mean over the groups.
    """

    with batch_norm_groups(len(x)):
        y, updates = module.apply(
            {"params": params, "batch_stats": stats},
            x.reshape(-1, *x.shape[2:]),
            True,
            mutable=["batch_stats"],
            rngs={"drop_path": key},
        )
    grouped = jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), y)
    return grouped, updates.get("batch_stats", {})


def apply_each(
    module: nn.Module, params: PyTree, stats: PyTree, x: Float[Array, "v b *d"], key: jax.Array
) -> tuple[Any, PyTree]:
    """The same for few groups that part no batch but repeat it: views, one after the other.

    In one batch of them the views would lead: no device's slices lie together in it, and under
    `jit` each device would gather, or compute, the whole batch.
    """
    keys = jax.random.split(key, x.shape[0])
    found = [
        apply_in_groups(module, params, stats, view[None], view_key)
        for view, view_key in zip(x, keys, strict=True)
    ]
    y, stats = zip(*found, strict=True)
    joined = jax.tree.map(lambda *values: jnp.concatenate(values), *y)
    return joined, jax.tree.map(lambda *values: sum(values) / len(values), *stats)


def encode(
    encoder: ResNet, params: PyTree, stats: PyTree, x: Float[Array, "g b h w c"], key: jax.Array
) -> tuple[Float[Array, "g b d"], PyTree]:
    """Features (fp32) of images in training mode, grouped as in `apply_in_groups`."""
    stages, stats = apply_in_groups(encoder, params, stats, x, key)
    return jax.vmap(pool)(stages[-1]), stats


def encode_each(
    encoder: ResNet, params: PyTree, stats: PyTree, x: Float[Array, "v b h w c"], key: jax.Array
) -> tuple[Float[Array, "v b d"], PyTree]:
    """Features (fp32) of views in training mode, one after the other as in `apply_each`."""
    stages, stats = apply_each(encoder, params, stats, x, key)
    return jax.vmap(pool)(stages[-1]), stats


def merge_views(x: Float[Array, "v b *d"]) -> Float[Array, "1 n *d"]:
    """All views of a batch as one group. The views of a slice lie together, on its device."""
    return x.swapaxes(0, 1).reshape(1, -1, *x.shape[2:])


def part_views(x: Float[Array, "1 n d"], count: int) -> Float[Array, "v b d"]:
    """The inverse of `merge_views` for `count` views of vectors."""
    return x.reshape(-1, count, x.shape[-1]).swapaxes(0, 1)


def l2_normalise(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Vectors of length 1; a zero vector stays zero, with a zero gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


def ema(teacher: PyTree, student: PyTree, momentum: Any) -> PyTree:
    """`momentum * teacher + (1 - momentum) * student`, of parameters: never of BatchNorm's."""
    return optax.incremental_update(student, teacher, 1.0 - momentum)
