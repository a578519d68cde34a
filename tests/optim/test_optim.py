"""Optimizers against NumPy, schedules against their formulas, groups by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.errors import ConfigError
from ctssl_jax.optim import (
    Clock,
    OptimConfig,
    OptimizerName,
    decay_mask,
    lr_schedule,
    make_optimizer,
)

RNG = np.random.default_rng(0)
PARAMS = {
    "encoder": {
        "conv1": {"kernel": RNG.standard_normal((3, 3, 2, 4))},
        "bn1": {"scale": RNG.standard_normal(4), "bias": RNG.standard_normal(4)},
    },
    "head": {"mask_token0": RNG.standard_normal(4), "proj": {"kernel": np.zeros((1, 1, 4, 2))}},
}
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)


def gradients(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32), PARAMS
    )


def constant(value):
    return lambda step: jnp.full((), value)


def numpy_lamb(params, grads_by_step, config, decays):
    """LAMB of one parameter tree from its definition, flat by leaf."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    decays = jax.tree.leaves(decays)
    first, second = ([np.zeros_like(x) for x in leaves] for _ in range(2))
    for t, grads in enumerate(grads_by_step, start=1):
        grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        grads = [g / max(1.0, norm / config.clip_norm) for g in grads]
        for i, g in enumerate(grads):
            first[i] = config.b1 * first[i] + (1 - config.b1) * g
            second[i] = config.b2 * second[i] + (1 - config.b2) * g**2
            denominator = np.sqrt(second[i]) / np.sqrt(1 - config.b2**t) + config.eps
            update = first[i] / (1 - config.b1**t) / denominator
            if decays[i]:
                update = update + config.weight_decay * leaves[i]
                p, u = np.linalg.norm(leaves[i]), np.linalg.norm(update)
                update = update * (p / u if p > 0 and u > 0 else 1.0)
            leaves[i] = leaves[i] - config.lr * update
    return leaves


@pytest.mark.parametrize("scale", [0.1, 10.0])  # below and above the clipping norm
def test_lamb_equals_numpy(scale):
    config = OptimConfig(lr=1e-2, weight_decay=0.1)
    tx = make_optimizer(config, constant(config.lr), constant(config.weight_decay))
    params, state = PARAMS, tx.init(PARAMS)
    steps = [gradients(seed, scale) for seed in range(3)]
    for grads in steps:
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    expected = numpy_lamb(PARAMS, steps, config, decay_mask(PARAMS))
    for ours, theirs in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_decay_applies_to_kernels_alone():
    prototypes = {"prototypes": {"kernel": jnp.ones((4, 3))}}
    params = {**PARAMS, "head": {**PARAMS["head"], **prototypes}}
    assert decay_mask(params) == {
        "encoder": {"conv1": {"kernel": True}, "bn1": {"scale": False, "bias": False}},
        "head": {
            "mask_token0": False,
            "proj": {"kernel": True},
            "prototypes": {"kernel": False},
        },
    }


def lars_update(kernel, gradient, **numbers):
    """The first update of a kernel, at lr 1."""
    numbers = {"weight_decay": 0.5, "trust_coefficient": 0.1, "eps": 1.0, **numbers}
    config = OptimConfig(name=OptimizerName.LARS, weight_decay_end=0.0, clip_norm=0.0, **numbers)
    tx = make_optimizer(config, constant(1.0), constant(config.weight_decay))
    params = {"kernel": jnp.asarray([kernel])}
    return tx.update({"kernel": jnp.asarray([gradient])}, tx.init(params), params)[0]["kernel"][0]


def test_lars_scales_the_decayed_gradient_by_the_trust_ratio():
    ratio = 0.1 * 5 / (2 + 0.5 * 5 + 1)
    expected = [-ratio * (0.5 * 3), -ratio * (2 + 0.5 * 4)]
    np.testing.assert_allclose(lars_update([3.0, 4.0], [0.0, 2.0]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "gradient", "numbers"),
    [
        ([3.0, 4.0], [0.0, 0.0], {}),  # frozen: no decay either
        ([0.0, 0.0], [0.0, 2.0], {}),  # zero from its initialisation
        ([3.0, 4.0], [0.0, 2.0], {"weight_decay": 0.0}),  # without decay no trust ratio
    ],
)
def test_lars_is_plain_where_a_norm_or_the_decay_is_zero(kernel, gradient, numbers):
    np.testing.assert_array_equal(lars_update(kernel, gradient, **numbers), -np.array(gradient))


