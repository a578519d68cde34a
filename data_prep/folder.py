"""Your own folder: `python -m data_prep.folder --source=FOLDER --out=DATASET`.

DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF and BMP, with labels from sub-folders or a table.
What a file is, its content says. DICOM and volumes are in Hounsfield units and may stand side by
side; 2-D images are grey and make a dataset of their own.
"""

import argparse
import enum
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ctssl_jax.errors import ConfigError, DataError
from data_prep import command
from data_prep.dicom import STACK, DicomSource
from data_prep.irregular import Irregular
from data_prep.pipeline.split import patient_finder, shared_patients
from data_prep.readers import dicom_file, images, labels, listing, volume_header
from data_prep.readers.hounsfield import HOUNSFIELD, Values
from data_prep.readers.images import ImageSource
from data_prep.source import Finding, Item, Place, Rejected, Slice, Source, Unusable
from data_prep.volumes import VOLUME, VolumeSource

_IMAGE_STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
_DICOM_STARTS = (b"\x02\0", b"\x08\0")  # a data set without the preamble begins with such a group


class Format(enum.Enum):
    """Which files of a folder are read.

    Attributes:
        AUTO: DICOM and volumes, or images; not both.
        DICOM: DICOM files.
        VOLUME: NIfTI, NRRD and MetaImage.
        IMAGE: PNG, JPEG, TIFF and BMP.
    """

    AUTO = "auto"
    DICOM = "dicom"
    VOLUME = "volume"
    IMAGE = "image"


@dataclass(frozen=True)
class FolderSource:
    """DICOM series and volumes of a folder, labelled; a `source.Source`.

    The part of an item says which it is; its patient, label and split take the place of those in
    the file.

    Attributes:
        root: The folder.
        irregular: Whether the slices of irregular series and volumes are kept.
        values: AUTO, or HU if they are that by the user's word.
        kind: What is in it: "dicom", "volume" or "dicom+volume".
        classes: Names of the classes.
        remarks: What `notes` says.
        listed: The items. Only the process that lists them needs them: they do not pickle.
    """

    root: Path
    irregular: Irregular
    values: Values
    kind: str
    classes: Sequence[str] = ()
    remarks: Sequence[str] = ()
    listed: Sequence[Item] = field(default=(), repr=False)

    name: ClassVar[str] = "folder"
    intensity: ClassVar[str] = "hu"
    origin: ClassVar[None] = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "listed": ()}

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {"irregular": self.irregular.value, "values": self.values.value}

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        yield from self.listed

    def place(self, item: Item) -> Place:
        """As `DicomSource.place` and `VolumeSource.place`."""
        if not os.path.isfile(item.path):
            raise Unusable("listed but not there")
        if not _is_dicom(item):
            return self._volumes.place(item)
        place = self._dicom.place(item)
        return Place(f"dicom {place.unit}", item.patient or place.patient)

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        """See `Source`."""
        first = items[0]
        if not _is_dicom(first):
            yield from self._volumes.read(items)
            return
        if len({(item.patient, item.label, item.split) for item in items}) > 1:
            raise Unusable("one series has several labels, patients or splits")
        for found in self._dicom.read(items):
            if isinstance(found, Slice):
                patient = first.patient or found.patient
                found = replace(found, patient=patient, label=first.label, split=first.split)
            yield found

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return self.remarks

    @property
    def _dicom(self) -> DicomSource:
        return DicomSource(self.root, self.irregular, self.values)

    @property
    def _volumes(self) -> VolumeSource:
        return VolumeSource(self.root, values=self.values, irregular=self.irregular)


