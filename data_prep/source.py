"""What a source of CT slices is: the few functions that every format supplies.

`preparation` does the rest alike for all of them, on one core, all cores or Apache Beam: it lists
the items, places each in a unit, reads unit after unit, makes pseudonyms and writes the dataset.

    source.items()          the files, cheaply, in a fixed order
    source.place(item)      which unit and patient an item belongs to
    source.read(items)      the slices of one unit, with what was rejected and found

Identifiers are raw in here, as in the source. Nothing of this module is written to disk as it is:
`preparation` replaces patient and series by pseudonyms, and items by their running number.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int16

from data_prep.origin import Origin

NAN3 = (float("nan"),) * 3


class Unusable(Exception):
    """An item cannot be used: damaged, cut off, irregular. `str(error)` is the reason.

    The reason is a fixed phrase: without path, name, UID, date or any text of the file. It counts
    for the limit of rejected items.

    Attributes:
        images: How many images each item holds, by its number, where that is not one: for a unit
            that turns out to be unusable as a whole.
    """

    images: Mapping[int, int] = {}


class Unwanted(Unusable):
    """An item is left out by design: a localizer, another modality, no image. Does not count.

    Unless the user's table names this very file: then it is a fault (`Item.wanted`).
    """


COPY_OF_OTHER_LABEL = "a copy of another file, with another label"
# By design, whoever names it: nothing is lost.
COPY = "a copy of another file"
UNLABELLED = "no label in --labels"
EXCLUDED = "a patient of --exclude_patients_of"
EXCLUDED_BY_CONTENT = "slices of a patient of --exclude_patients_of"
_BY_DESIGN = (COPY, UNLABELLED, EXCLUDED, EXCLUDED_BY_CONTENT)


@dataclass(frozen=True)
class Item:
    """One thing to read, mostly a file. All fields are plain data, so that any process gets them.

    Attributes:
        number: Running number in the source's fixed order, from 1; rejections name it.
        path: Absolute path of the file.
        patient: As in the source, where it is known without opening the file; else "".
        label: Index of the class, -1 if none.
        split: Where the source itself says so ("train", "val", "test"); "" to split by patient.
        part: Which part of the file: (name, start, stop), for files that hold many images.
        row: Line of the table that speaks of it; 0 if none.
        wanted: Whether that names this very file, so that whatever is wrong with it is a fault.
        flaw: Why it is not to be opened, and whether that is a fault; None to read it.
        case: What its label is of, as in the source, where that is known without opening the file
            and is neither the slice, the series nor the patient; else "".
        slice_label: Index of the class of this very slice, beside that of its case; -1 if none.
        header: What `Source.place` has read of it for `Source.read`; empty if nothing.
    """

    number: int
    path: str
    patient: str = ""
    label: int = -1
    split: str = ""
    part: tuple[str, int, int] | None = None
    row: int = 0
    wanted: bool = False
    flaw: tuple[str, bool] | None = None
    case: str = ""
    slice_label: int = -1
    header: bytes = field(default=b"", repr=False, compare=False)

    def plain(self) -> dict[str, Any]:
        """All but the header, as JSON takes it."""
        return {name: value for name, value in vars(self).items() if name != "header"}

    def stamp(self) -> str:
        """What changes when its file does; "" if there is none."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return ""
        return f"{stat.st_size}-{stat.st_mtime_ns}"

    def require_sound(self) -> None:
        """Raises its flaw, as `Unusable` or `Unwanted`, if it has one."""
        if self.flaw is not None:
            reason, fault = self.flaw
            raise (Unusable if fault else Unwanted)(reason)


@dataclass(frozen=True)
class Place:
    """Where an item belongs: its unit (read in one go, restarted as one) and its patient.

    `study` and `patient_id` are what the file says of its study and PatientID, to check patients by
    (whom a table or path may name otherwise); "" if it says nothing.
    `header` is what the item is to keep for `Source.read`, in any form.
    """

    unit: str
    patient: str
    study: str = ""
    header: bytes = field(default=b"", repr=False, compare=False)
    patient_id: str = ""


