"""The pixels of a DICOM file: complete, decoded, in HU.

Run-length coded frames are decoded by pydicom's own Python code, JPEG, JPEG-LS and JPEG 2000 by
GDCM in SimpleITK. GDCM gets the codestream in a new file with a new header, so that
nothing else of a damaged file reaches it, and only when its size, depth and end are as they should
be. Where a JPEG codestream breaks off before its end marker, GDCM returns half an image and no
error; only a line on stderr tells. The new file holds no identity.
"""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import SimpleITK
from jaxtyping import Bool, Float, Int, Int16, Integer
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import data_element_generator
from pydicom.pixels import pixel_array
from pydicom.tag import Tag
from pydicom.uid import UID

from data_prep.pipeline.records import AIR_HU, to_hu
from data_prep.readers.dicom_file import BIG_ENDIAN, NATIVE, open_dicom
from data_prep.readers.dicom_header import CT_IMAGE_STORAGE, Header, PixelFormat, PixelsAt
from data_prep.readers.hounsfield import Evidence, sample
from data_prep.readers.silence import hidden_output
from data_prep.source import Unusable

LOWEST_HU, HIGHEST_HU = -10_240, 30_720  # of the extended scales of scanners, for metal
LOWEST_TISSUE_HU = -950  # of lung; padding that is lower is no other than air
MIN_PADDING = 0.01  # share of an image
RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 57, 70, 80, 81))
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
PIXEL_DATA = Tag("PixelData")
_OF_PIXELS = (None, "OB", "OW", "UN")  # value representations; None where they are not written
_END = b"\xff\xd9"  # of a codestream, EOI of JPEG and EOC of JPEG 2000
_ITEM = b"\xfe\xff\x00\xe0"
_DAMAGED = (b"Corrupt JPEG data", b"Premature end")  # warnings of libjpeg (its jerror.h)
_NOT_SIZE = {0xC4, 0xC8, 0xCC}  # markers among C0 to CF that begin no frame


def read_pixels(path: str | os.PathLike[str], header: Header) -> list[bytes]:
    """The stored frames, each as one piece of bytes.

    Raises:
        Unusable: If bytes are missing, or too many.
    """
    with open_dicom(path) as (stream, force):
        if header.at is None:
            data = pydicom.dcmread(stream, specific_tags=[PIXEL_DATA], force=force).get("PixelData")
        else:
            data = _pixel_data(stream, header.at)
    if not isinstance(data, bytes) or not data:
        raise Unusable("cut off")
    pixels, count = header.pixels, len(header.frames)
    if pixels.syntax in NATIVE:
        size = pixels.rows * pixels.columns * pixels.bits_allocated // 8
        if len(data) < size * count:
            raise Unusable("cut off")
        if _holds_rows(data[size * count :], size // pixels.rows):
            raise Unusable("more pixels than the header says")
        return [data[start : start + size] for start in range(0, size * count, size)]
    if pixels.syntax not in (RLE, *_JPEG, *_JPEG_2000):
        raise Unusable("a transfer syntax that is not supported")
    _require_items(data)
    try:
        frames = list(generate_frames(data, number_of_frames=count))
    except Exception as error:  # pydicom raises all sorts on damaged offsets
        raise Unusable("the compressed frames cannot be told apart") from error
    if len(frames) != count:
        raise Unusable("the compressed frames cannot be told apart")
    return frames


def _pixel_data(stream: BinaryIO, at: PixelsAt) -> bytes:
    """The value of the pixels, found without what comes before them; empty if it is none.

    All of the rest is walked through, as `pydicom.dcmread` does, which would first guess how the
    next element is written.
    """
    stream.seek(at.offset)
    found: Any = b""
    elements = data_element_generator(
        stream, at.implicit_vr, at.little_endian, specific_tags=[PIXEL_DATA]
    )
    try:
        for element in elements:
            if element.tag == PIXEL_DATA:
                found = element.value if element.VR in _OF_PIXELS else b""
    except EOFError:
        return b""
    return found


def _holds_rows(excess: bytes, row: int) -> bool:
    """Whether bytes after the last pixel are rows of an image, and the header is wrong.

    Filling of any length is to be expected (PS3.5 8.1.1).
    """
    return len(excess) >= row and len(excess) % row == 0 and bool(excess.strip(excess[-1:]))


def _require_items(data: bytes) -> None:
    """Raises unless the items of encapsulated data follow each other to the very end (PS3.5 A.4).

    pydicom searches the end in any bytes if the items do not lead there.
    """
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] != _ITEM or at + 8 + length > len(data):
            raise Unusable("cut off")
        at += 8 + length


