"""Freezing: which group moves when, and at which rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_optim import PARAMS, gradients

from ctssl_jax.config import FinetuneConfig
from ctssl_jax.optim import OptimConfig, OptimizerName
from ctssl_jax.optim.freezing import (
    FreezeConfig,
    FreezeMode,
    finetune_optimizer,
    freeze_schedules,
)


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


def test_what_came_while_they_rested_leaves_no_trace_in_the_convolutions():
    tx, _ = finetune_optimizer(FinetuneConfig().optim, FreezeConfig(epochs=1), steps_per_epoch=2)

    def third(earlier):
        state = tx.init(PARAMS)
        for seed in earlier:
            _, state = tx.update(gradients(seed), state, PARAMS)
        return tx.update(gradients(9), state, PARAMS)[0]["encoder"]

    one, other = third((0, 1)), third((2, 3))
    kernel = np.asarray(one["conv1"]["kernel"])
    assert kernel.any()
    np.testing.assert_array_equal(kernel, other["conv1"]["kernel"])
    assert (one["bn1"]["scale"] != other["bn1"]["scale"]).any()


def test_fine_tuning_decays_batchnorm_and_biases_too():
    config = FinetuneConfig().optim
    tx, _ = finetune_optimizer(config, FreezeConfig(epochs=0), steps_per_epoch=2)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    jax.tree.map(
        lambda u, p: np.testing.assert_allclose(u, -config.lr * np.sign(p), rtol=1e-2),
        updates["encoder"],
        PARAMS["encoder"],
    )


def test_rest_and_ramp_may_be_given_in_steps():
    freeze = FreezeConfig(epochs=7, steps=6, double_every=4)
    encoder, _ = freeze_schedules(1.0, freeze, steps_per_epoch=100)
    found = [float(encoder(step)) for step in (0, 5, 6, 9, 10, 14, 18, 22, 26)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.2, 0.4, 0.8, 1, 1])
    same = FreezeConfig(epochs=3, steps=6, double_every=2), FreezeConfig(epochs=3)
    for step in range(0, 30):
        ours, theirs = (float(freeze_schedules(1.0, f, 2)[0](step)) for f in same)
        assert ours == theirs
