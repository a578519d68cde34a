"""Classification of cases: bags of slices with one label, by multiple-instance learning.

The slices of a case go through the encoder, their feature vectors are pooled to one of the case,
and a linear layer classifies that ("embedding-level" pooling, Ilse et al. 2018). A slice task is
the special case of one slice a case.
"""

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from ctssl_jax.config_values import require
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import Batch, Initial, Out, Progress, PyTree, TrainState, init_encoder
from ctssl_jax.methods.supervised import Classifier, Supervised
from ctssl_jax.nn.normalisation import batch_norm_mask
from ctssl_jax.nn.pooling import GatedAttention, mean_of_slices, top_of_slices
from ctssl_jax.nn.resnet import ResNet

RANDOM = ("hflip", "vflip", "rotate", "jitter", "blur", "noise")  # probabilities of a view


class Pooling(enum.Enum):
    """How the feature vectors of slices become that of their case; see `nn.pooling`.

    Attributes:
      MEAN: their mean.
      MAX: the largest value of each feature.
      TOP_K: the mean of the `top_k` largest values of each feature.
      ATTENTION: their mean weighted by gated attention, which is learnt.
    """

    MEAN = "mean"
    MAX = "max"
    TOP_K = "top_k"
    ATTENTION = "attention"


class Draw(enum.Enum):
    """Which slices of a case with more than `slices` a training step sees.

    Attributes:
      EVEN: at equal distances, from a random start.
      RANDOM: any, without repetition.
    """

    EVEN = "even"
    RANDOM = "random"


class Learn(enum.Enum):
    """What the loss is of.

    Attributes:
      CASES: each case's pooled slices.
      SLICES: each slice by itself, with its own label, or that of its case where it has none. What
        is pooled over a case is then its slices' scores: their log-odds against the first class.
    """

    CASES = "cases"
    SLICES = "slices"


class CaseHead(nn.Module):
    """Pooling, and one linear layer on what it gives."""

    classes: int
    pooling: Pooling
    top_k: int
    hidden: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "c n d"], valid: Bool[Array, "c n"]
    ) -> tuple[Float[Array, "c k"], Float[Array, "c n"]]:
        """Returns the logits, and the share of each slice in the pooled features."""
        if self.pooling is Pooling.ATTENTION:
            pooled, shares = GatedAttention(self.hidden, self.param_dtype, name="attention")(
                x, valid
            )
        else:
            pooled, shares = pooled_by(self.pooling, x, valid, self.top_k)
        head = Classifier(self.classes, self.param_dtype, name="classifier")
        return jnp.asarray(head(pooled)), shares


def pooled_by(
    pooling: Pooling, x: Float[Array, "c n d"], valid: Bool[Array, "c n"], k: int
) -> tuple[Float[Array, "c d"], Float[Array, "c n"]]:
    """Pooling that learns nothing."""
    if pooling is Pooling.MEAN:
        return mean_of_slices(x, valid)
    return top_of_slices(x, valid, 1 if pooling is Pooling.MAX else k)


@dataclasses.dataclass
class Cases(Supervised):
    """Cross-entropy on a linear head over the pooled slices of a case (Ilse et al. 2018).

    A batch holds `batch_size` cases of up to `slices` slices, so that this product bounds memory.

    Attributes:
      slices: of a case, that a training step sees; evaluation sees all.
      draw: which, where a case has more.
      pooling: of the slices' features.
      top_k: how many values TOP_K is the mean of.
      hidden: width of ATTENTION.
      learn: what the loss is of.
      frozen: the encoder learns nothing; its features are computed once, without augmentation, and
        the rest takes minutes.
    """

    slices: int = 16
    draw: Draw = Draw.EVEN
    pooling: Pooling = Pooling.MEAN
    top_k: int = 3
    hidden: int = 128
    learn: Learn = Learn.CASES
    frozen: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` also for numbers of slices that make no sense."""
        super().validate()
        require(
            self,
            "method",
            slices=(self.slices >= 1, "1 or more"),
            top_k=(self.top_k >= 1, "1 or more"),
            hidden=(self.hidden >= 1, "1 or more"),
        )
        random = [name for name in RANDOM if getattr(self.view, name)]
        if self.frozen and random:
            raise ConfigError(
                f"method.frozen=true and method.view.{random[0]}={getattr(self.view, random[0])}: "
                "features are computed once, without augmentation: take the preset :frozen, or "
                "set it to 0"
            )
        if self.learn is Learn.SLICES and self.pooling is Pooling.ATTENTION:
            raise ConfigError(
                "method.learn=slices and method.pooling=attention: a loss of single slices teaches "
                "no attention; choose mean, max or top_k"
            )

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh encoder and head; a pre-trained encoder replaces the former afterwards."""
        encoder_key, head_key = jax.random.split(key)
        params, stats = init_encoder(encoder, encoder_key, self.view.size, channels)
        bag = jnp.zeros((1, 1, encoder.widths[-1]))
        head = self._head(encoder.param_dtype).init(head_key, bag, jnp.ones((1, 1), bool))
        return Initial(
            {"encoder": params, "head": head["params"]}, {"encoder": stats, "head": {}}, ()
        )

    def slice_logits(self, head: PyTree, features: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Class scores of slices by themselves, as cases of one slice."""
        return super().slice_logits(head["classifier"], features)

    def case_logits(
        self, head: PyTree, features: Float[Array, "c n d"], valid: Bool[Array, "c n"]
    ) -> tuple[Float[Array, "c k"], Float[Array, "c n"]]:
        """As in `Supervised`, pooled as `pooling` and `learn` say."""
        if self.learn is Learn.SLICES:
            logits = self.slice_logits(head, features)
            odds = logits[..., 1:] - logits[..., :1]
            found, of_slices = pooled_by(self.pooling, odds, valid, self.top_k)
            return jnp.pad(found, ((0, 0), (1, 0))), of_slices
        dtype = jax.tree.leaves(head)[0].dtype
        logits, shares = self._head(dtype).apply({"params": head}, features, valid)
        return jnp.asarray(logits), jnp.asarray(shares)

    def loss(
        self,
        encoder: ResNet,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        progress: Progress,
    ) -> tuple[Float[Array, ""], Out]:
        """Softmax cross-entropy of cases, or of their slices; weighted as in `Supervised`.

        Beside what each batch holds: `label` [c] of c cases, and of their c * n slices, one case
        after the other, `valid` (False is padding) and `slice_label`. With `features` [c * n, d] in
        place of images the encoder rests.
        """
        valid = batch["valid"]
        if "features" in batch:
            features, stats = batch["features"], state.batch_stats
        else:
            with batch_norm_mask(valid):
                features, stats = self.features(
                    encoder, params, state.batch_stats, batch["views"][0][0], train=True, key=key
                )
        bags = features.reshape(len(batch["label"]), -1, features.shape[-1])
        logits, _ = self.case_logits(params["head"], bags, valid.reshape(bags.shape[:2]))
        accuracy = (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)
        label, weights = batch["label"], jnp.ones(len(logits))
        if self.learn is Learn.SLICES:
            logits = self.slice_logits(params["head"], features)
            label, weights = jnp.maximum(batch["slice_label"], 0), valid.astype(jnp.float32)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
        if self.class_weights:
            weights = weights * jnp.asarray(self.class_weights)[label]
        return jnp.average(losses, weights=weights), Out(stats, state.aux, {"accuracy": accuracy})

    def _head(self, dtype: Any) -> CaseHead:
        return CaseHead(self.classes, self.pooling, self.top_k, self.hidden, dtype)
