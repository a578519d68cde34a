"""Headers of NIfTI, NRRD and MetaImage volumes: what lies where, known before anything is unpacked.

The layouts are those of nifti1.h (NIfTI Data Format Working Group), of "Definition of
NRRD File Format" (teem) and of the MetaIO documentation (ITK). The content of a file says which it
is, not its name.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.names import from_bytes
from data_prep.readers.listing import inside
from data_prep.readers.lost_file import not_read
from data_prep.readers.nifti_orientation import Orientation, read_orientation
from data_prep.source import Unusable, Unwanted

SEGMENTATION = "a segmentation, not an image"
NO_VOLUME = "no NIfTI, NRRD or MetaImage"
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
NIFTI = "NiftiImageIO"
MAX_BYTES = 2**32  # of the values: 8192 slices of 512 x 512 in 16 bits
_CHUNK = 2**20

_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8"}
_NIFTI_TYPES |= {256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("float",), "f4"),
    **dict.fromkeys(("double",), "f8"),
}
_SEGMENTS = re.compile(r"^Segment\d+_ID:=", re.MULTILINE)  # of 3D Slicer's .seg.nrrd
_META_TYPES = {"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"}
_META_TYPES |= {"MET_INT": "i4", "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}
_META_DIRECTIONS = {"TransformMatrix", "Orientation", "Rotation"}  # names of one field
_META_RESCALE = (
    ("ElementToIntensityFunctionSlope", 1.0),
    ("ElementToIntensityFunctionOffset", 0.0),
)
# Millimetres of a unit of length; what says nothing is taken for millimetres.
_MM = dict.fromkeys(("", "?", "???", "mm", "millimeter", "millimeters", "millimetre"), 1.0)
_MM |= {"um": 1e-3, "µm": 1e-3, "micron": 1e-3, "cm": 10.0, "m": 1000.0}
_PACKED = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}


@dataclass(frozen=True)
class VolumeHeader:
    """What is needed to read the values of a volume.

    Attributes:
        reader: The name of SimpleITK's reader of this format.
        shape: Slices, rows and columns as stored.
        dtype: Of a stored value, with its byte order.
        data: The file of the values, which may be another one.
        packing: "raw", "gzip", "bzip2" or "zlib".
        start: Bytes of that file before the values, or before what is packed.
        skip: Bytes before the values in what is unpacked.
        slope: A value is slope * stored + intercept.
        intercept: See slope.
        orientation: Whether it says which way its axes point, and whether it says so twice.
        unit_mm: Millimetres of the unit of its spacing and origin, where SimpleITK takes them as
            they stand.
        has_spacing: Whether it says how far its voxels are apart.
    """

    reader: str
    shape: tuple[int, ...]
    dtype: np.dtype
    data: Path
    packing: str = "raw"
    start: int = 0
    skip: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    orientation: Orientation = Orientation(known=True, disagreement_degrees=0.0)
    unit_mm: float = 1.0
    has_spacing: bool = True

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path, root: Path) -> VolumeHeader:
    """Reads the header of a volume.

    Args:
        path: Of the file.
        root: The folder that its data file must be in, if that is another one.

    Raises:
        Unwanted: If it is no volume, not named like one and not missed (`lost_file`), or says that
            it is a segmentation.
        Unusable: If it is damaged, not one 3-D volume of numbers, larger than `MAX_BYTES`, or in
            an encoding that is not read.
    """
    try:
        header = _header(path, root)
    except (UnicodeDecodeError, ValueError, KeyError, IndexError, struct.error) as error:
        raise Unusable("the header cannot be read") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unusable("cut off or damaged (compression)") from error
    except OSError as error:
        raise Unusable("cannot be opened") from error
    if len(header.shape) != 3 or min(header.shape) < 1:
        raise Unusable("not one 3-D volume")
    if header.size > MAX_BYTES:
        raise Unusable("the volume is too large")
    return header


def is_named_volume(path: str | Path) -> bool:
    """Whether a file has the name of a volume, so that another content is a fault."""
    return str(path).lower().endswith(SUFFIXES)


def is_volume(path: Path) -> bool:
    """Whether a file begins like a volume. Raises OSError."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
        if head.startswith(b"\x1f\x8b"):
            stream.seek(0)
            head = _first(stream, named=False)
    text = head.startswith(b"NRRD000") or _begins_meta(head)
    return text or (head[344:347] in (b"n+1", b"ni1") and bool(_byte_order(head)))