def make_source(
    root: Path,
    labelled: str = "",
    patient_regex: str = "",
    format: Format = Format.AUTO,
    irregular: Irregular = Irregular.REJECT,
    values: Values = Values.AUTO,
    hu_offset: int | None = None,
) -> Source:
    """The files of a folder as a source.

    Args:
        root: The folder.
        labelled: As `labels.label` takes it.
        patient_regex: Searched in the file name; its first group is the patient. Without it each
            image and each volume is its own patient. The patient of DICOM is its PatientID.
        format: Which files are read.
        irregular: Whether the slices of irregular series and volumes are kept.
        values: AUTO, or HU if the values of DICOM and volumes are that by the user's word.
        hu_offset: What is to be subtracted from 16-bit images to make HU; None: they are grey.

    Raises:
        ConfigError: If the expression is not one with a group, or what is said of the values does
            not hold for what is there.
        DataError: If there is no file of the format, there are several kinds of intensity, or the
            table does not fit the files.
    """
    root = root.resolve()
    if not root.is_dir():
        raise DataError("--source is not a folder")
    in_name = patient_finder(patient_regex, root)
    table = Path(labelled).resolve()
    paths = [path for path in listing.files(root) if Path(path) != table]
    kinds = _kinds(paths, format)

    def patient_of(path: Path) -> str:
        return "" if kinds.get(str(path)) is Format.DICOM else in_name(path)

    found = labels.label(paths, root, labelled, patient_of)
    notes = [f"{found.unlisted} files are not in --labels and were left out"] * bool(found.unlisted)
    if Format.IMAGE in kinds.values():
        _require_whole_patients([(item.patient, item.split) for item in found.items])
        items, masks = images.without_masks(images.numbered(found.items), root)
        notes += [f"{masks} files are masks beside images and were left out"] * bool(masks)
        paths = [item.path for item in items]
        bits = 16 if hu_offset is not None else images.common_bits(paths)
        if hu_offset is None:
            if values is not Values.AUTO:
                raise ConfigError("--values holds for scans: images are HU with --hu_offset alone")
            notes += _suspicion(paths) if bits == 16 else []
        return ImageSource(
            "folder", found.classes, bits, notes, None, items, hu_offset=hu_offset, values=values
        )
    if hu_offset is not None:
        raise ConfigError("--hu_offset holds for images, and --source has none")
    items = []
    for number, item in enumerate(found.items, 1):
        kind = kinds.get(item.path, Format.VOLUME)
        items.append(replace(item, number=number, part=(kind.value, 0, 0)))
    held = "+".join(sorted({kind.value for kind in kinds.values()}))
    source = FolderSource(root, irregular, values, held, found.classes, notes, items)
    _require_whole_patients([(_patient(source, i), i.split) for i in items if i.split])
    return source


def _suspicion(paths: Sequence[str]) -> list[str]:
    """A note that 16-bit grey values are HU plus an offset, if they look like it.

    Raises:
        DataError: If they look like HU cast to unsigned: as grey, air would be brighter than bone.
    """
    offset = images.suspected_offset(paths)
    if offset is None:
        return []
    if offset == 0:
        raise DataError(
            "--source holds 16-bit images that look like signed HU, perhaps cast to unsigned, so "
            "that as grey air is brighter than bone: repeat the command with --hu_offset=0"
        )
    return [
        f"the values look like HU + {offset}, of whose range as grey hardly anything is used: "
        f"repeat the command with --hu_offset={offset} to have them in HU"
    ]


def _is_dicom(item: Item) -> bool:
    return item.part is not None and item.part[0] == Format.DICOM.value


def _kinds(paths: Sequence[str], format: Format) -> dict[str, Format]:
    """What reads each file.

    Raises:
        DataError: If there is nothing to read, or there are images beside volumes or DICOM.
    """
    if format is not Format.AUTO:
        return dict.fromkeys(paths, format)
    with ThreadPoolExecutor(16) as pool:  # waits for the disk
        kinds = dict(zip(paths, pool.map(_kind, paths), strict=True))
    counts = Counter(kinds.values())
    image, volume, dicom = (counts[f] for f in (Format.IMAGE, Format.VOLUME, Format.DICOM))
    if not image + volume + dicom:
        raise DataError(
            "--source holds no DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF or BMP files"
        )
    if image and volume + dicom:
        raise DataError(
            f"--source holds {dicom} DICOM files and {volume} volumes, which are in Hounsfield "
            f"units, and {image} images, which are grey: choose with "
            "--format=dicom, volume or image"
        )
    # What is none of them is looked at, and left out, as the commonest.
    rest = max((Format.IMAGE, Format.VOLUME, Format.DICOM), key=counts.__getitem__)
    return {path: rest if kind is Format.AUTO else kind for path, kind in kinds.items()}


def _kind(path: str) -> Format:
    """What a file looks like; AUTO for nothing known."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(132)
        packed = head.startswith(dicom_file.GZIP) and dicom_file.is_packed_dicom(path)
        if head[128:] == b"DICM" or packed:
            return Format.DICOM
        if head.startswith(_IMAGE_STARTS):
            return Format.IMAGE
        if volume_header.is_volume(Path(path)):
            return Format.VOLUME
    except OSError:
        return Format.AUTO
    is_dicom = head.startswith(_DICOM_STARTS) and head[3:4] == b"\0"
    if is_dicom or dicom_file.is_named_dicom(path):
        return Format.DICOM
    return Format.VOLUME if path.endswith(volume_header.SUFFIXES) else Format.AUTO


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
    command.add_patient_regex(parser, "image or volume")
    parser.add_argument(
        "--labels",
        default="",
        help='"folder" (class = first sub-folder), or a CSV file with the columns file and label '
        "and perhaps patient and split; file may be a folder, as of a series, and is relative to "
        "--source",
    )
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
            Format(args.format),
            Irregular(args.irregular),
            Values(args.values),
            args.hu_offset,
        )

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
