"""The CPU forms of a convolution against direct sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ctssl_jax.nn.convolution import UpConv, convolve

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_small_maps_equal_xla(size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, size, size, 5)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 5, 4)), jnp.float32)
    pad = ((1, 1), (1, 1))

    def ours(x, kernel):
        return convolve(x, kernel, (stride, stride), pad, dimension_numbers=NHWC)

    def xla(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=NHWC)

    assert "dot_general" in str(jax.make_jaxpr(ours)(x, kernel))  # the other form is really taken
    np.testing.assert_allclose(ours(x, kernel), xla(x, kernel), atol=1e-5)
    for argument in (0, 1):
        grads = [
            jax.grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k))), argument)(x, kernel)
            for f in (ours, xla)
        ]
        np.testing.assert_allclose(*grads, atol=1e-5)


def transposed_convolution(x, kernel, bias):
    """torch's ConvTranspose2d(4, stride 2, padding 1), from its definition."""
    b, h, w, _ = x.shape
    full = np.zeros((b, 2 * h + 2, 2 * w + 2, kernel.shape[3]))
    for i in range(h):
        for j in range(w):
            full[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum(
                "bi,hwio->bhwo", x[:, i, j], kernel
            )
    return full[:, 1:-1, 1:-1] + bias


def test_up_convolution_equals_its_definition():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    x = jnp.asarray(x)
    module = UpConv(6)
    params = module.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.asarray(rng.standard_normal(6), jnp.float32)
    expected = transposed_convolution(
        np.asarray(x), np.asarray(params["kernel"]), np.asarray(params["bias"])
    )
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-4)


def test_pointwise_weight_gradient_equals_xla():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((3, 6, 6, 5)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((1, 1, 5, 4)), jnp.float32)
    pad = ((0, 0), (0, 0))

    def ours(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, (1, 1), pad, dimension_numbers=NHWC)))

    def xla(x, kernel):
        y = lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=NHWC)
        return jnp.sum(jnp.sin(y))

    assert "dot_general" in str(jax.make_jaxpr(jax.grad(ours, 1))(x, kernel))
    for argument in (0, 1):
        found, expected = (jax.grad(f, argument)(x, kernel) for f in (ours, xla))
        np.testing.assert_allclose(found, expected, atol=1e-5)
