"""Supervised classification: fine-tuning is a method like the others."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from ctssl_jax.augment import ViewGroup
from ctssl_jax.config_values import require
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import Batch, Initial, Out, Progress, PyTree, TrainState, init_encoder
from ctssl_jax.nn.heads import torch_uniform
from ctssl_jax.nn.pooling import mean_of_slices
from ctssl_jax.nn.resnet import ResNet, pool


class Classifier(nn.Module):
    """One linear layer on feature vectors, in fp32, with torch's default initialisation."""

    classes: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Returns the logits."""
        uniform = torch_uniform(features.shape[-1])
        return nn.Dense(
            self.classes,
            kernel_init=uniform,
            bias_init=uniform,
            param_dtype=self.param_dtype,
            name="linear",
        )(features)


@dataclasses.dataclass
class Supervised:
    """Cross-entropy on a linear head over the last stage (Wolf et al. 2023, downstream notebooks).

    It learns single slices. Where a label is of a case of several, each has that of its case, and a
    case is scored by their mean: see `cases.Cases` for what learns cases.

    Attributes:
      classes: number of classes; 0 takes it from the dataset.
      class_weights: of the loss, one per class; empty: all the same.
      view: training view; evaluation sees the whole slice resized to `view.size`.
    """

    zero_init_residual: ClassVar[bool] = False
    classes: int = 0
    class_weights: tuple[float, ...] = ()
    view: ViewGroup = dataclasses.field(
        default_factory=lambda: ViewGroup(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    )

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """One view per slice."""
        return (self.view,)

    def validate(self) -> None:
        """Raises `ConfigError` for a view or class count that makes no sense."""
        self.view.validate()
        if self.view.count != 1:
            raise ConfigError(f"method.view.count={self.view.count}: fine-tuning reads one, set 1")
        if self.classes < 0 or self.classes == 1:
            raise ConfigError(
                f"method.classes={self.classes}: use 2 or more, or 0 for the dataset's"
            )
        positive = all(weight > 0 for weight in self.class_weights)
        require(self, "method", class_weights=(positive, "above 0"))

    def validate_run(self, batch_size: int, slices: int) -> None:
        """Any batch and any number of slices will do."""

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh encoder and classifier; a pre-trained encoder replaces the former afterwards."""
        encoder_key, head_key = jax.random.split(key)
        params, stats = init_encoder(encoder, encoder_key, self.view.size, channels)
        head = Classifier(self.classes, encoder.param_dtype).init(
            head_key, jnp.zeros((1, encoder.widths[-1]))
        )
        return Initial(
            {"encoder": params, "head": head["params"]}, {"encoder": stats, "head": {}}, ()
        )

    def logits(
        self,
        encoder: ResNet,
        params: PyTree,
        batch_stats: PyTree,
        image: Float[Array, "b h w c"],
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "b k"], PyTree]:
        """Class scores of slices before the softmax, in fp32, and new batch statistics."""
        features, stats = self.features(encoder, params, batch_stats, image, train=train, key=key)
        return self.slice_logits(params["head"], features), stats

    def features(
        self,
        encoder: ResNet,
        params: PyTree,
        batch_stats: PyTree,
        image: Float[Array, "b h w c"],
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "b d"], PyTree]:
        """Feature vectors of slices, in fp32, and new batch statistics."""
        stages, updates = encoder.apply(
            {"params": params["encoder"], "batch_stats": batch_stats["encoder"]},
            image,
            train,
            mutable=["batch_stats"],
            rngs={} if key is None else {"drop_path": key},
        )
        return pool(stages[-1]), {"encoder": updates["batch_stats"], "head": {}}

    def slice_logits(self, head: PyTree, features: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Class scores of slices by themselves; `head` are its parameters."""
        classifier = Classifier(self.classes, jax.tree.leaves(head)[0].dtype)
        return jnp.asarray(classifier.apply({"params": head}, features))

    def case_logits(
        self, head: PyTree, features: Float[Array, "c n d"], valid: Bool[Array, "c n"]
    ) -> tuple[Float[Array, "c k"], Float[Array, "c n"]]:
        """Class scores of cases of up to n slices, and the share of each slice in them.

        Those of the slices' mean feature vector, which is the mean of their log-odds; of one slice
        its own.
        """
        pooled, shares = mean_of_slices(features, valid)
        return self.slice_logits(head, pooled), shares

    def loss(
        self,
        encoder: ResNet,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        progress: Progress,
    ) -> tuple[Float[Array, ""], Out]:
        """Softmax cross-entropy; weighted, it is torch's mean: over the weights of the batch."""
        logits, stats = self.logits(
            encoder, params, state.batch_stats, batch["views"][0][0], train=True, key=key
        )
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        accuracy = (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)
        loss = losses.mean()
        if self.class_weights:
            loss = jnp.average(losses, weights=jnp.asarray(self.class_weights)[batch["label"]])
        return loss, Out(stats, state.aux, {"accuracy": accuracy})

    def after_update(self, state: TrainState, progress: Progress) -> TrainState:
        """Nothing follows the update."""
        return state
