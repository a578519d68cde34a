"""The header of a DICOM file: is it axial CT in HU, of which series, and where do its slices lie?

What is left out by design is `Unwanted`, what is damaged or cannot be turned into HU `Unusable`.
Both say why in a fixed phrase. Tags and their meaning are those of DICOM PS3.3 and PS3.6.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.tag import Tag

from data_prep.readers.dicom_file import BIG_ENDIAN, DEFLATED, open_dicom
from data_prep.readers.dicom_frame import Frame, read_frame
from data_prep.source import Unusable, Unwanted

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

MAX_PIXELS = 2**26  # of a frame: 8192 x 8192, sixteen times the largest matrix of a scanner in area
MAX_FRAMES = 2**14

# Values of ImageType and FrameType (PS3.3 C.8.2.1.1.1, C.8.15.2 and what vendors write).
_LEFT_OUT = {
    "localizer": {"LOCALIZER", "REF_SURVIEW", "SCOUT", "TOPOGRAM"},
    "a screen, not a slice": {"SCREEN SAVE", "DOSE_INFO", "DOSEINFO", "DOSE", "PATIENT_INFO"},
    "a map, not HU": {"PERFUSION", "RCBF", "RCBV", "MTT", "TTP", "TMAX"},
    "a projection, not a slice": {
        *("MIP", "MAX_IP", "MINIP", "MIN_IP", "PROJECTION IMAGE", "VRT", "SSD", "3D"),
        *("VOLUME_RENDER", "SURFACE_RENDER", "CURVED", "CPR"),
    },
}
_TAGS = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Modality ImageType
    BurnedInAnnotation Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence ImageOrientationPatient
    ImagePositionPatient PixelSpacing SliceThickness
    ConvolutionKernel AcquisitionNumber
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
""".split()  # noqa: SIM905
_NUMBERS = ("IS", "DS", "US", "SS", "UL", "SL", "FL", "FD")  # value representations
_OVERLAY_BIT_POSITION = Tag(0x6000, 0x0102)
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


class PixelFormat(NamedTuple):
    """How a frame is stored.

    `padding` is the lowest and highest stored value that is padding. `overlay` says that bits
    beyond `bits_stored` hold graphics.
    """

    syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    overlay: bool


class PixelsAt(NamedTuple):
    """Where the element of the pixels begins, and how its tag and length are written.

    What comes before need then not be read again.
    """

    offset: int
    implicit_vr: bool
    little_endian: bool


@dataclass(frozen=True)
class Header:
    """What is needed of one file; identifiers as in the file.

    Without a PatientID the study is the patient, without a study the series is both. `at` is None
    for a deflated file.
    """

    patient: str
    study: str
    series: str
    instance: str
    pixels: PixelFormat
    at: PixelsAt | None
    frames: tuple[Frame, ...]


def read_header(path: str | os.PathLike[str], folder: str = "") -> Header:
    """Reads the header of a file.

    Args:
        path: Of the file.
        folder: Stands for the series where the header names none.

    Raises:
        Unwanted: If it is, by design, not for us: no DICOM, not CT, not an axial slice.
        Unusable: If it is damaged, beyond the limits, or its HU or place are not known.
    """
    with open_dicom(path) as (stream, force):
        tags = pydicom.dcmread(
            stream,
            stop_before_pixels=True,
            specific_tags=[*map(Tag, _TAGS), _OVERLAY_BIT_POSITION],
            force=force,
        )
        syntax = str(tags.file_meta.get("TransferSyntaxUID") or "")
        # A deflated file has been read whole; in any other the stream is now at the pixels.
        at = None if syntax == DEFLATED else PixelsAt(stream.tell(), *tags.original_encoding)
        has_pixels = at is None or stream.read(4) in _PIXEL_DATA
        _require_ct(tags)
        if not has_pixels:
            raise Unusable("no pixel data")
        if not syntax:
            raise Unusable("no transfer syntax")
        try:
            return _header_of(tags, syntax, at, folder)
        except (Unusable, Unwanted):
            raise
        except Exception as error:  # of an element that is not as the standard has it
            raise Unusable(f"the header cannot be read{_odd_element(tags)}") from error


def _odd_element(tags: pydicom.Dataset) -> str:
    """The name of the first element that is no number where it should be, never its value."""
    for tag in tags.keys():  # noqa: SIM118 - iterating a dataset reads its values
        try:
            element = tags[tag]
            if element.VR in _NUMBERS and element.value is not None:
                _ = [float(value) for value in np.atleast_1d(element.value)]
        except Exception:  # pydicom's, of a value that it refuses, or float's
            return f" ({pydicom.datadict.keyword_for_tag(tag)})"
    return ""


