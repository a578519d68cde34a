"""What stands on the encoder's feature vector: projectors, predictors, prototypes. All in fp32."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ctssl_jax.nn.activation import relu
from ctssl_jax.nn.normalisation import BatchNorm


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(+-1 / sqrt(fan_in)): torch's default for the weights and biases of its layers."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(
            jnp.asarray(fan_in, dtype)
        )

    return init


class MLP(nn.Module):
    """Linear, BatchNorm if asked, ReLU, linear; or one linear layer alone.

    Attributes:
      hidden: width of the hidden layer; 0 leaves it, and what belongs to it, out.
      features: width of the output.
      batch_norm: normalise the hidden layer, whose bias this makes useless and leaves out.
    """

    hidden: int
    features: int
    batch_norm: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b i"], train: bool = False) -> Float[Array, "b o"]:
        """Returns the output, not normalised."""
        if self.hidden:
            x = self._linear(x, self.hidden, "linear1", bias=not self.batch_norm)
            if self.batch_norm:
                x = BatchNorm(
                    use_running_average=not train, param_dtype=self.param_dtype, name="bn1"
                )(x)
            x = relu(x)
        return self._linear(x, self.features, "linear2", bias=True)

    def _linear(
        self, x: Float[Array, "b i"], features: int, name: str, bias: bool
    ) -> Float[Array, "b o"]:
        uniform = torch_uniform(x.shape[-1])
        return nn.Dense(
            features,
            use_bias=bias,
            kernel_init=uniform,
            bias_init=uniform,
            param_dtype=self.param_dtype,
            name=name,
        )(x)
