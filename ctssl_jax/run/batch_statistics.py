"""BatchNorm's statistics for evaluation, measured on training images instead of remembered.

Running statistics lag: after s steps 0.9^s of them is still their initial value, 28 % at 12 steps,
and the rest is of networks that are no more. A network that starts from nothing moves most and
loses most by it, so that the lag favours one arm of a study. Before a network is evaluated they are
therefore measured anew ("precise BatchNorm", Wu and Johnson 2021, arXiv 2105.07576, section 3): one
pass over images of the training subset, whole and without augmentation, as evaluation sees them,
each batch normalised by itself. With batches i of n_i images, mean m_i and variance v_i:

    mean = sum n_i m_i / n            var = sum n_i (v_i + (m_i - mean)^2) / n

The result is a function of the weights and the images alone, to the bit: the first device of each
host measures all batches, by a program that knows of no other device, so that it does not matter
how many there are. What training goes on with is not touched.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
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
Measure = Callable[[PyTree, PyTree, jax.Array, jax.Array], PyTree]


def chosen_rows(rows: Int[np.ndarray, " n"], images: int, seed: int) -> Int[np.ndarray, " m"]:
    """The `images` of a training subset that are measured, ascending; all where it has fewer."""
    if len(rows) <= images:
        return rows
    return np.sort(rows[random_order(len(rows), seed)[:images]])


def arranged(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, "batches size"]:
    """Rows in batches of equal size but for one image; -1 is padding.

    A batch of the few images left over would have no statistics worth the name.
    """
    batches = math.ceil(len(rows) / BATCH)
    laid = np.full((batches, math.ceil(len(rows) / batches)), -1)
    for number, part in enumerate(np.array_split(rows, batches)):
        laid[number, : len(part)] = part
    return laid


def make_measure(
    encoder: ResNet,
    intensity: Intensity,
    kind: IntensityKind,
    size: int,
    interpolation: Interpolation,
) -> Measure:
    """Compiles `measure(params, batch_stats, image, valid) -> statistics` of an encoder.

    A pure function; `image` holds stored values, of which those that are `valid` count.
    """

    def measure(
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
        return updates["batch_stats"]

    return jax.jit(measure)


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
    laid = arranged(rows)
    here = jax.tree.map(lambda leaf: leaf.addressable_data(0), (params, stats))
    device = jax.tree.leaves(here)[0].device
    found: list[PyTree] = []
    for batch in data.batches_of(dataset, reading, split=reading.split, rows=laid):
        check()
        image, valid = jax.device_put((batch["image"], batch["valid"]), device)
        found.append(jax.device_get(measure(here[0], here[1], image, valid)))
    together = pooled(found, (laid >= 0).sum(axis=1).tolist())
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
