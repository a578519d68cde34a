"""Optimizers: the update rule and what of the parameters it reaches."""

from ctssl_jax.optim.optimizer import (
    Clock,
    OptimConfig,
    OptimizerName,
    Schedule,
    decay_mask,
    lr_schedule,
    make_optimizer,
    weight_decay_schedule,
)