@dataclass(frozen=True)
class Slice:
    """One 2-D CT slice with its identifiers as in the source.

    Attributes:
        image: Rows x columns; HU, or grey values as the source's `intensity` says.
        patient: The patient.
        series: The series; with `slice_index` it names the slice.
        slice_index: Running number along the slice normal, from 0.
        position_mm: Position along the slice normal in mm; NaN if unknown.
        spacing_mm: Slice distance, row and column spacing in mm; NaN if unknown.
        thickness_mm: Slice thickness in mm; NaN if unknown.
        label: Index of the class, -1 if none.
        split: "" to split by patient.
        number: Of the item that it was read from, where its source says so; else 0.
        case: What its label is of: a scan, a nodule, a patient; "" for the slice itself.
        slice_label: Index of the class of this very slice, beside that of its case; -1 if none.
    """

    image: Int16[np.ndarray, "h w"]
    patient: str
    series: str
    slice_index: int
    position_mm: float = float("nan")
    spacing_mm: tuple[float, float, float] = NAN3
    thickness_mm: float = float("nan")
    label: int = -1
    split: str = ""
    number: int = 0
    case: str = ""
    slice_label: int = -1


@dataclass(frozen=True)
class Rejected:
    """An item that was left out, or `count` images of it.

    Attributes:
        number: Of the item.
        reason: A fixed phrase.
        fault: Whether it counts for the limit: damaged or irregular, not left out by design.
        count: How many images.
        row: Line of the user's table that speaks of it; 0 if none.
    """

    number: int
    reason: str
    fault: bool = True
    count: int = 1
    row: int = 0

    @classmethod
    def of(cls, number: int, error: Unusable, count: int = 1) -> "Rejected":
        """The rejection for an error that was raised on item `number`."""
        return cls(number, str(error), not isinstance(error, Unwanted), count)

    def of_item(self, item: Item) -> "Rejected":
        """The same with what is known of the item: its row, and whether it was wanted."""
        by_design = item.flaw is not None or self.reason in _BY_DESIGN
        return replace(self, fault=self.fault or (item.wanted and not by_design), row=item.row)


@dataclass(frozen=True)
class Finding:
    """Something irregular about a series, whether its slices were kept or not.

    Attributes:
        series: The series as in the source.
        finding: A fixed phrase, e.g. "gantry tilt".
        detail: Numbers with units, e.g. "18.5 degrees"; no text of the file.
        slices: How many slices the series has.
        kept: Whether they were kept.
    """

    series: str
    finding: str
    detail: str
    slices: int
    kept: bool


@runtime_checkable
class Source(Protocol):
    """A format of CT slices on disk. Implementations are frozen dataclasses that pickle."""

    @property
    def name(self) -> str:
        """Name of the dataset, e.g. "covid_ct"."""

    @property
    def kind(self) -> str:
        """The kind: "dicom", "volume", "image", "npz" or "phantom", or a new one.

        What a flag has no effect on is refused by kind: see `data_prep.effects`.
        """

    @property
    def intensity(self) -> str:
        """What the pixels are: "hu", "grey8" or "grey16"."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; empty for unlabelled slices."""

    @property
    def origin(self) -> Origin | None:
        """Where a public set comes from; None for one's own."""

    def options(self) -> Mapping[str, Any]:
        """What changes the slices beside the items: plain data, without paths."""

    def items(self) -> Iterable[Item]:
        """The items in a fixed order.

        Raises:
            DataError: If the source is not what it should be.
        """

    def place(self, item: Item) -> Place:
        """The unit and patient of an item; raises `Unusable` if it has none."""

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        """The slices of one unit, given all its items in their order, with or without headers."""

    def facts(self) -> Mapping[str, Any]:
        """What the manifest says beside counts: plain data, called after `items()`.

        `patients_known`, whether the source tells patients apart; `patients_from`, where it says
        so: "header", "path", "table", "study", or "name" where each file is its own; `positive`,
        the class of two that was named so; `case`, what a label is of (`cases.Case.told`), which
        is the slice where nothing is said.
        """

    def notes(self) -> Sequence[str]:
        """What a user of the dataset should know, e.g. official splits that share patients.

        Called after `items()`. May hold counts, never names.
        """
