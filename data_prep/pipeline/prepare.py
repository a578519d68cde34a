"""From a source to a dataset folder, on any number of cores, and again after a kill.

1. scan    each item's unit and patient, from its header            -> an index that leaves no trace
2. read    each unit's slices                                       -> parts (`parts`)
3. plan    patients to splits, parts to shards
4. write   shards, signatures, statistics, quality report, manifest -> the dataset folder

Steps 2 and 4 are done by a runner (`runners`). What is finished stays in a work folder beside the
dataset, `.NAME.work`, until the dataset is complete: the same command goes on where an earlier one
was killed, and the result is the same, byte for byte. The dataset folder is whole or absent.
"""

import fcntl
import functools
import hashlib
import hmac
import json
import operator
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, astuple, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax import __version__
from ctssl_jax.dataset.histogram import Tally
from ctssl_jax.dataset.matching import Name
from ctssl_jax.dataset.signatures import Signatures, load_file, of_records, save_signatures
from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import sealed
from data_prep import audit, names
from data_prep.cases import Case, CaseOf
from data_prep.patients import PatientBy, joined, one_person_with
from data_prep.pipeline import gate, records
from data_prep.pipeline.exclude import Excluded
from data_prep.pipeline.join_duplicates import join_duplicates
from data_prep.pipeline.plan import SplitPlan, make_plan
from data_prep.pipeline.progress import Progress
from data_prep.pipeline.quality import TILES, Quality, Tile, write_report
from data_prep.pipeline.records import pseudonym
from data_prep.pipeline.runners import Beam, GaveUp, Inline, Pool, Runner
from data_prep.pipeline.index import Index, place_all
from data_prep.pipeline.work import (
    Context,
    Group,
    Part,
    Unit,
    finished,
    read_unit,
    reject_unit,
    save_tally,
    write_shard,
)
from data_prep.source import (
    EXCLUDED,
    EXCLUDED_BY_CONTENT,
    Finding,
    Item,
    Place,
    Rejected,
    Source,
    Unusable,
)

Manifest = dict[str, Any]

FORMAT = 1
SCAN_AT_ONCE = 64  # items of one task


def prepare(
    source: Source,
    out: str | Path,
    *,
    key: bytes,
    fractions: Mapping[str, float],
    seed: int = 0,
    canvas: int = 0,
    join: bool = False,
    workers: int = 0,
    max_rejected: float = 1.0,
    beam: str | None = None,
    show_paths: bool = False,
    show_cases: bool = False,
    excluded: Excluded | None = None,
    not_duplicates: Collection[Name] = (),
    patient_by: PatientBy = PatientBy.AUTO,
) -> Manifest:
    """Writes one dataset folder and returns its manifest.

    Args:
        source: What to read.
        out: The folder to make; it must not exist or must be empty.
        key: Secret key of the pseudonyms.
        fractions: Share of the patients of each split, for what the source leaves open.
        seed: Of that split.
        canvas: Pixels a side to which larger slices are reduced; 0: stored as they are.
        join: Whether patients who share equal or nearly equal slices count as one for the split.
        workers: Number of processes; 0: this one.
        max_rejected: Largest share of images that may be damaged or irregular, as a fraction.
        beam: Options of an Apache Beam pipeline that does the work of steps 2 and 4.
        show_paths: Whether to print the paths of what was rejected.
        show_cases: Whether to print where each case is.
        excluded: Whose patients are left out.
        not_duplicates: Pairs of slices that the audit is not to count; see `not_duplicates`.
        patient_by: What counts as a patient.

    Raises:
        DataError: If `out` is taken, there is no slice, a class or split would be empty, patients
            cannot be what they are said to be, or too much was rejected; then the quality report
            is in the folder `OUT.rejected`.
        StorageError: If the disk refuses.
    """
    out = Path(out)
    refuse_taken(out)
    local: Runner = Pool(workers) if workers else Inline()
    runner = Beam(beam) if beam is not None else local
    with _work_folder(out) as work, closing(Index()) as index:
        context = Context(source, key, work, canvas)
        named = _scan(context, local, index, excluded.patients if excluded else frozenset())
        known, told = gate.require_people(source, index.studies(), index.everyone(), patient_by)
        _read(context, runner, index)
        parts = Parts(context, index)
        alike = frozenset[str]()
        if excluded:
            alike = excluded.alike(parts.signatures()) if parts.slices else alike
            known_as = frozenset[str]()
            if patient_by is PatientBy.JOINED:
                everyone = {pseudonym(key, name): name for name in index.everyone()}
                known_as = one_person_with(excluded.patients | alike, index.studies(), everyone)
            named += len(known_as)
            parts.leave_out(alike | known_as)
        quality = _require_quality(context, parts, index, out, max_rejected, show_paths)
        if show_cases:
            for case, path in parts.places():
                print(f"case {case}: {names.shown(path)}")
        patients = index.patients(key)
        if patient_by is PatientBy.JOINED:
            patients = joined(index.studies(), patients)
        if join:
            patients = join_duplicates(
                parts.signatures(), parts, patients, fractions, seed, not_duplicates
            )
        if join or patient_by is PatientBy.JOINED:
            apart = len(set(patients.values()))
            told.append(f"{len(patients)} patients, {apart} of them told apart")
        plan = make_plan(parts, patients, fractions, seed)
        _write(context, runner, plan)
        folder = work / "dataset"
        manifest = _assemble(context, plan, folder)
        manifest.update(quality.summary(), split={"fractions": dict(fractions), "seed": seed})
        manifest.update(
            {"case": Case(CaseOf.SERIES if manifest["cases"] else CaseOf.SLICE).told()}
            | dict(source.facts()),
            patients_known=known,
            labels_of=gate.labels_of(source, parts),
            options=dict(source.options()),
        )
        if excluded:
            manifest["excluded_patients"] = excluded.summary(named, len(alike))
        if notes := [*source.notes(), *told]:
            manifest["note"] = "; ".join(notes)
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest), indent=1) + "\n")
        _report(folder, quality, parts, index)
        audit.audit(folder, apart=not_duplicates)
        shutil.rmtree(_refused(out), ignore_errors=True)
        # The name comes last: whoever is killed before has no dataset, and begins again.
        os.replace(folder, _beside(out, "ready"))
        os.replace(work, _beside(out, "old"))
        shutil.rmtree(_beside(out, "old"))
        os.replace(_beside(out, "ready"), out)
    return manifest


