"""Labels of single slices, beside those of their cases: what `--slice_labels` adds."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ctssl_jax.errors import ConfigError, DataError
from data_prep.names import shown
from data_prep.readers.label_table import Entry, LabelTable, read_label_table
from data_prep.readers.labels import Labelled
from data_prep.source import Item

NAME = "--slice_labels"
Identify = Callable[[str], Mapping[str, str]]


def join(
    found: Labelled,
    path: str,
    root: Path,
    identify: Identify,
    is_slice: Callable[[str], bool],
) -> Labelled:
    """The files with the labels of their slices, -1 where the table has none.

    Args:
        found: Files with the labels of their cases.
        path: Of a table by `file` or `sop`.
        root: The source, which files are relative to.
        identify: The identifiers of a DICOM file.
        is_slice: Whether a file is a single slice, and no volume.

    Raises:
        ConfigError: If the cases have no labels.
        DataError: If the table is not what it should be, has a class that no case has, or a row
            of a volume, or of a slice that is not there.
    """
    if not found.classes:
        raise ConfigError(f"{NAME} needs --labels: a label of each case, which is what is learnt")
    table = read_label_table(Path(path), root, NAME)
    if table.by not in ("file", "sop"):
        raise DataError(f"{NAME}: its rows must name slices, by a column file or sop")
    _require_classes(table, found)
    numbers = {name: number for number, name in enumerate(found.classes)}
    used = set[str]()

    def labelled(item: Item) -> Item:
        name = os.path.relpath(item.path, root)
        if table.by == "sop":
            name = identify(item.path).get("sop", "")
        entry = table.entries.get(name)
        used.add(name)
        if entry and not is_slice(item.path):
            raise DataError(
                f"{NAME}, line {entry.line}: it names a volume, whose slices cannot have labels of "
                "their own: save them as DICOM or images, or leave it out"
            )
        return replace(item, slice_label=numbers.get(entry.label, -1)) if entry else item

    items = [labelled(item) for item in found.items]
    lost: list[Entry] = [entry for name, entry in table.entries.items() if name not in used]
    if lost:
        raise DataError(
            f"{NAME}, line {lost[0].line}: {len(lost)} of {len(table.entries)} rows name a slice "
            "that has no case in --labels, or is not there: leave them out"
        )
    return replace(found, items=items)


def _require_classes(table: LabelTable, found: Labelled) -> None:
    """Raises DataError unless each class is one of the cases'."""
    for entry in table.entries.values():
        if entry.label and entry.label not in found.classes:
            raise DataError(
                f"{NAME}, line {entry.line}: {shown(entry.label)} is none of the classes of "
                f"--labels, {', '.join(map(shown, found.classes))}"
            )
