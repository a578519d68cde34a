"""Your own folder, with labels: `python -m data_prep.folder --source=FOLDER --out=DATASET`.

DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF and BMP, with labels from sub-folders or a table.
What a file is, its content says. DICOM and volumes are in Hounsfield units and may stand side by
side; 2-D images are grey and make a dataset of their own.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ctssl_jax.errors import ConfigError, DataError
from data_prep import cases, command
from data_prep.cases import Case, CaseOf
from data_prep.dicom import STACK, DicomSource
from data_prep.irregular import Irregular
from data_prep.patients import PatientBy, PatientFinder
from data_prep.pipeline.split import shared_patients
from data_prep.readers import images, labels, listing, slice_labels
from data_prep.readers.dicom_identity import identifiers
from data_prep.readers.folder_files import Files, Format
from data_prep.readers.hounsfield import HOUNSFIELD, Values
from data_prep.readers.images import ImageSource
from data_prep.readers.labels import Labelled
from data_prep.source import (
    UNLABELLED,
    Finding,
    Item,
    Place,
    Rejected,
    Slice,
    Source,
    Unusable,
    Unwanted,
)
from data_prep.volumes import EACH_VOLUME, VOLUME, VolumeSource

EACH_IMAGE = "patients are not known: each image counts as its own patient"


@dataclass(frozen=True)
class FolderSource:
    """DICOM series and volumes of a folder, labelled; a `source.Source`.

    The part of an item says which it is; its patient, label and split take the place of those in
    the file, and its case, if it has one, that of the series. Slices of a series that have no
    label, beside some that have, are left out.

    Attributes:
        root: The folder.
        irregular: Whether the slices of irregular series and volumes are kept.
        values: AUTO, or HU if they are that by the user's word.
        kind: What is in it: "dicom", "volume" or "dicom+volume".
        patient_by: What counts as a patient.
        case: What a label is of.
        classes: Names of the classes.
        remarks: What `notes` says.
        known: What `facts` says.
        listed: The items. Only the process that lists them needs them: they do not pickle.
    """

    root: Path
    irregular: Irregular
    values: Values
    kind: str
    patient_by: PatientBy = PatientBy.AUTO
    case: Case = Case(CaseOf.SERIES)
    classes: Sequence[str] = ()
    remarks: Sequence[str] = ()
    known: Mapping[str, Any] = field(default_factory=lambda: {"patients_known": False})
    listed: Sequence[Item] = field(default=(), repr=False)

    name: ClassVar[str] = "folder"
    intensity: ClassVar[str] = "hu"
    origin: ClassVar[None] = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "listed": ()}

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        options = {"labelled": bool(self.classes), "case": self.case.of.value}
        return {**self._dicom.options(), **options}

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        yield from self.listed

    def place(self, item: Item) -> Place:
        """As `DicomSource.place` and `VolumeSource.place`."""
        item.require_sound()
        if not os.path.isfile(item.path):
            raise Unusable("listed but not there")
        if not _is_dicom(item):
            return self._volumes.place(item)
        place = self._dicom.place(item)
        return replace(place, unit=f"dicom {place.unit}")

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        """See `Source`."""
        if not _is_dicom(items[0]):
            for found in self._volumes.read(items):
                yield self._with_case(found, items[0]) if isinstance(found, Slice) else found
            return
        if self.classes and all(item.label < 0 for item in items):
            raise Unwanted(UNLABELLED)
        of_number = {item.number: item for item in items}
        labelled = [item for item in items if item.label >= 0 or not self.classes]
        if len({(item.patient, item.split) for item in labelled}) > 1:
            raise Unusable("one series has several patients or splits")
        patient, split = labelled[0].patient, labelled[0].split
        for found in self._dicom.read([replace(item, patient=patient) for item in items]):
            if not isinstance(found, Slice):
                yield found
            elif self.classes and of_number[found.number].label < 0:
                yield Rejected(found.number, UNLABELLED, fault=False)
            else:
                item = of_number[found.number]
                marked = replace(found, label=item.label, split=split, slice_label=item.slice_label)
                yield self._with_case(marked, item)

    def _with_case(self, found: Slice, item: Item) -> Slice:
        return replace(found, case=self.case.name(item, found.series, found.patient))

    def facts(self) -> Mapping[str, Any]:
        """See `Source`."""
        return self.known

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return self.remarks

    @property
    def _dicom(self) -> DicomSource:
        return DicomSource(self.root, self.irregular, self.values, patient_by=self.patient_by)

    @property
    def _volumes(self) -> VolumeSource:
        return VolumeSource(self.root, values=self.values, irregular=self.irregular)


@dataclass(frozen=True)
class Wishes:
    """What a user says of a folder.

    Attributes:
        labels: As `labels.label` takes it.
        patient_regex: As `patients.PatientFinder` takes it. Without it each image and each volume
            is its own patient; the patient of DICOM is its PatientID.
        format: Which files are read.
        irregular: Whether the slices of irregular series and volumes are kept.
        values: AUTO, or HU if the values of scans are that by the user's word.
        hu_offset: What is to be subtracted from 16-bit images to make HU; None: they are grey.
        patient_by: What counts as a patient.
        positive: The class of two that is to be the last; "" for their natural order.
        case: What a label is of.
        case_name: What people call that, in the singular; "" for the usual word.
        slice_labels: A table of labels of slices, beside those of their cases; "" for none.
    """

    labels: str = ""
    patient_regex: str = ""
    format: Format = Format.AUTO
    irregular: Irregular = Irregular.REJECT
    values: Values = Values.AUTO
    hu_offset: int | None = None
    patient_by: PatientBy = PatientBy.AUTO
    positive: str = ""
    case: CaseOf = CaseOf.AUTO
    case_name: str = ""
    slice_labels: str = ""


def make_source(root: Path, labelled: str = "", patient_regex: str = "", **others: Any) -> Source:
    """The files of a folder as a source.

    Args:
        root: The folder.
        labelled: As in `Wishes`.
        patient_regex: As in `Wishes`.
        others: The other fields of `Wishes`.

    Raises:
        ConfigError: If the expression is not one with a group, or finds no patient.
        DataError: If there is no file of the format, there are several kinds of intensity, or the
            labels are not what they should be.
    """
    wishes = Wishes(labelled, patient_regex, **others)
    root = root.resolve()
    if not root.is_dir():
        raise DataError("--source is not a folder")
    finder = PatientFinder.of(patient_regex, root)
    tables = [os.path.realpath(table) for table in (labelled, wishes.slice_labels) if table]
    entries = [entry for entry in listing.entries(root) if entry.path not in tables]
    paths = [entry.path for entry in entries if entry.flaw is None]
    files = Files(paths, finder, wishes.format, labelled == "folder")
    described = [files.describe(path) for path in files.paths]
    found = labels.label(described, root, labelled, files.describe, identifiers)
    if patient_regex and found.by_table:
        raise ConfigError("--patient_regex would have no effect: --labels names all patients")
    found = labels.with_positive(found, wishes.positive)
    if wishes.slice_labels:
        table = wishes.slice_labels
        found = slice_labels.join(found, table, root, identifiers, files.is_slice)
    case = _case(found, files, wishes)
    found = replace(found, items=_with_cases(found, case, root))
    taken = {item.path for item in found.items}
    others_found = [e for e in entries if e.flaw is not None and e.path not in taken]
    items = [*found.items, *(Item(0, e.path, flaw=e.flaw) for e in others_found)]
    notes = [*found.notes, *finder.require_clear(files.paths)]
    if not found.patients_known:
        notes.append(_each_counts(case, files))
    known: dict[str, Any] = {
        "patients_known": found.patients_known,
        "patients_from": _patients_from(found, files, wishes),
        "case": case.told(),
    }
    if wishes.positive:
        known["positive"] = wishes.positive
    if files.hold(Format.IMAGE):
        if found.classes:
            known["labels_of"] = "slice" if case.of is CaseOf.SLICE and found.by_file else "scan"
        items, masks = images.without_masks(items, root)
        notes += [f"{masks} files are masks beside images and were left out"] * bool(masks)
        _require_whole_patients([(i.patient, i.split) for i in items if i.flaw is None])
        return _image_source(items, found.classes, notes, known, wishes, case)
    listed = [replace(files.part(item), number=n) for n, item in enumerate(items, 1)]
    source = FolderSource(
        *(root, wishes.irregular, wishes.values, files.kind, wishes.patient_by, case),
        *(found.classes, notes, known, listed),
    )
    _require_whole_patients([(_patient(source, i), i.split) for i in listed if i.split])
    return source


def _image_source(
    items: Sequence[Item],
    classes: Sequence[str],
    notes: list[str],
    known: Mapping[str, Any],
    wishes: Wishes,
    case: Case,
) -> ImageSource:
    """Images as grey, or as HU; with a note where grey looks like HU."""
    paths = [item.path for item in items if item.flaw is None]
    bits = 16 if wishes.hu_offset is not None else images.common_bits(paths)
    if wishes.hu_offset is None and bits == 16:
        notes = [*notes, *_suspicion(paths)]
    return ImageSource(
        *("folder", classes, bits, notes, None, images.numbered(items), known),
        hu_offset=wishes.hu_offset,
        values=wishes.values,
        case=case,
    )


def _case(found: Labelled, files: Files, wishes: Wishes) -> Case:
    """What the labels are of, by the user's word or by the rows of the table."""
    images_only = files.hold(Format.IMAGE)
    cases.require_possible(wishes.case, images_only)
    if wishes.case is not CaseOf.AUTO:
        return Case(wishes.case, wishes.case_name)
    if found.has_cases:
        return Case(CaseOf.CASE, wishes.case_name)
    if not found.column:
        return Case(CaseOf.SLICE if images_only else CaseOf.SERIES, wishes.case_name)
    names_slices = any(i.wanted and files.is_slice(i.path) for i in found.items if not i.flaw)
    names_folders = any(item.case for item in found.items)
    return Case(cases.by_table(found.column, names_slices, names_folders), wishes.case_name)


