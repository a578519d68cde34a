"""Batches of cases: the slices that a training step sees of each, padded to a common number.

A batch of c cases of n slices is laid out slice by slice, one case after the other, so that what
holds for batches of slices (see `data`) holds for these: the leading axis is split over devices and
processes, and no case is divided. Beside `image`, `index` and `record`:

    valid       bool  [c n]   False = padding, of cases with fewer slices
    slice_label int32 [c n]   class of the slice itself, or of its case where it has none
    label       int32 [c]     class of the case

Batch number `step` is a function of (seed, step) alone, and so are the slices that are drawn.
"""

from collections.abc import Callable

import grain
import numpy as np
from jaxtyping import Float, Int

from ctssl_jax import data
from ctssl_jax.data import Batch, DataConfig, Dataset
from ctssl_jax.dataset.cases import CaseTable
from ctssl_jax.errors import DataError
from ctssl_jax.methods.cases import Draw

Read = Callable[[Int[np.ndarray, " n"]], Batch]


def drawn_slices(
    count: int, slices: int, draw: Draw, bits: np.random.BitGenerator
) -> Int[np.ndarray, " n"]:
    """Which of a case's `count` slices are seen, ascending: all, or `slices` of them."""
    if count <= slices:
        return np.arange(count)
    # Raw bits: NumPy keeps these, not what `Generator` makes of them, the same across versions.
    if draw is Draw.RANDOM:
        order = np.argsort(np.asarray(bits.random_raw(count)), kind="stable")
        return np.sort(order[:slices])
    start = float(bits.random_raw()) / 2**64
    places = np.floor((np.arange(slices) + start) * count / slices).astype(np.int64)
    return np.minimum(places, count - 1)  # a start that rounds to 1


def bag_rows(
    cases: CaseTable,
    places: Int[np.ndarray, " c"],
    slices: int,
    draw: Draw,
    seed: int,
    step: int,
) -> Int[np.ndarray, "c n"]:
    """Row numbers of the slices that step `step` sees of the cases at `places`; -1 is padding."""
    rows = np.full((len(places), slices), -1, np.int64)
    for position, place in enumerate(places.tolist()):
        own = cases.rows[place]
        bits = np.random.PCG64(np.random.SeedSequence((seed, step, position)))
        chosen = own[drawn_slices(len(own), slices, draw, bits)]
        rows[position, : len(chosen)] = chosen
    return rows


def bag_batches(
    dataset: Dataset,
    reading: DataConfig,
    *,
    split: str,
    cases: CaseTable,
    slices: int,
    draw: Draw,
    batch_size: int,
    seed: int,
    features: Float[np.ndarray, "r d"] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Endless shuffled batches of `batch_size` cases of a split.

    Every case comes once per epoch, each epoch in another order, as in `data.labelled_batches`.
    With `features`, given by row number of the split, these stand in place of `image`.
    """
    source = dataset.source(split)
    own = data.read_fields(dataset, split).slice_labels

    def read(rows: Int[np.ndarray, " n"]) -> Batch:
        slice_label = np.where(rows >= 0, own[rows], -1)
        if features is None:
            image = data.read_images(source, rows, reading)
            return {"image": image, "slice_label": slice_label}
        found = np.where((rows >= 0)[:, None], features[rows], 0.0).astype(np.float32)
        return {"features": found, "slice_label": slice_label}

    share = {"process_index": process_index, "process_count": process_count}
    order = _order(dataset, cases, batch_size, seed)
    load = _loader(cases, slices, draw, batch_size, seed, read, **share)
    return data.read_ahead(order.map_with_index(load), reading)


def _order(dataset: Dataset, cases: CaseTable, batch_size: int, seed: int) -> grain.MapDataset:
    if not len(cases):
        raise DataError(f"{dataset.path}: the subset has no cases")
    places = np.arange(len(cases))
    return grain.MapDataset.source(places).seed(seed).shuffle().repeat().batch(batch_size)


def _loader(
    cases: CaseTable,
    slices: int,
    draw: Draw,
    batch_size: int,
    seed: int,
    read: Read,
    *,
    process_index: int,
    process_count: int,
) -> Callable[[int, Int[np.ndarray, " global"]], Batch]:
    """What turns the places of a global batch into this process's share of it."""
    part = data.share_of(batch_size, process_index, process_count)

    def load(step: int, places: Int[np.ndarray, " global"]) -> Batch:
        rows = bag_rows(cases, places, slices, draw, seed, step)[part].ravel()
        position = np.arange(batch_size * slices, dtype=np.int64).reshape(batch_size, slices)
        index = (step * batch_size * slices + position[part].ravel()) % data.INDEX_LIMIT
        label = cases.labels[places[part]].astype(np.int32)
        found = read(rows)
        slice_label = found.pop("slice_label")
        of_case = np.repeat(label, slices)
        return {
            **found,
            "index": index.astype(np.int32),
            "record": rows.astype(np.int32),
            "valid": rows >= 0,
            "slice_label": np.where(slice_label < 0, of_case, slice_label).astype(np.int32),
            "label": label,
        }

    return load
