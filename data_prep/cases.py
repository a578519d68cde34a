"""What one label is of: a slice, a scan, a nodule, a patient. The unit that everything counts.

The rows of `--labels` say it: a row of a file of its own slice speaks of that slice; one of a
folder, a series, a volume, a study, an accession or a patient of all slices of it, which are then
one case. Where no table says it, `--case` does.
"""

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ctssl_jax.errors import ConfigError
from data_prep.source import Item


class CaseOf(enum.Enum):
    """What the slices of one case share.

    Attributes:
        AUTO: As the labels say; without any, a DICOM series or volume, or an image.
        SLICE: Nothing: each slice is a case.
        SERIES: A DICOM series, or a volume.
        FOLDER: The folder that a row names, or else that the file is in.
        CASE: The column `case` of `--labels`, beside its column `file`.
        STUDY: The StudyInstanceUID.
        ACCESSION: The AccessionNumber.
        PATIENT: The patient.
    """

    AUTO = "auto"
    SLICE = "slice"
    SERIES = "series"
    FOLDER = "folder"
    CASE = "case"
    STUDY = "study"
    ACCESSION = "accession"
    PATIENT = "patient"


_WORDS = {
    CaseOf.SLICE: "slice",
    CaseOf.STUDY: "study",
    CaseOf.ACCESSION: "study",
    CaseOf.PATIENT: "patient",
}
_BY_COLUMN = {"sop": CaseOf.SLICE, **{of.value: of for of in CaseOf}}


@dataclass(frozen=True)
class Case:
    """What the cases of a source are.

    Attributes:
        of: What the slices of one share; never AUTO.
        word: What people call one, in the singular; "" for the usual word.
    """

    of: CaseOf = CaseOf.SLICE
    word: str = ""

    def told(self) -> dict[str, str]:
        """What the manifest says: `of`, and the `word` that tables and reports use."""
        return {"of": self.of.value, "word": self.word or _WORDS.get(self.of, "scan")}

    def name(self, item: Item, series: str, patient: str) -> str:
        """Of a slice's case as in the source; "" for the slice itself.

        Args:
            item: That the slice was read from.
            series: The slice's.
            patient: The slice's.
        """
        match self.of:
            case CaseOf.SLICE:
                return ""
            case CaseOf.PATIENT:
                return f"patient {patient}"
            case CaseOf.SERIES:
                return f"series {series}"
            case CaseOf.CASE if not item.case:
                return ""
        # A folder of several people's scans is not one case.
        return f"{item.case} of {patient}" if item.case else f"series {series}"


def by_table(column: str, names_slices: bool, names_folders: bool) -> CaseOf:
    """What the cases are by the column of `--labels` that says what its rows are about.

    Args:
        column: One of `label_table.KEYS`.
        names_slices: Whether a row of `file` names a single slice.
        names_folders: Whether one names a folder.
    """
    if column != "file":
        return _BY_COLUMN[column]
    if names_slices:
        return CaseOf.SLICE
    return CaseOf.FOLDER if names_folders else CaseOf.SERIES


def identified(item: Item, of: CaseOf, root: Path, identifiers: Mapping[str, str]) -> str:
    """The `Item.case` of an item where no row names it; `identifiers` are those of its header."""
    if of is CaseOf.FOLDER:
        return f"folder {Path(os.path.dirname(item.path)).relative_to(root).as_posix()}"
    if of in (CaseOf.STUDY, CaseOf.ACCESSION) and (name := identifiers.get(of.value, "")):
        return f"{of.value} {name}"
    return ""


def require_possible(of: CaseOf, images: bool) -> None:
    """Raises ConfigError for cases that single images cannot have."""
    if images and of in (CaseOf.SERIES, CaseOf.STUDY, CaseOf.ACCESSION):
        raise ConfigError(
            f"--case={of.value}: images have no such header; give folder, patient or slice"
        )
