"""What is in a source and what would become of it: `--dry_run`. Writes nothing.

Headers are looked at, and then units are read, each for a bounded time; a large source is sampled,
evenly over its files, and what is told then says so.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ctssl_jax.errors import DataError
from data_prep.irregular import Irregular
from data_prep.pipeline.records import pseudonym
from data_prep.pipeline.runners import GaveUp, Inline, Pool, Runner
from data_prep.source import BY_NAME, Finding, Item, Rejected, Slice, Source, Unusable

LIST_SECONDS, SCAN_SECONDS, READ_SECONDS = 10.0, 20.0, 20.0
AT_ONCE = 16  # items whose headers one task looks at
MOST = 5  # reasons of a kind that are told


class _Read(NamedTuple):
    """What reading one unit gave."""

    slices: int
    labels: Counter[int]
    rejected: tuple[Rejected, ...]
    findings: tuple[Finding, ...]


def dry_run(
    source: Source,
    key: bytes,
    fractions: Mapping[str, float],
    *,
    workers: int = 0,
    max_rejected: float = 1.0,
    excluded: frozenset[str] = frozenset(),
) -> str:
    """Returns what to tell, as text.

    Args:
        source: What would be read.
        key: Of the pseudonyms.
        fractions: Share of the patients of each split.
        workers: Number of processes; 0: this one.
        max_rejected: Largest share of images that may be damaged or irregular.
        excluded: Pseudonyms of patients that would be left out.

    Raises:
        DataError: If the command would end without a dataset, as far as was looked.
    """
    runner: Runner = Pool(workers, seconds=READ_SECONDS) if workers else Inline()
    items, whole = _listed(source)
    placed = _scanned(source, runner, items)
    units: dict[str, list[Item]] = {}
    patients: dict[str, set[str]] = {}
    refused, left_out = Counter[str](), Counter[str]()
    excluded_names = set[str]()
    for item, place in placed:
        if isinstance(place, Unusable):
            rejected = Rejected.of(item.number, place).of_item(item)
            (refused if rejected.fault else left_out)[rejected.reason] += 1
        elif (name := pseudonym(key, place[1])) in excluded:
            excluded_names.add(name)
            left_out[BY_NAME] += 1
        else:
            units.setdefault(place[0], []).append(item)
            patients.setdefault(place[1], set()).add(place[0])
    reads = _read(source, runner, list(units.values()))
    for found in reads:
        for rejected in found.rejected:
            (refused if rejected.fault else left_out)[rejected.reason] += rejected.count
    kept = sum(found.slices for found in reads)
    labels = sum((found.labels for found in reads), Counter[int]())
    findings = Counter(row.finding for found in reads for row in found.findings)
    lines = ["dry run: nothing is written"]
    if not whole or len(placed) < len(items):
        lines.append(
            f"sampled: headers of {len(placed):,} of {'more than ' * (not whole)}{len(items):,} "
            "files, of folders chosen at random; all counts are of these, and series may be in part"
        )
    else:
        lines.append(f"files: {len(items):,}, all headers looked at")
    # A unit of images is as many as are read at once; else it is a scan.
    images = source.kind in ("image", "npz")
    scans = sum(map(len, units.values())) if images else len(units)
    lines.append(f"{'images' if images else 'scans (series or volumes)'}: {scans:,}")
    part = "" if len(reads) == len(units) else f", read as a sample: {len(reads):,}"
    lines.append(f"slices: {kept:,}{part}")
    lines.append(f"patients: {len(patients):,}{_unknown(scans, patients, items)}")
    for number, name in enumerate(source.classes):
        lines.append(f"label {name}: {labels[number]:,} slices{' of the sample' * bool(part)}")
    if source.classes and labels[-1]:
        lines.append(f"without a label: {labels[-1]:,} slices")
    if excluded:
        lines.append(f"patients excluded by name: {len(excluded_names):,}")
    lines += _reasons("would be rejected", refused) + _reasons("left out by design", left_out)
    lines += _reasons("findings", findings)
    lines += [f"note: {note}" for note in source.notes()]
    share = refused.total() / max(1, refused.total() + kept)
    lines += _needs(source, refused, findings, patients, fractions)
    if not kept:
        worst = (refused + left_out).most_common(MOST)
        why = "; ".join(f"{n} x {reason}" for reason, n in worst) or "it holds no files"
        print("\n".join(lines))
        raise DataError(f"no CT slices found in --source ({why})")
    if share > max_rejected:
        print("\n".join(lines))
        raise DataError(
            f"{share:.1%} of the images would be rejected, more than --max_rejected="
            f"{max_rejected:g}: mend them, or give a higher limit if that is right"
        )
    return "\n".join([*lines, "a dataset would be made"])


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
) -> list[tuple[Item, tuple[str, str] | Unusable]]:
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

    found: list[tuple[Item, tuple[str, str] | Unusable]] = []
    for chunk, places in runner.run(_place, source, in_time()):
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


def _place(source: Source, items: Sequence[Item]) -> list[tuple[str, str] | Unusable]:
    """Unit and patient of each item, or why it has none; as `prepare` does it."""
    placed: list[tuple[str, str] | Unusable] = []
    for item in items:
        try:
            item.require_sound()
            place = source.place(item)
            if not place.patient:
                raise Unusable("no patient")
            placed.append((place.unit, place.patient))
        except Unusable as error:
            placed.append(error)
        except Exception as error:  # a damaged header may raise anything
            placed.append(Unusable(f"the reader failed ({type(error).__name__})"))
    return placed


def _read_unit(source: Source, items: Sequence[Item]) -> _Read:
    labels, rejected, findings = Counter[int](), list[Rejected](), list[Finding]()
    try:
        for found in source.read(items):
            if isinstance(found, Slice):
                labels[found.label] += 1
            else:
                (rejected if isinstance(found, Rejected) else findings).append(found)  # type: ignore[arg-type]
    except Unusable as error:
        return _lost(items, error)
    except Exception as error:
        return _lost(items, Unusable(f"the reader failed ({type(error).__name__})"))
    return _Read(labels.total(), labels, tuple(rejected), tuple(findings))


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


def _needs(
    source: Source,
    refused: Counter[str],
    findings: Counter[str],
    patients: Mapping[str, Any],
    fractions: Mapping[str, float],
) -> list[str]:
    """The flags that would change what is refused."""
    lines = []
    irregular = source.options().get("irregular") == Irregular.REJECT.value
    if irregular and findings:
        lines.append("flag: --irregular=accept_2d keeps the slices of what is irregular")
    if any(reason.startswith("no patient") for reason in refused):
        lines.append("flag: --patient_regex must match each file that is to be read")
    splits = sum(share > 0 for share in fractions.values())
    if 0 < len(patients) < splits:
        lines.append(
            f"flag: {splits} splits want as many patients, and there are {len(patients)}: "
            "--val_fraction=0 --test_fraction=0 puts all into train"
        )
    return lines
