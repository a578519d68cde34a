"""Losses against lightly's, an independent PyTorch implementation, to 1e-5."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import NegativeCosineSimilarity, NTXentLoss, SwaVLoss, sinkhorn, torch

from ctssl_jax.methods import byol, moco, simclr, swav

RNG = np.random.default_rng(0)


def unit(*shape):
    x = RNG.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_info_nce_equals_nt_xent_with_a_memory_bank(temperature):
    """lightly scores both views against the bank and takes the mean; the queries are its first."""
    query, key, queue = unit(8, 16), unit(8, 16), unit(32, 16)
    theirs = NTXentLoss(temperature, memory_bank_size=(32, 16))
    theirs.memory_bank.bank = torch.from_numpy(queue)
    expected = theirs(torch.from_numpy(query), torch.from_numpy(key)).item()
    ours, _ = moco.info_nce(*map(jnp.asarray, (query, key, queue)), temperature)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_equals_nt_xent(temperature):
    z = unit(2, 8, 16)
    expected = NTXentLoss(temperature)(*map(torch.from_numpy, z)).item()
    ours, _ = simclr.nt_xent(jnp.asarray(z), temperature)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_sinkhorn_equals_lightlys(iterations):
    scores = unit(12, 16) @ unit(5, 16).T
    expected = sinkhorn(torch.from_numpy(scores), iterations=iterations, epsilon=0.05).numpy()
    found = swav.sinkhorn(jnp.asarray(scores), 0.05, iterations)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("queue", [False, True])
def test_multi_crop_loss_equals_swavs(queue):
    kernel, z, old = unit(5, 16), unit(5, 8, 16), unit(2, 24, 16)
    scores = z @ kernel.T
    queued = [torch.from_numpy(part @ kernel.T) for part in old] if queue else None
    theirs = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    tensors = [torch.from_numpy(view) for view in scores]
    expected = theirs(tensors[:2], tensors[2:], queued).item()
    method = swav.SwAV(prototypes=5, features=16, queue_size=24 if queue else 0, queue_epoch=0.0)
    progress = swav.Progress(jnp.int32(9), 20, 4.0)
    aux = {"queue": jnp.asarray(old)}
    codes = method.codes(jnp.asarray(z[:2]), jnp.asarray(kernel), aux, progress)
    ours = swav.swapped_loss(jnp.asarray(scores), codes, 0.1)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_regression_loss_equals_two_plus_twice_the_negative_cosine():
    x, y = (RNG.standard_normal((8, 16)).astype(np.float32) for _ in range(2))
    expected = 2 + 2 * NegativeCosineSimilarity()(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert float(byol.regression_loss(jnp.asarray(x), jnp.asarray(y))) == pytest.approx(
        expected, rel=1e-5
    )
