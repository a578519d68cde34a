"""SparK's head: densification of the sparse stage maps, and the light decoder.

Source: Tian et al. 2023 (SparK) §3.2; keyu-tian/SparK@a63e386 `spark.py`, `decoder.py`. Both parts
run densely; only the densify norms look at the mask.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from ctssl_jax.nn.activation import relu6
from ctssl_jax.nn.convolution import Conv, UpConv
from ctssl_jax.nn.heads import torch_uniform
from ctssl_jax.nn.masked import masked_ops, upsample_mask
from ctssl_jax.nn.normalisation import BatchNorm
from ctssl_jax.nn.packing import PackedConv, PackedUpConv, unpack

BLOCKS = 5  # 2**5 = the encoder's stride


def trunc_normal_002(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Normal of std 0.02 cut at +-2 absolute, which for this std cuts nothing that occurs."""
    return 0.02 * jax.random.truncated_normal(key, -100.0, 100.0, shape, dtype)


def mask_token_init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Normal of std 0.02 cut at +-0.02, that is at one standard deviation."""
    return 0.02 * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)


def up_kernel_init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Kaiming-normal, fan_out as torch counts it for a transposed kernel: inputs x taps."""
    std = (2.0 / (shape[0] * shape[1] * shape[2])) ** 0.5
    return std * jax.random.normal(key, shape, dtype)


class DecoderBlock(nn.Module):
    """Doubles the resolution: transposed convolution, then two 3x3 convolutions with BatchNorm.

    Attributes:
      packed: the map is returned as `packing` holds it, `[b, h, w, 4, o]`, with the same numbers.
    """

    features: int
    dtype: Any
    param_dtype: Any
    packed: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], train: bool) -> Float[Array, "b *D o"]:
        """Returns the map at twice the resolution, without a final activation."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        up = PackedUpConv if self.packed else UpConv
        conv = partial(
            PackedConv if self.packed else Conv,
            kernel_size=(3, 3),
            padding=((1, 1), (1, 1)),
            use_bias=False,
            kernel_init=trunc_normal_002,
            **dtypes,
        )
        norm = partial(BatchNorm, use_running_average=not train, **dtypes)
        x = up(x.shape[-1], kernel_init=up_kernel_init, name="up", **dtypes)(x)
        x = relu6(norm(name="bn1")(conv(x.shape[-1], name="conv1")(x)))
        return norm(name="bn2")(conv(self.features, name="conv2")(x))


class SparKHead(nn.Module):
    """Stage maps of the masked encoder -> reconstruction.

    Attributes:
      width: channels at the coarsest level, halved at each of the five blocks.
      channels: of the reconstructed image.
      packed: the last block, of few channels and many positions, is computed as `packing` has it.
    """

    width: int = 768
    channels: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    packed: bool = False

    @nn.compact
    def __call__(
        self,
        stages: tuple[Float[Array, "b _ _ _"], ...],
        mask: Bool[Array, "b f f"],
        train: bool = False,
    ) -> Float[Array, "b H W C"]:
        """Densifies each level and decodes; the raw output is in normalised-patch space."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.zeros((), self.dtype)
        for level, stage in enumerate(reversed(stages)):
            x = x + self._densify(stage, mask, level, train)
            x = DecoderBlock(self.width >> (level + 1), name=f"block{level}", **dtypes)(x, train)
        last = partial(DecoderBlock, packed=self.packed, name=f"block{BLOCKS - 1}", **dtypes)
        x = last(self.width >> BLOCKS)(x, train)
        project = PackedConv if self.packed else Conv
        x = project(
            self.channels,
            (1, 1),
            padding=((0, 0), (0, 0)),
            kernel_init=trunc_normal_002,
            name="proj",
            **dtypes,
        )(x)
        return unpack(x) if self.packed else x

    def _densify(
        self, stage: Float[Array, "b h w c"], mask: Bool[Array, "b f f"], level: int, train: bool
    ) -> Float[Array, "b h w d"]:
        """Sparse norm, mask tokens into the hidden positions, and a dense projection."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels, size = stage.shape[-1], 1 if level == 0 else 3
        with masked_ops(mask):
            x = BatchNorm(use_running_average=not train, name=f"densify_bn{level}", **dtypes)(stage)
        token = self.param(f"mask_token{level}", mask_token_init, (channels,), self.param_dtype)
        x = jnp.where(upsample_mask(mask, x.shape[1], x.shape[2]), x, token.astype(x.dtype))
        if level == 0 and channels == self.width:  # as the reference: nothing to project
            return x
        uniform = torch_uniform(channels * size * size)
        return Conv(
            self.width >> level,
            (size, size),
            padding=((size // 2, size // 2),) * 2,
            kernel_init=uniform,
            bias_init=uniform,
            name=f"densify_conv{level}",
            **dtypes,
        )(x)
