"""CT volumes in NIfTI, NRRD or MetaImage -> axial slices in HU.

    python -m data_prep.volumes --source=VOLUMES --out=DATASET

A volume is turned to axial slices whatever the order of its axes, but never interpolated: one that
lies obliquely in space is a finding, and its slices are kept only with --irregular=accept_2d.
Segmentations, dose and windowed 8-bit volumes among the files are told by their values.
"""

import argparse
import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Num

from data_prep import command
from data_prep.irregular import Irregular
from data_prep.patients import NO_MATCH, PatientBy, PatientFinder
from data_prep.pipeline.records import to_hu
from data_prep.readers import listing
from data_prep.readers.stack import TILT_DEGREES
from data_prep.readers.volume import Volume, read_volume
from data_prep.readers.volume_header import read_header
from data_prep.source import Finding, Item, Place, Rejected, Slice, Unusable, Unwanted

FAT_HU = -50  # every CT holds fat or air
EACH_VOLUME = "patients are not known: each volume counts as its own patient"
MAX_LABELS = 128  # a segmentation has so few values


class Values(enum.Enum):
    """What the values of a volume are.

    Attributes:
        AUTO: HU; a volume with nothing as low as fat is rejected.
        HU: HU, unseen.
        GREY8: Grey from 0 to 255.
    """

    AUTO = "auto"
    HU = "hu"
    GREY8 = "grey8"


@dataclass(frozen=True)
class VolumeSource:
    """The axial slices of all volumes below a folder; a `source.Source`. An item is a file.

    Attributes:
        root: Folder of .nii, .nii.gz, .nrrd, .nhdr, .mha and .mhd files, or one file.
        patient_regex: As `patients.PatientFinder` takes it; without it each file is a patient.
        values: What the values are.
        irregular: Whether the slices of an oblique volume are kept. The finding is kept anyway.
    """

    root: Path
    patient_regex: str = ""
    values: Values = Values.AUTO
    irregular: Irregular = Irregular.REJECT

    name: ClassVar[str] = "volumes"
    kind: ClassVar[str] = "volume"
    classes: ClassVar[Sequence[str]] = ()
    origin: ClassVar[None] = None

    @property
    def intensity(self) -> str:
        """See `Source`."""
        return "grey8" if self.values is Values.GREY8 else "hu"

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {"values": self.values.value, "irregular": self.irregular.value}

    def items(self) -> Iterator[Item]:
        """All files in natural order.

        Raises:
            ConfigError: If the expression is not one with a group.
            DataError: If there is no file.
        """
        finder = PatientFinder.of(self.patient_regex, self._folder)
        find = finder.find if self.patient_regex else finder.own_name
        for number, entry in enumerate(listing.entries(self.root), 1):
            yield Item(number, entry.path, find(entry.path), flaw=entry.flaw)

    def place(self, item: Item) -> Place:
        """Each volume is a unit; raises as `volume_header.read_header`."""
        read_header(Path(item.path), self._folder)
        if not item.patient:
            raise Unusable(NO_MATCH)
        return Place(unit=self._series(item), patient=item.patient)

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        """The slices of a volume from foot to head, or why there are none."""
        for item in items:
            try:
                volume = read_volume(Path(item.path), self._folder)
            except Unusable as error:
                yield Rejected.of(item.number, error)
                continue
            count = len(volume.values)
            oblique = volume.tilt_degrees > TILT_DEGREES
            keep = not oblique or self.irregular is Irregular.ACCEPT_2D
            try:
                require_values(volume, self.values)
                if oblique:
                    detail = f"{volume.tilt_degrees:.1f} degrees"
                    yield Finding(self._series(item), "oblique volume", detail, count, keep)
                if not keep:
                    raise Unusable("irregular volume: oblique")
            except Unusable as error:
                yield Rejected.of(item.number, error, count)
                continue
            yield from self._slices(item, volume)

    def facts(self) -> Mapping[str, Any]:
        """See `Source`."""
        known = bool(self.patient_regex)
        return {"patients_known": known, "patients_from": "path" if known else "name"}

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return () if self.patient_regex else (EACH_VOLUME,)

    @property
    def _folder(self) -> Path:
        root = self.root.resolve()
        return root.parent if root.is_file() else root

    def _series(self, item: Item) -> str:
        return Path(item.path).relative_to(self._folder).as_posix()

    def _slices(self, item: Item, volume: Volume) -> Iterator[Slice]:
        grey = self.values is Values.GREY8
        for index in range(len(volume.values)):
            plane = volume.plane(index)
            yield Slice(
                np.rint(plane).astype(np.int16) if grey else to_hu(plane),
                item.patient,
                self._series(item),
                index,
                position_mm=volume.first_mm + index * volume.spacing_mm[0],
                spacing_mm=volume.spacing_mm,
                label=item.label,
                split=item.split,
            )


def require_values(volume: Volume, values: Values) -> None:
    """Raises unless the values are what they should be.

    Raises:
        Unwanted: If it is a segmentation.
        Unusable: If it is not in HU, or not 8-bit grey.
    """
    if values is Values.HU:
        return
    low, high = volume.range()
    if values is Values.AUTO and low < FAT_HU:
        return
    if low >= 0 and _is_segmentation(volume.values):
        raise Unwanted("a segmentation, not an image")
    if values is Values.AUTO:
        raise Unusable("not in Hounsfield units (nothing as low as fat)")
    if low < 0 or high > 255:
        raise Unusable("not 8-bit grey (values beyond 0 to 255)")


def _is_segmentation(values: Num[np.ndarray, "z y x"]) -> bool:
    """Whether there are few values, all of them whole numbers."""
    found = np.array([], values.dtype)
    for plane in values:
        found = np.union1d(found, plane)
        if len(found) > MAX_LABELS or np.any(found % 1):
            return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "volumes",
        "CT volumes in NIfTI, NRRD or MetaImage -> dataset folder of axial slices",
        "--source=volumes --out=data/mine --patient_regex='^(case[0-9]+)'",
        source="folder of .nii, .nii.gz, .nrrd, .nhdr, .mha and .mhd files, or one file",
    )
    command.add_patient_regex(parser, "without it each volume counts as its own patient")
    command.add_patient_by(parser, without=(PatientBy.STUDY,))
    parser.add_argument(
        "--values",
        choices=[choice.value for choice in Values],
        default=Values.AUTO.value,
        help="auto: Hounsfield units, and volumes with nothing as low as fat are rejected; "
        "hu: taken as Hounsfield units unseen; grey8: 0 to 255",
    )
    command.add_irregular(parser, "a volume that lies obliquely in space")

    def from_flags(args: argparse.Namespace) -> VolumeSource:
        source = VolumeSource(
            args.source, args.patient_regex, Values(args.values), Irregular(args.irregular)
        )
        finder = PatientFinder.of(args.patient_regex, source._folder)
        finder.require_clear(listing.files(args.source) if args.patient_regex else ())
        return source

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
