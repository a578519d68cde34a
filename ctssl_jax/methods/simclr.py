"""SimCLR: each view finds its partner among all other views of the batch (Chen et al., ICML 2020).

No queue, no teacher. The shortest method: read it to see what a method is.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
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
from ctssl_jax.methods.gauges import embedding_gauges
from ctssl_jax.nn.heads import MLP
from ctssl_jax.nn.resnet import ResNet


def nt_xent(
    z: Float[Array, "2 b d"], temperature: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Normalised-temperature cross-entropy (Eq. 1), and the share of views that find their partner.

    Args:
      z: embeddings of length 1 of both views.
      temperature: divides the cosine similarities.
    """
    b = z.shape[1]
    flat = z.reshape(2 * b, -1)
    similarity = jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST) / temperature
    similarity = jnp.where(jnp.eye(2 * b, dtype=bool), -jnp.inf, similarity)
    partner = jnp.roll(jnp.arange(2 * b), b)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(similarity, partner)
    found = (similarity.argmax(axis=-1) == partner).mean(dtype=jnp.float32)
    return losses.mean(), found


@dataclasses.dataclass
class SimCLR:
    """Hyperparameters of SimCLR; defaults are the paper's (§2, appendix B.9).

    Attributes:
      temperature: of the softmax over similarities.
      hidden, features: widths of the projector.
      view: of the two views.
    """

    zero_init_residual: ClassVar[bool] = False
    temperature: float = 0.1
    hidden: int = 2048
    features: int = 128
    view: ViewGroup = dataclasses.field(default_factory=lambda: ViewGroup(count=2))

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """One group of two views."""
        return (self.view,)

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        self.view.validate()
        if self.view.count != 2:
            raise ConfigError(f"method.view.count={self.view.count}: SimCLR compares two, set 2")
        require(self, "method", temperature=(self.temperature > 0, "above 0"))

    def validate_run(self, batch_size: int, slices: int) -> None:
        """Raises `ConfigError` for a batch without negatives, or with a slice twice."""
        if not 2 <= batch_size <= slices:
            raise ConfigError(
                f"batch_size={batch_size}: SimCLR takes its negatives from the batch, use 2 to "
                f"{slices} (slices)"
            )

    def projector(self) -> MLP:
        """The head."""
        return MLP(self.hidden, self.features, batch_norm=True)

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh encoder and projector."""
        encoder_key, head_key = jax.random.split(key)
        params, stats = init_encoder(encoder, encoder_key, self.view.size, channels)
        head, head_stats = init_head(self.projector(), head_key, encoder.widths[-1])
        return Initial(
            {"encoder": params, "head": head}, {"encoder": stats, "head": head_stats}, ()
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
        """The mean over both views of all slices; BatchNorm sees both views together."""
        x = batch["views"][0]
        both = merge_views(x)
        y, stats = encode(encoder, params["encoder"], state.batch_stats["encoder"], both, key)
        z, head_stats = apply_in_groups(
            self.projector(), params["head"], state.batch_stats["head"], y, key
        )
        z = part_views(l2_normalise(z), 2)
        loss, found = nt_xent(z, self.temperature)
        metrics = {
            "contrast_accuracy": found,
            "chance": jnp.float32(math.log(2 * x.shape[1] - 1)),
            **embedding_gauges(z[0]),
        }
        return loss, Out({"encoder": stats, "head": head_stats}, state.aux, metrics)

    def after_update(self, state: TrainState, progress: Progress) -> TrainState:
        """Nothing follows the update."""
        return state
