"""Sparse semantics against NumPy oracles, then as properties."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ctssl_jax.nn.masked import masked_ops, random_mask, upsample_mask
from ctssl_jax.nn.normalisation import BatchNorm
from ctssl_jax.nn.resnet import MaxPool, ResNet

SIZE, GRID = 96, 3


@pytest.fixture(scope="module")
def encoder():
    network = ResNet(depth=18, zero_init_residual=False)
    x = jax.random.normal(jax.random.key(1), (2, SIZE, SIZE, 1))
    return network, jax.jit(network.init)(jax.random.key(0), x), x


def mask_of(keep):
    keys = jax.random.split(jax.random.key(2), 2)
    return random_mask(keys, GRID, keep)[0]


def test_masked_batchnorm_equals_a_gather_of_visible_positions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 12, 12, 5)).astype(np.float32) * 3 + 1
    mask = np.asarray(mask_of(4))
    scale, bias = rng.standard_normal(5), rng.standard_normal(5)
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), jnp.asarray(x))
    variables["params"] = {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}
    with masked_ops(jnp.asarray(mask)):
        y, updates = module.apply(variables, jnp.asarray(x), mutable=["batch_stats"])

    visible = mask.repeat(4, axis=1).repeat(4, axis=2)
    gathered = x[visible].astype(np.float64)  # n x c
    mean, variance = gathered.mean(axis=0), gathered.var(axis=0)
    expected = np.zeros(x.shape)
    expected[visible] = (gathered - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * variance, atol=1e-5)


def test_masked_max_pool_and_convolution_are_dense_then_zeroed():
    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    mask = mask_of(4)
    for module in (MaxPool(), nn.Conv(4, (3, 3), padding=((1, 1), (1, 1)))):
        variables = module.init(jax.random.key(1), x)
        dense = module.apply(variables, x)
        with masked_ops(mask):
            sparse = module.apply(variables, x)
        visible = np.asarray(upsample_mask(mask, *dense.shape[1:3]))
        np.testing.assert_array_equal(sparse, np.where(visible, dense, 0))


@partial(jax.jit, static_argnums=0)
def trained(network, variables, x, mask=None):
    """Maps and statistics of a training step, with a mask or without."""
    with contextlib.nullcontext() if mask is None else masked_ops(mask):
        return network.apply(variables, x, True, mutable=["batch_stats"])


def test_hidden_positions_are_zero_at_every_stage(encoder):
    network, variables, x = encoder
    mask = mask_of(4)
    stages, _ = trained(network, variables, x, mask)
    for stage in stages:
        visible = np.broadcast_to(upsample_mask(mask, *stage.shape[1:3]), stage.shape)
        assert np.all(np.asarray(stage)[~visible] == 0)
        assert np.any(np.asarray(stage)[visible] != 0)


def test_all_visible_equals_dense(encoder):
    network, variables, x = encoder
    dense, dense_stats = trained(network, variables, x)
    sparse, sparse_stats = trained(network, variables, x, jnp.ones((2, GRID, GRID), bool))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        (dense, dense_stats),
        (sparse, sparse_stats),
    )


def test_tree_is_the_same_with_and_without_mask(encoder):
    network, variables, x = encoder

    def init(key):
        with masked_ops(mask_of(4)):
            return network.init(key, x)

    masked = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, masked)


def test_random_mask_keeps_as_many_patches_anywhere():
    keys = jax.random.split(jax.random.key(0), 4000)
    mask, visible = random_mask(keys, GRID, 4)
    assert np.all(np.asarray(mask).sum(axis=(1, 2)) == 4)
    flat = np.asarray(mask).reshape(len(keys), -1)
    assert np.all(np.take_along_axis(flat, np.asarray(visible), axis=1))
    # each patch is visible in 4/9 of the masks; 5 sigma of a binomial
    sigma = np.sqrt(4 / 9 * 5 / 9 / len(keys))
    assert np.all(np.abs(flat.mean(axis=0) - 4 / 9) < 5 * sigma)


def test_a_map_that_does_not_fit_the_grid_is_refused():
    with pytest.raises(ValueError, match="no multiple of the mask grid"):
        upsample_mask(jnp.ones((1, 3, 3), bool), 16, 16)
