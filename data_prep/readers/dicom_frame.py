"""One slice of a DICOM file: its place in the patient, its rescale to HU, how it was made."""

from dataclasses import dataclass

import numpy as np
import pydicom
from jaxtyping import Float
from pydicom.multival import MultiValue

from data_prep.readers.orientation import Turn
from data_prep.source import Unusable, Unwanted

MIN_AXIAL_COSINE = 0.8  # a gantry is tilted by 30 degrees at most; a reformat is near 90
_COUNTS = {1: "one value", 2: "two values", 3: "three values"}


@dataclass(frozen=True)
class Frame:
    """One slice: where it lies (mm, patient coordinates) and how stored values become HU.

    Sizes, distances and the first pixel are those of the turned slice.

    Attributes:
        normal: Unit vector at right angles to rows and columns.
        origin: Centre of the first pixel.
        turn: From the stored to the turned slice.
        size: Rows and columns.
        pixel_mm: Distance of rows and of columns; NaN if unknown.
        thickness_mm: NaN if unknown.
        slope: HU for each stored unit.
        intercept: HU of stored 0.
        kernel: The reconstruction kernel, "" if unknown.
        acquisition: The number of the acquisition, "" if unknown.
    """

    normal: tuple[float, float, float]
    origin: tuple[float, float, float]
    turn: Turn
    size: tuple[int, int]
    pixel_mm: tuple[float, float]
    thickness_mm: float
    slope: float
    intercept: float
    kernel: str = ""
    acquisition: str = ""


def read_frame(tags: pydicom.Dataset, size: tuple[int, int]) -> Frame:
    """The slice that tags describe.

    Args:
        tags: Of a file, or of one of its frames.
        size: Rows and columns as stored.

    Raises:
        Unwanted: If it is not axial.
        Unusable: If its HU or place are not known; the reason names the tag.
    """
    slope, intercept = _rescale(tags)
    row, column, normal, origin = _plane(tags)
    rows_mm, columns_mm = _lengths(tags, "PixelSpacing", 2)
    (thickness,) = _lengths(tags, "SliceThickness", 1)
    turn = Turn.of(row, column)
    # The pixel that the turn makes the first lies at the far end of what is reversed.
    flip_row, flip_column = turn.pair(turn.flip_rows, turn.flip_columns)
    far = np.zeros(3)
    for flipped, steps, mm, direction in (
        (flip_row, size[0] - 1, rows_mm, column),
        (flip_column, size[1] - 1, columns_mm, row),
    ):
        if flipped and np.isfinite(mm):
            far += steps * mm * direction
    return Frame(
        normal=_three(normal),
        origin=_three(origin + far),
        turn=turn,
        size=turn.pair(*size),
        pixel_mm=turn.pair(rows_mm, columns_mm),
        thickness_mm=thickness,
        slope=slope,
        intercept=intercept,
        kernel=_text(tags, "ConvolutionKernel"),
        acquisition=_text(tags, "AcquisitionNumber") or _text(tags, "FrameAcquisitionNumber"),
    )


def _rescale(tags: pydicom.Dataset) -> tuple[float, float]:
    """Slope and intercept."""
    (slope,) = _numbers(tags, "RescaleSlope", 1)
    (intercept,) = _numbers(tags, "RescaleIntercept", 1)
    if tags.get("RescaleSlope") is None or tags.get("RescaleIntercept") is None:
        raise Unusable("no RescaleSlope and RescaleIntercept: HU are not known")
    if tags.get("ModalityLUTSequence"):
        raise Unusable("a lookup table instead of a rescale")
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise Unusable("RescaleSlope or RescaleIntercept is not a number to use")
    if str(tags.get("RescaleType") or "HU").strip() not in ("HU", "HU_MOD"):
        raise Unusable("RescaleType is not HU")
    return slope, intercept


def _lengths(tags: pydicom.Dataset, name: str, count: int) -> list[float]:
    """The lengths of a tag, mm; NaN for each if it is missing or empty, or a thickness of 0."""
    lengths = _numbers(tags, name, count)
    if name == "SliceThickness" and lengths == [0]:
        return [np.nan]
    if any(mm <= 0 or np.isinf(mm) for mm in lengths):
        raise Unusable(f"{name} is not a length")
    return lengths


def _numbers(tags: pydicom.Dataset, name: str, count: int) -> list[float]:
    """The numbers of a tag; NaN for each if it is missing or empty.

    Raises:
        Unusable: If it has another count of values, or they are no numbers.
    """
    try:
        value = tags.get(name)
        values = list(value) if isinstance(value, MultiValue) else [value]
        if all(one is None or one == "" for one in values):
            return [np.nan] * count
        numbers = [float(one) for one in values]
    except (TypeError, ValueError) as error:
        raise Unusable(f"{name} is not a number") from error
    if len(numbers) != count:
        raise Unusable(f"{name} has {_COUNTS.get(len(numbers), 'too many values')}")
    return numbers


def _text(tags: pydicom.Dataset, name: str) -> str:
    value = tags.get(name)
    values = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(one).strip() for one in values if one is not None)


def _plane(tags: pydicom.Dataset) -> tuple[Float[np.ndarray, "3"], ...]:
    """The unit vectors along a row, along a column and at right angles, and the origin."""
    if not tags.get("ImageOrientationPatient") or not tags.get("ImagePositionPatient"):
        raise Unusable("no orientation or position")
    directions = np.array(_numbers(tags, "ImageOrientationPatient", 6))
    origin = np.array(_numbers(tags, "ImagePositionPatient", 3))
    if not np.isfinite([*directions, *origin]).all():
        raise Unusable("no orientation or position")
    row, column = directions.reshape(2, 3)
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    if not 0.9 < length < 1.1 or abs(row @ column) > 0.1:
        raise Unusable("ImageOrientationPatient is not a pair of directions")
    normal = normal / length
    if abs(normal[2]) < MIN_AXIAL_COSINE:
        raise Unwanted("not axial")
    return row, column, normal, origin


def _three(vector: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    x, y, z = vector.tolist()
    return x, y, z
