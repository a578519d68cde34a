"""The one place where the form of a convolution is chosen.

`Conv` is `nn.Conv` whose arithmetic is `convolve`: XLA's own convolution everywhere, except on CPU

- for outputs with fewer positions than the kernel has taps, where XLA's CPU backend is two orders
  of magnitude slower than the same sum written as shifted matrix products;
- for the weight gradient of a 1x1 convolution, which as a convolution takes a transposed copy of
  the map first, and as a matrix product does not.

`UpConv` is the transposed convolution of SparK's decoder.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


def _shifted_products(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> Array:
    """The convolution as one product per kernel tap; equal to XLA's up to summation order."""
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    kh, kw = kernel.shape[:2]
    sh, sw = strides
    height = (x.shape[1] - kh) // sh + 1
    width = (x.shape[2] - kw) // sw + 1
    shifted = [
        x[:, i : i + sh * (height - 1) + 1 : sh, j : j + sw * (width - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


_NHWC = ("NHWC", "HWIO", "NHWC")


def _pointwise_plain(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), ((0, 0), (0, 0)), dimension_numbers=_NHWC)


@jax.custom_vjp
def _pointwise(x: Float[Array, "b h w i"], kernel: Float[Array, "1 1 i o"]) -> Array:
    return _pointwise_plain(x, kernel)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_convolution(x: Array, g: Array) -> Array:
        return jax.linear_transpose(partial(_pointwise_plain, x), kernel)(g)[0]

    def by_product(x: Array, g: Array) -> Array:
        return lax.dot_general(x, g, (((0, 1, 2), (0, 1, 2)), ((), ())))[None, None]

    dx = jax.linear_transpose(lambda x: _pointwise_plain(x, kernel), x)(g)[0]
    return dx, lax.platform_dependent(x, g, cpu=by_product, default=by_convolution)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def convolve(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`lax.conv_general_dilated` with another form on CPU where XLA's is pathologically slow.

    Measured on a 3x3 convolution over a 2x2 map: 500 ms against 7 ms (XLA CPU, 2 cores).
    """
    dense = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    taps = rhs.shape[0] * rhs.shape[1]
    plain = (
        not isinstance(padding, str)
        and feature_group_count == 1
        and precision is None
        and preferred_element_type is None
        and set(lhs_dilation or (1,)) == {1}
        and set(rhs_dilation or (1,)) == {1}
    )
    if not plain:
        return dense(lhs, rhs)
    assert not isinstance(padding, str)
    if taps == 1 and set(window_strides) == {1} and not any(map(any, padding)):
        return _pointwise(lhs, rhs)
    sides = zip(lhs.shape[1:3], rhs.shape[:2], padding, window_strides, strict=True)
    positions = math.prod((side + sum(pad) - tap) // step + 1 for side, tap, pad, step in sides)
    if positions >= taps:
        return dense(lhs, rhs)
    return lax.platform_dependent(
        lhs,
        rhs,
        cpu=partial(_shifted_products, strides=window_strides, padding=padding),
        default=dense,
    )


Conv = partial(nn.Conv, conv_general_dilated=convolve)


class UpConv(nn.Module):
    """Transposed convolution 4x4, stride 2, padding 1: doubles height and width.

    The kernel `[4, 4, in, out]` and its meaning are torch's (`ConvTranspose2d`, transposed to
    HWIO). Computed as four 2x2 convolutions, one per parity of the output position: the same
    products, without the zeros that an input-dilated convolution would multiply.
    """

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        """Returns the map at twice the resolution."""
        kernel, bias = self.parameters(x.shape[-1])
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        # Output 2m reads inputs m-1, m through taps 3, 1; output 2m+1 reads m, m+1 through 2, 0.
        taps = kernel.reshape(2, 2, 2, 2, *kernel.shape[2:])[::-1, ::-1, ::-1, ::-1]
        pads = ((1, 0), (0, 1))
        convolved = [
            [
                convolve(x, taps[:, a, :, b], (1, 1), (pads[a], pads[b]), dimension_numbers=_NHWC)
                for b in (0, 1)
            ]
            for a in (0, 1)
        ]
        rows = [jnp.stack(row, axis=3) for row in convolved]  # b h w 2 o
        y = jnp.stack(rows, axis=2)  # b h 2 w 2 o
        b, h, _, w, _, o = y.shape
        return y.reshape(b, 2 * h, 2 * w, o) + bias

    def parameters(self, channels: int) -> tuple[Float[Array, "4 4 i o"], Float[Array, " o"]]:
        """Kernel and bias for an input of so many channels; for use within `__call__`."""
        sizes = (4, 4, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, sizes, self.param_dtype)
        zeros = nn.initializers.zeros_init()
        return kernel, self.param("bias", zeros, (self.features,), self.param_dtype)


def kaiming_fan_out(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Normal with variance 2 / fan_out: torch's `kaiming_normal_(mode='fan_out')` for ReLU."""
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return init(key, shape, dtype)
