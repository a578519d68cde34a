"""Optimizers and schedules against torch's and timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Lamb, Lars, torch

from ctssl_jax.optim import (
    Clock,
    OptimConfig,
    OptimizerName,
    decay_mask,
    lr_schedule,
    make_optimizer,
)

STEPS = 6
CLIP_NORM = 8.0  # the gradients below are about half the time longer
B1, B2, EPS, MOMENTUM, TRUST = 0.8, 0.95, 0.05, 0.7, 0.02

ADAM = {"betas": (B1, B2), "eps": EPS}
THEIRS = {  # optimizer, its numbers
    OptimizerName.SGD: (torch.optim.SGD, {"momentum": MOMENTUM}),
    OptimizerName.ADAM: (torch.optim.Adam, ADAM),
    OptimizerName.ADAMW: (torch.optim.AdamW, ADAM),
    OptimizerName.LARS: (Lars, {"momentum": MOMENTUM, "trust_coeff": TRUST, "eps": EPS}),
    OptimizerName.LAMB: (Lamb, {**ADAM, "max_grad_norm": None}),
}


def lr(step):
    return 0.1 * (1.0 + step)


def weight_decay(step):
    return 0.5 / (1.0 + step)


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    return {
        "conv1": {"kernel": normal(3, 3, 2, 4)},
        "bn1": {"scale": normal(4), "bias": normal(4)},
        "fc": {"kernel": normal(4, 3), "bias": normal(3)},
        "prototypes": {"kernel": normal(3, 5)},
    }


PARAMS = random_tree(0)
GRADIENTS = [random_tree(step + 1, scale=0.3 * 1.6**step) for step in range(STEPS)]


def ours(name, exclude_1d):
    """Parameters after each step."""
    config = OptimConfig(
        name=name,
        exclude_1d=exclude_1d,
        b1=B1,
        b2=B2,
        eps=EPS,
        momentum=MOMENTUM,
        trust_coefficient=TRUST,
        clip_norm=CLIP_NORM,
    )
    tx = make_optimizer(config, lr, weight_decay)
    update = jax.jit(tx.update)
    params, state = PARAMS, tx.init(PARAMS)
    for gradients in GRADIENTS:
        updates, state = update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        yield jax.tree.leaves(params)


def theirs(name, exclude_1d):
    """The same by torch, with a second parameter group for what is excluded."""
    optimizer_class, numbers = THEIRS[name]
    parameters = [torch.nn.Parameter(torch.tensor(np.asarray(x))) for x in jax.tree.leaves(PARAMS)]
    decays = jax.tree.leaves(decay_mask(PARAMS))
    groups = {True: [], False: []}
    for parameter, decayed in zip(parameters, decays, strict=True):
        groups[decayed or not exclude_1d].append(parameter)
    groups = [{"params": params, "decays": decays} for decays, params in groups.items() if params]
    optimizer = optimizer_class(groups, lr=1.0, **numbers)
    for step, gradients in enumerate(GRADIENTS):
        for parameter, gradient in zip(parameters, jax.tree.leaves(gradients), strict=True):
            parameter.grad = torch.tensor(np.asarray(gradient))
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
            group["weight_decay"] = weight_decay(step) if group["decays"] else 0.0
        optimizer.step()
        yield [parameter.detach().numpy() for parameter in parameters]


@pytest.mark.parametrize("exclude_1d", [True, False])
@pytest.mark.parametrize("name", OptimizerName)
def test_optimizer_equals_torch(name, exclude_1d):
    for found, expected in zip(ours(name, exclude_1d), theirs(name, exclude_1d), strict=True):
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6)


def test_gradients_are_clipped_in_some_steps_only():
    norms = np.array(
        [float(np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(x)))) for x in GRADIENTS]
    )
    assert 0 < (norms > CLIP_NORM).sum() < STEPS


def test_per_epoch_cosine_equals_torch():
    """MoCo as run: CosineAnnealingLR(T_max=800), stepped once an epoch, here for 1,000."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.015)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=800)
    expected = []
    for _ in range(1000):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    config = OptimConfig(
        lr=0.015, clock=Clock.EPOCH, warmup_epochs=0.0, cosine_epochs=800.0, final=0.0
    )
    schedule = lr_schedule(config, steps_per_epoch=7, total_steps=7000)
    found = jax.jit(jax.vmap(schedule))(7 * np.arange(1000) + 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)
