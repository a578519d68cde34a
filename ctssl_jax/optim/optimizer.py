"""Optimizers, schedules and decay groups, composed from optax's parts.

LAMB here is the reference's variant (keyu-tian/SparK@a63e386 `utils/lamb.py`, after timm 0.5.4):
gradients clipped by their global norm, Adam with bias correction, then, for the decayed group only,
weight decay and the trust ratio. Parameters without decay train as plain Adam.
LARS is You, Gitman and Ginsburg 2017 (arXiv 1708.03888) in the form of NVIDIA's LARC and of timm:
decay and trust ratio on the gradient, then momentum; parameters without decay train as plain SGD.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ctssl_jax.config_values import require
from ctssl_jax.errors import ConfigError

PyTree = Any
Schedule = Callable[[Any], Float[Array, ""]]


class OptimizerName(enum.Enum):
    """The optimizers of the recipes."""

    LAMB = "lamb"
    LARS = "lars"
    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Clock(enum.Enum):
    """What the learning rate counts (see `lr_schedule`).

    Attributes:
      STEP: optimizer steps.
      EPOCH: whole epochs: the rate changes once an epoch, as torch's per-epoch schedulers.
      STEP_AS_EPOCH: optimizer steps, taken for epochs: what SwAV's released code does by mistake.
    """

    STEP = "step"
    EPOCH = "epoch"
    STEP_AS_EPOCH = "step_as_epoch"


USED_BY = {
    "b1": (OptimizerName.LAMB, OptimizerName.ADAM, OptimizerName.ADAMW),
    "b2": (OptimizerName.LAMB, OptimizerName.ADAM, OptimizerName.ADAMW),
    "momentum": (OptimizerName.LARS, OptimizerName.SGD),
    "eps": (OptimizerName.LAMB, OptimizerName.LARS, OptimizerName.ADAM, OptimizerName.ADAMW),
    "trust_coefficient": (OptimizerName.LARS,),
}
"""Fields of `OptimConfig` that not all optimizers have."""


@dataclasses.dataclass
class OptimConfig:
    """An optimizer and its schedules.

    Attributes:
      name: LAMB, ADAMW (decay beside the gradient); LARS, SGD, ADAM (decay added to the gradient).
        LAMB and LARS scale by the trust ratio; it goes with the decay: without one, neither does.
      lr: the peak learning rate, as used, once `lr_batch` has moved it.
      lr_batch: slices of a step that the `lr` of a config is meant for. A command that changes
        `batch_size` and gives no `lr` moves it in proportion (Goyal et al. 2017, arXiv 1706.02677),
        as the recipes of SparK, MoCo v2, SwAV, BYOL and SimCLR do. 0: no batch moves it.
      clock: what the learning rate counts.
      warmup_epochs: linear from `warmup_start` of the peak.
      cosine_epochs: where the cosine ends, counted as the warm-up from the run's first step; past
        it, the rate rises again. 0 = with the run.
      warmup_start, final: share of the peak at the first step and at the cosine's end.
      weight_decay, weight_decay_end: from first to last step by a cosine.
      exclude_1d: BatchNorm scales, biases, mask tokens and SwAV's prototypes get no decay and, in
        LARS and LAMB, no trust ratio; False treats all parameters alike.
      b1, b2: of LAMB, ADAM and ADAMW.
      momentum: of LARS and SGD.
      eps: in the denominator of all but SGD (LARS: beside a gradient's norm; timm has 1e-8).
      trust_coefficient: of LARS.
      clip_norm: the gradient's global norm is cut to this; 0 = not at all.
    """

    name: OptimizerName = OptimizerName.LAMB
    lr: float = 2.5e-5
    lr_batch: int = dataclasses.field(default=0, metadata={"unrecorded": True})
    clock: Clock = Clock.STEP
    warmup_epochs: float = 40.0
    cosine_epochs: float = 0.0
    warmup_start: float = 0.005
    final: float = 0.001
    weight_decay: float = 0.04
    weight_decay_end: float = 0.2
    exclude_1d: bool = True
    b1: float = 0.9
    b2: float = 0.95
    momentum: float = 0.9
    eps: float = 1e-6
    trust_coefficient: float = 1e-3
    clip_norm: float = 5.0

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        require(
            self,
            "optim",
            lr=(self.lr > 0, "above 0"),
            eps=(self.eps > 0, "above 0"),
            trust_coefficient=(self.trust_coefficient > 0, "above 0"),
            warmup_epochs=(self.warmup_epochs >= 0, "0 or more"),
            warmup_start=(self.warmup_start >= 0, "0 or more"),
            final=(self.final >= 0, "0 or more"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            weight_decay_end=(self.weight_decay_end >= 0, "0 or more"),
            clip_norm=(self.clip_norm >= 0, "0 or more"),
            lr_batch=(self.lr_batch >= 0, "0 or more"),
            b1=(0 <= self.b1 < 1, "in [0, 1)"),
            b2=(0 <= self.b2 < 1, "in [0, 1)"),
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
        )
        if self.cosine_epochs and self.cosine_epochs <= self.warmup_epochs:
            raise ConfigError(
                f"optim.cosine_epochs={self.cosine_epochs} does not end after "
                f"optim.warmup_epochs={self.warmup_epochs}: raise it, or 0 for the whole run"
            )

    def without_effect(self) -> dict[str, str]:
        """The fields that do nothing as the others are, each with the reason."""
        return {
            field: f"optim.name={self.name.value} has none"
            for field, users in USED_BY.items()
            if self.name not in users
        }


def lr_schedule(config: OptimConfig, steps_per_epoch: float | int, total_steps: int) -> Schedule:
    """Linear warm-up, then cosine (keyu-tian/SparK@a63e386 `lr_control.py`), by the config's clock.

    Per epoch, the warm-up reaches the peak in its last epoch and the cosine leaves it one later, as
    lightning-bolts' LinearWarmupCosineAnnealingLR; without warm-up it is torch's CosineAnnealingLR.

    Args:
      config: its peak, shares and clock.
      steps_per_epoch: optimizer steps in one pass over the data.
      total_steps: of the run; its last step is `total_steps - 1`.

    Returns:
      Step, from 0, to learning rate.
    """
    last = total_steps - 1
    warmup = peak = config.warmup_epochs
    end = config.cosine_epochs or last
    if config.clock is Clock.STEP:
        warmup = peak = round(config.warmup_epochs * steps_per_epoch)
        end = config.cosine_epochs * steps_per_epoch or last
    elif config.clock is Clock.EPOCH:
        peak = warmup - 1
        end = config.cosine_epochs or last // steps_per_epoch

    def schedule(step: Any) -> Float[Array, ""]:
        now = jnp.asarray(step, jnp.result_type(float))
        if config.clock is Clock.EPOCH:
            now = whole_epochs(now, steps_per_epoch)
        warm = config.warmup_start + (1 - config.warmup_start) * now / max(peak, 1)
        # Not clamped at its end: the recipes whose horizon is shorter than their run come back up.
        cosine = 0.5 + 0.5 * jnp.cos(jnp.pi * (now - warmup) / max(end - warmup, 1))
        cool = config.final + (1 - config.final) * cosine
        return config.lr * jnp.where(now < warmup, warm, cool)

    return schedule


def whole_epochs(step: Float[Array, ""], steps_per_epoch: float | int) -> Float[Array, ""]:
    """The epoch of a step, both from 0."""
    epoch = jnp.floor(step / steps_per_epoch)
    # XLA multiplies by the rounded reciprocal, which falls short at the first step of some epochs.
    return epoch + (step >= (epoch + 1) * steps_per_epoch)


def weight_decay_schedule(config: OptimConfig, total_steps: int) -> Schedule:
    """Cosine from `weight_decay` to `weight_decay_end`, without warm-up (same source)."""

    def schedule(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.result_type(float))
        cosine = 0.5 + 0.5 * jnp.cos(jnp.pi * step / max(total_steps - 1, 1))
        return config.weight_decay_end + (config.weight_decay - config.weight_decay_end) * cosine

    return schedule


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: not on 1-D parameters, biases, mask tokens and prototypes.

    Decay would turn SwAV's prototypes while they are frozen, and they are normalised anyway.
    """

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        *modules, name = (entry.key for entry in path)
        return (
            leaf.ndim > 1
            and name != "bias"
            and not name.startswith("mask_token")
            and "prototypes" not in modules
        )

    return jax.tree_util.tree_map_with_path(decays, params)


def scale_by_lars(
    weight_decay: Schedule, trust_coefficient: float, eps: float
) -> optax.GradientTransformation:
    """Adds the decay to the gradient g of a parameter p and scales both by p's trust ratio.

    That is trust_coefficient * |p| / (|g| + weight_decay * |p| + eps), where neither norm is zero;
    g stays as it is, undecayed, where one is (Wolf et al. 2023, `optimizers/lars.py`).
    optax.scale_by_trust_ratio has another denominator, |g + weight_decay * p|.
    """

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: optax.ScaleByScheduleState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.ScaleByScheduleState]:
        decay = weight_decay(state.count)

        def scale(g: Array, p: Array) -> Array:
            g_norm, p_norm = jnp.linalg.norm(g.ravel()), jnp.linalg.norm(p.ravel())
            ratio = trust_coefficient * p_norm / (g_norm + decay * p_norm + eps)
            return jnp.where((g_norm > 0) & (p_norm > 0), ratio * (g + decay * p), g)

        return jax.tree.map(scale, updates, params), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    config: OptimConfig, lr: Schedule, weight_decay: Schedule
) -> optax.GradientTransformation:
    """The optimizer for one set of schedules (functions of the step)."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    momentum = optax.trace(config.momentum)
    decay = optax.add_decayed_weights(weight_decay)
    descend = optax.scale_by_learning_rate(lr)

    def group(decayed: optax.GradientTransformation) -> optax.GradientTransformation:
        if not (config.weight_decay or config.weight_decay_end):
            return optax.identity()
        return optax.masked(decayed, decay_mask) if config.exclude_1d else decayed

    match config.name:
        case OptimizerName.LAMB:
            decay_and_trust = optax.chain(decay, optax.scale_by_trust_ratio())
            return optax.chain(clip, adam, group(decay_and_trust), descend)
        case OptimizerName.LARS:
            lars = scale_by_lars(weight_decay, config.trust_coefficient, config.eps)
            return optax.chain(clip, group(lars), momentum, descend)
        case OptimizerName.SGD:
            return optax.chain(clip, group(decay), momentum, descend)
        case OptimizerName.ADAM:  # torch's: the decay is part of the gradient
            return optax.chain(clip, group(decay), adam, descend)
        case OptimizerName.ADAMW:
            return optax.chain(clip, adam, group(decay), descend)
