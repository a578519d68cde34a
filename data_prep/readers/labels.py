"""Labels, patients and splits of files: from sub-folders or a CSV table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctssl_jax.errors import DataError
from data_prep.readers.listing import inside, natural
from data_prep.readers.tables import read_table
from data_prep.source import Item

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Labelled:
    """Files with what is known of them.

    Attributes:
        items: The files; their numbers are for others to give. One that is listed, but not there,
            has a path that does not exist.
        classes: Names of the classes.
        unlisted: How many files the table does not name.
    """

    items: Sequence[Item]
    classes: Sequence[str] = ()
    unlisted: int = 0


def label(
    paths: Iterable[str], root: Path, labels: str, patient_of: Callable[[Path], str]
) -> Labelled:
    """Joins files with labels.

    Args:
        paths: Of the files.
        root: Folder that they are in.
        labels: "" for none; "folder" for the first sub-folder; else the path of a CSV file with the
            columns file and label and, if wanted, patient and split. A row may name a folder: it
            holds for all files in it that have no row of their own.
        patient_of: Gives the patient of a file where the table does not.

    Raises:
        DataError: If the table does not fit the files.
    """
    if labels == "folder":
        return _by_folder(paths, root, patient_of)
    if labels:
        return _by_table(Path(labels), paths, root, patient_of)
    return Labelled([Item(0, path, patient_of(Path(path))) for path in paths])


def _by_folder(paths: Iterable[str], root: Path, patient_of: Callable[[Path], str]) -> Labelled:
    names = {path: _sub_folder(path, root) for path in paths}
    classes = sorted({name for name in names.values() if name})
    items = [
        Item(0, path, patient_of(Path(path)), classes.index(name) if name else -1)
        for path, name in names.items()
    ]
    return Labelled(items, classes)


def _by_table(
    table: Path, paths: Iterable[str], root: Path, patient_of: Callable[[Path], str]
) -> Labelled:
    rows = _rows(table)
    classes = sorted({row["label"] for row in rows.values() if row["label"]}, key=natural)
    items, used, unlisted = [], set(), 0
    for path in paths:
        name = next((n for n in _names(path, root) if n in rows), None)
        if name is None:
            unlisted += 1
            continue
        used.add(name)
        items.append(_item(path, rows[name], classes, patient_of))
    for name in rows:
        if name not in used:
            missing = root / name
            if missing.exists() or not inside(missing, root):
                raise DataError(
                    "--labels names a hidden file, an empty folder, or what is not in --source: "
                    "give paths relative to --source"
                )
            items.append(_item(str(missing), rows[name], classes, patient_of))
    return Labelled(items, classes, unlisted)


def _rows(table: Path) -> dict[str, Mapping[str, str]]:
    """The rows of the table by file."""
    rows: dict[str, Mapping[str, str]] = {}
    for line, row in enumerate(read_table(table, ("file", "label"), "--labels"), 2):
        name = PurePosixPath(row["file"]).as_posix()
        if rows.setdefault(name, row) != row:
            raise DataError(f"--labels: line {line} says of a file what an earlier line does not")
    splits = {row.get("split", "") for row in rows.values()}
    if not splits <= set(SPLITS) and splits != {""}:
        raise DataError("--labels: the column split must hold train, val or test in all rows")
    return rows


def _item(
    path: str,
    row: Mapping[str, str],
    classes: Sequence[str],
    patient_of: Callable[[Path], str],
) -> Item:
    number = classes.index(row["label"]) if row["label"] else -1
    patient = row.get("patient") or patient_of(Path(path))
    return Item(0, path, patient, number, row.get("split", ""))


def _names(path: str, root: Path) -> Iterator[str]:
    """The path relative to the root, then the folders it is in, the nearest first."""
    relative = PurePosixPath(Path(path).relative_to(root).as_posix())
    yield str(relative)
    yield from map(str, relative.parents)


def _sub_folder(path: str, root: Path) -> str:
    parts = Path(path).relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""
