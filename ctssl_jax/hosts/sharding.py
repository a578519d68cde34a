"""Devices and hosts: the only file that knows them.

One mesh axis, `data`: the batch is split over it, the state is the same everywhere. Under `jit` a
sum over the batch is a sum over all devices, so BatchNorm statistics are global (SyncBN) and every
loss is that of the whole batch; nothing else in the package says so. With `shard_state` each device
keeps its part of what only the update needs (ZeRO-1, Rajbhandari et al. 2020, §5.1).
"""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import PyTree, TrainState

AXIS = "data"


def all_devices() -> Sequence[jax.Device]:
    """Those of all hosts, over which a run's batches are split."""
    return jax.devices()


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, or all of all hosts. Axes are Auto: `jit` decides what moves where."""
    devices = all_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_batch(batch_size: int, accumulate: int = 1, devices: int | None = None) -> None:
    """Raises `ConfigError` unless each microbatch of the global batch divides over the devices."""
    devices = len(all_devices()) if devices is None else devices
    if batch_size % (devices * accumulate):
        parts = f" in accumulate={accumulate} microbatches" if accumulate > 1 else ""
        raise ConfigError(
            f"batch_size={batch_size} does not divide over {devices} devices{parts}: "
            f"use a multiple of {devices * accumulate}"
        )


def devices_of(batch_size: int) -> Sequence[jax.Device]:
    """The devices that a batch divides over: all, or so many of one process that it does.

    Raises:
      ConfigError: it does not, and there are several processes, each of which must have a share.
    """
    devices = all_devices()
    if batch_size % len(devices) and not is_alone():
        smaller = batch_size // len(devices) * len(devices)
        raise ConfigError(
            f"the training subset is a batch of {batch_size}, which does not divide over "
            f"{len(devices)} devices of several processes: use one process"
            + (f", or batch_size={smaller}" if smaller else "")
        )
    return devices[: math.gcd(batch_size, len(devices))]


def round_up(batch_size: int) -> int:
    """The next batch size that divides over the devices."""
    devices = len(all_devices())
    return -(-batch_size // devices) * devices


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def state_shardings(state: TrainState, mesh: Mesh, shard_state: bool = False) -> TrainState:
    """Where each array of a state lies.

    Args:
      state: a state or its abstract form.
      mesh: over the devices.
      shard_state: split the optimizer's state, and a teacher's parameters (`aux["params"]`), along
        their largest axis that divides over the devices; what has none stays whole.
    """
    devices = mesh.devices.size

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        top, *below = (str(getattr(key, "name", getattr(key, "key", key))) for key in path)
        asked = top == "opt_state" or (top == "aux" and below[:1] == ["params"])
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % devices == 0]
        if not (shard_state and asked and fitting):
            return replicated(mesh)
        widest = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*([None] * widest), AXIS))

    return jax.tree_util.tree_map_with_path(place, state)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places a host tree, equal on all hosts, on every device."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's share of a global batch, as global arrays split over the devices."""
    return {
        name: jax.make_array_from_process_local_data(split(mesh), value)
        for name, value in batch.items()
    }


def from_first(values: np.ndarray) -> np.ndarray:
    """The values, none below 0, that process 0 gives; every process must give as many."""
    mesh = make_mesh()
    mine = values if jax.process_index() == 0 else np.zeros_like(values)
    rows = np.broadcast_to(mine, (jax.local_device_count(), *mine.shape))
    everywhere = jax.make_array_from_process_local_data(split(mesh), rows)
    largest = jax.jit(lambda x: x.max(axis=0), out_shardings=replicated(mesh))
    return np.asarray(largest(everywhere))


def jit_init(init: Callable[..., PyTree], state: PyTree | None = None) -> Callable[..., PyTree]:
    """Compiles `init(key, ...) -> state`, placed as `state` (see `state_shardings`) says.

    It runs once, and on a CPU the compiler takes five times as long to make it fast: it is told not
    to. The numbers are the same.
    """
    # Not on other devices, where it would bear on the kernels.
    quick = {"xla_backend_optimization_level": "1"} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=state, compiler_options=quick)


def jit_step(
    step: Callable[..., Any], mesh: Mesh, state: PyTree | None = None
) -> Callable[..., Any]:
    """Compiles `step(state, batch, key) -> state, metrics`; the old state's memory is reused.

    `state` says where the state lies (see `state_shardings`), None: whole on every device.
    """
    same, shared = replicated(mesh), split(mesh)
    state = same if state is None else state

    def on_mesh(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `split_as_batch`, `packing`
            return step(*arguments)

    return jax.jit(
        on_mesh, in_shardings=(state, shared, same), out_shardings=(state, same), donate_argnums=0
    )


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of a state: the template to restore a checkpoint into."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


class Votes:
    """Whether any process asks for a stop, known to all of them at the same step.

    A vote is a reduction over all devices, queued behind the step, and read `LAG` votes later, so
    that nobody waits for it. A process that is alone is its own majority, at once.
    """

    LAG = 2

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._cast: collections.deque[jax.Array] = collections.deque()
        self._any = jax.jit(lambda votes: votes.any(), out_shardings=replicated(mesh))

    def cast(self, stop: bool) -> bool:
        """Gives this process's vote; returns what all agree on. Every process must call it."""
        if jax.process_count() == 1:
            return stop
        mine = np.full(jax.local_device_count(), stop)
        votes = jax.make_array_from_process_local_data(split(self._mesh), mine)
        self._cast.append(self._any(votes))
        return len(self._cast) > self.LAG and bool(self._cast.popleft())


def is_alone() -> bool:
    """Whether this process is the whole run."""
    return jax.process_count() == 1


def process_share() -> dict[str, int]:
    """Which share of each global batch this process reads, as the pipelines of `data` take it."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
