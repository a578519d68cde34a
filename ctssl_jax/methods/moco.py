"""MoCo v2: a view finds its partner's key among a queue of keys of earlier batches.

He et al., CVPR 2020 (MoCo); Chen et al. 2020, arXiv 2003.04297 (v2). Details:
facebookresearch/moco `moco/builder.py`; as run by Wolf et al.: Wolfda95/SSL-MedicalImagining-CL-MAE
@87a1627 `moco2_module.py`.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ctssl_jax.augment import ViewGroup
from ctssl_jax.config_values import require
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import (
    Batch,
    Initial,
    Out,
    Progress,
    PyTree,
    TrainState,
    apply_in_groups,
    ema,
    encode,
    init_encoder,
    init_head,
    l2_normalise,
    split_as_batch,
)
from ctssl_jax.methods.gauges import embedding_gauges
from ctssl_jax.nn.heads import MLP
from ctssl_jax.nn.resnet import ResNet

NO_RECORD = -1  # of the random vectors that the queue starts with


def info_nce(
    query: Float[Array, "b d"],
    key: Float[Array, "b d"],
    queue: Float[Array, "q d"],
    temperature: float,
    hidden: Bool[Array, "b q"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """InfoNCE (MoCo, Eq. 1), and the share of queries whose own key is the most similar.

    Args:
      query, key, queue: vectors of length 1; key number i belongs to query number i.
      temperature: divides the cosine similarities.
      hidden: pairs of query and queue that are no negatives.
    """
    positive = (query * key).sum(axis=-1, keepdims=True)
    negative = jnp.matmul(query, queue.T, precision=jax.lax.Precision.HIGHEST)
    if hidden is not None:
        negative = jnp.where(hidden, -jnp.inf, negative)
    logits = jnp.concatenate([positive, negative], axis=1) / temperature
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, jnp.zeros(logits.shape[0], jnp.int32)
    )
    return losses.mean(), (logits.argmax(axis=1) == 0).mean(dtype=jnp.float32)


@dataclasses.dataclass
class MoCo:
    """Hyperparameters of MoCo v2; defaults are the original's.

    Attributes:
      temperature: of the softmax over similarities.
      queue_size: keys kept, a multiple of the batch and at most the slices of an epoch less one
        batch.
      momentum: of the key encoder's moving average.
      bn_groups: BatchNorm statistics are taken in this many parts of the batch, and the keys
        shuffled over the parts: otherwise the network can tell a pair by its shared statistics.
        The original's parts are its 8 GPUs; these need no second device. 1 = the whole batch, no
        shuffle.
      mask_own: keys of the query's own slice, which an earlier epoch may have left in the queue,
        are no negatives. (The original counts them.)
      hidden, features: widths of the projector; hidden 0 = one linear layer (MoCo v1).
      view: of query and key.
    """

    zero_init_residual: ClassVar[bool] = False
    temperature: float = 0.2
    queue_size: int = 65536
    momentum: float = 0.999
    bn_groups: int = 8
    mask_own: bool = True
    hidden: int = 2048
    features: int = 128
    view: ViewGroup = dataclasses.field(default_factory=lambda: ViewGroup(count=2))

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """One group of two views: query, key."""
        return (self.view,)

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        self.view.validate()
        if self.view.count != 2:
            raise ConfigError(f"method.view.count={self.view.count}: MoCo compares two, set 2")
        require(
            self,
            "method",
            temperature=(self.temperature > 0, "above 0"),
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
            queue_size=(self.queue_size >= 1, "1 or more"),
            bn_groups=(self.bn_groups >= 1, "1 or more"),
        )

    def validate_run(self, batch_size: int, slices: int) -> None:
        """Raises `ConfigError` where queue, batch, groups and data do not fit."""
        if batch_size % self.bn_groups or batch_size < 2 * self.bn_groups:
            raise ConfigError(
                f"method.bn_groups={self.bn_groups} does not part batch_size={batch_size} into "
                "groups of two or more: change either"
            )
        if self.queue_size % batch_size:
            raise ConfigError(
                f"method.queue_size={self.queue_size} is no multiple of batch_size={batch_size}: "
                "change either"
            )
        if self.queue_size > slices - batch_size:
            fits = max(slices // 2 // batch_size, 1) * batch_size
            raise ConfigError(
                f"method.queue_size={self.queue_size} with batch_size={batch_size} spans more "
                f"than an epoch of {slices} slices, so that it holds slices twice: use at most "
                f"half of them, {fits}"
            )

    def projector(self) -> MLP:
        """The head."""
        return MLP(self.hidden, self.features)

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh encoder and projector, their copy as key encoder, a queue of random vectors."""
        encoder_key, head_key, queue_key = jax.random.split(key, 3)
        params, stats = init_encoder(encoder, encoder_key, self.view.size, channels)
        head, head_stats = init_head(self.projector(), head_key, encoder.widths[-1])
        student = {"encoder": params, "head": head}
        student_stats = {"encoder": stats, "head": head_stats}
        queue = jax.random.normal(queue_key, (self.queue_size, self.features))
        aux = {
            "params": student,
            "batch_stats": student_stats,
            "queue": l2_normalise(queue),
            "record": jnp.full((self.queue_size,), NO_RECORD, jnp.int32),
            "pointer": jnp.zeros((), jnp.int32),
        }
        return Initial(student, student_stats, aux)

    def embed(
        self, encoder: ResNet, params: PyTree, stats: PyTree, x: Float[Array, "b h w c"], key: Array
    ) -> tuple[Float[Array, "b d"], PyTree]:
        """Vectors of length 1 and new batch statistics, in training mode."""
        groups = x.reshape(self.bn_groups, -1, *x.shape[1:])
        y, encoder_stats = encode(encoder, params["encoder"], stats["encoder"], groups, key)
        z, head_stats = apply_in_groups(self.projector(), params["head"], stats["head"], y, key)
        z = l2_normalise(z.reshape(x.shape[0], -1))
        return z, {"encoder": encoder_stats, "head": head_stats}

    def keys(
        self, encoder: ResNet, aux: PyTree, x: Float[Array, "b h w c"], key: Array
    ) -> tuple[Float[Array, "b d"], PyTree]:
        """The key encoder's vectors, without a gradient, and its own batch statistics."""
        shuffle_key, apply_key = jax.random.split(key)
        order = jnp.arange(x.shape[0])
        if self.bn_groups > 1:
            order = jax.random.permutation(shuffle_key, x.shape[0])
        # Told to lie as the batch does: left alone, `jit` gives every device all shuffled images
        # and has each of them compute all keys.
        shuffled = split_as_batch(x[order])
        z, stats = self.embed(encoder, aux["params"], aux["batch_stats"], shuffled, apply_key)
        return jax.lax.stop_gradient(jnp.zeros_like(z).at[order].set(z)), stats

    def loss(
        self,
        encoder: ResNet,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        progress: Progress,
    ) -> tuple[Float[Array, ""], Out]:
        """InfoNCE against the queue as it was; the batch's keys enter it afterwards."""
        query_view, key_view = batch["views"][0]
        query_key, key_key = jax.random.split(key)
        query, stats = self.embed(encoder, params, state.batch_stats, query_view, query_key)
        keys, key_stats = self.keys(encoder, state.aux, key_view, key_key)

        queue, record = state.aux["queue"], state.aux["record"]
        own = batch["record"][:, None] == record if self.mask_own else None
        loss, found = info_nce(query, keys, queue, self.temperature, own)

        pointer = state.aux["pointer"]
        b = keys.shape[0]
        aux = {
            "params": state.aux["params"],
            "batch_stats": key_stats,
            "queue": jax.lax.dynamic_update_slice_in_dim(queue, keys, pointer, 0),
            "record": jax.lax.dynamic_update_slice_in_dim(record, batch["record"], pointer, 0),
            "pointer": (pointer + b) % self.queue_size,
        }
        steps_to_fill = self.queue_size / (b * progress.microbatches)
        age = jnp.minimum(progress.step, steps_to_fill) / progress.steps_per_epoch
        metrics = {
            "contrast_accuracy": found,
            "chance": jnp.float32(math.log(self.queue_size + 1)),
            "queue_age_epochs": age,
            **embedding_gauges(query),
        }
        return loss, Out(stats, aux, metrics)

    def after_update(self, state: TrainState, progress: Progress) -> TrainState:
        """The key encoder follows; the original does so at the start of the next step."""
        teacher = ema(state.aux["params"], state.params, self.momentum)
        return state.replace(aux={**state.aux, "params": teacher})
