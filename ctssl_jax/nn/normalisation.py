"""BatchNorm, with statistics over the batch, over visible positions, or over parts of the batch.

Source: Ioffe and Szegedy 2015; momentum and epsilon are torch's. The gradient is written out: left
to differentiate the statistics, XLA reads and writes each map about twice as often. Its last
operation reads two maps: if it read one and a factor, XLA's CPU backend would compute it anew for
each convolution that reads it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

MOMENTUM = 0.9  # of the running statistics: torch's 0.1
EPSILON = 1e-5


class Normalised(NamedTuple):
    """What `normalise` gives: only `y` has a gradient."""

    y: Float[Array, "g n *d c"]
    mean: Float[Array, "g c"]
    var: Float[Array, "g c"]


@jax.custom_vjp
def normalise(
    x: Float[Array, "g n *d c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    mask: Bool[Array, "g n *d 1"] | None,
) -> Normalised:
    """Each of g parts by the statistics of its own positions, or of those where `mask` is True.

    Everything is computed in fp32 or more and returned so. The variance is taken in two passes, as
    torch does: E[x^2] - E[x]^2 loses digits where few positions are visible.
    """
    return _forward(x, scale, bias, mask)[0]


def _forward(x: Array, scale: Array, bias: Array, mask: Array | None) -> tuple[Normalised, Any]:
    axes = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True, where=mask)
    var = jnp.square(wide - mean).mean(axes, keepdims=True, where=mask)
    inverse = jax.lax.rsqrt(var + EPSILON)
    y = (wide - mean) * (inverse * scale) + bias
    statistics = (value.reshape(len(x), -1) for value in (mean, var))
    return Normalised(y, *statistics), (x, scale, bias, mask, mean, inverse)


def _backward(saved: Any, gradients: Normalised) -> tuple[Array, Array, Array, None]:
    x, scale, bias, mask, mean, inverse = saved
    g, axes = gradients.y, tuple(range(1, x.ndim - 1))
    centred = x.astype(g.dtype) - mean
    shift = g.sum(axes, keepdims=True)
    tilt = (g * centred).sum(axes, keepdims=True) * inverse
    count: Any = x[0].size // x.shape[-1] if mask is None else mask.sum(axes, keepdims=True)
    factor = inverse * scale
    of_statistics = centred * (factor * inverse * tilt / count) + factor * shift / count
    if mask is not None:
        of_statistics = jnp.where(mask, of_statistics, 0)
    dx = g * factor - of_statistics
    parts = (tilt.reshape(-1, len(scale)), shift.reshape(-1, len(scale)))
    dscale, dbias = (part.sum(axis=0) for part in parts)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype), None


normalise.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """Normalises over all axes but the last.

    Attributes:
      use_running_average: use the running statistics and leave them as they are (evaluation).
      dtype: of the output; parameters and running statistics stay in `param_dtype`.
    """

    use_running_average: bool
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *d c"],
        *,
        mask: Bool[Array, "b *d 1"] | None = None,
        groups: int = 1,
        measure: bool = False,
    ) -> Float[Array, "b *d c"]:
        """Returns x normalised.

        Args:
          x: the batch.
          mask: positions whose statistics count; all are normalised by them.
          groups: consecutive parts of the batch, each with statistics of its own; the running ones
            move towards their mean.
          measure: normalise by the batch, also in evaluation, and put its statistics in place of
            the running ones, which are then what this batch alone has.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, self.param_dtype)
        statistics = [
            self.variable("batch_stats", name, start, channels, self.param_dtype)
            for name, start in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        dtype = self.dtype or x.dtype
        if self.use_running_average and not measure:
            mean, var = (kept.value for kept in statistics)
            return ((x - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias).astype(dtype)
        parted, counted = jax.tree.map(
            lambda array: array.reshape(groups, -1, *array.shape[1:]), (x, mask)
        )
        found = normalise(parted, scale, bias, counted)
        if not self.is_initializing():
            for kept, new in zip(statistics, (found.mean, found.var), strict=True):
                latest = new.mean(axis=0)
                kept.value = latest if measure else MOMENTUM * kept.value + (1 - MOMENTUM) * latest
        return found.y.reshape(x.shape).astype(dtype)


def batch_norm_groups(groups: int) -> AbstractContextManager[None]:
    """Gives the BatchNorms of the modules called inside so many `groups`."""
    return _batch_norm_options(groups=groups)


def batch_norm_measure(valid: Bool[Array, " b"]) -> AbstractContextManager[None]:
    """Makes the BatchNorms of the modules called inside `measure` the images that are `valid`."""
    return _batch_norm_options(measure=True, mask=valid)


def batch_norm_mask(valid: Bool[Array, " b"]) -> AbstractContextManager[None]:
    """Gives the BatchNorms of the modules called inside the statistics of what is `valid`."""
    return _batch_norm_options(mask=valid)


@contextmanager
def _batch_norm_options(mask: Bool[Array, " b"] | None = None, **options: Any) -> Iterator[None]:
    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if not isinstance(context.module, BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if mask is not None:
            x = args[0]
            whole = mask.reshape(-1, *(1,) * (x.ndim - 1))
            kwargs = {**kwargs, "mask": jnp.broadcast_to(whole, (*x.shape[:-1], 1))}
        return call(*args, **kwargs, **options)

    with nn.intercept_methods(intercept):
        yield