def _with_cases(found: Labelled, case: Case, root: Path) -> list[Item]:
    """The items, those without a case with what the path or header says of it.

    Where patients are not known, a case is one: never a slice of it.
    """
    if case.of not in (CaseOf.FOLDER, CaseOf.STUDY, CaseOf.ACCESSION, CaseOf.CASE):
        return list(found.items)
    header = identifiers if case.of in (CaseOf.STUDY, CaseOf.ACCESSION) else lambda _: {}

    def named(item: Item) -> Item:
        if not (item.case or item.flaw):
            name = cases.identified(item, case.of, root, header(item.path))
            item = replace(item, case=name)
        return item if found.patients_known else replace(item, patient=item.case or item.patient)

    return [named(item) for item in found.items]


def _each_counts(case: Case, files: Files) -> str:
    """What is noted where patients are not known."""
    if case.of in (CaseOf.FOLDER, CaseOf.CASE):
        return f"patients are not known: each {case.told()['word']} counts as its own patient"
    return EACH_IMAGE if files.hold(Format.IMAGE) else EACH_VOLUME


def _suspicion(paths: Sequence[str]) -> list[str]:
    """A note that 16-bit grey values look like HU plus an offset, or use little of their range.

    Raises:
        DataError: If they look like HU cast to unsigned: as grey, air would be brighter than bone.
    """
    offset = images.suspected_offset(paths)
    if offset is None:
        return _narrowness(paths)
    if offset == 0:
        raise DataError(
            "--source holds 16-bit images that look like signed HU, perhaps cast to unsigned, so "
            "that as grey air is brighter than bone: repeat the command with --hu_offset=0"
        )
    return [
        f"the values look like HU + {offset}, of whose range as grey hardly anything is used: "
        f"repeat the command with --hu_offset={offset} to have them in HU"
    ]