def _header(path: Path, root: Path) -> VolumeHeader:
    with open(path, "rb") as stream:
        head = stream.read(_CHUNK if is_named_volume(path) else 4096)
        if head.startswith(b"NRRD000"):
            return _nrrd(path, root, head)
        if _begins_meta(head):
            return _meta(path, root, head)
        zipped = head.startswith(b"\x1f\x8b")
        if zipped:
            stream.seek(0)
            head = _first(stream, named=is_named_volume(path))
    if len(head) >= 348 and _byte_order(head):
        return _nifti(path, root, head, zipped)
    if is_named_volume(path):
        raise Unusable(NO_VOLUME)
    raise not_read(path, NO_VOLUME)


def _begins_meta(head: bytes) -> bool:
    return bool(re.match(rb"\s*\w+ *= *", head)) and b"NDims" in head


def _first(stream: BinaryIO, named: bool) -> bytes:
    """The first bytes of what is packed, if it can be unpacked."""
    try:
        return gzip.GzipFile(fileobj=stream).read(348)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        if named:
            raise
        return b""


def _byte_order(head: bytes) -> str:
    """ "<" or ">" for NIfTI, "" for something else."""
    for order in "<>":
        if struct.unpack_from(order + "i", head)[0] in (348, 540):
            return order
    return ""


def _nifti(path: Path, root: Path, head: bytes, zipped: bool) -> VolumeHeader:
    order = _byte_order(head)
    (size,) = struct.unpack_from(order + "i", head)
    if size == 540:
        raise Unusable("NIfTI-2: save it as NIfTI-1")
    magic = head[344:347]
    dims = struct.unpack_from(order + "8h", head, 40)
    (code,) = struct.unpack_from(order + "h", head, 70)
    offset, slope, intercept = struct.unpack_from(order + "3f", head, 108)
    pair = magic == b"ni1"  # the values are in a file of their own
    if not (pair or magic == b"n+1") or not 1 <= dims[0] <= 7 or not offset >= size * (not pair):
        raise Unusable("the header cannot be read")
    if not all(math.isfinite(mm) and mm for mm in struct.unpack_from(order + "3f", head, 80)):
        raise Unusable("the geometry cannot be read")
    if code not in _NIFTI_TYPES:
        raise Unusable("not one 3-D volume of real numbers")
    scaled = slope != 0 and math.isfinite(slope)
    if scaled and not math.isfinite(intercept):
        raise Unusable("scl_slope without scl_inter: the values are not known")
    data = _image_of_pair(path, root) if pair else path
    zipped = data.name.endswith(".gz") if pair else zipped
    return VolumeHeader(
        reader=NIFTI,
        shape=_volume_shape(dims[1 : dims[0] + 1]),
        dtype=np.dtype(order + _NIFTI_TYPES[code]),
        data=data,
        packing="gzip" if zipped else "raw",
        start=0 if zipped else int(offset),
        skip=int(offset) if zipped else 0,
        slope=slope if scaled else 1.0,
        intercept=intercept if scaled else 0.0,
        orientation=read_orientation(head, order),
    )


def _image_of_pair(path: Path, root: Path) -> Path:
    """The file beside a NIfTI header that holds its values."""
    stem = re.sub(r"\.hdr(\.gz)?$", "", path.name)
    packed = (path.parent / f"{stem}.img.gz").is_file()
    return _data_file(path, root, f"{stem}.img.gz" if packed else f"{stem}.img")


