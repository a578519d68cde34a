"""The table of --labels: which row speaks of which file, scan, study or patient.

What its rows are about, a column says: `file` (or a folder, for all files in it), or an identifier
of DICOM. Whatever is ambiguous is refused with its line and column.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctssl_jax.errors import DataError
from data_prep.names import shown
from data_prep.readers.listing import natural
from data_prep.readers.tables import Row, read_table, require_text
from data_prep.spelling import alike, is_missing

NAME = "--labels"
# The first of these that is there says what a row is about.
KEYS = ("file", "sop", "series", "study", "accession", "patient")
_OTHERS = {
    "file": ("filename", "filepath", "path"),
    "label": ("class",),
    "patient": ("patientid",),
    "split": (),
    "sop": ("sopinstanceuid", "sopuid"),
    "series": ("seriesinstanceuid", "seriesuid"),
    "study": ("studyinstanceuid", "studyuid"),
    "accession": ("accessionnumber",),
}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Entry:
    """What a row says: the name of its class, its patient and split; "" for what it does not."""

    line: int
    label: str
    patient: str = ""
    split: str = ""


@dataclass(frozen=True)
class LabelTable:
    """A table without contradictions.

    Attributes:
        by: What its rows are about, one of `KEYS`.
        entries: By file relative to the source, or by identifier.
        classes: Names of the classes.
        has_patients: Whether it has a column of patients beside `by`.
    """

    by: str
    entries: Mapping[str, Entry]
    classes: Sequence[str]
    has_patients: bool

    @property
    def unlabelled(self) -> int:
        """How many rows give no label."""
        return sum(not entry.label for entry in self.entries.values())


def read_label_table(path: Path, root: Path) -> LabelTable:
    """Reads the table of a source.

    Args:
        path: CSV file with a column `label`, one of `KEYS`, and perhaps `patient` and `split`.
        root: The source, which files are relative to.

    Raises:
        DataError: With the line and column of what is missing, ambiguous or contradicts itself.
    """
    rows = read_table(path, ("label",), NAME, _OTHERS)
    by = next((column for column in KEYS if column in rows[0].cells), "")
    if not by:
        read_table(path, ("file",), NAME, _OTHERS)  # says what it has instead
    entries: dict[str, Entry] = {}
    for row in rows:
        if is_missing(row[by]):
            raise DataError(f"{NAME}, line {row.line}, column {by}: it is empty")
        about = _file(row, root) if by == "file" else row[by]
        entry = _entry(row, by)
        first = entries.setdefault(about, entry)
        if differing := _differing(first, entry):
            raise DataError(
                f"{NAME}: line {row.line} says of a {by} what line {first.line} does not, in the "
                f"column {differing}: keep one"
            )
    has_patients = by != "patient" and any(entry.patient for entry in entries.values())
    _require_splits(entries.values())
    lines = {entry.label: entry.line for entry in reversed(entries.values()) if entry.label}
    require_one_spelling(lines, lambda name: f"{shown(name)} ({NAME}, line {lines[name]}, label)")
    return LabelTable(by, entries, ordered(lines), has_patients)


def ordered(classes: Iterable[str]) -> list[str]:
    """Names of classes in the one order that they have: natural, 2 before 10."""
    return sorted(classes, key=natural)


def require_one_spelling(names: Iterable[str], told: Callable[[str], str]) -> None:
    """Raises DataError if classes differ in case, spaces, hyphens, `.0` or leading zeros only.

    Args:
        names: Of the classes.
        told: What the message says of one, and where it is.
    """
    for group in alike(names):
        spellings = "; ".join(map(told, group))
        raise DataError(f"one class in {len(group)} spellings: {spellings}: write it in one way")


def _entry(row: Row, by: str) -> Entry:
    require_text(row, [column for column in ("label", "patient", "split") if column != by], NAME)
    label, patient, split = (
        "" if is_missing(row.get(column)) else row.get(column)
        for column in ("label", "patient", "split")
    )
    if split and split.casefold() not in SPLITS:
        raise DataError(
            f"{NAME}, line {row.line}, column split: it must hold train, val or test in all rows"
        )
    split = SPLITS.get(split.casefold(), "")
    return Entry(row.line, label, "" if by == "patient" else patient, split)


def _file(row: Row, root: Path) -> str:
    """The path that a row names, relative to the source, with slashes.

    Raises:
        DataError: If it leads out of the source.
    """
    cell = row["file"]
    if "\0" in cell:
        raise DataError(f"{NAME}, line {row.line}, column file: no name of a file")
    if "\\" in cell and not os.path.lexists(root / cell):
        cell = cell.replace("\\", "/")
    name = os.path.normpath(cell)
    if os.path.isabs(name) and Path(name).is_relative_to(root):
        name = os.path.relpath(name, root)
    if os.path.isabs(name) or PurePosixPath(name).parts[:1] == ("..",) or name[1:3] == ":/":
        raise DataError(
            f"{NAME}, line {row.line}, column file: it is not in --source: give paths relative to "
            "--source"
        )
    return name


def _differing(first: Entry, entry: Entry) -> str:
    """The column in which two rows about the same thing differ; "" if they do not."""
    columns = ("label", "patient", "split")
    return next((c for c in columns if getattr(first, c) != getattr(entry, c)), "")


def _require_splits(entries: Collection[Entry]) -> None:
    """Raises DataError if some rows name a split and some do not."""
    without = [entry.line for entry in entries if not entry.split]
    if without and len(without) < len(entries):
        raise DataError(
            f"{NAME}, line {without[0]}, column split: it is empty; it must hold train, val or "
            "test in all rows, or in none"
        )