def _require_ct(tags: pydicom.Dataset) -> None:
    """Raises Unwanted unless it says that it is a CT slice."""
    kind = str(tags.get("SOPClassUID") or "")
    is_ct_kind = kind in (CT_IMAGE_STORAGE, *ENHANCED_CT)
    modality = str(tags.get("Modality") or "").strip().upper() or ("CT" if is_ct_kind else "")
    if modality == "OT" and is_ct_kind:  # what workstations make of CT: maps, fusions, and slices
        raise Unwanted("a CT image whose Modality is OT (other)")
    if modality != "CT":
        raise Unwanted("not CT" if modality or kind else "no image")
    if kind.startswith(SECONDARY_CAPTURE):
        raise Unwanted("secondary capture")
    if kind and not is_ct_kind:
        raise Unwanted("not a CT image")
    _require_slice(tags.get("ImageType"))
    if str(tags.get("BurnedInAnnotation") or "").upper() == "YES":
        raise Unwanted("text is burned into the image")


def _require_slice(image_type: Any) -> None:
    values = {str(value).strip().upper() for value in np.atleast_1d(image_type or [])}
    for reason, words in _LEFT_OUT.items():
        if values & words:
            raise Unwanted(reason)


def _header_of(tags: pydicom.Dataset, syntax: str, at: PixelsAt | None, folder: str) -> Header:
    series = str(tags.get("SeriesInstanceUID") or "").strip() or f"folder {folder}"
    study = str(tags.get("StudyInstanceUID") or "").strip() or series
    patient = str(tags.get("PatientID") or "").strip() or study
    pixels = _pixel_format(tags, syntax)
    size = pixels.rows, pixels.columns
    frames = tuple(read_frame(group, size) for group in _functional_groups(tags))
    if not pixels.signed and all(f.slope > 0 and f.intercept >= 0 for f in frames):
        # Air is far below 0 HU. Such pixels are grey values with the rescale of no rescale.
        raise Unusable("no value below 0 HU is possible: not in HU")
    return Header(
        patient=patient,
        study=study,
        series=series,
        instance=str(tags.get("SOPInstanceUID") or "").strip(),
        pixels=pixels,
        at=at,
        frames=frames,
    )


def _pixel_format(tags: pydicom.Dataset, syntax: str) -> PixelFormat:
    if tags.get("PhotometricInterpretation") == "MONOCHROME1":
        raise Unusable("MONOCHROME1: inverted grey, not HU")
    if tags.get("PhotometricInterpretation") != "MONOCHROME2" or tags.get("SamplesPerPixel") != 1:
        raise Unusable("not one channel of grey")
    rows, columns, bits = (int(tags[tag].value) for tag in ("Rows", "Columns", "BitsAllocated"))
    stored = int(tags.get("BitsStored") or bits)
    high = tags.get("HighBit")
    high_bit = stored - 1 if high is None else int(high)
    if not 0 < rows * columns <= MAX_PIXELS:
        raise Unusable("no pixels, or too many")
    if bits not in (8, 16) or not 0 < stored <= high_bit + 1 <= bits:
        raise Unusable("not 8 or 16 bits for each pixel")
    if bits == 8 and syntax == BIG_ENDIAN:
        raise Unusable("8-bit pixels in big-endian words")
    signed = bool(tags.get("PixelRepresentation"))
    overlay = bool(_OVERLAY_BIT_POSITION in tags and tags[_OVERLAY_BIT_POSITION].value)
    padding = _padding(tags, bits, signed)
    return PixelFormat(syntax, rows, columns, bits, stored, high_bit, signed, padding, overlay)


def _padding(tags: pydicom.Dataset, bits: int, signed: bool) -> tuple[int, int] | None:
    """The range of padding. Its tags may be unsigned where the pixels are not (63536 = -2000)."""
    first, last = tags.get("PixelPaddingValue"), tags.get("PixelPaddingRangeLimit")
    if first is None:
        return None
    stored = [int(value) % 2**bits for value in (first, first if last is None else last)]
    if signed:
        stored = [value - 2**bits if value >= 2 ** (bits - 1) else value for value in stored]
    return min(stored), max(stored)


def _functional_groups(tags: pydicom.Dataset) -> Sequence[Any]:
    """For each frame, what looks up its tags: in the file, or in its functional groups."""
    count = int(tags.get("NumberOfFrames") or 1)
    if tags.get("SOPClassUID") not in ENHANCED_CT:
        if count != 1:
            raise Unusable("more than one frame in a file")
        return [tags]
    per_frame = tags.get("PerFrameFunctionalGroupsSequence") or []
    shared = (tags.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    if not 0 < count <= MAX_FRAMES or len(per_frame) != count:
        raise Unusable("the frames are not described")
    return [_gathered(own, shared) for own in per_frame]


def _gathered(own: pydicom.Dataset, shared: pydicom.Dataset) -> pydicom.Dataset:
    """The tags of one frame of an enhanced image (PS3.3 C.7.6.16) as a classic image has them."""
    tags = pydicom.Dataset()
    for sequence in (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "CTImageFrameTypeSequence",
        "CTReconstructionSequence",
        "FrameContentSequence",
    ):
        for element in (own.get(sequence) or shared.get(sequence) or [()])[0]:
            tags.add(element)
    _require_slice(tags.get("FrameType"))
    if not tags.get("RescaleType"):
        raise Unusable("RescaleType is not HU")
    return tags