def _refused(out: Path) -> Path:
    """Where the quality report of a refused preparation is."""
    return out.absolute().parent / f"{out.name}.rejected"


def refuse_taken(out: Path, flag: str = "--out") -> None:
    """Raises DataError if `out` is there already and holds anything."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        # Left by a try that was killed just after the dataset was complete.
        shutil.rmtree(_work(out), ignore_errors=True)
        raise DataError(f"{flag} {out} exists and is not empty: delete it or choose another")


def _work(out: Path) -> Path:
    return _beside(out, "work")


def _beside(out: Path, what: str) -> Path:
    return out.absolute().parent / f".{out.name}.{what}"


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder of what is finished; one process at a time works in it."""
    work = _work(out)
    try:
        for folder in (work, work / "parts", work / "shards"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"--out {out}: another preparation is writing it") from error
            for leftover in work.rglob("*.tmp"):
                leftover.unlink()
            for killed in ("ready", "old"):
                shutil.rmtree(_beside(out, killed), ignore_errors=True)
            yield work
    except OSError as error:
        raise StorageError(f"cannot write --out {out}: {error.strerror or 'I/O error'}") from error


def _scan(
    context: Context, runner: Runner, index: Index, excluded: frozenset[str] = frozenset()
) -> int:
    """Places all items. A task is many of them; if it is given up, each of its items is one.

    Items of the `excluded` pseudonyms are left out; returns how many patients that were.
    """
    left_out = set[str]()
    progress = Progress("files looked at")
    again: list[tuple[Item, ...]] = []
    for tasks in (_chunks(context.source.items(), SCAN_AT_ONCE), again):
        for items, placed in runner.run(_place, context, tasks):
            if isinstance(placed, GaveUp) and len(items) > 1:
                again += [(item,) for item in items]
                continue
            progress.step(len(items))
            if isinstance(placed, GaveUp):
                index.reject(items[0], placed.reason, True)
                continue
            for item, place in zip(items, placed, strict=True):
                if isinstance(place, Unusable):
                    rejected = Rejected.of(item.number, place).of_item(item)
                    index.reject(item, rejected.reason, rejected.fault)
                    continue
                where, stamp = place
                name = pseudonym(context.key, where.patient) if excluded else ""
                if name in excluded:
                    left_out.add(name)
                    index.leave_out(item, where, EXCLUDED)
                else:
                    index.add(item, where, stamp)
    index.complete()
    return len(left_out)


