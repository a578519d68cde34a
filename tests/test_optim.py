"""Optimizers against NumPy, schedules against their formulas, groups by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.errors import ConfigError
from ctssl_jax.optim import (
    FreezeConfig,
    FreezeMode,
    OptimConfig,
    OptimizerName,
    decay_mask,
    finetune_optimizer,
    freeze_schedules,
    lr_schedule,
    make_optimizer,
    start_at,
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
    assert decay_mask(PARAMS) == {
        "encoder": {"conv1": {"kernel": True}, "bn1": {"scale": False, "bias": False}},
        "head": {"mask_token0": False, "proj": {"kernel": True}},
    }


def test_adam_decays_through_the_gradient():
    """Coupled L2, as torch's Adam: the first step is lr * sign(gradient + decay * parameter)."""
    config = OptimConfig(
        name=OptimizerName.ADAM, lr=1e-2, weight_decay=100.0, weight_decay_end=100.0, clip_norm=0.0
    )
    tx = make_optimizer(config, constant(config.lr), constant(100.0))
    grads = gradients(0, 1e-3)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    kernel = PARAMS["encoder"]["bn1"]["scale"]
    np.testing.assert_allclose(
        updates["encoder"]["bn1"]["scale"], -1e-2 * np.sign(kernel), rtol=1e-3
    )


def test_lr_warms_up_and_cools_down_to_the_stated_shares():
    config = OptimConfig(lr=2.0, warmup_start=0.25, final=0.5)
    schedule = lr_schedule(config, warmup_steps=4, total_steps=11)
    values = [float(schedule(step)) for step in range(11)]
    assert values[0] == pytest.approx(0.5)
    assert values[2] == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert values[4] == pytest.approx(2.0)
    assert values[7] == pytest.approx(2.0 * 0.75)
    assert values[10] == pytest.approx(1.0)


def test_encoder_joins_and_doubles_as_meant():
    freeze = FreezeConfig(epochs=2, encoder_lr_ratio=0.1)
    encoder, head = freeze_schedules(1.0, freeze, steps_per_epoch=10)
    found = [float(encoder(10 * epoch)) for epoch in range(8)]
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert [float(head(10 * epoch)) for epoch in range(8)] == [1.0] * 8


def test_everything_falls_to_a_fifth_as_run():
    freeze = FreezeConfig(epochs=2, mode=FreezeMode.AS_RUN)
    for schedule in freeze_schedules(1e-4, freeze, steps_per_epoch=10):
        found = [float(schedule(10 * epoch)) for epoch in range(5)]
        assert found == pytest.approx([1e-4, 1e-4, 1e-4, 2e-5, 2e-5])


def test_convolutions_rest_and_batchnorm_trains_while_frozen():
    config = OptimConfig(name=OptimizerName.ADAM, lr=1e-2, weight_decay=0.0, weight_decay_end=0.0)
    tx, _ = finetune_optimizer(config, FreezeConfig(epochs=1), steps_per_epoch=2)
    params, state = PARAMS, tx.init(PARAMS)
    moved = []
    for seed in range(3):
        updates, state = tx.update(gradients(seed), state, params)
        moved.append(
            (
                bool(jnp.any(updates["encoder"]["conv1"]["kernel"] != 0)),
                bool(jnp.all(updates["encoder"]["bn1"]["scale"] != 0)),
                bool(jnp.all(updates["head"]["proj"]["kernel"] != 0)),
            )
        )
    assert moved == [(False, True, True), (False, True, True), (True, True, True)]


def test_a_sleeping_optimizer_starts_as_if_new():
    config = OptimConfig(name=OptimizerName.ADAM, lr=1e-2, weight_decay=0.0, weight_decay_end=0.0)
    inner = make_optimizer(config, constant(1e-2), constant(0.0))
    sleeper = start_at(inner, 2)
    state = sleeper.init(PARAMS)
    for seed in range(2):
        _, state = sleeper.update(gradients(seed), state, PARAMS)
    late, _ = sleeper.update(gradients(2), state, PARAMS)
    fresh, _ = inner.update(gradients(2), inner.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, late, fresh)


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"b1": 1.0}, {"weight_decay": -1.0}])
def test_values_that_make_no_sense_are_named(change):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(change))}"):
        OptimConfig(**change).validate()
