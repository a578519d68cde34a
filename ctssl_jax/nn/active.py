"""SparK's encoder on visible patches alone: the function of `masked_ops`, without its waste.

As many patches of every image are visible, so that a map of any stage is tiles `[b * k, s, s, c]`,
s pixels to a patch. Inside `active_ops` a module gets tiles and gives tiles: what looks at one
position (1x1 convolution, BatchNorm) runs as it is, and what looks around takes a rim from the
neighbouring tiles first. A neighbour that is hidden, or beyond the border, gives zeros, which is
what a masked map has there.

Source: Tian et al. 2023 (SparK), §3.1, whose sparse convolution skips empty positions.
"""

import enum
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from ctssl_jax.nn.convolution import convolve
from ctssl_jax.nn.masked import masked_ops, upsample_mask
from ctssl_jax.nn.pooling import max_pool
from ctssl_jax.nn.resnet import DropPath, MaxPool

ABSENT = -1


class SparseForm(enum.Enum):
    """How SparK's encoder is computed, the numbers being the same."""

    MASKED = "masked"  # dense, multiplied by masks: the reference
    ACTIVE = "active"  # visible patches alone
    FASTEST = "fastest"  # the one that docs/performance.md shows to be faster on the backend

    def resolve(self) -> "SparseForm":
        """MASKED or ACTIVE.

        By JAX's backend and not by `lax.platform_dependent`, which traces both: 2 s at each start.
        ACTIVE on TPU is what its compiler estimates; on GPU, nobody has measured it yet.
        """
        if self is not SparseForm.FASTEST:
            return self
        return SparseForm.MASKED if jax.default_backend() == "gpu" else SparseForm.ACTIVE


@jax.custom_vjp
def rearrange(
    x: Float[Array, "b i *rest"], there: Int[Array, "b j"], back: Int[Array, "b i"]
) -> Float[Array, "b j *rest"]:
    """Row j becomes row `there[j]` of x, or zeros where that is `ABSENT`.

    No row is taken twice; `back` says which j took row i. So the gradient is the same operation
    with the two exchanged, and nothing is ever scattered.
    """

    def one(rows: Array, index: Array) -> Array:
        taken = rows[jnp.maximum(index, 0)]
        return jnp.where(index.reshape(-1, *[1] * (rows.ndim - 1)) == ABSENT, 0, taken)

    return jax.vmap(one)(x, there)


def _rearrange_forward(x: Array, there: Array, back: Array) -> tuple[Array, tuple[Array, Array]]:
    return rearrange(x, there, back), (there, back)


def _rearrange_backward(indices: tuple[Array, Array], g: Array) -> tuple[Array, None, None]:
    there, back = indices
    return rearrange(g, back, there), None, None


rearrange.defvjp(_rearrange_forward, _rearrange_backward)


class Tiling(NamedTuple):
    """Where the visible patches of a batch are.

    Attributes:
      patches: of each tile, its number on the grid, row by row.
      tiles: of each patch of the grid, its tile, or `ABSENT`.
      neighbours: of each tile, by (down, right), the tile so many patches away, or `ABSENT`.
    """

    patches: Int[Array, "b k"]
    tiles: Int[Array, "b f f"]
    neighbours: dict[tuple[int, int], Int[Array, "b k"]]

    def cut(self, x: Float[Array, "b h w c"]) -> Float[Array, "n s s c"]:
        """The visible tiles of a map; hidden ones are dropped."""
        b, side, _, c = x.shape
        grid, k = self.tiles.shape[-1], self.patches.shape[1]
        s = side // grid
        x = x.reshape(b, grid, s, grid, s, c).swapaxes(2, 3).reshape(b, grid * grid, s, s, c)
        return rearrange(x, self.patches, self.tiles.reshape(b, -1)).reshape(b * k, s, s, c)

    def put(self, x: Float[Array, "n s s c"]) -> Float[Array, "b h w c"]:
        """The map of the tiles, with zeros where nothing is visible."""
        b, k = self.patches.shape
        grid, (_, s, _, c) = self.tiles.shape[-1], x.shape
        placed = rearrange(x.reshape(b, k, s, s, c), self.tiles.reshape(b, -1), self.patches)
        placed = placed.reshape(b, grid, grid, s, s, c).swapaxes(2, 3)
        return placed.reshape(b, grid * s, grid * s, c)

    def with_rim(self, x: Float[Array, "n s s c"], before: int, after: int) -> Array:
        """Each tile with so many pixels of its neighbours above and left, and below and right."""
        b, k = self.patches.shape
        n, s, _, c = x.shape
        x = x.reshape(b, k, s, s, c)
        part = {-1: slice(s - before, s), 0: slice(0, s), 1: slice(0, after)}
        sides = [side for side, width in ((-1, before), (0, s), (1, after)) if width]

        def piece(down: int, right: int) -> Array:
            if down == right == 0:
                return x
            there, back = self.neighbours[down, right], self.neighbours[-down, -right]
            return rearrange(x[:, :, part[down], part[right]], there, back)

        rows = [jnp.concatenate([piece(i, j) for j in sides], axis=3) for i in sides]
        side = before + s + after
        return jnp.concatenate(rows, axis=2).reshape(n, side, side, c)