def to_hounsfield(
    data: bytes, header: Header, frame: int, seen: Evidence
) -> Int16[np.ndarray, "h w"]:
    """One stored frame in HU, turned as its orientation says.

    Its own rescale is applied in float64 and padding made air. A frame has far more pixels than
    values: all that depends on the value alone is worked out once for each.

    Args:
        data: One frame as stored.
        header: Of the file.
        frame: Which one.
        seen: Takes note of the values.

    Raises:
        Unusable: If it cannot be decoded.
    """
    pixels, place = header.pixels, header.frames[frame]
    allocated = _decode(data, pixels)
    lowest = int(allocated.min())
    which = np.subtract(allocated, lowest, dtype=np.intp)  # of the values that come now
    stored = _used_bits(np.arange(lowest, int(allocated.max()) + 1), pixels)
    hu = stored * place.slope + place.intercept
    low, high = pixels.padding or (1, 0)
    padding = (stored >= low) & (stored <= high)
    tissue = padding & (hu > LOWEST_TISSUE_HU)
    if tissue.any() or not _is_plausible(hu[~padding]):
        # What is padding depends on where a pixel is, what is plausible on what is there.
        padding = _is_padding(padding[which], tissue[which])
        image = np.where(padding, AIR_HU, hu[which])
        if not _is_plausible(image):
            raise Unusable("values beyond any CT scale")
        image = to_hu(image)
    else:
        image = to_hu(np.where(padding, AIR_HU, hu))[which]
    times = np.bincount(sample(which).ravel(), minlength=len(stored))
    seen.add(stored, place.slope, place.intercept, pixels.padding, times)
    return place.turn.apply(image)


