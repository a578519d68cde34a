"""SparK's masked sparse convolution as mask-multiplied dense operations.

`with masked_ops(mask):` runs a Linen module made of `MASKED_MODULES`, and of what looks at one
position only, with sparse semantics (SparK, Tian et al. 2023, §3.1;
keyu-tian/SparK@a63e386 `encoder.py`):

- outputs of convolutions and max-pooling are multiplied by the mask up-sampled to their resolution,
  so hidden positions stay exactly zero and visible content never leaks into them;
- BatchNorm takes its statistics over visible positions only and leaves hidden outputs zero
  (not at the bias).

This is the reference implementation; a faster one must equal it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from ctssl_jax.nn.normalisation import BatchNorm
from ctssl_jax.nn.resnet import MaxPool

MASKED_MODULES = (nn.Conv, BatchNorm, MaxPool)


def upsample_mask(mask: Bool[Array, "b f f"], height: int, width: int) -> Bool[Array, "b h w 1"]:
    """The patch mask repeated to a map of `height` x `width` (multiples of the grid)."""
    rows, columns = height // mask.shape[1], width // mask.shape[2]
    if rows * mask.shape[1] != height or columns * mask.shape[2] != width:
        raise ValueError(
            f"a map of {height}x{width} is no multiple of the mask grid {mask.shape[1:]}"
        )
    return jnp.repeat(jnp.repeat(mask, rows, axis=1), columns, axis=2)[..., None]


def random_mask(
    keys: Array | jax.Array, grid: int, keep: int
) -> tuple[Bool[Array, "b f f"], Int[Array, "b k"]]:
    """Draws `keep` visible patches per image, uniformly without replacement.

    Args:
      keys: one PRNG key per image, `[b]`.
      grid: patches along a side.
      keep: visible patches per image.

    Returns:
      The mask (True = visible) and the row-major indices of the visible patches.
    """

    def draw(key: jax.Array) -> jax.Array:
        return jnp.sort(jax.random.permutation(key, grid * grid)[:keep])

    visible = jax.vmap(draw)(keys)
    flat = jnp.zeros((visible.shape[0], grid * grid), bool)
    mask = jax.vmap(lambda row, index: row.at[index].set(True))(flat, visible)
    return mask.reshape(-1, grid, grid), visible


@contextmanager
def masked_ops(mask: Bool[Array, "b f f"]) -> Iterator[None]:
    """Runs the modules called inside with sparse semantics; True in `mask` = visible patch."""

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "__call__" or not isinstance(context.module, MASKED_MODULES):
            return call(*args, **kwargs)
        if isinstance(context.module, BatchNorm):
            x: Float[Array, "b h w c"] = args[0]
            visible = upsample_mask(mask, x.shape[1], x.shape[2])
            return jnp.where(visible, call(*args, **kwargs, mask=visible), 0)
        y = call(*args, **kwargs)
        return jnp.where(upsample_mask(mask, y.shape[1], y.shape[2]), y, 0)

    with nn.intercept_methods(intercept):
        yield
