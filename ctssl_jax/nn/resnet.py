"""ResNet-18/34/50 as timm and torchvision build it, returning the maps of its four stages.

The network is dense and knows no mask: SparK runs this same module under
`masked.masked_ops`, so the parameter tree is the same by construction. Every submodule is named,
because Linen would otherwise name it after its class. Padding is explicit and symmetric as in torch
(XLA's "SAME" shifts strided convolutions by one pixel).

Source: He et al. 2016; layout and initialisation of timm 0.5.4 `resnet.py` (stride on the 3x3
convolution, zero-initialised last BatchNorm of each block, stochastic depth per sample).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ctssl_jax.nn.activation import relu
from ctssl_jax.nn.convolution import Conv, kaiming_fan_out
from ctssl_jax.nn.normalisation import BatchNorm
from ctssl_jax.nn.pooling import max_pool


class Depth(NamedTuple):
    """Blocks per stage and whether they are bottlenecks."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool


DEPTHS = {
    18: Depth((2, 2, 2, 2), False),
    34: Depth((3, 4, 6, 3), False),
    50: Depth((3, 4, 6, 3), True),
}
STRIDE = 32  # of the last stage


class MaxPool(nn.Module):
    """3x3 max-pooling, stride 2, padding 1. A module so that `masked_ops` can meet it."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the pooled map."""
        return max_pool(x, 1, 1)


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch per sample (Huang et al. 2016)."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Returns the branch scaled by 1 / (1 - rate), or zero for the samples dropped."""
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, (x.shape[0], 1, 1, 1))
        return jnp.where(kept, x / keep, 0.0).astype(x.dtype)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with `bottleneck`."""

    width: int
    stride: int
    bottleneck: bool
    drop_path: float
    zero_init_residual: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 o"]:
        """Returns the block's output at 1 / stride of the resolution."""
        conv = partial(
            Conv,
            use_bias=False,
            kernel_init=kaiming_fan_out,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        features = self.width * (4 if self.bottleneck else 1)
        strides, pad1 = (self.stride, self.stride), ((1, 1), (1, 1))
        if self.bottleneck:
            y = conv(self.width, (1, 1), padding=((0, 0), (0, 0)), name="conv1")(x)
            y = relu(norm(name="bn1")(y))
            y = conv(self.width, (3, 3), strides, padding=pad1, name="conv2")(y)
            y = relu(norm(name="bn2")(y))
            y = conv(features, (1, 1), padding=((0, 0), (0, 0)), name="conv3")(y)
            y = norm(name="bn3", scale_init=last_scale)(y)
        else:
            y = conv(self.width, (3, 3), strides, padding=pad1, name="conv1")(x)
            y = relu(norm(name="bn1")(y))
            y = conv(self.width, (3, 3), padding=pad1, name="conv2")(y)
            y = norm(name="bn2", scale_init=last_scale)(y)
        y = DropPath(self.drop_path, name="drop_path")(y, train)
        if self.stride != 1 or x.shape[-1] != features:
            x = conv(features, (1, 1), strides, padding=((0, 0), (0, 0)), name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x)
        return relu(x + y)


class ResNet(nn.Module):
    """The encoder of every method; SparK runs it under `masked_ops`.

    Attributes:
      depth: 18, 34 or 50.
      drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
      zero_init_residual: start each block as the identity (timm's default; not torchvision's).
      dtype: of the computation; parameters and BatchNorm statistics stay in `param_dtype`.
      remat_stages: of so many stages, from the first and largest on, the backward pass recomputes
        the blocks instead of keeping their activations.
    """

    depth: int = 50
    drop_path_rate: float = 0.0
    zero_init_residual: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat_stages: int = 0

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the four stage maps."""
        expansion = 4 if DEPTHS[self.depth].bottleneck else 1
        return tuple(64 * 2**i * expansion for i in range(4))  # type: ignore[return-value]

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the stage maps at 1/4, 1/8, 1/16 and 1/32 of the input's resolution."""
        blocks, bottleneck = DEPTHS[self.depth]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(
            64,
            (7, 7),
            (2, 2),
            padding=((3, 3), (3, 3)),
            use_bias=False,
            kernel_init=kaiming_fan_out,
            name="conv1",
            **dtypes,
        )(x)
        x = relu(BatchNorm(use_running_average=not train, name="bn1", **dtypes)(x))
        x = MaxPool(name="maxpool")(x)
        maps, index, total = [], 0, sum(blocks)
        for stage, count in enumerate(blocks):
            remat = stage < self.remat_stages
            block = nn.remat(Block, static_argnums=(2,)) if remat else Block
            for i in range(count):
                x = block(
                    width=64 * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    bottleneck=bottleneck,
                    drop_path=self.drop_path_rate * index / (total - 1),
                    zero_init_residual=self.zero_init_residual,
                    name=f"layer{stage + 1}_{i}",
                    **dtypes,
                )(x, train)
                index += 1
            maps.append(x)
        return tuple(maps)


def pool(stage_map: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Global average of a stage map, in fp32: the image's feature vector."""
    return jnp.mean(stage_map.astype(jnp.promote_types(stage_map.dtype, jnp.float32)), axis=(1, 2))
