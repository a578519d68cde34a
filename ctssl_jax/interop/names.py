"""Names and layouts shared with PyTorch.

An encoder parameter has the name that torchvision and timm give it; SparK's head has the names of
keyu-tian/SparK@a63e386. Kernels are HWIO here and OIHW there; a transposed convolution's kernel is
(height, width, in, out) here and (in, out, height, width) there.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

PyTree = Any
Name = Callable[[tuple[str, ...]], str]
COUNTER = "num_batches_tracked"
SPARK_ENCODER_PREFIX = "sparse_encoder.sp_cnn."

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_DECODER_PARTS = {
    "up": "up_sample",
    "conv1": "conv.0",
    "bn1": "conv.1",
    "conv2": "conv.3",
    "bn2": "conv.4",
}


def encoder_name(path: tuple[str, ...]) -> str:
    """`('layer1_0', 'downsample_bn', 'mean')` -> `layer1.0.downsample.1.running_mean`."""
    *modules, leaf = path
    name = ".".join(modules)
    name = re.sub(r"^layer(\d)_(\d+)", r"layer\1.\2", name)
    name = name.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return f"{name}.{_LEAVES[leaf]}"


def spark_head_name(path: tuple[str, ...]) -> str:
    """`('block0', 'conv1', 'kernel')` -> `dense_decoder.dec.0.conv.0.weight`."""
    first, leaf = path[0], path[-1]
    if match := re.fullmatch(r"mask_token(\d)", first):
        return f"mask_tokens.{match[1]}"
    if match := re.fullmatch(r"densify_(bn|conv)(\d)", first):
        part = {"bn": "norms", "conv": "projs"}[match[1]]
        return f"densify_{part}.{match[2]}.{_LEAVES[leaf]}"
    if match := re.fullmatch(r"block(\d)", first):
        return f"dense_decoder.dec.{match[1]}.{_DECODER_PARTS[path[1]]}.{_LEAVES[leaf]}"
    if first == "proj":
        return f"dense_decoder.proj.{_LEAVES[leaf]}"
    raise KeyError(f"no PyTorch name for {'/'.join(path)}")


def spark_name(path: tuple[str, ...], prefix: str = SPARK_ENCODER_PREFIX) -> str:
    """The reference's name of a leaf of a SparK run's `params` or `batch_stats`.

    Others put another prefix before the encoder's names.
    """
    part, *rest = path
    if part == "encoder":
        return prefix + encoder_name(tuple(rest))
    return spark_head_name(tuple(rest))


def classifier_name(path: tuple[str, ...]) -> str:
    """torchvision's and timm's name of a leaf of a fine-tuned run's `params` or `batch_stats`."""
    part, *rest = path
    return encoder_name(tuple(rest)) if part == "encoder" else f"fc.{_LEAVES[path[-1]]}"


def to_torch_layout(path: tuple[str, ...], value: Shaped[Any, "..."]) -> Shaped[Any, "..."]:
    """A leaf's array as PyTorch lays it out."""
    if path[-1].startswith("mask_token"):
        return value.reshape(1, -1, 1, 1)
    if value.ndim == 4:
        return value.transpose((2, 3, 0, 1) if path[-2] == "up" else (3, 2, 0, 1))
    return value.T


def from_torch_layout(path: tuple[str, ...], value: Shaped[Any, "..."]) -> Shaped[Any, "..."]:
    """The inverse of `to_torch_layout`."""
    if path[-1].startswith("mask_token"):
        return value.reshape(-1)
    if value.ndim == 4:
        return value.transpose((2, 3, 0, 1) if path[-2] == "up" else (2, 3, 1, 0))
    return value.T


def named_leaves(tree: PyTree) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves of a tree of dicts with their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(tuple(key.key for key in path), leaf) for path, leaf in leaves]


def map_named(function: Callable[[tuple[str, ...], Any], Any], tree: PyTree) -> PyTree:
    """Maps `function(path, leaf)` over a tree of dicts."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(tuple(key.key for key in path), leaf), tree
    )


def to_torch(tree: PyTree, name: Name = spark_name) -> dict[str, np.ndarray]:
    """A tree of parameters or statistics as PyTorch names and layouts it."""
    return {
        name(path): np.ascontiguousarray(to_torch_layout(path, np.asarray(leaf)))
        for path, leaf in named_leaves(tree)
    }


def from_torch(tensors: Mapping[str, np.ndarray], tree: PyTree, name: Name) -> PyTree:
    """The inverse of `to_torch`; `tree` tells which leaves there are."""
    return map_named(
        lambda path, _: np.ascontiguousarray(from_torch_layout(path, tensors[name(path)])), tree
    )


def torch_shapes(tree: PyTree, name: Name) -> dict[str, tuple[int, ...]]:
    """What `to_torch` would give, as shapes; for the abstract trees of `jax.eval_shape`."""
    return {
        name(path): to_torch_layout(path, np.broadcast_to(np.float32(0), leaf.shape)).shape
        for path, leaf in named_leaves(tree)
    }


def counters(names: Iterable[str]) -> list[str]:
    """The buffers that PyTorch's BatchNorm layers have besides: the batches that each has seen."""
    ending = "running_mean"
    return [name.removesuffix(ending) + COUNTER for name in names if name.endswith(ending)]
