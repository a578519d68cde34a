"""CT volumes in NIfTI, NRRD or MetaImage -> axial slices in HU.

    python -m data_prep.volumes --source=VOLUMES --out=DATASET

A volume is turned to axial slices whatever the order of its axes, but never interpolated: one that
lies obliquely in space, or does not say how it lies, is a finding, and its slices are kept only
with --irregular=accept_2d. Segmentations, dose and windowed 8-bit volumes are told by their values.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Num

from data_prep import command
from data_prep.cases import Case, CaseOf
from data_prep.irregular import Irregular
from data_prep.patients import NO_MATCH, PatientBy, PatientFinder
from data_prep.pipeline.records import to_hu
from data_prep.readers import listing
from data_prep.readers.flat_rows import FlatRows
from data_prep.readers.hounsfield import NO_VALUES, Evidence, Values
from data_prep.readers.volume import Volume, read_volume
from data_prep.readers.volume_header import SEGMENTATION, read_header
from data_prep.source import Finding, Item, Place, Rejected, Slice, Unusable, Unwanted

# What --irregular is about; see `Volume.irregularities`.
VOLUME = "a volume that lies obliquely in space, or of which it is not known how it lies"
EACH_VOLUME = "patients are not known: each volume counts as its own patient"
MAX_LABELS = 128  # a segmentation has so few values
MAX_MASK = 8  # and so few where all else is HU by the user's word
LOWEST_LABEL = -1  # what is to be ignored


@dataclass(frozen=True)
class VolumeSource:
    """The axial slices of all volumes below a folder; a `source.Source`. An item is a file.

    Attributes:
        root: Folder of .nii, .nii.gz, .nrrd, .nhdr, .mha and .mhd files, or one file.
        patient_regex: As `patients.PatientFinder` takes it; without it each file is a patient.
        values: What the values are.
        irregular: Whether the slices of an oblique volume are kept. The finding is kept anyway.
        remarks: What `notes` says, if the expression says who is a patient.
    """

    root: Path
    patient_regex: str = ""
    values: Values = Values.AUTO
    irregular: Irregular = Irregular.REJECT
    remarks: Sequence[str] = ()

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
            irregularities = volume.irregularities()
            keep = not irregularities or self.irregular is Irregular.ACCEPT_2D
            try:
                require_values(volume, self.values)
                for finding, detail in irregularities:
                    yield Finding(self._series(item), finding, detail, count, keep)
                if not keep:
                    raise Unusable(f"irregular volume: {irregularities[0].finding}")
            except Unusable as error:
                yield Rejected.of(item.number, error, count)
                continue
            yield from self._slices(item, volume)

    def facts(self) -> Mapping[str, Any]:
        """See `Source`."""
        known = bool(self.patient_regex)
        source = "path" if known else "name"
        case = Case(CaseOf.SERIES).told()
        return {"patients_known": known, "patients_from": source, "case": case}

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return self.remarks if self.patient_regex else (EACH_VOLUME,)

    @property
    def _folder(self) -> Path:
        root = self.root.resolve()
        return root.parent if root.is_file() else root

    def _series(self, item: Item) -> str:
        return Path(item.path).relative_to(self._folder).as_posix()

    def _slices(self, item: Item, volume: Volume) -> Iterator[Slice | Finding]:
        grey, rows = self.values is Values.GREY8, FlatRows()
        for index in range(len(volume.values)):
            plane = volume.plane(index)
            image = np.rint(plane).astype(np.int16) if grey else to_hu(plane)
            rows.add(image)
            yield Slice(
                image,
                item.patient,
                self._series(item),
                index,
                position_mm=volume.first_mm + index * volume.spacing_mm[0],
                spacing_mm=volume.spacing_mm,
                label=item.label,
                split=item.split,
                case=f"series {self._series(item)}",
            )
        yield from () if grey else rows.findings(self._series(item))


def require_values(volume: Volume, values: Values) -> None:
    """Raises unless the values are what they should be.

    Raises:
        Unwanted: If it is a segmentation.
        Unusable: If it is not in HU, or not 8-bit grey.
    """
    if values is Values.GREY8:
        _require_grey(volume)
        return
    seen = Evidence()
    for plane in volume.values:
        seen.add(plane, volume.header.slope, volume.header.intercept)
    reason = seen.reason(values)
    judged = reason != NO_VALUES and (reason or values is Values.HU)
    if judged and volume.range()[0] >= LOWEST_LABEL:
        _require_image(volume, MAX_MASK if values is Values.HU else MAX_LABELS)
    if reason:
        raise Unusable(reason)


def _require_grey(volume: Volume) -> None:
    low, high = volume.range()
    if low >= 0:
        _require_image(volume, MAX_LABELS)
    if low < 0 or high > 255:
        raise Unusable("not 8-bit grey (values beyond 0 to 255)")


def _require_image(volume: Volume, most: int) -> None:
    if _is_segmentation(volume.values, most):
        raise Unwanted(SEGMENTATION)


def _is_segmentation(values: Num[np.ndarray, "z y x"], most: int) -> bool:
    """Whether there are at most so many values, all whole numbers, in areas of one value each."""
    found = np.array([], values.dtype)
    equal = inner = 0
    for plane in values:
        found = np.union1d(found, plane)
        if len(found) > most or np.any(found % 1):
            return False
        left, right = plane[:, :-1], plane[:, 1:]
        equal += int(np.count_nonzero((left == right) & (left != 0)))
        inner += int(np.count_nonzero((left != 0) & (right != 0)))
    # A brain without its skull has few values too, but noise.
    return equal >= inner / 2


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
    command.add_values(parser, tuple(Values))
    command.add_irregular(parser, VOLUME)

    def from_flags(args: argparse.Namespace) -> VolumeSource:
        source = VolumeSource(
            args.source, args.patient_regex, Values(args.values), Irregular(args.irregular)
        )
        finder = PatientFinder.of(args.patient_regex, source._folder)
        files = list(listing.files(args.source)) if args.patient_regex else []
        return replace(source, remarks=finder.require_clear(files))

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
