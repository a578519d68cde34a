"""BatchNorm's written-out gradient, its parts of a batch, and the other modules' CPU forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ctssl_jax.nn.activation import relu, relu6
from ctssl_jax.nn.normalisation import EPSILON, BatchNorm, batch_norm_groups, normalise
from ctssl_jax.nn.pooling import max_pool


def plain(x, scale, bias, mask):
    """The same by its definition, for automatic differentiation."""
    axes = tuple(range(1, x.ndim - 1))
    mean = x.mean(axes, keepdims=True, where=mask)
    var = jnp.square(x - mean).mean(axes, keepdims=True, where=mask)
    return (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_that_of_the_definition(float64, masked):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 5, 6)) * 2 + 1)
    scale, bias = (jnp.asarray(rng.standard_normal(6)) for _ in range(2))
    mask = jnp.asarray(rng.random((2, 3, 4, 5, 1)) < 0.4) if masked else None
    weight = jnp.asarray(rng.standard_normal(x.shape))

    def ours(x, scale, bias):
        return jnp.sum(weight * jnp.sin(normalise(x, scale, bias, mask).y))

    def expected(x, scale, bias):
        return jnp.sum(weight * jnp.sin(plain(x, scale, bias, mask)))

    arguments = (x, scale, bias)
    np.testing.assert_allclose(ours(*arguments), expected(*arguments), rtol=1e-12)
    found, wanted = (jax.grad(f, (0, 1, 2))(*arguments) for f in (ours, expected))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_training_equals_flax():
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 3)) * 3 + 2
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False)
    variables = theirs.init(jax.random.key(1), x)
    expected, kept = theirs.apply(variables, x, mutable=["batch_stats"])
    y, own = BatchNorm(use_running_average=False).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own, kept)
    evaluated = nn.BatchNorm(use_running_average=True).apply({**variables, **kept}, x)
    np.testing.assert_allclose(
        BatchNorm(use_running_average=True).apply({**variables, **kept}, x), evaluated, atol=1e-6
    )


def test_groups_are_normalised_each_by_its_own():
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 3)) * jnp.arange(1.0, 7)[:, None, None, None]
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(1), x)
    with batch_norm_groups(3):
        y, kept = module.apply(variables, x, mutable=["batch_stats"])
    alone = [module.apply(variables, part, mutable=["batch_stats"]) for part in jnp.split(x, 3)]
    np.testing.assert_allclose(y, jnp.concatenate([part for part, _ in alone]), atol=1e-6)
    means = jax.tree.map(lambda *values: sum(values) / 3, *(kept for _, kept in alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), kept, means)


def test_parameters_and_statistics_stay_wide_in_bfloat16():
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)
    y, variables = BatchNorm(use_running_average=False).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.parametrize(
    ("ours", "theirs"), [(relu, nn.relu), (relu6, lambda x: jnp.minimum(nn.relu(x), 6.0))]
)
def test_rectifiers_equal_flax_and_keep_nan(ours, theirs):
    x = jnp.asarray([-2.0, -0.0, 0.0, 0.5, 5.9, 7.0])
    np.testing.assert_array_equal(ours(x), theirs(x))
    np.testing.assert_array_equal(
        jax.grad(lambda x: ours(x).sum())(x), jax.grad(lambda x: theirs(x).sum())(x)
    )
    assert jnp.isnan(ours(jnp.asarray(jnp.nan)))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (0, 0), (1, 0)])
@pytest.mark.parametrize("size", [6, 7])
def test_pooling_equals_a_window_also_among_equal_values(size, before, after):
    # Few different values: most windows hold their maximum more than once.
    x = jnp.round(jax.random.normal(jax.random.key(0), (2, size, size + 2, 3)))
    pad = ((before, after),) * 2
    weight = jax.random.normal(jax.random.key(1), max_pool(x, before, after).shape)

    def window(x):
        return nn.max_pool(x, (3, 3), (2, 2), pad)

    np.testing.assert_array_equal(max_pool(x, before, after), window(x))
    found, wanted = (
        jax.grad(lambda x, f=f: jnp.sum(weight * f(x)))(x)
        for f in (lambda x: max_pool(x, before, after), window)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
