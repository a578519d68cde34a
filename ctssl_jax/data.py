"""From a dataset folder (written by `data_prep`) to batches of raw slices: Grain pipelines.

The host reads, brings slices to one canvas and batches, the same for every method; intensity and
augmentation are the device's (`augment/views.py`). A batch is a dict of NumPy arrays:

    image  int16 [b, S, S]   stored values, see `Dataset.intensity`
    label  int32 [b]         class, -1 = none
    index  int32 [b]         place in the run's stream: step * batch_size + position in the batch
    valid  bool  [b]         evaluation only: False = padding of the last batch
    record int32 [b]         row number in the split, -1 = padding

Batch number `step` is a function of (seed, step) alone: threads and processes only decide who reads
what. So an iterator's whole state is `{"next_index": step}`.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int, Int16, Shaped

from ctssl_jax import files
from ctssl_jax.augment import IntensityKind
from ctssl_jax.config_values import require
from ctssl_jax.dataset.canvas import SMALLEST, to_canvas
from ctssl_jax.dataset.cases import CaseTable, case_table
from ctssl_jax.dataset.manifest import read_manifest
from ctssl_jax.dataset.splits import parts
from ctssl_jax.errors import ConfigError, DataError

INDEX_LIMIT = 2**31  # `index` is int32; beyond, it starts again at 0 (the step differs)
EVALUATION_BATCH = 64  # slices, before it is rounded up to the devices
CHUNK = 256  # records held at once while labels are read

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class DataConfig:
    """Where the slices are and how the host reads them.

    Attributes:
      path: a folder written by data_prep; a path may name a patient, so no run folder holds it.
      split: that is trained on; as every split, also a sum: fold1+fold2.
      filter: for pre-training alone: a file of `data_prep.duplicates` that says which slices to
        use.
      accept_leakage: run although test data was seen; every result says so.
      canvas: every slice is brought to so many pixels a side before batching.
      transpose: rows and columns change places (the paper's reader of 2-D images).
      num_threads: that read ahead, each a batch; 0 is one a core, as many as `prefetch` at most. A
        run may be resumed with another number.
      prefetch: batches read ahead; a run may be resumed with another number.
    """

    path: str = dataclasses.field(default="data/lidc", metadata={"private": True})
    split: str = "train"
    filter: str = dataclasses.field(default="", metadata={"private": True})
    accept_leakage: bool = False
    canvas: int = 512
    transpose: bool = False
    num_threads: int = dataclasses.field(default=0, metadata={"elastic": True})
    prefetch: int = dataclasses.field(default=8, metadata={"elastic": True})

    def validate(self) -> None:
        """Raises ConfigError that names the field and its value."""
        threads = f"data.num_threads={self.num_threads} or more: each thread fills one batch"
        require(
            self,
            "data",
            canvas=(self.canvas >= SMALLEST, f"{SMALLEST} or more"),
            num_threads=(self.num_threads >= 0, "0 (one a core) or more"),
            prefetch=(self.prefetch >= max(1, self.num_threads), threads),
        )

    def threads(self) -> int:
        """How many threads read, on the cores that this process may use."""
        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        else:  # macOS
            cores = os.cpu_count() or 1
        return self.num_threads or min(cores, self.prefetch)


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of one split by row number, each a dict; reading them may raise DataError."""

    path: Path
    split: str

    @functools.cached_property
    def _source(self) -> Any:
        # TFDS is slow to import, and announces what it loads.
        import tensorflow_datasets as tfds
        from absl import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)
        try:
            return tfds.builder_from_directory(str(self.path)).as_data_source(split=self.split)
        finally:
            logging.set_verbosity(verbosity)

    def __len__(self) -> int:
        with self._readable():
            return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        with self._readable():
            return self._source[row]

    def __getitems__(self, rows: Sequence[int]) -> Sequence[dict[str, Any]]:
        with self._readable():
            return self._source.__getitems__(rows)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{self.path}: cannot read split {self.split!r} ({reason}); copy or prepare the "
                "dataset again"
            ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset folder; `open_dataset` makes it.

    Two openings of the same data are equal, so that what was read once is remembered for both.
    """

    path: Path
    manifest: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dataset):
            return NotImplemented
        return (self.path, self.fingerprint) == (other.path, other.fingerprint)

    def __hash__(self) -> int:
        return hash((self.path, self.fingerprint))

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.manifest["name"]

    @property
    def intensity(self) -> IntensityKind:
        """What the pixels are: "hu", "grey8" or "grey16" (grey - 32768)."""
        return self.manifest["intensity"]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; empty if unlabelled."""
        return tuple(self.manifest["classes"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all records: two datasets are the same data if these agree."""
        return self.manifest["fingerprint"]

    def summaries(self, split: str) -> list[dict[str, Any]]:
        """What the manifest says of a split, or of each part of a sum.

        Raises:
          ConfigError: the split is no name and no sum of names.
          DataError: there is no such split.
        """
        splits, names = self.manifest["splits"], parts(split)
        for name in names:
            if name not in splits:
                raise DataError(f"{self.path}: no split {name!r}; there is {', '.join(splits)}")
        return [splits[name] for name in names]

    def source(self, split: str) -> Records:
        """The records of a split, or of one after the other of a sum, as in `fold1+fold2`.

        Raises:
          ConfigError: as `summaries`.
          DataError: likewise, or the split is empty, or is not what the manifest says.
        """
        expected = sum(summary["slices"] for summary in self.summaries(split))
        if expected == 0:
            raise DataError(f"{self.path}: split {split!r} is empty; prepare the dataset again")
        records = Records(self.path / self.manifest["records"], split)
        if len(records) != expected:
            raise DataError(
                f"{records.path}: split {split!r} holds {len(records)} records, the manifest says "
                f"{expected}; prepare the dataset again"
            )
        return records


def open_dataset(path: str | Path) -> Dataset:
    """Opens a folder written by `data_prep`; reads the manifest, no record.

    Raises:
      DataError: no such folder, no manifest or one of another format, no records.
    """
    path = Path(path)
    manifest = read_manifest(path)
    records = path / manifest["records"]
    if not any(records.glob("*.array_record*")):
        raise DataError(f"{records}: no records there; prepare the dataset again")
    try:
        files.require_ordinary_files(records)
    except OSError as error:
        raise DataError(f"{records}: cannot be read ({error}); prepare it again") from None
    return Dataset(path, manifest)


def require_canvas(dataset: Dataset, canvas: int, field: str = "data.canvas") -> None:
    """Raises ConfigError if preparation has left less of the slices than `canvas` pixels a side."""
    stored = dataset.manifest.get("canvas", canvas)
    if stored < canvas:
        raise ConfigError(
            f"{field}={canvas}: the slices of {dataset.path} were reduced to {stored} px when they "
            f"were prepared; give --config.{field}={stored}, or prepare them with another --canvas"
        )


def require_labels(dataset: Dataset, *splits: str) -> None:
    """Raises `DataError` unless each split is there, is labelled and holds two or more classes."""
    if not dataset.classes:
        raise DataError(
            f"{dataset.name} has no labels, which this run learns from or is scored by: "
            "data_prep.folder prepares scans and images with --labels"
        )
    for split in splits:
        slices = len(dataset.source(split))
        labels = np.sum([summary["labels"] for summary in dataset.summaries(split)], axis=0)
        if missing := slices - sum(labels):
            raise DataError(
                f"{dataset.name}: {missing} of {slices} records of split {split!r} have no label; "
                "prepare it without them"
            )
        if np.count_nonzero(labels) < 2:
            raise DataError(
                f"{dataset.name}: split {split!r} holds a single class, so that nothing can be "
                "scored on it; prepare it with larger splits"
            )


class Fields(NamedTuple):
    """What the records of a split say beside their pixels, by row number; see `Records`.

    Attributes:
      labels: class of each record's case, -1 for none.
      patients, series, cases: pseudonyms; a case is "" where the record is one of its own.
      order: number of each slice in its series.
      positions: in mm along the series; NaN where not known.
      slice_labels: class of the slice itself, -1 for none.
    """

    labels: Int[np.ndarray, " n"]
    patients: Shaped[np.ndarray, " n"]
    series: Shaped[np.ndarray, " n"]
    cases: Shaped[np.ndarray, " n"]
    order: Int[np.ndarray, " n"]
    positions: Float[np.ndarray, " n"]
    slice_labels: Int[np.ndarray, " n"]


@functools.cache
def read_fields(dataset: Dataset, split: str) -> Fields:
    """Reads a split once (about a thousand slices per second) and remembers.

    Of datasets without cases each slice is one, and its label the case's.
    """
    source = dataset.source(split)
    found = []
    for start in range(0, len(source), CHUNK):
        rows = range(start, min(start + CHUNK, len(source)))
        for record in source.__getitems__(rows):
            names = (record.get(name, b"").decode() for name in ("patient", "series", "case"))
            label, place = int(record["label"]), int(record["slice_index"])
            own = int(record.get("slice_label", -1))
            found.append((label, *names, place, float(record["position_mm"]), own))
    kinds = (np.int32, str, str, str, np.int64, np.float64, np.int32)
    columns = zip(zip(*found, strict=True), kinds, strict=True)
    arrays: list[Any] = [np.array(column, kind) for column, kind in columns]
    for array in arrays:
        array.setflags(write=False)
    return Fields(*arrays)


def read_labels(
    dataset: Dataset, split: str
) -> tuple[Int[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
    """Class (-1 = none) of the case and patient pseudonym of each record of a split, by row."""
    fields = read_fields(dataset, split)
    return fields.labels, fields.patients


@functools.cache
def read_cases(dataset: Dataset, split: str) -> CaseTable:
    """The cases of a split; where slices are labelled, these in their order.

    Raises:
      DataError: the slices of a case do not agree.
    """
    fields = read_fields(dataset, split)
    # Series of one case lie one after the other.
    _, series = np.unique(fields.series, return_inverse=True)
    order = np.lexsort((fields.order, series)).argsort()
    return case_table(fields.labels, fields.patients, fields.cases, order)


def pretrain_batches(
    dataset: Dataset,
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    indices: Int[np.ndarray, " m"] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Endless shuffled batches of `data.split`; see `labelled_batches`."""
    return labelled_batches(
        dataset,
        data,
        split=data.split,
        indices=indices,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )


def labelled_batches(
    dataset: Dataset,
    data: DataConfig,
    *,
    split: str,
    indices: Int[np.ndarray, " m"] | None,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Endless shuffled batches of a split, or of its rows `indices`.

    Every record comes once per epoch, each epoch in another order; a batch may reach into the next
    epoch, so all are full, even when larger than the dataset. `batch_size` is the global one:
    process p of P gets the p-th part of each global batch.

    `iter()` of the result has `get_state()` and `set_state()`.
    """
    source = dataset.source(split)
    rows = np.arange(len(source)) if indices is None else np.asarray(indices)
    if len(rows) == 0:
        raise DataError(f"{dataset.path}: the subset of split {split!r} is empty")
    part = share_of(batch_size, process_index, process_count)

    def load(step: int, rows: Int[np.ndarray, "global"]) -> Batch:
        batch = _load(source, rows[part], data)
        position = np.arange(batch_size, dtype=np.int64)[part]
        index = (step * batch_size + position) % INDEX_LIMIT
        record = rows[part].astype(np.int32)
        return {**batch, "index": index.astype(np.int32), "record": record}

    # Only row numbers run through the shuffle; a global batch of them is cheap everywhere.
    order = grain.MapDataset.source(rows).seed(seed).shuffle().repeat().batch(batch_size)
    return read_ahead(order.map_with_index(load), data)


def evaluation_batches(
    dataset: Dataset,
    data: DataConfig,
    *,
    split: str,
    batch_size: int,
    indices: Int[np.ndarray, " m"] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Every record of a split, or of its rows `indices`, once and in that order.

    The last batch is padded (`valid` is False).
    """
    rows = np.arange(len(dataset.source(split))) if indices is None else np.asarray(indices)
    steps = -(-len(rows) // batch_size)
    padded = np.full(steps * batch_size, -1)
    padded[: len(rows)] = rows
    return batches_of(
        dataset,
        data,
        split=split,
        rows=padded.reshape(steps, batch_size),
        process_index=process_index,
        process_count=process_count,
    )


def batches_of(
    dataset: Dataset,
    data: DataConfig,
    *,
    split: str,
    rows: Int[np.ndarray, "steps global"],
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Batches of the given rows of a split; -1 is padding (`valid` is False)."""
    source = dataset.source(split)
    batch_size = rows.shape[1]
    part = share_of(batch_size, process_index, process_count)

    def load(step: int, rows: Int[np.ndarray, "global"]) -> Batch:
        mine = rows[part].astype(np.int32)
        index = (step * batch_size + np.arange(batch_size, dtype=np.int32))[part]
        batch = _load(source, mine, data)
        return {**batch, "index": index, "valid": mine >= 0, "record": mine}

    return read_ahead(grain.MapDataset.source(rows).map_with_index(load), data)


def share_of(batch_size: int, process_index: int, process_count: int) -> slice:
    """This process's positions of a global batch; raises ConfigError if it has no share."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size={batch_size}: must be a multiple of the number of processes "
            f"({process_count})"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def read_ahead(batches: grain.MapDataset, data: DataConfig) -> grain.IterDataset:
    """Batches as an iterator that reads ahead, in `data.threads()`."""
    return batches.to_iter_dataset(
        grain.ReadOptions(num_threads=data.threads(), prefetch_buffer_size=data.prefetch)
    )


def _load(source: Records, rows: Int[np.ndarray, " b"], data: DataConfig) -> Batch:
    """Image and label of the given rows; zeros and -1 where the row is -1."""
    label = np.full(len(rows), -1, np.int32)
    image = np.zeros((len(rows), data.canvas, data.canvas), np.int16)
    for place in np.flatnonzero(rows >= 0):
        # One at a time, so that the memory of one record serves all.
        record = source[int(rows[place])]
        image[place] = on_canvas(record["image"], data)
        label[place] = record["label"]
    return {"image": image, "label": label}


def read_images(
    source: Records, rows: Int[np.ndarray, " b"], data: DataConfig
) -> Int16[np.ndarray, "b s s"]:
    """The images of the given rows as a batch has them; zeros where the row is -1."""
    return _load(source, rows, data)["image"]


def on_canvas(stored: Int16[np.ndarray, "h w"], data: DataConfig) -> Int16[np.ndarray, "s s"]:
    """A stored slice as a batch has it."""
    return to_canvas(stored.T if data.transpose else stored, data.canvas)
