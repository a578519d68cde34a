"""BatchNorm's statistics for evaluation, measured on training images instead of remembered.

Running statistics lag: after s steps 0.9^s of them is still their initial value, 28 % at 12 steps,
and the rest is of networks that are no more. A network that starts from nothing moves most and
loses most by it, so that the lag favours one arm of a study. Before a network is evaluated they are
therefore measured anew ("precise BatchNorm", Wu and Johnson 2021, arXiv 2105.07576, section 3): one
pass over images of the training subset, whole and without augmentation, as evaluation sees them,
each batch normalised by itself. With batches i of n_i images, mean m_i and variance v_i:

    mean = sum n_i m_i / n            var = sum n_i (v_i + (m_i - mean)^2) / n

The result is a function of the weights and the images alone. Each batch is the work of one device,
so that it does not depend on how many there are. What training goes on with is not touched.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int16

from ctssl_jax import data
from ctssl_jax.augment import Intensity, IntensityKind, Interpolation
from ctssl_jax.augment import views as augment
from ctssl_jax.data import DataConfig, Dataset
from ctssl_jax.errors import DivergedError
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import PyTree
from ctssl_jax.nn.normalisation import batch_norm_measure
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.run.subset import random_order

BATCH = 64  # images at most that are normalised together
Measure = Callable[[PyTree, PyTree, dict[str, jax.Array]], PyTree]


def chosen_rows(rows: Int[np.ndarray, " n"], images: int, seed: int) -> Int[np.ndarray, " m"]:
    """The `images` of a training subset that are measured, ascending; all where it has fewer."""
    if len(rows) <= images:
        return rows
    return np.sort(rows[random_order(len(rows), seed)[:images]])


def arranged(rows: Int[np.ndarray, " n"], devices: int) -> Int[np.ndarray, "steps global"]:
    """Rows in batches of equal size but for one image, of which each device gets one a step.

    Which images share a batch does not depend on `devices`. A batch that would hold a few images
    left over has no statistics worth the name. -1 is padding.
    """
    batches = math.ceil(len(rows) / BATCH)
    steps = math.ceil(batches / devices)
    size = math.ceil(len(rows) / batches)
    laid = np.full((steps * devices, size), -1)
    for number, part in enumerate(np.array_split(rows, batches)):
        laid[number, : len(part)] = part
    return laid.reshape(steps, devices * size)


def make_measure(
    encoder: ResNet,
    intensity: Intensity,
    kind: IntensityKind,
    size: int,
    interpolation: Interpolation,
    mesh: Mesh,
) -> Measure:
    """Compiles `measure(params, batch_stats, batch) -> statistics` of an encoder, a pure function.

    `batch` holds `image`, stored values int16 `[devices * b, h, w]`, and `valid`. The statistics
    have a leading axis, one of each device's images, and are whole on every device and host.
    """
    whole, split = PartitionSpec(), PartitionSpec(sharding.AXIS)

    def of_one_device(
        params: PyTree,
        stats: PyTree,
        image: Int16[Array, "b h w"],
        valid: Bool[Array, " b"],
    ) -> PyTree:
        view = augment.whole_slices(image, intensity, kind, size, interpolation)
        with batch_norm_measure(valid):
            _, updates = encoder.apply(
                {"params": params, "batch_stats": stats}, view, train=False, mutable=["batch_stats"]
            )
        return jax.tree.map(lambda leaf: leaf[None], updates["batch_stats"])

    on_each = jax.shard_map(
        of_one_device,
        mesh=mesh,
        in_specs=(whole, whole, split, split),
        out_specs=split,
        check_vma=False,
    )

    def measure(params: PyTree, stats: PyTree, batch: dict[str, jax.Array]) -> PyTree:
        return on_each(params, stats, batch["image"], batch["valid"])

    return jax.jit(measure, out_shardings=sharding.replicated(mesh))


def settled(
    measure: Measure,
    dataset: Dataset,
    reading: DataConfig,
    rows: Int[np.ndarray, " n"],
    mesh: Mesh,
    params: PyTree,
    stats: PyTree,
    check: Callable[[], None] = lambda: None,
) -> PyTree:
    """The statistics of an encoder on rows of `reading.split`, in place of `stats`.

    `check` is called at every batch and may raise.

    Raises:
      DivergedError: a statistic is not finite.
    """
    laid = arranged(rows, mesh.devices.size)
    batches = data.batches_of(
        dataset, reading, split=reading.split, rows=laid, **sharding.process_share()
    )
    found: list[PyTree] = []
    for batch in batches:
        check()
        parts = jax.device_get(measure(params, stats, sharding.put_batch(batch, mesh)))
        found += [jax.tree.map(lambda leaf, i=i: leaf[i], parts) for i in range(mesh.devices.size)]
    counts = (laid.reshape(len(found), -1) >= 0).sum(axis=1)
    pairs = [(count, part) for count, part in zip(counts, found, strict=True) if count]
    together = pooled([part for _, part in pairs], [int(count) for count, _ in pairs])
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(together)):
        raise DivergedError(
            "BatchNorm statistics of the training images are not finite: the network has diverged; "
            "lower config.optim.lr and start in another --workdir"
        )
    return sharding.replicate(together, mesh)


def pooled(parts: Sequence[PyTree], counts: Sequence[int]) -> PyTree:
    """The statistics of all images, of those of batches with so many each, as the module says."""
    share = np.asarray(counts, np.float64) / sum(counts)

    def of_all(nodes: Sequence[Any]) -> Any:
        if set(nodes[0]) != {"mean", "var"}:
            return {name: of_all([node[name] for node in nodes]) for name in nodes[0]}
        means, variances = (_stack(nodes, name) for name in ("mean", "var"))
        mean = share @ means
        var = share @ (variances + np.square(means - mean))
        return {
            name: value.astype(nodes[0][name].dtype)
            for name, value in (("mean", mean), ("var", var))
        }

    return of_all(parts)


def _stack(nodes: Iterable[Mapping[str, Any]], name: str) -> Float[np.ndarray, "k c"]:
    return np.stack([np.asarray(node[name], np.float64) for node in nodes])
