"""Maps of few channels for a TPU: each square of 2x2 positions is held as one, `[b, h, w, 4, c]`.

A TPU keeps a map's channels in rows of 128 numbers. Of the last block of SparK's decoder 24 or 48
of these would be used, at the full resolution: most of what it moves would be padding. Held in
squares, the same numbers fill the rows. A convolution of squares multiplies zeros too, 3 of 4 times
for 3x3 taps, and still takes about half of the cycles that the TPU's compiler estimates
(docs/scale.md).

The parameters are those of the plain modules, and so are the numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

from ctssl_jax.nn.convolution import UpConv, convolve


def worthwhile() -> bool:
    """Whether the program that is traced is for TPUs.

    `sharding.jit_step` says for which devices it is, also where there are none of them
    (`launch.compile_check`); elsewhere it is for JAX's backend.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend() == "tpu"
    return mesh.abstract_device.device_kind.startswith("TPU")


def unpack(x: Float[Array, "b h w 4 c"]) -> Float[Array, "b 2*h 2*w c"]:
    """The plain map; a square's positions are in the order of rows."""
    b, h, w, _, c = x.shape
    return x.reshape(b, h, w, 2, 2, c).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, c)


class PackedConv(nn.Module):
    """`nn.Conv` of a packed map to one of the same size.

    Attributes:
      kernel_size: odd and square.
      padding: half of it, rounded down, on every side.
    """

    features: int
    kernel_size: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 4 i"]) -> Float[Array, "b h w 4 o"]:
        """Returns the packed map."""
        sizes = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, sizes, self.param_dtype)
        size, before = self.kernel_size[0], self.padding[0][0]
        reach = (before + 1) // 2
        # Row `out` of a square reads through `tap` the row `row` of the square `away` from it.
        away, row, out, tap = np.ogrid[-reach : reach + 1, :2, :2, :size]
        y = _convolve(x, kernel, 2 * away + row == out + tap - before, self.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        return y + bias.astype(y.dtype)


class PackedUpConv(UpConv):
    """`UpConv` of a plain map to a packed one, without bringing its rows and columns together."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w 4 o"]:
        """Returns the packed map, of as many squares as x has positions."""
        kernel, bias = self.parameters(x.shape[-1])
        # Input row m goes through `tap` to output row 2m - 1 + tap.
        away, row, out, tap = np.ogrid[-1:2, :1, :2, :4]
        y = _convolve(x[..., None, :], kernel, 2 * away + row == out + 1 - tap, self.dtype)
        return y + bias.astype(y.dtype)


def _convolve(
    x: Float[Array, "b h w p i"],
    kernel: Float[Array, "k k i o"],
    taken: Bool[np.ndarray, "t r s k"],
    dtype: Any,
) -> Float[Array, "b h w q o"]:
    """The convolution with `kernel`, the positions of a square taken for channels.

    Args:
      x: of each square its p = r * r positions.
      kernel: of the plain convolution.
      taken: through which of k taps which of s rows of a square of the output reads which of r rows
        of a square of x, how far away; the same holds of columns.
      dtype: to compute in, as `nn.Conv` takes it.
    """
    b, h, w, p, i = x.shape
    (t, r, s, _), o = taken.shape, kernel.shape[-1]
    one_axis = taken.astype(kernel.dtype)
    # Every entry is one of `kernel` or 0: exact where the products are.
    squares = jnp.einsum(
        "trsk,vqul,klio->tvrqisuo", one_axis, one_axis, kernel, precision=lax.Precision.HIGHEST
    ).reshape(t, t, r * r * i, s * s * o)
    x, squares = nn.dtypes.promote_dtype(x.reshape(b, h, w, p * i), squares, dtype=dtype)
    padding = ((t // 2, t // 2),) * 2
    y = convolve(x, squares, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.reshape(b, h, w, s * s, o)
