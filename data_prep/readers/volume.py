"""Reading one volume as axial slices."""

import bz2
import gzip
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK
from jaxtyping import Float, Num

from data_prep.names import text_path
from data_prep.readers.silence import hidden_output
from data_prep.readers.stack import TILT_DEGREES, Irregularity
from data_prep.readers.volume_header import NIFTI, VolumeHeader, read_header
from data_prep.source import NAN3, Unusable, Unwanted

_CHUNK = 2**20
# The axes of NIfTI without an orientation, in LPS: to the right, the front and the head (nifti1.h).
_NIFTI_AXES = np.diag([-1.0, -1.0, 1.0])
MAX_STRETCH = 2.0  # scanners have square pixels; stacks of other directions, cut axially, have not
MAX_STRIP = 16  # rows for each column, or columns for each row: beyond are localizers, cut axially


@dataclass(frozen=True)
class Volume:
    """A volume as axial slices from foot to head, rows to the back, columns to the left (LPS).

    Attributes:
        values: As stored.
        spacing_mm: Slice distance, row and column spacing; NaN if unknown.
        first_mm: Position of the first slice along the slice normal; NaN if unknown.
        tilt_degrees: Angle between the axes of the volume and those of the patient.
        header: As read from the file.
        doubtful: Whether its reader warns of contradictions in the geometry.
    """

    values: Num[np.ndarray, "z y x"]
    spacing_mm: tuple[float, float, float]
    first_mm: float
    tilt_degrees: float
    header: VolumeHeader
    doubtful: bool = False

    def irregularities(self) -> list[Irregularity]:
        """What is irregular or unknown of its place, the gravest first."""
        found, orientation = [], self.header.orientation
        if not orientation.known:
            found.append(Irregularity("orientation not known", "taken as the format's default"))
        if not self.header.has_spacing:
            found.append(Irregularity("spacing not known", "the header does not say it"))
        if orientation.disagreement_degrees > TILT_DEGREES:
            detail = f"{orientation.disagreement_degrees:.1f} degrees"
            found.append(Irregularity("qform and sform disagree", detail))
        if self.doubtful:
            found.append(Irregularity("contradictions in the geometry", "as its reader warns"))
        if self.tilt_degrees > TILT_DEGREES:
            found.append(Irregularity("oblique volume", f"{self.tilt_degrees:.1f} degrees"))
        return found

    def plane(self, index: int) -> Float[np.ndarray, "y x"]:
        """The values of a slice after the rescale of the header."""
        return self.values[index].astype(np.float64) * self.header.slope + self.header.intercept

    def range(self) -> tuple[float, float]:
        """Lowest and highest finite value after the rescale.

        Raises:
            Unusable: If there is none.
        """
        planes = self.values
        if not np.issubdtype(planes.dtype, np.integer):
            planes = planes[np.isfinite(planes)]
        if not planes.size:
            raise Unusable("no finite value")
        ends = [float(planes.min()), float(planes.max())]
        low, high = sorted(end * self.header.slope + self.header.intercept for end in ends)
        return low, high


def read_volume(path: Path, root: Path) -> Volume:
    """Reads a volume; its file is read once, its values never beyond what the header says.

    Args:
        path: Of the file.
        root: The folder that its data file must be in, if that is another one.

    Raises:
        Unwanted: If it is no volume, or not one of axial slices.
        Unusable: If it is cut off, damaged, too large or has no geometry.
    """
    header = read_header(path, root)
    values = read_values(header)
    direction, spacing, origin, doubtful = _geometry(path, header)
    axes, signs = _to_patient(direction)
    z, y, x = axes[::-1]
    sides = [header.shape[2 - axis] for axis in (x, y)]
    stretched = max(spacing[[x, y]]) > MAX_STRETCH * min(spacing[[x, y]])
    if stretched or max(sides) > MAX_STRIP * min(sides):
        raise Unwanted("not a stack of axial slices")
    # Index 0 of a reversed axis is the far end of the stored one.
    last = np.array(header.shape[::-1]) - 1
    first = origin + direction @ np.where(signs < 0, last * spacing, 0)
    normal = direction[:, z] * signs[z]
    values = values.transpose(2 - z, 2 - y, 2 - x)
    turned = tuple(slice(None, None, int(signs[axis])) for axis in (z, y, x))
    cosine = np.abs([direction[i, axis] for i, axis in enumerate(axes)]).min()
    known = header.has_spacing
    return Volume(
        values[turned],
        (float(spacing[z]), float(spacing[y]), float(spacing[x])) if known else NAN3,
        float(first @ normal) if known else float("nan"),
        float(np.degrees(np.arccos(min(1.0, cosine)))),
        header,
        doubtful,
    )