def test_adam_decays_through_the_gradient():
    """Coupled L2, as torch's Adam: the first step is lr * sign(gradient + decay * parameter)."""
    config = OptimConfig(
        name=OptimizerName.ADAM, weight_decay=100.0, exclude_1d=False, clip_norm=0.0
    )
    tx = make_optimizer(config, constant(1e-2), constant(100.0))
    grads = gradients(0, 1e-3)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    kernel = PARAMS["encoder"]["bn1"]["scale"]
    np.testing.assert_allclose(
        updates["encoder"]["bn1"]["scale"], -1e-2 * np.sign(kernel), rtol=1e-3
    )


def test_lr_warms_up_and_cools_down_to_the_stated_shares():
    config = OptimConfig(lr=2.0, warmup_epochs=1.5, warmup_start=0.25, final=0.5)
    schedule = lr_schedule(config, steps_per_epoch=2.5, total_steps=11)  # 3.75: 4 steps of warm-up
    values = [float(schedule(step)) for step in range(11)]
    assert values[0] == pytest.approx(0.5)
    assert values[2] == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert values[4] == pytest.approx(2.0)
    assert values[7] == pytest.approx(2.0 * 0.75)
    assert values[10] == pytest.approx(1.0)


def test_a_cosine_shorter_than_the_run_comes_back_up():
    config = OptimConfig(lr=1.0, warmup_epochs=1.0, cosine_epochs=3.0, final=0.2)
    schedule = lr_schedule(config, steps_per_epoch=10, total_steps=1000)
    found = [float(schedule(step)) for step in (10, 20, 30, 40, 50)]
    assert found == pytest.approx([1.0, 0.6, 0.2, 0.6, 1.0])


def epoch_rates(config, steps_per_epoch, epochs):
    """Rates at the first and the last step of each epoch, compiled as in training."""
    schedule = lr_schedule(config, steps_per_epoch, steps_per_epoch * 301)
    first = steps_per_epoch * np.arange(epochs)
    steps = np.stack([first, first + steps_per_epoch - 1], axis=1)
    return jax.jit(jax.vmap(jax.vmap(schedule)))(steps)


# XLA divides by 41 with its reciprocal, whose rounding would delay the start of every third epoch.
@pytest.mark.parametrize("steps_per_epoch", [1, 10, 41])
def test_per_epoch_rates_of_byol_as_run(steps_per_epoch):
    """recipe: lightning-bolts' warm-up of 10 epochs and cosine of 100, in a run of 300."""
    config = OptimConfig(
        lr=1e-3,
        clock=Clock.EPOCH,
        warmup_epochs=10.0,
        warmup_start=0.0,
        cosine_epochs=100.0,
        final=0.0,
    )
    rates = epoch_rates(config, steps_per_epoch, 301)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])
    rates = rates[:, 0]
    np.testing.assert_allclose(rates[:10], 1e-3 * np.arange(10) / 9, rtol=1e-5)
    found = rates[np.array([10, 55, 100, 190, 280, 300])]
    np.testing.assert_allclose(found, [1e-3, 5e-4, 0, 1e-3, 0, 1.17e-4], rtol=1e-3, atol=1e-9)


def test_per_epoch_rates_end_with_the_run():
    config = OptimConfig(lr=1.0, clock=Clock.EPOCH, warmup_epochs=0.0, final=0.1)
    schedule = lr_schedule(config, steps_per_epoch=4, total_steps=44)
    assert [float(schedule(step)) for step in (0, 20, 40, 43)] == pytest.approx([1, 0.55, 0.1, 0.1])


def test_an_epoch_of_part_steps_starts_at_its_first_whole_step():
    config = OptimConfig(
        lr=1.0, clock=Clock.EPOCH, warmup_epochs=3.0, warmup_start=0.0, cosine_epochs=100.0
    )
    schedule = lr_schedule(config, steps_per_epoch=7.5, total_steps=1000)
    found = [float(schedule(step)) for step in (7, 8, 14, 15, 22)]
    assert found == pytest.approx([0.0, 0.5, 0.5, 1.0, 1.0])


def test_steps_taken_for_epochs_as_swav_was_run():
    config = OptimConfig(
        lr=0.15,
        clock=Clock.STEP_AS_EPOCH,
        warmup_epochs=10.0,
        warmup_start=0.0,
        cosine_epochs=800.0,
        final=0.0,
    )
    schedule = lr_schedule(config, steps_per_epoch=1910.0, total_steps=1_528_000)
    steps = (0, 1, 9, 10, 405, 800, 1590, 2380, 3170)
    shares = [0, 0.1, 0.9, 1, 0.5, 0, 1, 0, 1]
    assert [float(schedule(step)) / 0.15 for step in steps] == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"b1": 1.0},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"trust_coefficient": 0.0},
        {"warmup_start": -0.1},
        {"cosine_epochs": 40.0},
    ],
)
def test_values_that_make_no_sense_are_named(change):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(change))}"):
        OptimConfig(**change).validate()
