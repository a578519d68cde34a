"""Fine-tuning that freezes the encoder's convolutions first: one optimizer in three groups."""

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ctssl_jax.config_values import require
from ctssl_jax.optim.optimizer import OptimConfig, PyTree, Schedule, make_optimizer


class FreezeMode(enum.Enum):
    """How the encoder joins in after `freeze_epochs` (see `finetune_optimizer`)."""

    AS_MEANT = "as_meant"
    AS_RUN = "as_run"


@dataclasses.dataclass
class FreezeConfig:
    """Frozen-then-unfrozen fine-tuning.

    Attributes:
      epochs: convolutions rest this long; classifier and BatchNorm train from the start.
      steps: in place of `epochs`, so many steps; 0: by epochs.
      double_every: an epoch of `mode`, in steps; 0: an epoch of the data.
      mode: AS_MEANT, what Lightning's BackboneFinetuning documents: the encoder joins at
        `encoder_lr_ratio` of the peak rate and doubles each epoch up to it. AS_RUN, what the
        paper's notebooks do, their optimizer having one parameter group: everything at the peak in
        the epoch of unfreezing, everything at 2 * `encoder_lr_ratio` of it from the next one on.
      encoder_lr_ratio: the encoder's first learning rate, as a share of the peak.
      scratch: freeze a randomly initialised encoder too, as the paper's baseline did.
    """

    epochs: int = 10
    steps: int = dataclasses.field(default=0, metadata={"replaces": "epochs"})
    double_every: int = 0
    mode: FreezeMode = FreezeMode.AS_MEANT
    encoder_lr_ratio: float = 0.1
    scratch: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        require(
            self,
            "freeze",
            epochs=(self.epochs >= 0, "0 or more"),
            steps=(self.steps >= 0, "0 or more"),
            double_every=(self.double_every >= 0, "0 or more"),
            encoder_lr_ratio=(0 < self.encoder_lr_ratio <= 1, "in (0, 1]"),
        )

    def without_effect(self) -> dict[str, str]:
        """The fields that do nothing as the others are, each with the reason."""
        if self.epochs or self.steps:
            return {}
        fields = ("double_every", "mode", "encoder_lr_ratio", "scratch")
        return dict.fromkeys(fields, "with freeze.epochs=0 and freeze.steps=0 nothing rests")

    def frozen_steps(self, steps_per_epoch: int) -> int:
        """How many steps the convolutions rest."""
        return self.steps or self.epochs * steps_per_epoch

    def in_steps(self, steps_per_epoch: int) -> "FreezeConfig":
        """The same with no epoch in it; where nothing rests, the one that says only that."""
        frozen = self.frozen_steps(steps_per_epoch)
        if not frozen:
            return FreezeConfig(epochs=0)
        every = self.double_every or steps_per_epoch
        return dataclasses.replace(self, epochs=0, steps=frozen, double_every=every)


def head_optimizer(config: OptimConfig) -> tuple[optax.GradientTransformation, Schedule]:
    """For a head on an encoder that learns nothing; the head's learning rate by step."""

    def constant(value: float) -> Schedule:
        return lambda step: jnp.full((), value, jnp.result_type(float))

    lr = constant(config.lr)
    groups = {
        "head": make_optimizer(config, lr, constant(config.weight_decay)),
        "encoder": optax.set_to_zero(),
    }
    return optax.multi_transform(groups, {name: name for name in groups}), lr


def freeze_schedules(
    lr: float, freeze: FreezeConfig, steps_per_epoch: int
) -> tuple[Schedule, Schedule]:
    """Learning rates of encoder and head by step, by whole epochs (Wolf et al. 2023, notebooks)."""
    ratio, frozen = freeze.encoder_lr_ratio, freeze.frozen_steps(steps_per_epoch)
    epoch = freeze.double_every or steps_per_epoch

    def unfrozen_epochs(step: Any) -> Any:
        return (jnp.asarray(step) - frozen) // epoch

    def encoder(step: Any) -> Float[Array, ""]:
        since = unfrozen_epochs(step)
        if frozen == 0:
            return jnp.full((), lr, jnp.result_type(float))
        if freeze.mode is FreezeMode.AS_RUN:
            return jnp.where(since <= 0, lr, 2 * ratio * lr)
        ramp = jnp.minimum(ratio * 2.0 ** jnp.clip(since, 0, 30), 1.0)
        return jnp.where(since < 0, lr, lr * ramp)  # before: BatchNorm alone, with the head

    def head(step: Any) -> Float[Array, ""]:
        if frozen and freeze.mode is FreezeMode.AS_RUN:
            return encoder(step)
        return jnp.full((), lr, jnp.result_type(float))

    return encoder, head


def finetune_optimizer(
    config: OptimConfig, freeze: FreezeConfig, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """Three groups: head, the encoder's BatchNorm (never frozen) and its convolutions.

    Returns:
      The optimizer, and the head's learning rate by step.
    """
    encoder_lr, head_lr = freeze_schedules(config.lr, freeze, steps_per_epoch)
    frozen_steps = freeze.frozen_steps(steps_per_epoch)

    def decay(step: Any) -> Float[Array, ""]:
        return jnp.full((), config.weight_decay, jnp.result_type(float))

    def labels(params: PyTree) -> PyTree:
        def group(path: tuple[Any, ...], leaf: Any) -> str:
            if path[0].key == "head":
                return "head"
            return "convolution" if leaf.ndim > 1 else "batchnorm"

        return jax.tree_util.tree_map_with_path(group, params)

    def from_unfreezing(step: Any) -> Float[Array, ""]:  # the sleeper counts its own steps
        return encoder_lr(step + frozen_steps)

    groups = {
        "head": make_optimizer(config, head_lr, decay),
        "batchnorm": make_optimizer(config, encoder_lr, decay),
        # Until then: no updates, and its own moments and counter are as they were.
        "convolution": optax.conditionally_mask(
            make_optimizer(config, from_unfreezing, decay), lambda step: step >= frozen_steps
        ),
    }
    return optax.multi_transform(groups, labels), head_lr