def _nrrd(path: Path, root: Path, head: bytes) -> VolumeHeader:
    match = re.search(rb"\r?\n\r?\n", head)
    text = (head[: match.start()] if match else head).decode("utf-8", "surrogateescape")
    pairs = (line.split(": ", 1) for line in text.splitlines()[1:] if ": " in line)
    fields = {key.strip().lower(): value.strip() for key, value in pairs if key[:1] != "#"}
    if _SEGMENTS.search(text):
        raise Unwanted(SEGMENTATION)
    packing = _PACKED.get(fields["encoding"].lower())
    data = fields.get("data file", fields.get("datafile", ""))
    if packing is None or int(fields.get("line skip", fields.get("lineskip", 0))) != 0:
        raise Unusable("an encoding that is not read")
    if fields["type"] not in _NRRD_TYPES:
        raise Unusable("not one 3-D volume of real numbers")
    dtype = np.dtype(_order(fields.get("endian", "little") == "big") + _NRRD_TYPES[fields["type"]])
    if dtype.itemsize > 1 and fields.get("endian") not in ("little", "big"):
        raise Unusable("the header cannot be read")
    if not data and match is None:
        raise Unusable("cut off")
    shape = _volume_shape([int(size) for size in fields["sizes"].split()])
    file = _data_file(path, root, data) if data else path
    start = match.end() if match and not data else 0
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    if skip < 0:  # the values are the end of the file
        start, skip = file.stat().st_size - math.prod(shape) * dtype.itemsize, 0
    if start < 0:
        raise Unusable("cut off")
    known = "space directions" in fields and "space" in fields
    units = fields.get("space units", fields.get("units", ""))
    return VolumeHeader(
        reader="NrrdImageIO",
        shape=shape,
        dtype=dtype,
        data=file,
        packing=packing,
        start=start,
        skip=skip,
        orientation=Orientation(known, 0.0),
        unit_mm=_millimetres(re.findall(r'"([^"]*)"', units)[: len(shape)]),
        has_spacing=_has_spacing(fields),
    )


def _has_spacing(fields: Mapping[str, str]) -> bool:
    """Whether an NRRD says how far its voxels are apart, along each of three axes."""
    vectors = re.findall(r"\([^)]*\)", fields.get("space directions", ""))
    told = vectors or fields.get("spacings", "").split()
    return len(told) >= 3 and not any("nan" in length.lower() for length in told[:3])


def _meta(path: Path, root: Path, head: bytes) -> VolumeHeader:
    match = re.search(rb"^ElementDataFile *= *([^\r\n]*)\r?\n?", head, re.MULTILINE)
    if match is None:
        raise Unusable("cut off")
    text, data = (
        head[: match.start()].decode("utf-8", "replace"),
        from_bytes(match.group(1)).strip(),
    )
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    if not _true(fields, "BinaryData", "True") or int(fields.get("HeaderSize", 0)) != 0:
        raise Unusable("an encoding that is not read")
    channels = int(fields.get("ElementNumberOfChannels", 1))
    if channels != 1 or fields["ElementType"] not in _META_TYPES:
        raise Unusable("not one 3-D volume of real numbers")
    big = _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB")
    if any(float(fields.get(name, usual)) != usual for name, usual in _META_RESCALE):
        raise Unusable("a rescale that hardly any reader applies: the values are not known")
    local = data.upper() == "LOCAL"
    return VolumeHeader(
        reader="MetaImageIO",
        shape=_volume_shape([int(size) for size in fields["DimSize"].split()]),
        dtype=np.dtype(_order(big) + _META_TYPES[fields["ElementType"]]),
        data=path if local else _data_file(path, root, data),
        packing="zlib" if _true(fields, "CompressedData") else "raw",
        start=match.end() if local else 0,
        orientation=Orientation(bool(_META_DIRECTIONS & set(fields)), 0.0),
        unit_mm=_millimetres([fields.get("DistanceUnits", "")]),
        has_spacing="ElementSpacing" in fields or "ElementSize" in fields,
    )


def _millimetres(units: Sequence[str]) -> float:
    """Millimetres of a unit of length, as it is said for each axis; they must agree."""
    known = {_MM.get(unit.strip().lower()) for unit in units} or {1.0}
    found = known.pop()
    if known or found is None:
        raise Unusable("units of length that are not read")
    return found


def _true(fields: Mapping[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default).upper().startswith(("T", "1"))


def _order(big: bool) -> str:
    return ">" if big else "<"


def _volume_shape(sizes: list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """Slowest first; lengths of 1 beyond the third dimension mean nothing."""
    sizes = tuple(sizes)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes[::-1]


def _data_file(path: Path, root: Path, name: str) -> Path:
    """The file that a header names: beside it or below, and nowhere else."""
    file = path.parent / name
    if name.upper().startswith("LIST") or "%" in name:
        raise Unusable("an encoding that is not read")
    if not inside(file, root) and not inside(file, path.parent):  # that may be a link
        raise Unusable("its data file is outside of the folder")
    if not file.is_file():
        raise Unusable("its data file is missing")
    return file
