"""DICOM series -> slices in HU: `python -m data_prep.dicom --source=DICOM --out=DATASET`.

Files are grouped by SeriesInstanceUID, whatever their names, and put in order by the projection
of their position on the slice normal (DICOM PS3.3 C.7.6.2.1.1), not by file name or number.
"""

import argparse
import logging
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from jaxtyping import Float, Int16
from pydicom.errors import InvalidDicomError

from data_prep import command
from data_prep.records import (
    AIR_HU,
    Rejected,
    Slice,
    Unusable,
    pseudonym,
    to_hu,
    write_dataset,
)
from data_prep.split import split_by_patient

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MAX_PIXELS = 2**26
MIN_AXIAL_COSINE = 0.8  # a gantry is tilted by 30 degrees at most; a reformat is near 90

_TAGS = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Modality ImageType
    Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated
    PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept
    RescaleType ImageOrientationPatient ImagePositionPatient PixelSpacing
""".split()  # noqa: SIM905
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


@dataclass(frozen=True)
class Header:
    """What is needed of one file; identifiers as in the source."""

    number: int
    path: Path
    patient: str
    series: str
    instance: str
    normal: tuple[float, float, float]
    origin: tuple[float, float, float]
    pixel_mm: tuple[float, float]
    padding_hu: tuple[float, float] | None

    def position(self, normal: tuple[float, float, float]) -> float:
        """Place along a normal in mm."""
        return float(np.dot(self.origin, normal))


def read_header(path: Path, number: int = 0, folder: str = "") -> Header:
    """Reads what is needed of a file's header.

    Args:
        path: Of the file.
        number: Its running number, to report it by.
        folder: Stands for the series where the header names none.

    Raises:
        Unusable: If it is not an axial CT slice that can be turned into HU, with the reason.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        # The warnings of pydicom quote values, which may name a patient.
        with warnings.catch_warnings(action="ignore"), open(path, "rb") as stream:
            tags = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            pixel_bytes = path.stat().st_size - stream.tell()
            return _header_of(tags, path, number, folder, pixel_bytes)
    except InvalidDicomError as error:
        raise Unusable("not DICOM") from error
    except Unusable:
        raise
    except Exception as error:  # pydicom raises all sorts on a damaged header
        raise Unusable("header cannot be read") from error


def _header_of(
    tags: pydicom.Dataset, path: Path, number: int, folder: str, pixel_bytes: int
) -> Header:
    _require_axial_ct(tags)
    row, column = np.reshape(np.asarray(tags.ImageOrientationPatient, float), (2, 3))
    normal = np.cross(row, column)
    if not 0.9 < np.linalg.norm(normal) < 1.1:
        raise Unusable("ImageOrientationPatient is not a pair of directions")
    if abs(normal[2]) < MIN_AXIAL_COSINE:
        raise Unusable("not axial")
    rows, columns = int(tags.Rows), int(tags.Columns)
    if not 0 < rows * columns <= MAX_PIXELS:
        raise Unusable(f"no pixels or more than {MAX_PIXELS}")
    stored = rows * columns * int(tags.BitsAllocated) // 8
    syntax = tags.file_meta.get("TransferSyntaxUID", "")
    if syntax in _UNCOMPRESSED and pixel_bytes < stored:
        raise Unusable("cut off")
    series = str(tags.get("SeriesInstanceUID") or f"folder {folder}")
    patient = str(tags.get("PatientID") or "").strip()
    spacing = [float(mm) for mm in tags.get("PixelSpacing") or (np.nan, np.nan)]
    origin = np.asarray(tags.ImagePositionPatient, float)
    return Header(
        number=number,
        path=path,
        patient=patient or str(tags.get("StudyInstanceUID") or series),
        series=series,
        instance=str(tags.get("SOPInstanceUID") or path),
        normal=tuple(normal / np.linalg.norm(normal)),
        origin=(origin[0], origin[1], origin[2]),
        pixel_mm=(spacing[0], spacing[1]),
        padding_hu=_padding_hu(tags),
    )


def _require_axial_ct(tags: pydicom.Dataset) -> None:
    """Raises Unusable unless it is one CT slice with the tags that HU and geometry need."""
    kind = str(tags.get("SOPClassUID") or "")
    modality = str(tags.get("Modality") or ("CT" if kind == CT_IMAGE_STORAGE else ""))
    image_type = [str(part).upper() for part in np.atleast_1d(tags.get("ImageType") or [])]
    if modality != "CT":
        raise Unusable("not CT" if modality or kind else "no image")
    if kind.startswith(SECONDARY_CAPTURE):
        raise Unusable("secondary capture")
    if "LOCALIZER" in image_type:
        raise Unusable("localizer")
    if kind in ENHANCED_CT or int(tags.get("NumberOfFrames") or 1) > 1:
        raise Unusable("more than one frame in a file")
    if kind not in (CT_IMAGE_STORAGE, ""):
        raise Unusable("not a CT image")
    if "Rows" not in tags or "Columns" not in tags:
        raise Unusable("no pixel data")
    if int(tags.get("SamplesPerPixel") or 1) != 1 or (
        tags.get("PhotometricInterpretation") != "MONOCHROME2"
    ):
        raise Unusable("not MONOCHROME2")
    if tags.get("RescaleSlope") is None or tags.get("RescaleIntercept") is None:
        raise Unusable("no RescaleSlope and RescaleIntercept: HU are not known")
    if float(tags.RescaleSlope) == 0:
        raise Unusable("RescaleSlope is 0")
    if (tags.get("RescaleType") or "HU") not in ("HU", "HU_MOD"):
        raise Unusable("RescaleType is not HU")
    if not tags.get("ImageOrientationPatient") or not tags.get("ImagePositionPatient"):
        raise Unusable("no orientation or position")


