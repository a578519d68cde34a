"""Which way the axes of a NIfTI volume point, by its header (nifti1.h, methods 1 to 3).

The header may say it twice, by a quaternion (qform) and by a matrix (sform), or not at all.
"""

import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Orientation(NamedTuple):
    """What the header says.

    Attributes:
        known: Whether it says anything.
        disagreement_degrees: The largest angle between an axis of qform and that of sform, 0 if
            one of them is missing.
    """

    known: bool
    disagreement_degrees: float


def read_orientation(head: bytes, order: str) -> Orientation:
    """Reads it from the first 348 bytes of a file, in byte order "<" or ">"."""
    qform_code, sform_code = struct.unpack_from(order + "2h", head, 252)
    known = qform_code > 0 or sform_code > 0
    if qform_code <= 0 or sform_code <= 0:
        return Orientation(known, 0.0)
    matrix = np.reshape(struct.unpack_from(order + "12f", head, 280), (3, 4))[:, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(matrix).all() or not lengths.all():
        return Orientation(known, 0.0)  # no matrix: readers take the quaternion
    (handed,) = struct.unpack_from(order + "f", head, 76)
    rotation = _rotation(*struct.unpack_from(order + "3f", head, 256))
    rotation[:, 2] *= -1 if handed < 0 else 1
    cosine = ((matrix / lengths) * rotation).sum(axis=0).min()
    return Orientation(known, float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))


def _rotation(b: float, c: float, d: float) -> Float[np.ndarray, "3 3"]:
    """The matrix of a unit quaternion whose real part is not stored."""
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
