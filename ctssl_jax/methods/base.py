"""What a method is: a dataclass of numbers with three pure functions.

A method owns its hyperparameters, its head and what it remembers (`aux`: teacher, queue); the step
and the loop are shared and know none of them. `params` and `batch_stats` hold the keys `encoder`
(the ResNet, the same tree for all methods) and `head`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
from jaxtyping import Array, Float

from ctssl_jax.augment import ViewGroup
from ctssl_jax.nn.resnet import ResNet

PyTree = Any
Batch = Mapping[str, Any]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a run needs to continue; nothing else exists."""

    step: Any  # int32 scalar; like all fields, an array, its abstract form or its sharding
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    aux: PyTree


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


@runtime_checkable
class Method(Protocol):
    """The interface; see `spark.SparK` and `supervised.Supervised`."""

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """The groups of views that a loss reads from `batch['views']`."""
        ...

    def validate(self) -> None:
        """Raises `ConfigError` where hyperparameters make no sense."""
        ...

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh parameters of encoder and head, and the method's own memory."""
        ...

    def loss(
        self, encoder: ResNet, params: PyTree, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], Out]:
        """The scalar to minimise, in fp32.

        `batch` holds `views` (one array `[count, b, h, w, c]` for each group), `keys` (one PRNG key
        per image, independent of the number of devices) and `label` where there is one.
        """
        ...

    def after_update(self, state: TrainState, progress: Float[Array, ""]) -> TrainState:
        """What follows the optimizer (EMA, normalisation); `progress` runs from 0 to 1."""
        ...


def init_encoder(
    encoder: ResNet, key: jax.Array, size: int, channels: int
) -> tuple[PyTree, PyTree]:
    """Fresh encoder parameters and batch statistics."""
    sample = jax.numpy.zeros((1, size, size, channels), encoder.param_dtype)
    variables = encoder.init({"params": key, "drop_path": key}, sample)
    return variables["params"], variables["batch_stats"]
