"""How a stored slice is turned so that rows go to the back and columns to the left (LPS).

Volumes and DICOM series alike: what lay prone, or was stored mirrored, looks like all others.
Slices are flipped and transposed, never interpolated.
"""

from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Shaped

T = TypeVar("T")


class Turn(NamedTuple):
    """First exchanges rows and columns, then reverses their order."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, along_row: Float[np.ndarray, "3"], along_column: Float[np.ndarray, "3"]) -> "Turn":
        """The turn of an axial slice.

        Args:
            along_row: Direction from a pixel to its right neighbour, in patient coordinates.
            along_column: Direction to the one below.
        """
        straight = abs(along_row[0]) + abs(along_column[1])
        crossed = abs(along_row[1]) + abs(along_column[0])
        if crossed > straight:
            along_row, along_column = along_column, along_row
        return cls(
            transpose=bool(crossed > straight),
            flip_rows=bool(along_column[1] < 0),
            flip_columns=bool(along_row[0] < 0),
        )

    def apply(self, image: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "a b"]:
        """The turned slice, contiguous."""
        turned = image.T if self.transpose else image
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in self[1:])
        return np.ascontiguousarray(turned[rows, columns])

    def pair(self, of_rows: T, of_columns: T) -> tuple[T, T]:
        """What belongs to rows and to columns, after the turn."""
        return (of_columns, of_rows) if self.transpose else (of_rows, of_columns)
