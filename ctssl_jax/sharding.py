"""Devices and hosts: the only file that knows them.

One mesh axis, `data`: the batch is split over it, the state is the same everywhere. Under `jit` a
sum over the batch is a sum over all devices, so BatchNorm statistics are global (SyncBN) and every
loss is that of the whole batch; nothing else in the package says so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ctssl_jax.errors import ConfigError

PyTree = Any
AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, or all of all hosts. Axes are Auto: `jit` decides what moves where."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_batch(batch_size: int) -> None:
    """Raises `ConfigError` unless the global batch divides over the devices."""
    devices = jax.device_count()
    if batch_size % devices:
        raise ConfigError(
            f"batch_size={batch_size} does not divide over {devices} devices: "
            f"use a multiple of {devices}"
        )


def round_up(batch_size: int) -> int:
    """The next batch size that divides over the devices."""
    devices = jax.device_count()
    return -(-batch_size // devices) * devices


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places a host tree, equal on all hosts, on every device."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's share of a global batch, as global arrays split over the devices."""
    return {
        name: jax.make_array_from_process_local_data(split(mesh), value)
        for name, value in batch.items()
    }


def jit_init(init: Callable[[jax.Array], PyTree], mesh: Mesh) -> Callable[[jax.Array], PyTree]:
    """Compiles `init(key) -> state`, the same on every device."""
    return jax.jit(init, out_shardings=replicated(mesh))


def jit_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles `step(state, batch, key) -> state, metrics`; the old state's memory is reused."""
    same, shared = replicated(mesh), split(mesh)
    return jax.jit(
        step, in_shardings=(same, shared, same), out_shardings=(same, same), donate_argnums=0
    )


def abstract(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes, dtypes and shardings of a state: the template to restore a checkpoint into."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree
    )


def process_share() -> dict[str, int]:
    """Which share of each global batch this process reads, as the pipelines of `data` take it."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
