"""The table of --labels: which row speaks of which file, scan, study or patient.

What its rows are about, a column says: `file` (or a folder, for all files in it), or an identifier
of DICOM. A column `case` beside `file` says which files are one case; without `file` it stands in
for it. Whatever is ambiguous is refused with its line and column.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctssl_jax.errors import DataError
from data_prep.names import shown
from data_prep.patients import nobodies
from data_prep.readers.listing import natural
from data_prep.readers.tables import Row, read_table, require_text
from data_prep.spelling import alike, is_cut_number, is_missing, says_no_class

NAME = "--labels"
# The first of these that is there says what a row is about.
KEYS = ("file", "sop", "series", "study", "accession", "patient")
# What may stand in for `file`, where there is none.
STAND_INS = ("case", "folder", "volume", "scan")
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
# Columns that say which slice of a scan a row speaks of, as `Row` names them.
_SLICES = (
    *("slice", "sliceid", "sliceindex", "slicenumber", "sliceno", "slicenr", "frame"),
    *("framenumber", "instance", "instancenumber", "imagenumber"),
)
# Columns that are not read, and what others may take them for.
_FOLDS = ("fold", "folds", "foldid", "cvfold", "kfold")
_PEOPLE = (
    *("subject", "subjectid", "person", "personid", "pid", "mrn"),
    *("patientnumber", "patientno", "patientnr", "patientname"),
)
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
    """What a row says: the names of class, patient, split and case; "" for what it does not."""

    line: int
    label: str
    patient: str = ""
    split: str = ""
    case: str = ""


@dataclass(frozen=True)
class LabelTable:
    """A table without contradictions.

    Attributes:
        by: What its rows are about, one of `KEYS`.
        entries: By file relative to the source, or by identifier.
        classes: Names of the classes.
        has_patients: Whether it has a column of patients beside `by`.
        has_cases: Whether it has a column of cases beside `by`.
        notes: What a user should know of its columns.
    """

    by: str
    entries: Mapping[str, Entry]
    classes: Sequence[str]
    has_patients: bool
    has_cases: bool = False
    notes: Sequence[str] = ()

    @property
    def unlabelled(self) -> int:
        """How many rows give no label."""
        return sum(not entry.label for entry in self.entries.values())


def read_label_table(path: Path, root: Path, name: str = NAME) -> LabelTable:
    """Reads the table of a source.

    Args:
        path: CSV file with a column `label`, one of `KEYS`, and perhaps `patient` and `split`.
        root: The source, which files are relative to.
        name: What errors call the table.

    Raises:
        DataError: With the line and column of what is missing, ambiguous or contradicts itself.
    """
    rows = read_table(path, ("label",), name, _OTHERS)
    by = next((column for column in KEYS if column in rows[0].cells), "")
    named = next((column for column in STAND_INS if column in rows[0].cells), "")
    if by in ("", "patient") and named:  # a patient may stand beside a case
        rows, by = [_by_file(row, named) for row in rows], "file"
    if not by:
        read_table(path, ("file",), name, _OTHERS)  # says what it has instead
    numbered = [column for column in _SLICES if column in rows[0].cells and column != by]
    entries: dict[str, Entry] = {}
    slices: dict[str, list[str]] = {}
    for row in rows:
        if is_missing(row[by]):
            raise DataError(f"{name}, line {row.line}, column {by}: it is empty")
        about = _file(row, root, name) if by == "file" else row[by]
        if by != "file" and is_cut_number(row[by]):
            raise _cut_number(row, by, name)
        entry = _entry(row, by, name)
        which = [row[column] for column in numbered]
        if slices.setdefault(about, which) != which:
            raise _single_slices(row, by, numbered[0], name)
        first = entries.setdefault(about, entry)
        if differing := _differing(first, entry):
            raise DataError(
                f"{name}: line {row.line} says of a {by} what line {first.line} does not, in the "
                f"column {differing}: keep one"
            )
    has_cases = by != "patient" and any(entry.case for entry in entries.values())
    has_patients = by != "patient" and any(entry.patient for entry in entries.values())
    _require_splits(entries.values(), name)
    _require_somebody(entries.values(), name)
    lines = {entry.label: entry.line for entry in reversed(entries.values()) if entry.label}
    require_one_spelling(
        lines, lambda label: f"{shown(label)} ({name}, line {lines[label]}, label)"
    )
    notes = _unread(rows, by, name)
    return LabelTable(by, entries, ordered(lines), has_patients, has_cases, notes)


def _unread(rows: Sequence[Row], by: str, name: str) -> list[str]:
    """What to note of columns that look like splits, folds or patients and are not read as such."""
    notes = []
    there = rows[0].cells.keys()
    for column in sorted(there - {*KEYS, "label", "split", "case"}):
        words = {row[column].casefold() for row in rows}
        told = f"the column {shown(column)} of {name} is not read"
        if words <= SPLITS.keys() and len({SPLITS[word] for word in words}) > 1:
            notes += [f"{told}: to have its splits, call it split"] * ("split" not in there)
        elif column in _FOLDS:
            notes.append(f"{told}: --folds draws folds of its own, by patient")
        elif column in _PEOPLE and by == "file" and "patient" not in there:
            notes.append(f"{told}: if it says who is a patient, call it patient")
    return notes


def _by_file(row: Row, named: str) -> Row:
    """The row with what stands in for its column `file` there."""
    others = {column: cell for column, cell in row.cells.items() if column != named}
    return Row(row.line, {**others, "file": row[named]})


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


def _entry(row: Row, by: str, name: str) -> Entry:
    require_text(row, [c for c in ("label", "patient", "split", "case") if c != by], name)
    label, patient, split, case = (
        "" if is_missing(row.get(column)) else row.get(column)
        for column in ("label", "patient", "split", "case")
    )
    if is_cut_number(patient):
        raise _cut_number(row, "patient", name)
    if label and says_no_class(label):
        raise DataError(
            f"{name}, line {row.line}, column label: {shown(label)} is no name of a class: leave "
            "the cell empty if there is no label, else write a word"
        )
    if split and split.casefold() not in SPLITS:
        raise DataError(
            f"{name}, line {row.line}, column split: it must hold train, val or test in all rows"
        )
    split = SPLITS.get(split.casefold(), "")
    return Entry(row.line, label, "" if by == "patient" else patient, split, case)


def _single_slices(row: Row, by: str, column: str, name: str) -> DataError:
    """For rows of several slices of one scan: the label would be that of all its slices."""
    return DataError(
        f"{name}, line {row.line}, column {column}: this {by} has rows of several slices, and a "
        f"label of a {by} is of all its slices: for labels of slices name each by its own file or "
        "SOPInstanceUID (column file or sop); for labels of scans give one row to each"
    )


def _cut_number(row: Row, column: str, name: str) -> DataError:
    return DataError(
        f"{name}, line {row.line}, column {column}: a spreadsheet has cut the digits of a long "
        "number, so that several become one: export the column as text, from the original"
    )


def _require_somebody(entries: Iterable[Entry], name: str) -> None:
    """Raises DataError if several rows have a patient who is nobody: they would be one person."""
    lines: dict[str, list[int]] = {}
    for entry in entries:
        if entry.patient:
            lines.setdefault(entry.patient, []).append(entry.line)
    for patient in sorted(nobodies(lines)):
        if len(lines[patient]) > 1:
            raise DataError(
                f"{name}, line {lines[patient][0]}, column patient: {shown(patient)} is nobody, "
                f"and {len(lines[patient])} rows would be one person: name each, or leave them out"
            )


def _file(row: Row, root: Path, table: str) -> str:
    """The path that a row names, relative to the source, with slashes.

    Raises:
        DataError: If it leads out of the source.
    """
    cell = row["file"]
    if "\0" in cell:
        raise DataError(f"{table}, line {row.line}, column file: no name of a file")
    if "\\" in cell and not os.path.lexists(root / cell):
        cell = cell.replace("\\", "/")
    name = os.path.normpath(cell)
    if os.path.isabs(name):
        name = _below(name, root)
    if os.path.isabs(name) or PurePosixPath(name).parts[:1] == ("..",) or name[1:3] == ":/":
        raise DataError(
            f"{table}, line {row.line}, column file: it is not in --source: give paths relative to "
            "--source"
        )
    return name


def _below(name: str, root: Path) -> str:
    """A whole path relative to the source, to which links may lead; as it is if it is not in it."""
    path = Path(name)
    if path.is_relative_to(root):
        return str(path.relative_to(root))
    above = (folder for folder in path.parents if os.path.realpath(folder) == str(root))
    return next((str(path.relative_to(folder)) for folder in above), name)


def _differing(first: Entry, entry: Entry) -> str:
    """The column in which two rows about the same thing differ; "" if they do not."""
    columns = ("label", "patient", "split", "case")
    return next((c for c in columns if getattr(first, c) != getattr(entry, c)), "")


def _require_splits(entries: Collection[Entry], name: str) -> None:
    """Raises DataError if some rows name a split and some do not."""
    without = [entry.line for entry in entries if not entry.split]
    if without and len(without) < len(entries):
        raise DataError(
            f"{name}, line {without[0]}, column split: it is empty; it must hold train, val or "
            "test in all rows, or in none"
        )
