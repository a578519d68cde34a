"""What is in a source and what would become of it: `--dry_run`. Writes nothing.

Headers are looked at, and then units are read, each for a bounded time; a large source is sampled,
evenly over its files, and what is told then says so.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ctssl_jax.dataset.cases import case_word, plural
from ctssl_jax.errors import DataError
from data_prep.irregular import Irregular
from data_prep.patients import PatientBy, Study, joined, one_person_with
from data_prep.pipeline import gate
from data_prep.pipeline.exclude import ByName
from data_prep.pipeline.losses import Losses
from data_prep.pipeline.plan import require_whole_cases
from data_prep.pipeline.runners import GaveUp, Inline, Pool, Runner
from data_prep.pipeline.scan import place_all
from data_prep.pipeline.work import OF_SEVERAL_LABELS
from data_prep.source import EXCLUDED, Finding, Item, Place, Rejected, Slice, Source, Unusable

LIST_SECONDS, SCAN_SECONDS, READ_SECONDS = 10.0, 20.0, 20.0
AT_ONCE = 16  # items whose headers one task looks at
MOST = 5  # reasons of a kind that are told


class _Read(NamedTuple):
    """What reading one unit gave."""

    slices: int
    labels: Counter[int]
    rejected: tuple[Rejected, ...]
    findings: tuple[Finding, ...]
    cases: Mapping[tuple[str, str], tuple[str, int, str]] = {}
    """Patient, label and split by the names of a case and of a series, all as in the source."""


@dataclass
class _Found:
    """What was found in a source.

    Attributes:
        source: The source.
        items: What it lists, and whether that is all.
        placed: How many of these were looked at.
        units: The items of each unit.
        patients: The units of each patient, as in the source.
        studies: How many files name a study, a patient and a PatientID.
        excluded: Patients that are left out, as in the source.
        excluded_items: The numbers of their items.
        reads: What reading gave of some units, or all.
        faults: Images that are damaged or irregular, by reason.
        unwanted: What is left out by design, by reason.
    """

    source: Source
    items: tuple[list[Item], bool]
    placed: int
    units: dict[str, list[Item]] = field(default_factory=dict)
    patients: dict[str, set[str]] = field(default_factory=dict)
    studies: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    excluded: set[str] = field(default_factory=set)
    excluded_items: set[int] = field(default_factory=set)
    reads: list[_Read] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    unwanted: Counter[str] = field(default_factory=Counter)

    def reject(self, rejected: Rejected) -> None:
        """Counts what is not read."""
        (self.faults if rejected.fault else self.unwanted)[rejected.reason] += rejected.count

    @property
    def looked_at_all(self) -> bool:
        """Whether all is listed and placed."""
        return self.items[1] and self.placed == len(self.items[0])

    @property
    def is_whole(self) -> bool:
        """Whether that was read, too."""
        return self.looked_at_all and len(self.reads) == len(self.units)

    @property
    def slices(self) -> int:
        """How many slices were read."""
        return sum(read.slices for read in self.reads)

    @property
    def labels(self) -> Counter[int]:
        """How many of these each class has."""
        return sum((read.labels for read in self.reads), Counter[int]())

    @property
    def cases(self) -> Counter[int]:
        """How many cases each class has; none where each slice is one."""
        label_of = {
            case: label for read in self.reads for (case, _), (_, label, _) in read.cases.items()
        }
        return Counter(label_of.values())

    @property
    def people(self) -> list[Study]:
        """What files say of their studies."""
        return [
            Study(study, patient, files, patient_id)
            for (study, patient, patient_id), files in self.studies.items()
        ]

    def losses(self) -> Losses:
        """The labelled scans that rows of a table speak of, and those nothing would be left of."""
        gone = {rejected.number for read in self.reads for rejected in read.rejected}
        left = {item.number for unit in self.units.values() for item in unit} - gone
        rows: dict[int, bool] = {}
        for item in self.items[0]:
            if item.row and item.label >= 0 and item.number not in self.excluded_items:
                rows[item.row] = rows.get(item.row, False) or item.number in left
        lost = tuple(sorted(row for row, is_left in rows.items() if not is_left))
        return Losses(len(rows), len(lost), lost)


def dry_run(
    source: Source,
    key: bytes,
    fractions: Mapping[str, float],
    *,
    workers: int = 0,
    max_rejected: float = 1.0,
    excluded: frozenset[str] = frozenset(),
    patient_by: PatientBy = PatientBy.AUTO,
) -> str:
    """Returns what to tell, as text.

    Args:
        source: What would be read.
        key: Of the pseudonyms.
        fractions: Share of the patients of each split.
        workers: Number of processes; 0: this one.
        max_rejected: Largest share of images that may be damaged or irregular.
        excluded: Pseudonyms of patients that would be left out.
        patient_by: What counts as a patient.

    Raises:
        DataError: If the command would end without a dataset, as far as was looked.
    """
    runner: Runner = Pool(workers, seconds=READ_SECONDS) if workers else Inline()
    named = ByName(excluded, key, source, patient_by)
    found = _look(source, runner, named)
    lines = _lines(found, bool(excluded))
    if named.otherwise:
        lines.append(f"  {named.otherwise:,} of them spelled otherwise than in the dataset")
    why = ""
    everyone = {name: name for name in [*found.patients, *found.excluded]}
    try:
        _, told = gate.require_people(source, found.people, everyone, patient_by)
        lines += [f"note: {note}" for note in told]
    except DataError as error:
        why = str(error)
    patients = {name: name for name in found.patients}
    if patient_by is PatientBy.JOINED:
        for name in one_person_with(found.excluded, found.people, everyone):
            del patients[name]
        patients = joined(found.people, patients)
        apart = len(set(patients.values()))
        lines.append(f"note: {len(patients)} patients, {apart} of them told apart")
    lines += _needs(found)
    if why := _refusal(found, max_rejected) or why or _few_patients(found, patients, fractions):
        print("\n".join(lines))
        raise DataError(why)
    return "\n".join([*lines, "a dataset would be made"])


def _look(source: Source, runner: Runner, excluded: Container[str]) -> _Found:
    """Lists, places and reads as much as there is time for."""
    items, whole = _listed(source)
    placed = _scanned(source, runner, items)
    found = _Found(source, (items, whole), len(placed))
    for item, place in placed:
        if isinstance(place, Unusable):
            found.reject(Rejected.of(item.number, place).of_item(item))
            continue
        if place.study:
            found.studies[place.study, place.patient, place.patient_id] += 1
        if place.patient in excluded:
            found.excluded.add(place.patient)
            found.excluded_items.add(item.number)
            found.unwanted[EXCLUDED] += 1
        else:
            found.units.setdefault(place.unit, []).append(item)
            found.patients.setdefault(place.patient, set()).add(place.unit)
    found.reads = _read(source, runner, list(found.units.values()))
    for read in found.reads:
        for rejected in read.rejected:
            found.reject(rejected)
    return found


def _lines(found: _Found, excludes: bool) -> list[str]:
    """What is there and what would be left out."""
    source, (items, whole) = found.source, found.items
    lines = ["dry run: nothing is written"]
    if found.looked_at_all:
        lines.append(f"files: {len(items):,}, all headers looked at")
    else:
        lines.append(
            f"sampled: headers of {found.placed:,} of {'more than ' * (not whole)}{len(items):,} "
            "files, of folders chosen at random; all counts are of these, and series may be in part"
        )
    # A unit of images is as many as are read at once; else it is a scan.
    images = source.kind in ("image", "npz")
    scans = sum(map(len, found.units.values())) if images else len(found.units)
    lines.append(f"{'images' if images else 'scans (series or volumes)'}: {scans:,}")
    part = len(found.reads) < len(found.units)
    sample = f", read as a sample: {len(found.reads):,}" if part else ""
    lines.append(f"slices: {found.slices:,}{sample}")
    lines.append(f"patients: {len(found.patients):,}{_unknown(scans, found.patients, items)}")
    lines += _labels(found, " of the sample" * part)
    if excludes:
        lines.append(f"patients excluded by name: {len(found.excluded):,}")
    findings = Counter(row.finding for read in found.reads for row in read.findings)
    lines += _reasons("would be rejected", found.faults)
    lines += _reasons("left out by design", found.unwanted)
    lines += _reasons("findings", findings)
    return lines + [f"note: {note}" for note in source.notes()]


def _labels(found: _Found, of: str) -> list[str]:
    """How many cases and slices each class has; what a case is, where it is not the slice."""
    cases, labels, lines = found.cases, found.labels, []
    word = plural(case_word(found.source.facts()))

    def counted(label: int) -> str:
        slices = f"{labels[label]:,} slices"
        return f"{cases[label]:,} {word}, {slices}" if cases else slices

    if cases:
        lines.append(f"cases ({word}): {cases.total():,}{of}")
    for number, name in enumerate(found.source.classes):
        lines.append(f"label {name}: {counted(number)}{of}")
    if found.source.classes and labels[-1]:
        lines.append(f"without a label: {counted(-1)}")
    return lines


def _refusal(found: _Found, max_rejected: float) -> str:
    """Why there would be no dataset, as far as was looked; "" if there would be one."""
    if why := gate.contradictions(found.faults):
        return why
    if not found.slices:
        return gate.nothing_found(found.faults + found.unwanted)
    beyond = (
        f"more than --max_rejected={max_rejected:g}: mend them, or give a higher limit if that is "
        "right"
    )
    share = found.faults.total() / (found.faults.total() + found.slices)
    if share > max_rejected:
        return f"{share:.1%} of the images would be rejected, {beyond}"
    if not found.is_whole:
        return ""
    if over := found.losses().over(max_rejected):
        return f"nothing would be left of {over}, {beyond}"
    if why := gate.empty_classes(found.source, found.labels.keys()):
        return why
    try:
        require_whole_cases(
            (case, now) for read in found.reads for (case, _), now in read.cases.items()
        )
    except DataError as error:
        return str(error)
    return ""


def _listed(source: Source) -> tuple[list[Item], bool]:
    """The items, and whether these are all: listing itself may take long."""
    end, items = time.monotonic() + LIST_SECONDS, []
    for item in source.items():
        items.append(item)
        if len(items) % 1000 == 0 and time.monotonic() > end:
            return items, False
    return items, True


def _scanned(
    source: Source, runner: Runner, items: Sequence[Item]
) -> list[tuple[Item, Place | Unusable]]:
    """Unit and patient of as many items as there is time for, evenly chosen."""
    folders: dict[str, list[Item]] = {}
    for item in items:
        folders.setdefault(os.path.dirname(item.path), []).append(item)
    order = list(folders.values())  # whole folders: a series is mostly in one
    random.Random(0).shuffle(order)
    end = time.monotonic() + SCAN_SECONDS

    def in_time() -> Iterator[tuple[Item, ...]]:
        for folder in order:
            for start in range(0, len(folder), AT_ONCE):
                if time.monotonic() > end:
                    return
                yield tuple(folder[start : start + AT_ONCE])

    found: list[tuple[Item, Place | Unusable]] = []
    for chunk, places in runner.run(place_all, source, in_time()):
        if isinstance(places, GaveUp):
            places = [Unusable(places.reason)] * len(chunk)
        found += zip(chunk, places, strict=True)
    return sorted(found, key=lambda row: row[0].number)


def _read(source: Source, runner: Runner, units: Sequence[Sequence[Item]]) -> list[_Read]:
    """What reading gives of as many units as there is time for, evenly chosen."""
    order = random.Random(0).sample(range(len(units)), len(units))
    end = time.monotonic() + READ_SECONDS

    def in_time() -> Iterator[tuple[Item, ...]]:
        for number in order:
            if time.monotonic() > end:
                return
            yield tuple(units[number])

    found = []
    for unit, read in runner.run(_read_unit, source, in_time()):
        if isinstance(read, GaveUp):
            read = _lost(unit, Unusable(read.reason))
        found.append(read)
    return found


def _read_unit(source: Source, items: Sequence[Item]) -> _Read:
    labels, rejected, findings = Counter[int](), list[Rejected](), list[Finding]()
    cases: dict[tuple[str, str], tuple[str, int, str]] = {}
    try:
        for found in source.read(items):
            if isinstance(found, Slice):
                labels[found.label] += 1
                now = (found.patient, found.label, found.split)
                named = (found.case, found.series)
                if found.case and cases.setdefault(named, now)[1] != found.label:
                    raise Unusable(OF_SEVERAL_LABELS)
            else:
                (rejected if isinstance(found, Rejected) else findings).append(found)  # type: ignore[arg-type]
    except Unusable as error:
        return _lost(items, error)
    except Exception as error:
        return _lost(items, Unusable(f"the reader failed ({type(error).__name__})"))
    return _Read(labels.total(), labels, tuple(rejected), tuple(findings), cases)


def _lost(items: Sequence[Item], error: Unusable) -> _Read:
    return _Read(0, Counter(), tuple(Rejected.of(item.number, error) for item in items), ())


def _unknown(scans: int, patients: Mapping[str, Any], items: Sequence[Item]) -> str:
    """A word if each image or volume is a patient of its own."""
    alone = 1 < len(patients) == scans and all(item.patient for item in items)
    return " (each counts as its own: is that so?)" if alone else ""


def _reasons(title: str, counts: Counter[str]) -> list[str]:
    lines = [f"  {count:>8,}  {reason}" for reason, count in counts.most_common(MOST)]
    if len(counts) > MOST:
        lines.append(f"  {len(counts) - MOST:>8,}  further reasons")
    return [f"{title}: {counts.total():,}", *lines] if counts else []


def _needs(found: _Found) -> list[str]:
    """The flags that would change what is refused."""
    lines = []
    irregular = found.source.options().get("irregular") == Irregular.REJECT.value
    if irregular and any(read.findings for read in found.reads):
        lines.append("flag: --irregular=accept_2d keeps the slices of what is irregular")
    if any(reason.startswith("no patient") for reason in found.faults):
        lines.append("flag: --patient_regex must match each file that is to be read")
    return lines


def _few_patients(
    found: _Found, patients: Mapping[str, str], fractions: Mapping[str, float]
) -> str:
    """Why a split would get no patient; "" if each gets one, or that cannot be told."""
    splits = sum(share > 0 for share in fractions.values())
    is_open = any(not item.split for unit in found.units.values() for item in unit)
    apart = len(set(patients.values()))
    if apart >= splits or not (is_open and found.is_whole):
        return ""
    return (
        f"{splits} splits want as many patients, and there are {apart}: --val_fraction=0 "
        "--test_fraction=0 puts all into train"
    )
