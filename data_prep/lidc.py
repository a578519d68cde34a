"""LIDC-IDRI -> slices in HU: `python -m data_prep.lidc --source=LIDC-IDRI --out=DATASET`.

1,018 CT series of 1,010 patients of seven centres; `ORIGIN` says where to get them, what to cite.
The folders of the download are taken as they are, whether LIDC-IDRI-0001/<study>/<series>/ or with
a folder of the manifest above. The radiographs of the same patients are left out by their modality.

The archive holds the series as they were sent: some begin at slice 3 or lack their last (pylidc
issue 7). They are kept as single slices, and listed in findings.csv.
"""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ctssl_jax.errors import DataError
from data_prep import command
from data_prep.dicom import STACK, DicomSource
from data_prep.irregular import Irregular
from data_prep.origin import Origin
from data_prep.readers.hounsfield import HOUNSFIELD, Values
from data_prep.source import Item, Place, Unusable

ORIGIN = Origin(
    citation="Armato et al., The Lung Image Database Consortium (LIDC) and Image Database Resource "
    "Initiative (IDRI): a completed reference database of lung nodules on CT scans, Medical "
    "Physics 38(2), 2011; Armato et al., Data From LIDC-IDRI, The Cancer Imaging Archive, 2015, "
    "https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
    licence="CC BY 3.0",
    download="https://www.cancerimagingarchive.net/collection/lidc-idri/: choose the images, and "
    "open the .tcia manifest that this gives in the NBIA Data Retriever",
)
SERIES, PATIENTS = 1018, 1010  # as published
_PATIENT = re.compile(r"LIDC-IDRI-\d{4}")


@dataclass(frozen=True)
class LidcSource(DicomSource):
    """The CT slices of LIDC-IDRI.

    Attributes:
        expected: SeriesInstanceUIDs that should be there; empty if nobody knows.
    """

    irregular: Irregular = Irregular.ACCEPT_2D
    expected: frozenset[str] = frozenset()

    name: ClassVar[str] = "lidc"
    origin: ClassVar[Origin] = ORIGIN

    def place(self, item: Item) -> Place:
        """As of any DICOM file.

        Raises:
            Unusable: Also if PatientID is not LIDC-IDRI-nnnn: such a file is not of this set.
        """
        place = super().place(item)
        if not _PATIENT.fullmatch(place.patient):
            raise Unusable("PatientID is not of LIDC-IDRI")
        return place

    def notes(self) -> Sequence[str]:
        """How many of the published series and patients are here. Opens one file of each folder."""
        places = self._places()
        series, patients = ({getattr(p, name) for p in places} for name in ("unit", "patient"))
        notes = [
            _count(len(series), SERIES, "CT series"),
            _count(len(patients), PATIENTS, "patients"),
        ]
        if self.expected:
            missing = len(self.expected - series)
            notes.append(f"{missing} of {len(self.expected):,} listed series are missing")
        return notes

    def _places(self) -> set[Place]:
        """The series that are here: the archive has a folder for each."""
        places, done = set(), set()
        for item in self.items():
            folder = os.path.dirname(item.path)
            if folder in done or item.flaw is not None:
                continue
            try:
                places.add(self.place(item))
                done.add(folder)
            except Unusable:  # or unwanted, as the annotations among the slices
                continue
        return places


def _count(found: int, published: int, what: str) -> str:
    text = f"{found:,} of {published:,} {what}"
    return text + (f": {published - found:,} missing" if found < published else "")


def load_series(path: Path) -> frozenset[str]:
    """The SeriesInstanceUIDs of a list, one a line; other lines of an NBIA manifest are skipped.

    Raises:
        DataError: If the file is missing or holds no UID.
    """
    if not path.is_file():
        raise DataError("--series: no such file")
    lines = path.read_text(errors="replace").splitlines()
    uids = frozenset(line.strip() for line in lines if re.fullmatch(r"\s*[0-9.]{10,64}\s*", line))
    if not uids:
        raise DataError("--series holds no SeriesInstanceUID: one is wanted on each line")
    return uids


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "lidc",
        f"LIDC-IDRI in DICOM -> dataset folder in Hounsfield units. Licence of the data: "
        f"{ORIGIN.licence}. Download: {ORIGIN.download}. Cite: {ORIGIN.citation}",
        "--source=LIDC-IDRI --out=data/lidc",
        source="folder that holds the folders LIDC-IDRI-nnnn",
    )
    command.add_irregular(parser, STACK, Irregular.ACCEPT_2D)
    command.add_values(parser, HOUNSFIELD)
    parser.add_argument(
        "--series",
        type=Path,
        help="list of SeriesInstanceUIDs that should be there, e.g. the manifest of the download; "
        "how many are missing is noted",
    )

    def from_flags(args: argparse.Namespace) -> LidcSource:
        expected = load_series(args.series) if args.series else frozenset()
        values = Values(args.values)
        return LidcSource(args.source, Irregular(args.irregular), values, expected=expected)

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
