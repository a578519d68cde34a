"""Pooling: of a map's 3x3 windows, and of the slices of a case.

A case is a bag of feature vectors, padded to a common number and masked. Each pooling of one gives
its feature vector and, for people, the share of it that each slice has. Max-pooling of windows has
stride 2 and the form that is fastest on the backend.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from ctssl_jax.nn.heads import torch_uniform


def max_pool(x: Float[Array, "b h w c"], before: int, after: int) -> Float[Array, "b h2 w2 c"]:
    """Largest value of each 3x3 window, stride 2, with a rim of so many pixels that never win.

    Of equal values the first, row by row, takes the gradient, as in torch. XLA's CPU backend
    visits a window's elements one by one, forward and backward; there the windows are taken apart
    into maxima of whole maps.
    """
    pad = ((before, after), (before, after))
    return lax.platform_dependent(
        x,
        cpu=partial(_shifted_maxima, pad=pad),
        default=partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=pad),
    )


def _shifted_maxima(x: Array, pad: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)), constant_values=-jnp.inf)
    for axis in (2, 1):  # along rows first: of equal values the upper, then the left one is first
        last = x.shape[axis] - 2
        first, second, third = (
            lax.slice_in_dim(x, start, start + last, stride=2, axis=axis) for start in range(3)
        )
        x = _earlier_maximum(_earlier_maximum(first, second), third)
    return x


def _earlier_maximum(a: Array, b: Array) -> Array:
    """The larger; where they are equal, or a is NaN, a takes the gradient."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def mean_of_slices(
    x: Float[Array, "c n d"], valid: Bool[Array, "c n"]
) -> tuple[Float[Array, "c d"], Float[Array, "c n"]]:
    """The mean over a case's slices, and their shares, which are equal."""
    shares = valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    return jnp.einsum("cn,cnd->cd", shares.astype(x.dtype), x), shares


def top_of_slices(
    x: Float[Array, "c n d"], valid: Bool[Array, "c n"], k: int
) -> tuple[Float[Array, "c d"], Float[Array, "c n"]]:
    """The mean of the `k` largest values of each feature over a case's slices; 1 is the maximum.

    Of a case with fewer slices, the mean of all. A slice's share is how often it is among them.
    """
    n = x.shape[1]
    masked = jnp.where(valid[..., None], x, -jnp.inf).swapaxes(1, 2)
    largest, places = jax.lax.top_k(masked, min(k, n))  # [c, d, k]
    count = jnp.clip(valid.sum(axis=1), 1, k)[:, None, None]
    counted = jnp.arange(largest.shape[-1]) < count
    pooled = jnp.where(counted, largest, 0.0).sum(axis=-1) / count[..., 0]
    won = jax.nn.one_hot(places, n, dtype=x.dtype) * counted[..., None]
    return pooled, (won.sum(axis=2) / count).mean(axis=1) * valid


class GatedAttention(nn.Module):
    """Attention with a gate over the slices of a case.

    Source: Ilse, Tomczak, Welling, ICML 2018, equations 8 and 9: the share of slice i is the
    softmax over the slices of w^T (tanh(V h_i) * sigmoid(U h_i)).

    Attributes:
      hidden: width of V and U.
    """

    hidden: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "c n d"], valid: Bool[Array, "c n"]
    ) -> tuple[Float[Array, "c d"], Float[Array, "c n"]]:
        """Returns the weighted mean over a case's slices, and the weights."""

        def linear(features: int, name: str, fan_in: int) -> nn.Dense:
            uniform = torch_uniform(fan_in)
            return nn.Dense(
                features,
                kernel_init=uniform,
                bias_init=uniform,
                param_dtype=self.param_dtype,
                name=name,
            )

        d = x.shape[-1]
        content = jnp.tanh(linear(self.hidden, "V", d)(x))
        gate = jax.nn.sigmoid(linear(self.hidden, "U", d)(x))
        # A bias of w would be the same for all slices, and so without effect.
        w = nn.Dense(
            1,
            use_bias=False,
            kernel_init=torch_uniform(self.hidden),
            param_dtype=self.param_dtype,
            name="w",
        )
        score = jnp.where(valid, w(content * gate)[..., 0], -jnp.inf)
        shares = jax.nn.softmax(score, axis=1, where=valid)
        shares = jnp.where(valid, shares, 0.0)
        return jnp.einsum("cn,cnd->cd", shares, x), shares
