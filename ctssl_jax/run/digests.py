"""Sums of the arrays of a checkpoint, by which a flipped bit is an error and not a result.

Orbax does not look at what it reads: a bit of a file that changes on a disk or in a copy comes back
as another number. So the SHA-256 of each array's type, shape and bytes lies in `meta` of its
checkpoint, and is compared whenever an array is read. An array's sum does not depend on how it was
split over devices. The sums are computed in threads, while training goes on.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import PyTree

Digests = Mapping[str, str]


def digest(array: Shaped[np.ndarray, "..."]) -> str:
    """SHA-256 of type, shape and bytes (row-major, as they lie in memory)."""
    found = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
    flat = np.ascontiguousarray(array).reshape(-1)
    found.update(flat.view(np.uint8).data if flat.size else b"")
    return found.hexdigest()


def later(tree: PyTree) -> Callable[[], dict[str, str]]:
    """What computes the sums of all arrays of a tree, by their names, when it is called.

    All processes call this function. The arrays may be donated at once: what is computed from is
    kept, until the result is forgotten.
    """
    arrays = {name: whole(leaf) for name, leaf in named(tree).items()}
    return lambda: dict(zip(arrays, _threads().map(digest, arrays.values()), strict=True))


def first_damaged(tree: PyTree, wanted: Digests) -> str | None:
    """The name of the first array of a tree, as it was read, that has not the sum wanted."""
    found = later(tree)()
    return next((name for name in found if wanted.get(name) != found[name]), None)


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by names such as `params/encoder/conv1/kernel`."""

    def name(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(map(name, path)): leaf for path, leaf in leaves}


def whole(leaf: Any) -> Shaped[np.ndarray, "..."]:
    """An array on this host, gathered where other hosts have parts of it."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    everywhere = sharding.replicate(leaf, leaf.sharding.mesh)  # type: ignore[attr-defined]
    return np.asarray(everywhere.addressable_data(0))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="digests")
