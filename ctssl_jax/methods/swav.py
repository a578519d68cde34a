"""SwAV: the crops of a slice must agree on its prototypes (Caron et al., NeurIPS 2020).

Details: facebookresearch/swav `main_swav.py`; as run by Wolf et al.:
Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627 `swav/swav_module_lidc.py`, `swav_resnet.py`.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

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
    encode,
    init_encoder,
    init_head,
    l2_normalise,
    merge_views,
    part_views,
)
from ctssl_jax.methods.gauges import embedding_gauges, perplexity
from ctssl_jax.nn.heads import MLP, torch_uniform
from ctssl_jax.nn.resnet import ResNet


def sinkhorn(scores: Float[Array, "n k"], epsilon: float, iterations: int) -> Float[Array, "n k"]:
    """Soft assignments of n vectors to k prototypes that use every prototype equally (§3.1).

    Each row sums to 1; the columns tend to n / k with the iterations. In logarithms and at least
    fp32, because exp(scores / epsilon) leaves the range of half precision.
    """
    q = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / epsilon
    for _ in range(iterations):
        q = q - logsumexp(q, axis=0, keepdims=True)
        q = q - logsumexp(q, axis=1, keepdims=True)
    return jnp.exp(q)


def swapped_loss(
    scores: Float[Array, "v b k"], codes: Float[Array, "a b k"], temperature: float
) -> Float[Array, ""]:
    """Cross-entropy of each view's prediction and the codes of the first `a` views but its own.

    Mean over samples, over the v - 1 other views and over the codes (Eq. 2 and §3.2, multi-crop).
    """
    full = jnp.promote_types(scores.dtype, jnp.float32)
    log_p = jax.nn.log_softmax(scores.astype(full) / temperature)
    pairs = -jnp.einsum("abk,vbk->av", codes, log_p, precision="highest") / scores.shape[1]
    a, v = pairs.shape
    return jnp.where(jnp.eye(a, v, dtype=bool), 0.0, pairs).sum() / (a * (v - 1))


@dataclasses.dataclass
class SwAV:
    """Hyperparameters of SwAV; defaults are the original's for small batches.

    Attributes:
      prototypes: cluster centres; the original's 3,000 are three for each class of ImageNet, the
        500 here are what the paper gave CT.
      temperature: of the predictions.
      epsilon, sinkhorn_iterations: sharpness and steps of the assignment.
      frozen_epochs: the prototypes rest so long (the original's 313 steps are one epoch).
      queue_size: embeddings of earlier batches that join the assignment, per global crop; 0 = none.
      queue_epoch: when they begin to; the queue fills before.
      hidden, features: widths of the projector.
      view, small_view: global crops, whose codes are predicted, and local ones, which only predict.
    """

    zero_init_residual: ClassVar[bool] = False
    prototypes: int = 500
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    frozen_epochs: float = 1.0
    queue_size: int = 3840
    queue_epoch: float = 15.0
    hidden: int = 2048
    features: int = 128
    view: ViewGroup = dataclasses.field(default_factory=lambda: ViewGroup(count=2))
    small_view: ViewGroup = dataclasses.field(default_factory=lambda: ViewGroup(count=6, size=96))

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """Global and local crops."""
        return (self.view, self.small_view)

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        self.view.validate()
        self.small_view.validate()
        if self.view.count < 2:
            raise ConfigError(f"method.view.count={self.view.count}: SwAV swaps codes, set 2")
        require(
            self,
            "method",
            temperature=(self.temperature > 0, "above 0"),
            epsilon=(self.epsilon > 0, "above 0"),
            prototypes=(self.prototypes >= 2, "2 or more"),
            sinkhorn_iterations=(self.sinkhorn_iterations >= 1, "1 or more"),
            queue_size=(self.queue_size >= 0, "0 or more"),
        )

    def validate_run(self, batch_size: int, slices: int) -> None:
        """Raises `ConfigError` where queue, batch and data do not fit."""
        if self.queue_size % batch_size:
            raise ConfigError(
                f"method.queue_size={self.queue_size} is no multiple of batch_size={batch_size}: "
                "change either"
            )
        if self.queue_size > slices - batch_size:
            fits = slices // 2 // batch_size * batch_size
            raise ConfigError(
                f"method.queue_size={self.queue_size} with batch_size={batch_size} spans more "
                f"than an epoch of {slices} slices: use at most half of them, {fits}"
            )

    def projector(self) -> MLP:
        """The head before the prototypes."""
        return MLP(self.hidden, self.features, batch_norm=True)

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh encoder, projector and prototypes; an empty queue."""
        encoder_key, head_key, prototype_key = jax.random.split(key, 3)
        params, stats = init_encoder(encoder, encoder_key, self.view.size, channels)
        projector, head_stats = init_head(self.projector(), head_key, encoder.widths[-1])
        kernel = torch_uniform(self.features)(prototype_key, (self.prototypes, self.features))
        head = {"projector": projector, "prototypes": {"kernel": l2_normalise(kernel)}}
        aux: PyTree = ()  # without a queue nothing is kept: Orbax saves no empty arrays
        if self.queue_size:
            aux = {"queue": jnp.zeros((self.view.count, self.queue_size, self.features))}
        return Initial(
            {"encoder": params, "head": head}, {"encoder": stats, "head": head_stats}, aux
        )

    def loss(
        self,
        encoder: ResNet,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        progress: Progress,
    ) -> tuple[Float[Array, ""], Out]:
        """The swapped prediction; the encoder runs once for each resolution, the head once."""
        features, stats = [], state.batch_stats["encoder"]
        for x in batch["views"]:
            y, stats = encode(encoder, params["encoder"], stats, merge_views(x), key)
            features.append(part_views(y, x.shape[0]))
        y = jnp.concatenate(features)  # v b d
        head = params["head"]
        z, head_stats = apply_in_groups(
            self.projector(),
            head["projector"],
            state.batch_stats["head"],
            merge_views(y),
            key,
        )
        z = part_views(l2_normalise(z), y.shape[0])

        kernel = head["prototypes"]["kernel"]
        free = progress.reached(self.frozen_epochs)
        kernel = jnp.where(free, kernel, jax.lax.stop_gradient(kernel))
        scores = jnp.matmul(z, kernel.T, precision=jax.lax.Precision.HIGHEST)
        known = z[: self.view.count]
        codes = self.codes(known, kernel, state.aux, progress)
        loss = swapped_loss(scores, codes, self.temperature)

        prediction = jax.nn.softmax(scores[0] / self.temperature)
        metrics = {
            "chance": jnp.float32(math.log(self.prototypes)),
            "prototypes": jnp.float32(self.prototypes),
            "prototypes_used": perplexity(jax.lax.stop_gradient(prediction).mean(axis=0)),
            **embedding_gauges(z[0]),
        }
        aux = self.enqueue(state.aux, known)
        return loss, Out({"encoder": stats, "head": head_stats}, aux, metrics)

    def codes(
        self,
        z: Float[Array, "a b d"],
        kernel: Float[Array, "k d"],
        aux: PyTree,
        progress: Progress,
    ) -> Float[Array, "a b k"]:
        """Assignments of the batch's global crops, each crop for itself, with the queue if due.

        Without a gradient: a code is a target.
        """

        z, kernel = jax.lax.stop_gradient((z, kernel))

        def assign(z: Float[Array, "n d"]) -> Float[Array, "n k"]:
            scores = jnp.matmul(z, kernel.T, precision=jax.lax.Precision.HIGHEST)
            return sinkhorn(scores, self.epsilon, self.sinkhorn_iterations)

        def alone() -> Float[Array, "a b k"]:
            return jax.vmap(assign)(z)

        def with_queue() -> Float[Array, "a b k"]:
            return jax.vmap(assign)(jnp.concatenate([z, aux["queue"]], axis=1))[:, : z.shape[1]]

        if not self.queue_size:
            return alone()
        filled = progress.step * z.shape[1] * progress.microbatches >= self.queue_size
        due = filled & progress.reached(self.queue_epoch)
        return jax.lax.cond(due, with_queue, alone)

    def enqueue(self, aux: PyTree, z: Float[Array, "a b d"]) -> PyTree:
        """The newest first, the oldest dropped."""
        if not self.queue_size:
            return aux
        z = jax.lax.stop_gradient(z)
        return {"queue": jnp.concatenate([z, aux["queue"]], axis=1)[:, : self.queue_size]}

    def after_update(self, state: TrainState, progress: Progress) -> TrainState:
        """Prototypes are brought back to length 1."""
        head = state.params["head"]
        kernel = l2_normalise(head["prototypes"]["kernel"])
        head = {**head, "prototypes": {"kernel": kernel}}
        return state.replace(params={**state.params, "head": head})