def read_values(header: VolumeHeader) -> Num[np.ndarray, "z y x"]:
    """Reads the values as stored; never more than the header says.

    Raises:
        Unusable: If the file ends early, is damaged, or unpacks to more than its header says.
    """
    try:
        with open(header.data, "rb") as stream:
            stream.seek(header.start)
            values = np.empty(header.shape, header.dtype)
            _fill(values.reshape(-1).view(np.uint8).data, stream, header)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unusable("cut off or damaged (compression)") from error
    except OSError as error:
        raise Unusable("cut off or damaged") from error
    return values


def _fill(buffer: memoryview, stream: BinaryIO, header: VolumeHeader) -> None:
    done = -header.skip
    for block in _unpacked(stream, header.packing):
        wanted = block[max(0, -done) : max(0, len(buffer) - done)]
        buffer[max(0, done) : max(0, done) + len(wanted)] = wanted
        done += len(block)
        if header.packing == "raw" and done >= len(buffer):
            return
        if done > len(buffer) + _CHUNK:
            raise Unusable("longer than its header says")
    # Only what was unpacked to its very end has been compared with its checksum.
    if done < len(buffer):
        raise Unusable("cut off")


def _unpacked(stream: BinaryIO, packing: str) -> Iterator[bytes]:
    """Yields blocks of at most `_CHUNK` bytes; raises EOFError if the compression is cut off."""
    if packing == "zlib":
        unpack = zlib.decompressobj()
        while not unpack.eof:
            packed = unpack.unconsumed_tail or stream.read(_CHUNK)
            if not packed:
                raise EOFError
            yield unpack.decompress(packed, _CHUNK)
        return
    if packing == "gzip":
        stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]
    elif packing == "bzip2":
        stream = bz2.BZ2File(stream)  # type: ignore[assignment]
    while block := stream.read(_CHUNK):
        yield block


def _geometry(
    path: Path, header: VolumeHeader
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"], bool]:
    """Directions of the stored axes as columns, their spacing and the origin, in mm (LPS).

    Last, whether the reader warned.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(header.reader)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(True)
    try:
        with text_path(path) as name, hidden_output() as heard:
            reader.SetFileName(name)
            reader.ReadImageInformation()
            heard.seek(0)
            doubtful = b"WARNING" in heard.read()
    except RuntimeError as error:
        raise Unusable("the geometry cannot be read") from error
    n = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (n, n))[:3, :3]
    spacing, origin = np.array(reader.GetSpacing()[:3]), np.array(reader.GetOrigin()[:3])
    known = np.isfinite([*direction.flat, *spacing, *origin]).all() and (spacing > 0).all()
    if reader.GetSize()[:3] != header.shape[::-1] or not known:
        raise Unusable("the geometry cannot be read")
    if header.reader == NIFTI and not header.orientation.known:
        direction = _NIFTI_AXES
    return direction, spacing * header.unit_mm, origin * header.unit_mm, doubtful


def _to_patient(
    direction: Float[np.ndarray, "3 3"],
) -> tuple[tuple[int, ...], Float[np.ndarray, "3"]]:
    """The stored axis nearest to each of left, back and head, and the sign of each stored axis."""

    def nearness(axes: tuple[int, ...]) -> float:
        return sum(abs(direction[i, axis]) for i, axis in enumerate(axes))

    axes = max(itertools.permutations(range(3)), key=nearness)
    signs = np.ones(3)
    for i, axis in enumerate(axes):
        signs[axis] = -1 if direction[i, axis] < 0 else 1
    return axes, signs