def tile(mask: Bool[Array, "b f f"], visible: int) -> Tiling:
    """Of a mask with so many visible patches in every image."""
    b, grid, _ = mask.shape
    flat = mask.reshape(b, -1)
    patches = jnp.argsort(~flat, axis=1, stable=True)[:, :visible]
    tiles = jnp.where(flat, jnp.cumsum(flat, axis=1) - 1, ABSENT).reshape(b, grid, grid)
    around = jnp.pad(tiles, ((0, 0), (1, 1), (1, 1)), constant_values=ABSENT)

    def neighbour(down: int, right: int) -> Int[Array, "b k"]:
        moved = around[:, 1 + down :, 1 + right :][:, :grid, :grid]
        return jnp.take_along_axis(moved.reshape(b, -1), patches, axis=1)

    steps = itertools.product((-1, 0, 1), repeat=2)
    return Tiling(patches, tiles, {step: neighbour(*step) for step in steps})


@contextmanager
def active_ops(tiling: Tiling) -> Iterator[None]:
    """Runs the modules called inside on tiles."""

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, nn.Conv):
            return _convolve(module, partial(call, **kwargs), args[0], tiling)
        if isinstance(module, MaxPool):
            # A rim of zeros: what is pooled comes from a ReLU, so that zeros are never the maximum
            # of anything but zeros.
            return max_pool(tiling.with_rim(args[0], 1, 0), 0, 0)
        if isinstance(module, DropPath):  # drops whole images
            x, *rest = args
            b, k = tiling.patches.shape
            images = call(x.reshape(b, k * x.shape[1], *x.shape[2:]), *rest, **kwargs)
            return images.reshape(x.shape)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def _convolve(module: nn.Conv, call: Callable[..., Array], x: Array, tiling: Tiling) -> Array:
    """A convolution with what lies around each tile in place of its padding."""
    sizes: Any = module.kernel_size, module.padding, module.strides
    (kernel, _), ((before, _), _), strides = sizes
    stride = 1 if strides in (None, 1) else strides[0]
    after = max(0, kernel - before - stride)
    if before == after == 0:
        return call(x)
    assert not module.use_bias, "a bias would make hidden positions visible"
    weights: Any = module.get_variable("params", "kernel")
    x, weights = nn.dtypes.promote_dtype(x, weights, dtype=module.dtype)
    return convolve(
        tiling.with_rim(x, before, after),
        weights,
        (stride, stride),
        ((0, 0), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def encode(
    apply: Callable[[Array], tuple[tuple[Array, ...], Any]],
    image: Float[Array, "b h w c"],
    mask: Bool[Array, "b f f"],
    visible: int,
    form: SparseForm,
) -> tuple[tuple[Float[Array, "b _ _ _"], ...], Any]:
    """Stage maps of the visible patches, zero where nothing is visible, and what `apply` updates.

    Args:
      apply: the encoder, image -> stage maps and updates.
      image: hidden patches are not looked at.
      mask: True = visible patch.
      visible: patches in every image of the mask.
      form: in which of the two ways.
    """
    if form.resolve() is SparseForm.MASKED:
        with masked_ops(mask):
            return apply(jnp.where(upsample_mask(mask, *image.shape[1:3]), image, 0))
    tiling = tile(mask, visible)
    with active_ops(tiling):
        stages, updates = apply(tiling.cut(image))
    return tuple(map(tiling.put, stages)), updates
