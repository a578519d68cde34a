"""The two steps that many processes take at once: a unit to a part, parts to a shard.

A part is what one unit of a source became: its records, uncompressed, and, written last, a
summary. A part with a summary is finished: who repeats a command after a kill reads it instead of
the unit. A shard is a file of the dataset, made of whole groups of parts, with the signatures and
statistics of its records beside it. Both lie in a work folder until the dataset is complete, hold
pseudonyms only, and are named by what they are made of, so that nothing stale is taken for new.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctssl_jax.dataset.canvas import to_canvas
from ctssl_jax.dataset.histogram import Tally
from ctssl_jax.dataset.signatures import of_records, save_signatures
from ctssl_jax.files import whole_file
from data_prep.pipeline import records
from data_prep.pipeline.records import pseudonym
from data_prep.source import Finding, Item, Rejected, Slice, Source, Unusable

OF_SEVERAL_LABELS = "slices of one case have different labels"


class Context(NamedTuple):
    """What all tasks of a preparation share; each process gets it once."""

    source: Source
    key: bytes
    work: Path
    canvas: int = 0  # pixels; larger slices are reduced to it, 0: none is

    @property
    def parts(self) -> Path:
        """Folder of the parts."""
        return self.work / "parts"

    @property
    def shards(self) -> Path:
        """Folder of the shards while they are made."""
        return self.work / "shards"


class Unit(NamedTuple):
    """The name of a part, and the items to make it of."""

    part: str
    items: tuple[Item, ...]


@dataclass
class Group:
    """Records `start` to `stop` of a part: of one patient and series, in one split of the source.

    `split` is "" where the source leaves it open; `size` is in bytes. `cases` has the label of each
    case by its pseudonym; it is empty where each slice is a case of its own.
    """

    patient: str
    series: str
    split: str
    start: int
    stop: int
    size: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    @property
    def slices(self) -> int:
        """How many records it has."""
        return self.stop - self.start


@dataclass(frozen=True)
class Part:
    """The summary of a finished part."""

    groups: list[Group]
    rejected: list[Rejected]
    findings: list[Finding]

    @property
    def slices(self) -> int:
        """How many slices it holds."""
        return sum(group.slices for group in self.groups)

    @property
    def images(self) -> int:
        """How many images it was made of."""
        return self.slices + sum(rejected.count for rejected in self.rejected)


def finished(context: Context, part: str) -> Part | None:
    """The summary of a part; None if it is not finished."""
    try:
        plain = json.loads((context.parts / f"{part}.json").read_text())
    except FileNotFoundError:
        return None
    return Part(
        [Group(**group) for group in plain["groups"]],
        [Rejected(*row) for row in plain["rejected"]],
        [Finding(*row) for row in plain["findings"]],
    )


def read_unit(context: Context, unit: Unit) -> int:
    """Turns a unit into a finished part; returns how many slices it has."""
    maker = _Maker(context, unit)
    try:
        for found in _guarded(context.source, unit.items):
            maker.add(found)
    except Unusable as error:
        reject_unit(context, unit, error)
        return 0
    return maker.finish()


def _guarded(source: Source, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
    """What the source reads; whatever else it raises, as `Unusable`: one bad unit is not the end.

    Trouble with writing is raised by the caller of this generator and stays what it is.
    """
    try:
        yield from source.read(items)
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(f"the reader failed ({type(error).__name__})") from error


def reject_unit(context: Context, unit: Unit, reason: Unusable) -> None:
    """Finishes the part of a unit that cannot be read at all."""
    maker = _Maker(context, unit)
    for item in unit.items:
        maker.add(Rejected.of(item.number, reason, reason.images.get(item.number, 1)))
    maker.finish()


def shrink(item: Slice, canvas: int) -> Slice:
    """The slice at `canvas` x `canvas` pixels, as a run with that `data.canvas` would see it."""
    between, row, column = item.spacing_mm
    height, width = item.image.shape
    spacing = (between, row * height / canvas, column * width / canvas)
    return replace(item, image=to_canvas(item.image, canvas), spacing_mm=spacing)


class _Maker:
    """A part while it is made."""

    def __init__(self, context: Context, unit: Unit):
        self._context, self._name = context, unit.part
        self._items = {item.number: item for item in unit.items}
        path = context.parts / f"{unit.part}.array_record"
        self._writer = records.Writer(path, compressed=False)
        self._part = Part([], [], [])
        self._labels: Counter[int] = Counter()
        self._hash = hashlib.sha256()

    def add(self, found: Slice | Rejected | Finding) -> None:
        if isinstance(found, Rejected):
            self._part.rejected.append(found.of_item(self._items[found.number]))
        elif isinstance(found, Finding):
            series = pseudonym(self._context.key, found.series)
            self._part.findings.append(replace(found, series=series))
        else:
            self._add_slice(found)

    def finish(self) -> int:
        self._end_group()
        self._writer.close()
        plain = {
            "groups": [vars(group) for group in self._part.groups],
            "rejected": [astuple(row) for row in self._part.rejected],
            "findings": [astuple(row) for row in self._part.findings],
        }
        with whole_file(self._context.parts / f"{self._name}.json") as temporary:
            temporary.write_text(json.dumps(plain))
        return self._part.slices

    def _add_slice(self, item: Slice) -> None:
        if 0 < self._context.canvas < max(item.image.shape):
            item = shrink(item, self._context.canvas)
        patient = pseudonym(self._context.key, item.patient)
        series = pseudonym(self._context.key, item.series)
        case = pseudonym(self._context.key, f"case {item.case}") if item.case else ""
        group = self._part.groups[-1] if self._part.groups else None
        if group is None or (group.patient, group.series, group.split) != (
            patient,
            series,
            item.split,
        ):
            self._end_group()
            start = self._part.slices
            group = Group(patient, series, item.split, start, start)
            self._part.groups.append(group)
        record = records.encode(item, patient, series, self._context.source.kind, case)
        self._writer.write(record)
        group.stop += 1
        group.size += len(record)
        self._labels[item.label] += 1
        if case and group.cases.setdefault(case, item.label) != item.label:
            raise Unusable(OF_SEVERAL_LABELS)
        self._hash.update(
            f"{patient} {series} {item.slice_index} {item.label} {item.image.shape} ".encode()
        )
        if case:
            self._hash.update(f"{case} {item.slice_label} ".encode())
        self._hash.update(np.ascontiguousarray(item.image, "<i2").tobytes())

    def _end_group(self) -> None:
        if self._part.groups:
            group = self._part.groups[-1]
            group.labels = {str(label): n for label, n in sorted(self._labels.items())}
            group.digest = self._hash.hexdigest()
        self._labels, self._hash = Counter(), hashlib.sha256()


class Shard(NamedTuple):
    """A shard to make: its pieces are (part, start, stop), its size is in bytes."""

    pieces: tuple[tuple[str, int, int], ...]
    size: int

    @property
    def digest(self) -> str:
        """Names it by what it is made of."""
        return hashlib.sha256(json.dumps(self.pieces).encode()).hexdigest()[:32]

    @property
    def slices(self) -> int:
        """How many records it will hold."""
        return sum(stop - start for _, start, stop in self.pieces)


def write_shard(context: Context, shard: Shard) -> int:
    """Writes a shard, compressed, with the signatures and statistics of its records beside it.

    Does nothing if it is there: an earlier try came so far. Returns how many records it holds.
    """
    path = context.shards / f"{shard.digest}.array_record"
    if path.exists():
        return shard.slices
    intensity = context.source.intensity
    writer = records.Writer(path, compressed=True)
    tally = None

    def copied() -> Iterator[dict[str, Any]]:
        nonlocal tally
        for part, start, stop in shard.pieces:
            for record in records.read(context.parts / f"{part}.array_record", start, stop):
                writer.write(record)
                fields = records.decode(record)
                of_slice = Tally.of(fields["image"], intensity)
                tally = of_slice if tally is None else tally + of_slice
                yield fields

    save_signatures(path.with_suffix(".signatures.npy"), [of_records(copied(), intensity)])
    assert tally is not None, "no shard is empty"
    save_tally(path.with_suffix(".statistics.npz"), tally)
    writer.close()
    return shard.slices


def save_tally(path: Path, tally: Tally) -> None:
    """Writes an NPZ file of a tally's arrays."""
    arrays: dict[str, Any] = tally.to_arrays()
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)
