"""The files of a folder: what reads each, by its content, and who its patient is by its path."""

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ctssl_jax.errors import DataError
from data_prep.patients import NO_MATCH, PatientFinder
from data_prep.readers import dicom_file, image_file, volume_header
from data_prep.readers.labels import File
from data_prep.readers.masks import mask_names
from data_prep.source import Item

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


class Files:
    """The files of a folder: what reads each, and who its patient is.

    Raises:
        DataError: If there is nothing to read, or there are images beside volumes or DICOM.
    """

    def __init__(
        self, paths: Sequence[str], finder: PatientFinder, format: Format, by_folder: bool
    ):
        self.paths = paths
        self._finder, self._by_folder = finder, by_folder
        with ThreadPoolExecutor(16) as pool:  # waits for the disk
            self._seen = dict(zip(paths, pool.map(_kind, paths), strict=True))
        self._forced = format is not Format.AUTO
        self._rest = _rest(Counter(self._seen.values()), format)
        pictures = [path for path in paths if by_folder and self._reads(path) is Format.IMAGE]
        self._masks = mask_names(pictures, finder.root)
        slices = [path for path, seen in self._seen.items() if seen is Format.DICOM]
        # In a folder of both, the expression may be for the volumes alone.
        self.by_header = not (finder.regex and any(map(finder.find, slices)))

    def hold(self, format: Format) -> bool:
        """Whether some are of a format."""
        return any(self._reads(path) is format for path in self.paths)

    @property
    def kind(self) -> str:
        """Their formats: "dicom", "volume" or "dicom+volume"."""
        return "+".join(sorted({self._reads(path).value for path in self.paths}))

    def describe(self, path: str) -> File:
        """What is known of one before its labels; also of one that is not listed."""
        if path not in self._seen:
            self._seen[path] = _kind(path)
        reads, patient = self._reads(path), self._finder.find(path) if self._finder.regex else ""
        is_image = self._is_image(path) if reads is Format.IMAGE else self._seen[path] is reads
        if reads is Format.DICOM:
            return File(path, is_image, True, patient, patient_known=True)
        if not self._finder.regex:
            return File(path, is_image, False, self._finder.own_name(path))
        return File(path, is_image, False, patient, patient_known=True)

    def _is_image(self, path: str) -> bool:
        """Whether it seems to be an image, be it a damaged one, and no mask."""
        if self._seen[path] is not Format.IMAGE:
            return image_file.is_named_image(path)
        if not self._by_folder:
            return True
        return path not in self._masks and not image_file.is_unwanted(Path(path))

    def is_slice(self, path: str) -> bool:
        """Whether a file is a single slice, and no volume."""
        return self._reads(path) is not Format.VOLUME

    def part(self, item: Item) -> Item:
        """An item with what reads it; one without a patient, where paths name them, has a flaw."""
        reads = self._reads(item.path) if item.path in self._seen else Format.VOLUME
        nobody = not self.by_header and reads is Format.DICOM and not item.patient
        flaw = (NO_MATCH, True) if nobody and item.flaw is None else item.flaw
        return replace(item, part=(reads.value, 0, 0), flaw=flaw)

    def _reads(self, path: str) -> Format:
        seen = self._seen[path]
        return self._rest if self._forced or seen is Format.AUTO else seen


def _rest(counts: Mapping[Format, int], format: Format) -> Format:
    """What reads files that look like nothing: the format asked for, or the commonest.

    Raises:
        DataError: If there is nothing to read, or there are images beside volumes or DICOM.
    """
    if format is not Format.AUTO:
        return format
    image, volume, dicom = (counts.get(f, 0) for f in (Format.IMAGE, Format.VOLUME, Format.DICOM))
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
    formats = (Format.IMAGE, Format.VOLUME, Format.DICOM)
    return max(formats, key=lambda choice: counts.get(choice, 0))


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
    return Format.VOLUME if volume_header.is_named_volume(path) else Format.AUTO