def _is_padding(
    named: Bool[np.ndarray, "h w"], tissue: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Which pixels are padding: all of its values, those of tissue only where it is outside.

    Padding lies round the field of view, from the edge of the image inwards. Files name values as
    padding that tissue has too, 0 HU above all: inside, those are tissue.
    """
    if not tissue.any():
        return named
    return named & ~tissue | _from_the_edge(named)


def _from_the_edge(named: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """What of it is reached from an edge along its row or column, without a gap."""
    along = (
        np.logical_and.accumulate(named, axis=1),
        np.logical_and.accumulate(named[:, ::-1], axis=1)[:, ::-1],
        np.logical_and.accumulate(named, axis=0),
        np.logical_and.accumulate(named[::-1], axis=0)[::-1],
    )
    reached = np.logical_or.reduce(along)
    # Single pixels of that value at the edge of a zoomed image are tissue.
    return reached if reached.mean() > MIN_PADDING else np.zeros_like(named)


def _is_plausible(hu: Float[np.ndarray, "*shape"]) -> bool:
    """Not if a decoder or encoder made noise: padding without a tag is one value, not many."""
    below = hu[hu < LOWEST_HU]
    return not (np.any(hu > HIGHEST_HU) or np.any(below != below[:1]))


def _decode(data: bytes, pixels: PixelFormat) -> Integer[np.ndarray, "h w"]:
    """The values of all allocated bits, signed if the stored ones are."""
    kind = np.dtype(f"{'i' if pixels.signed else 'u'}{pixels.bits_allocated // 8}")
    if pixels.syntax in NATIVE:
        stored = kind.newbyteorder(">" if pixels.syntax == BIG_ENDIAN else "<")
        return np.frombuffer(data, stored).reshape(pixels.rows, pixels.columns)
    if pixels.syntax == RLE:
        values = _decode_run_lengths(data, pixels)
    else:
        data = _without_tail(data)
        _require_codestream(data, pixels)
        values = _decode_gdcm(data, pixels)
    if values.shape != (pixels.rows, pixels.columns) or values.dtype.kind not in "iu":
        raise Unusable("the pixels cannot be decoded")
    return values.astype(kind)


def _used_bits(values: Int[np.ndarray, " n"], pixels: PixelFormat) -> Int[np.ndarray, " n"]:
    """Values of BitsStored bits, signed or not, from those of all the bits that are allocated.

    Args:
        values: All from the lowest to the highest of a frame.
        pixels: How it is stored.

    Raises:
        Unusable: If other bits hold something, and nobody says what.
    """
    shift, end = pixels.high_bit + 1 - pixels.bits_stored, 2**pixels.bits_stored
    lowest, highest = values[0], values[-1]
    # The standard says that other bits mean nothing. Without graphics in them it is as likely
    # that BitsStored is wrong, and then each of these values would be.
    extended = pixels.signed and -end // 2 <= lowest and highest < end // 2
    if shift == 0 and not pixels.overlay and not extended and not 0 <= lowest <= highest < end:
        raise Unusable("bits beyond BitsStored are in use")
    used = (values >> shift) & (end - 1)
    if pixels.signed:
        used -= (used >> (pixels.bits_stored - 1)) << pixels.bits_stored
    return used


def _file(data: bytes, pixels: PixelFormat) -> pydicom.Dataset:
    """A DICOM file of one frame and nothing else.

    Its BitsStored are all bits. Given fewer, pydicom and GDCM clear or extend the others, each in
    its own cases; `_used_bits` does so in all.
    """
    bits = pixels.bits_allocated
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = UID(pixels.syntax)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = UID(CT_IMAGE_STORAGE)
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Rows, file.Columns = pixels.rows, pixels.columns
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelRepresentation = int(pixels.signed)
    file.RescaleSlope, file.RescaleIntercept = 1, 0
    file.PixelData = encapsulate([data])
    return file


def _decode_run_lengths(data: bytes, pixels: PixelFormat) -> Integer[np.ndarray, "h w"]:
    file = _file(data, pixels)
    try:
        # It warns, and goes on, when a run-length code makes more pixels than there should be.
        with warnings.catch_warnings(action="error"):
            return np.asarray(pixel_array(file, raw=True, decoding_plugin="pydicom"))
    except Exception as error:  # pydicom raises all sorts on damaged data
        raise Unusable("the pixels cannot be decoded") from error


def _decode_gdcm(data: bytes, pixels: PixelFormat) -> Integer[np.ndarray, "h w"]:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "frame.dcm"
        _file(data, pixels).save_as(name, enforce_file_format=True)
        reader.SetFileName(str(name))
        try:
            with hidden_output() as heard:
                volume = SimpleITK.GetArrayFromImage(reader.Execute())
                heard.seek(0)
                said = heard.read()
        except RuntimeError as error:
            raise Unusable("the pixels cannot be decoded") from error
    if any(words in said for words in _DAMAGED):
        raise Unusable("the pixels cannot be decoded")
    return volume[0] if volume.ndim == 3 and len(volume) == 1 else volume


def _without_tail(data: bytes) -> bytes:
    """A codestream without what fills it up to an even length: one byte, or many of one value.

    Raises:
        Unusable: If it has no end marker, or something else behind it.
    """
    end = data.rfind(_END) + len(_END)
    if end < len(_END) or len(set(data[end:].strip(b"\0\xff"))) > 1:
        raise Unusable("cut off")
    return data[:end]


def _require_codestream(data: bytes, pixels: PixelFormat) -> None:
    """Raises unless a codestream has one channel, and the size that the header says."""
    try:
        read = _jpeg_2000_size if pixels.syntax in _JPEG_2000 else _jpeg_size
        rows, columns, channels, bits = read(data)
    except (IndexError, ValueError) as error:
        raise Unusable("the pixels cannot be decoded") from error
    if (rows, columns, channels) != (pixels.rows, pixels.columns, 1):
        raise Unusable("the compressed image has another size than the header says")
    if bits > pixels.bits_allocated:
        raise Unusable("the compressed image has more bits than the header says")


def _jpeg_size(data: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, channels and bits of a JPEG or JPEG-LS codestream (ITU T.81 B.2.2)."""
    if data[:2] != b"\xff\xd8":
        raise ValueError
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NOT_SIZE):
            rows, columns = (int.from_bytes(data[i : i + 2]) for i in (at + 5, at + 7))
            return rows, columns, data[at + 9], data[at + 4]
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    raise ValueError


def _jpeg_2000_size(data: bytes) -> tuple[int, int, int, int]:
    """The same of a JPEG 2000 codestream (ITU T.800 A.5.1), in a JP2 file or without."""
    at = data.index(b"\xff\x4f\xff\x51") + 8
    x_end, y_end, x, y = (int.from_bytes(data[i : i + 4]) for i in range(at, at + 16, 4))
    channels = int.from_bytes(data[at + 32 : at + 34])
    return y_end - y, x_end - x, channels, (data[at + 34] & 0x7F) + 1