def _narrowness(paths: Sequence[str]) -> list[str]:
    """A note that 16-bit grey values use little of the fixed range that grey has."""
    ends = images.narrow_range(paths)
    if ends is None:
        return []
    return [
        f"the 16-bit values lie within {ends[0]} to {ends[1]}, of 0 to 65535 that become the "
        "network's input: save them stretched to that range, all by one factor, or train with "
        "--config.intensity.mode=slice_min_max"
    ]


def _patients_from(found: Labelled, files: Files, wishes: Wishes) -> str:
    if wishes.patient_by is PatientBy.STUDY:
        return "study"
    if found.by_table:
        return "table"
    if files.hold(Format.DICOM) and files.by_header:
        return "header"
    return "path" if wishes.patient_regex else "name"


def _is_dicom(item: Item) -> bool:
    return item.part is not None and item.part[0] == Format.DICOM.value


def _patient(source: FolderSource, item: Item) -> str:
    """The patient of an item, from its header if need be; "" if it has none."""
    if item.patient:
        return item.patient
    try:
        return source.place(item).patient
    except Unusable:
        return ""


def _require_whole_patients(places: Sequence[tuple[str, str]]) -> None:
    shared = shared_patients((patient, split) for patient, split in places if patient)
    if shared:
        raise DataError(f"--labels: {shared} patients are in more than one split")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "folder",
        "your own folder of DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF or BMP "
        "-> dataset folder",
        "--source=scans --out=data/mine --patient_regex='^(patient[0-9]+)' --labels=folder",
        source="folder of scans or images, searched with all sub-folders",
    )
    command.add_patient_regex(
        parser,
        "without it the patient of DICOM is the PatientID, and each image or volume counts as one",
    )
    command.add_patient_by(parser)
    parser.add_argument(
        "--labels",
        default="",
        help='"folder" (class folders, perhaps in train, val and test), or a CSV file with the '
        "columns file and label and perhaps patient and split; file may be a folder, as of a "
        "series, and is relative to --source. In place of file, for DICOM: sop, series, study, "
        "accession or patient",
    )
    command.add_positive(parser)
    command.add_case(parser)
    parser.add_argument(
        "--format",
        choices=[choice.value for choice in Format],
        default=Format.AUTO.value,
        help="auto: by the content of the files; DICOM and volumes may be mixed, images not",
    )
    command.add_irregular(parser, f"{STACK}, or {VOLUME}")
    command.add_values(parser, HOUNSFIELD)
    parser.add_argument(
        "--hu_offset",
        type=int,
        help="16-bit images hold Hounsfield units plus this, as DeepLesion's PNG do (32768); 0: "
        "they are signed numbers, perhaps cast to unsigned. Without it they are grey",
    )

    def from_flags(args: argparse.Namespace) -> Source:
        return make_source(
            args.source,
            args.labels,
            args.patient_regex,
            format=Format(args.format),
            irregular=Irregular(args.irregular),
            values=Values(args.values),
            hu_offset=args.hu_offset,
            patient_by=PatientBy(args.patient_by),
            positive=args.positive,
            case=CaseOf(args.case),
            case_name=args.case_name,
            slice_labels=args.slice_labels,
        )

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