def _place(context: Context, items: Sequence[Item]) -> list[tuple[Place, str] | Unusable]:
    """Place and stamp of each item, or why it has none."""
    placed = place_all(context.source, items)
    return [
        place if isinstance(place, Unusable) else (place, _stamp(item))
        for item, place in zip(items, placed, strict=True)
    ]


def _stamp(item: Item) -> str:
    """What changes when the file of an item does; "" if there is none."""
    try:
        stat = os.stat(item.path)
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _chunks(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    remaining = iter(items)
    while chunk := tuple(islice(remaining, size)):
        yield chunk


def _read(context: Context, runner: Runner, index: Index) -> None:
    """Makes the parts that are not finished."""
    progress = Progress("files", index.items)

    def missing() -> Iterator[Unit]:
        for unit in _units(context, index):
            if finished(context, unit.part) is None:
                yield unit
            else:
                progress.skip(len(unit.items))

    for unit, slices in runner.run(read_unit, context, missing()):
        if isinstance(slices, GaveUp):
            reject_unit(context, unit, Unusable(slices.reason))
            slices = 0
        progress.step(len(unit.items), slices or 0)


def _units(context: Context, index: Index) -> Iterator[Unit]:
    """Each unit with the name of its part.

    The name says all that the part depends on, to nobody without the key. Parts sort by unit.
    """
    source = context.source
    shared = [source.name, source.intensity, dict(source.options()), context.canvas, __version__]
    shared.append(sorted(records.features()))
    for name, stamp, items in index.units():
        text = json.dumps([*shared, stamp, [astuple(item) for item in items]])
        digest = hmac.new(context.key, text.encode(), hashlib.sha256).hexdigest()
        yield Unit(f"{pseudonym(context.key, name)}-{digest[:32]}", items)


class Parts:
    """The finished parts in the order of their units' pseudonyms, read one at a time."""

    def __init__(self, context: Context, index: Index):
        self._context = context
        # The first item of each, by which what is left out of it is told.
        self._items = {unit.part: unit.items[0].number for unit in _units(context, index)}
        self._index = index
        self._names = sorted(self._items)
        self.left_out = frozenset[str]()

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        for name in self._names:
            part = finished(self._context, name)
            assert part is not None, "every unit was read"
            yield name, self._without(name, part)

    @property
    def slices(self) -> int:
        """How many slices they hold."""
        return sum(part.slices for _, part in self)

    def leave_out(self, patients: frozenset[str]) -> None:
        """From now on without the groups of these pseudonyms, which count as left out."""
        self.left_out = patients

    def _without(self, name: str, part: Part) -> Part:
        lost = [group for group in part.groups if group.patient in self.left_out]
        if not lost:
            return part
        kept = [group for group in part.groups if group.patient not in self.left_out]
        count = sum(group.slices for group in lost)
        rejected = Rejected(self._items[name], EXCLUDED_BY_CONTENT, fault=False, count=count)
        return replace(part, groups=kept, rejected=[*part.rejected, rejected])

    def signatures(self) -> Signatures:
        """Of all records, computed anew."""
        intensity = self._context.source.intensity

        def described(name: str, part: Part) -> Signatures:
            path = self._context.parts / f"{name}.array_record"
            stored = (
                record
                for group in part.groups
                for record in records.read(path, group.start, group.stop)
            )
            return of_records(map(records.decode, stored), intensity)

        return Signatures.concatenate(described(*one) for one in self if one[1].slices)

    def places(self) -> Iterator[tuple[str, str]]:
        """Each case by its pseudonym, and the file or folder of its slices."""
        found: dict[str, str] = {}
        for unit in _units(self._context, self._index):
            part = finished(self._context, unit.part)
            assert part is not None, "every unit was read"
            cases = {case for group in part.groups for case in group.cases}
            own: dict[str, list[str]] = {case: [] for case in cases}
            for item in unit.items:
                name = f"case {item.case} of {item.patient}"
                own.get(pseudonym(self._context.key, name), []).append(item.path)
            every = [item.path for item in unit.items]
            for case, paths in own.items():
                together = [*(paths or every), *filter(None, [found.get(case)])]
                found[case] = os.path.commonpath(together)
        yield from sorted(found.items())

    def tiles(self, findings: Iterable[Finding]) -> list[Tile]:
        """The middle slices of up to `TILES` series: irregular ones first, then evenly chosen."""
        found: dict[str, list[str]] = defaultdict(list)
        for finding in findings:
            found[finding.series].append(finding.finding)
        groups = [(name, group) for name, part in self for group in part.groups]
        groups.sort(key=lambda row: row[1].series not in found)
        marked = [row for row in groups[: TILES // 2] if row[1].series in found]
        others = groups[len(marked) :]
        room = min(TILES - len(marked), len(others))
        chosen = marked + [others[i * len(others) // room] for i in range(room)]
        return [self._tile(name, group, found[group.series]) for name, group in chosen]

    def _tile(self, name: str, group: Group, found: Sequence[str]) -> Tile:
        middle = (group.start + group.stop) // 2
        path = self._context.parts / f"{name}.array_record"
        (record,) = records.read(path, middle, middle + 1)
        caption = "\n".join(
            [group.series, f"{group.slices} slice{'s' * (group.slices > 1)}", *found[:2]]
        )
        image = records.decode(record)["image"]
        return Tile(image, self._context.source.intensity, caption, bool(found))


def _write(context: Context, runner: Runner, plan: Mapping[str, SplitPlan]) -> None:
    """Writes the shards that are not there yet."""
    shards = [shard for split in plan.values() for shard in split.shards]
    progress = Progress("shards", len(shards))
    for _, slices in runner.run(write_shard, context, shards):
        if isinstance(slices, GaveUp):
            raise StorageError(f"a shard cannot be written ({slices.reason}): repeat the command")
        progress.step(1, slices or 0)


def _assemble(context: Context, plan: Mapping[str, SplitPlan], folder: Path) -> Manifest:
    """Puts the dataset folder together; returns its manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / records.NAME / records.VERSION
    for made in (target, folder / "signatures", folder / "statistics"):
        made.mkdir(parents=True)
    source, classes = context.source, len(context.source.classes)
    statistics = {}
    for split, planned in plan.items():
        shards = [context.shards / shard.digest for shard in planned.shards]
        signatures = (load_file(path.with_suffix(".signatures.npy")) for path in shards)
        save_signatures(folder / "signatures" / f"{split}.npy", signatures)
        tallies = [_tally(path.with_suffix(".statistics.npz")) for path in shards]
        tally = functools.reduce(operator.add, tallies)
        save_tally(folder / "statistics" / f"{split}.npz", tally)
        statistics[split] = tally.summary()
        for number, path in enumerate(shards):
            name = records.shard_name(split, number, len(shards))
            os.replace(path.with_suffix(".array_record"), target / name)
    records.write_metadata(
        target,
        {split: [(s.slices, s.size) for s in planned.shards] for split, planned in plan.items()},
    )
    digests = sorted(f"{split} {digest}" for split, p in plan.items() for digest in p.digests)
    return {
        "format": FORMAT,
        "name": source.name,
        "source_kind": source.kind,
        "intensity": source.intensity,
        "classes": list(source.classes),
        **({"canvas": context.canvas} if context.canvas else {}),
        "splits": {split: p.summary(classes) for split, p in plan.items()},
        "cases": {split: p.cases_summary(classes) for split, p in plan.items() if p.cases},
        "records": f"{records.NAME}/{records.VERSION}",
        "statistics": statistics,
        "fingerprint": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        "key": records.key_mark(context.key),
        "software": {"ctssl_jax": __version__},
        **({"origin": asdict(source.origin)} if source.origin else {}),
    }


def _tally(path: Path) -> Tally:
    with np.load(path, allow_pickle=False) as arrays:
        return Tally.from_arrays(arrays)


def _require_quality(
    context: Context, parts: Parts, index: Index, out: Path, limit: float, show_paths: bool
) -> Quality:
    """The quality of what was read.

    Raises:
        DataError: If there is no slice, or of a class none, or more than the limit is rejected; the
            report is written.
    """
    quality = gate.measure(context.source, parts, index, limit)
    if show_paths:
        for rejected in _rejected(parts, index):
            path = names.shown(index.path(rejected.number))
            print(f"file {rejected.number}: {rejected.reason}: {path}")
    if why := gate.refusal(quality, context.source, _refused(out)):
        _refused(out).mkdir(exist_ok=True)
        _report(_refused(out), quality, parts, index)
        raise DataError(why)
    return quality


def _report(folder: Path, quality: Quality, parts: Parts, index: Index) -> None:
    write_report(folder, quality, _rejected(parts, index), parts.tiles(quality.findings))


def _rejected(parts: Parts, index: Index) -> Iterator[Rejected]:
    yield from index.rejected()
    for _, part in parts:
        yield from part.rejected