def _padding_hu(tags: pydicom.Dataset) -> tuple[float, float] | None:
    """Returns the range of padding in HU. Its tag may be unsigned where the pixels are signed."""
    first = tags.get("PixelPaddingValue")
    if first is None:
        return None
    last = tags.get("PixelPaddingRangeLimit")
    bits, signed = int(tags.BitsAllocated), bool(tags.get("PixelRepresentation"))
    stored = [int(value) % 2**bits for value in (first, first if last is None else last)]
    if signed:
        stored = [value - 2**bits if value >= 2 ** (bits - 1) else value for value in stored]
    limits = [value * float(tags.RescaleSlope) + float(tags.RescaleIntercept) for value in stored]
    return min(limits), max(limits)


def read_hu(header: Header) -> Int16[np.ndarray, "h w"]:
    """Reads one slice in HU: this file's own rescale applied, padding made air.

    Raises:
        Unusable: If the pixels cannot be decoded.
    """
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(header.path))
    try:
        with _silent_decoders():
            volume = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise Unusable("pixels cannot be decoded") from error
    if volume.shape[:-2] not in ((), (1,)):
        raise Unusable("not one slice of one channel")
    values: Float[np.ndarray, "h w"] = volume.reshape(volume.shape[-2:]).astype(np.float64)
    if header.padding_hu is not None:
        low, high = header.padding_hu
        values[(values >= low - 1e-3) & (values <= high + 1e-3)] = AIR_HU
    return to_hu(values)


@contextmanager
def _silent_decoders() -> Iterator[None]:
    """Hides what the C libraries write to stderr, which may be anything of the file."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def find_series(source: Path, rejected: Rejected) -> dict[str, list[Header]]:
    """Returns the CT series below a folder, or of one file, each in order along its normal."""
    found = [source] if source.is_file() else sorted(source.rglob("*"))
    files = [path for path in found if path.is_file()]
    series: dict[str, list[Header]] = defaultdict(list)
    instances = set()
    for number, path in enumerate(files, 1):
        try:
            folder = os.path.relpath(path.parent, source)
            header = read_header(path, number, folder)
            if header.instance in instances:
                raise Unusable("repeats a SOPInstanceUID")
            instances.add(header.instance)
            series[header.series].append(header)
        except Unusable as error:
            rejected.append((f"file {number}", str(error)))
    return {
        uid: sorted(headers, key=lambda h: h.position(headers[0].normal))
        for uid, headers in series.items()
    }


def series_slices(headers: Sequence[Header], key: bytes, rejected: Rejected) -> Iterator[Slice]:
    """Yields the slices of one ordered series."""
    normal = headers[0].normal
    positions = [header.position(normal) for header in headers]
    gaps = np.diff(positions)
    distance = float(np.median(gaps[gaps > 1e-3])) if np.any(gaps > 1e-3) else float("nan")
    for index, (header, position) in enumerate(zip(headers, positions, strict=True)):
        try:
            image = read_hu(header)
        except Unusable as error:
            rejected.append((f"file {header.number}", str(error)))
            continue
        yield Slice(
            image,
            pseudonym(key, header.patient),
            pseudonym(key, header.series),
            index,
            position_mm=position,
            spacing_mm=(distance, *header.pixel_mm),
        )


def prepare(
    source: Path, out: Path, *, key: bytes, fractions: Mapping[str, float], seed: int = 0
) -> command.Manifest:
    """Writes the axial CT slices of all DICOM files below a folder.

    Args:
        source: Folder of DICOM files with any names, or one file.
        out: Dataset folder to make.
        key: Secret key of the pseudonyms.
        fractions: Share of the patients of each split.
        seed: Of the split.

    Raises:
        DataError: If there is no usable slice.
    """
    rejected: Rejected = []
    series = find_series(source, rejected)
    patients = [headers[0].patient for headers in series.values()]
    split_of = split_by_patient(patients, fractions, seed)

    def of_split(split: str) -> Iterator[Slice]:
        for headers in series.values():
            if split_of[headers[0].patient] == split:
                yield from series_slices(headers, key, rejected)

    return write_dataset(
        out,
        name="dicom",
        source_kind="dicom",
        intensity="hu",
        classes=(),
        slices={split: of_split(split) for split in fractions},
        rejected=rejected,
        expected=sum(map(len, series.values())),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "dicom",
        "Axial CT series in DICOM -> dataset folder in Hounsfield units",
        "--source=dicom --out=data/mine",
        source="folder of DICOM files, searched with all sub-folders",
    )

    def from_flags(args: argparse.Namespace) -> command.Manifest:
        return prepare(**command.common_arguments(args))

    return command.run(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
