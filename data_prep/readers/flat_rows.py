"""Rows of one value that is not air: what an interrupted copy leaves, as no scanner makes it.

The end of a file that was made at its full size and never filled is 0: soft tissue, in a file that
holds HU. In a brain without its skull rows of 0 are right. There, other rows begin and end with 0.
"""

from collections import Counter

import numpy as np
from jaxtyping import Int16

from data_prep.readers.hounsfield import AIR_HU
from data_prep.source import Finding

FLAT_ROWS = "rows of one value that is not air"
MIN_ROWS = 0.25  # share of the rows of a slice
MAX_EDGES = 0.5  # share of the ends of other rows that have the value, where it is no background


class FlatRows:
    """What was seen of it in a series or volume, slice by slice."""

    def __init__(self) -> None:
        self._slices = 0
        self._flat = Counter[int]()  # slices with such rows, by value
        self._ends = Counter[int]()  # ends of all other rows, by value

    def add(self, image: Int16[np.ndarray, "h w"]) -> None:
        """Looks at a slice in HU, padding being air."""
        flat = (image == image[:, :1]).all(axis=1)
        values, counts = np.unique(image[flat, 0], return_counts=True)
        much = (values > AIR_HU[1]) & (counts >= MIN_ROWS * len(image))
        self._slices += 1
        self._flat.update(values[much].tolist())
        self._ends.update(image[~flat][:, [0, -1]].ravel().tolist())

    def findings(self, series: str) -> list[Finding]:
        """A finding for each such value; none for a background."""
        ends = self._ends.total()
        return [
            Finding(series, FLAT_ROWS, f"{value} HU in {slices}", self._slices, kept=True)
            for value, slices in sorted(self._flat.items())
            if self._ends[value] <= MAX_EDGES * ends
        ]
