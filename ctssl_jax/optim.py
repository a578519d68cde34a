"""Optimizers, schedules and decay groups, composed from optax's parts.

LAMB here is the reference's variant (keyu-tian/SparK@a63e386 `utils/lamb.py`, after timm 0.5.4):
gradients clipped by their global norm, Adam with bias correction, then, for the decayed group only,
weight decay and the trust ratio. Parameters without decay train as plain Adam.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ctssl_jax.errors import ConfigError

PyTree = Any
Schedule = Callable[[Any], Float[Array, ""]]


class OptimizerName(enum.Enum):
    """The optimizers of the recipes."""

    LAMB = "lamb"
    ADAM = "adam"


@dataclasses.dataclass
class OptimConfig:
    """An optimizer and its schedules.

    Attributes:
      name: LAMB (decoupled decay, trust ratio), or ADAM with weight decay added to the gradient.
      lr: the peak learning rate, as used: nothing scales it further.
      warmup_epochs: linear from `warmup_start` of the peak.
      warmup_start, final: share of the peak at the first step and, by cosine, at the last.
      weight_decay, weight_decay_end: from first to last step by a cosine.
      clip_norm: the gradient's global norm is cut to this; 0 = not at all.
    """

    name: OptimizerName = OptimizerName.LAMB
    lr: float = 2.5e-5
    warmup_epochs: float = 40.0
    warmup_start: float = 0.005
    final: float = 0.001
    weight_decay: float = 0.04
    weight_decay_end: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-6
    clip_norm: float = 5.0

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        for field in ("lr", "eps"):
            if getattr(self, field) <= 0:
                raise ConfigError(f"optim.{field}={getattr(self, field)}: must be above 0")
        for field in ("warmup_epochs", "weight_decay", "weight_decay_end", "clip_norm", "final"):
            if getattr(self, field) < 0:
                raise ConfigError(f"optim.{field}={getattr(self, field)}: must not be negative")
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"optim.{field}={getattr(self, field)}: must be in [0, 1)")


def lr_schedule(config: OptimConfig, warmup_steps: int, total_steps: int) -> Schedule:
    """Linear warm-up, then cosine to the last step (keyu-tian/SparK@a63e386 `lr_control.py`)."""

    def schedule(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.result_type(float))
        warm = config.warmup_start + (1 - config.warmup_start) * step / max(warmup_steps, 1)
        span = max(total_steps - 1 - warmup_steps, 1)
        cosine = 0.5 + 0.5 * jnp.cos(jnp.pi * (step - warmup_steps) / span)
        cool = config.final + (1 - config.final) * cosine
        return config.lr * jnp.where(step < warmup_steps, warm, cool)

    return schedule


def weight_decay_schedule(config: OptimConfig, total_steps: int) -> Schedule:
    """Cosine from `weight_decay` to `weight_decay_end`, without warm-up (same source)."""

    def schedule(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.result_type(float))
        cosine = 0.5 + 0.5 * jnp.cos(jnp.pi * step / max(total_steps - 1, 1))
        return config.weight_decay_end + (config.weight_decay - config.weight_decay_end) * cosine

    return schedule


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: not on 1-D parameters, biases and mask tokens."""

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        name = path[-1].key
        return leaf.ndim > 1 and name != "bias" and not name.startswith("mask_token")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimConfig, lr: Schedule, weight_decay: Schedule
) -> optax.GradientTransformation:
    """The optimizer for one set of schedules (functions of the step)."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    descend = optax.scale_by_learning_rate(lr)
    decays = bool(config.weight_decay or config.weight_decay_end)
    match config.name:
        case OptimizerName.LAMB:
            decayed = optax.chain(
                optax.add_decayed_weights(weight_decay), optax.scale_by_trust_ratio()
            )
            group = optax.masked(decayed, decay_mask) if decays else optax.identity()
            return optax.chain(clip, adam, group, descend)
        case OptimizerName.ADAM:  # torch's Adam: coupled L2, on all parameters
            l2 = optax.add_decayed_weights(weight_decay) if decays else optax.identity()
            return optax.chain(clip, l2, adam, descend)


def start_at(inner: optax.GradientTransformation, step: int) -> optax.GradientTransformation:
    """`inner`, asleep until `step`: no updates, and its own state (moments, counter) untouched."""

    def init(params: PyTree) -> PyTree:
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        count, inner_state = state
        awake = count >= step
        new_updates, new_state = inner.update(updates, inner_state, params)

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(awake, new, old)

        chosen = jax.tree.map(lambda u: jnp.where(awake, u, jnp.zeros_like(u)), new_updates)
        return chosen, (count + 1, jax.tree.map(pick, new_state, inner_state))

    return optax.GradientTransformation(init, update)


class FreezeMode(enum.Enum):
    """How the encoder joins in after `freeze_epochs` (see `finetune_optimizer`)."""

    AS_MEANT = "as_meant"
    AS_RUN = "as_run"


@dataclasses.dataclass
class FreezeConfig:
    """Frozen-then-unfrozen fine-tuning.

    Attributes:
      epochs: convolutions rest this long; classifier and BatchNorm train from the start.
      mode: AS_MEANT, what Lightning's BackboneFinetuning documents: the encoder joins at
        `encoder_lr_ratio` of the peak rate and doubles each epoch up to it. AS_RUN, what the
        paper's notebooks do, their optimizer having one parameter group: everything at the peak in
        the epoch of unfreezing, everything at 2 * `encoder_lr_ratio` of it from the next one on.
      encoder_lr_ratio: the encoder's first learning rate, as a share of the peak.
      scratch: freeze a randomly initialised encoder too, as the paper's baseline did.
    """

    epochs: int = 10
    mode: FreezeMode = FreezeMode.AS_MEANT
    encoder_lr_ratio: float = 0.1
    scratch: bool = False

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        if self.epochs < 0:
            raise ConfigError(f"freeze.epochs={self.epochs}: must not be negative")
        if not 0 < self.encoder_lr_ratio <= 1:
            raise ConfigError(f"freeze.encoder_lr_ratio={self.encoder_lr_ratio}: must be in (0, 1]")


def freeze_schedules(
    lr: float, freeze: FreezeConfig, steps_per_epoch: int
) -> tuple[Schedule, Schedule]:
    """Learning rates of encoder and head by step, by whole epochs (Wolf et al. 2023, notebooks)."""
    ratio = freeze.encoder_lr_ratio

    def unfrozen_epochs(step: Any) -> Any:
        return jnp.asarray(step) // steps_per_epoch - freeze.epochs

    def encoder(step: Any) -> Float[Array, ""]:
        since = unfrozen_epochs(step)
        if freeze.epochs == 0:
            return jnp.full((), lr, jnp.result_type(float))
        if freeze.mode is FreezeMode.AS_RUN:
            return jnp.where(since <= 0, lr, 2 * ratio * lr)
        ramp = jnp.minimum(ratio * 2.0 ** jnp.clip(since, 0, 30), 1.0)
        return jnp.where(since < 0, lr, lr * ramp)  # before: BatchNorm alone, with the head

    def head(step: Any) -> Float[Array, ""]:
        if freeze.epochs and freeze.mode is FreezeMode.AS_RUN:
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
    frozen_steps = freeze.epochs * steps_per_epoch

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
        "convolution": start_at(make_optimizer(config, from_unfreezing, decay), frozen_steps),
    }
    return optax.multi_transform(groups, labels), head_lr
