"""Layer-wise learning rates: the nearer a layer is to the image, the slower it learns.

Source: keyu-tian/SparK@a63e386 `downstream_imagenet/models/__init__.py` (fine-tuning ResNet-50): a
factor decay ** (7 - id), with ids from 0, the stem, to 7, the head.
"""

from typing import Any

import jax
import optax

from ctssl_jax.nn.resnet import DEPTHS
from ctssl_jax.optim.optimizer import PyTree

HEAD_ID = 7


def layer_id(module: str, depth: int) -> int:
    """The id of a module of the encoder: stages 2 and 3 have one for each half of their blocks.

    That is the source's table for ResNet-50, and the same rule for other depths.
    """
    if not module.startswith("layer"):
        return 0
    stage, block = map(int, module.removeprefix("layer").split("_"))
    second_half = block >= DEPTHS[depth].blocks[stage - 1] / 2
    return {1: 1, 2: 2 + second_half, 3: 4 + second_half, 4: 6}[stage]


def scale_by_layer(decay: float, depth: int) -> optax.GradientTransformation:
    """Scales the updates of `{"encoder", "head"}`: last in a chain, the learning rates."""

    def scale(updates: PyTree, params: PyTree | None) -> PyTree:
        def of(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            part, module, *_ = (entry.key for entry in path)
            number = HEAD_ID if part == "head" else layer_id(module, depth)
            return update * decay ** (HEAD_ID - number)

        return jax.tree_util.tree_map_with_path(of, updates)

    return optax.stateless(scale)
