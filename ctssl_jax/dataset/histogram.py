"""The statistics of a split, counted in one pass over its slices.

A run brings all slices to one canvas, so each slice counts the same here, whatever its size: a
pixel of a large slice has a smaller share. From the shares of the stored values follow mean and
standard deviation for any fixed window, as `ctssl_jax.augment.to_unit` maps values to 0..1.
Bringing slices to a canvas averages pixels, which these numbers leave out: on LIDC-IDRI-0001 at
224 px it lowers the deviation by 0.4 % with a fixed window, and raises mean and deviation by 6 %
with min-max scaling, whose extremes it softens.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int16

from ctssl_jax.dataset.windows import GREY_RANGE, WINDOWS

RANGE = {"hu": (-1024, 4095), "grey8": (0, 255), "grey16": (-32768, 32767)}
"""Lowest and highest value counted, per kind of dataset; what is beyond counts for the nearest."""
AIR_HU = -1024  # as ctssl_jax.augment.AIR_HU: less is padding outside the field of view


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
    """What was counted of some slices; the sum of two is that of all their slices.

    Attributes:
        intensity: What the values are: "hu", "grey8" or "grey16".
        histogram: Each stored value's share of a slice, summed over the slices.
        min_max: The number of slices, and the sums over them of the mean and of the mean square
            of the values scaled to 0..1 from each slice's minimum to its maximum.
    """

    intensity: str
    histogram: Float[np.ndarray, " values"]
    min_max: Float[np.ndarray, "3"]

    @classmethod
    def of(cls, image: Int16[np.ndarray, "h w"], intensity: str) -> "Tally":
        """The tally of one slice."""
        first, last = RANGE[intensity]
        low = int(image.min())
        share = np.bincount(np.subtract(image, low, dtype=np.intp).ravel()) / image.size
        values = np.arange(low, low + len(share))
        histogram = np.bincount(np.clip(values, first, last) - first, share, last - first + 1)
        if intensity == "hu":
            values = np.maximum(values, AIR_HU)
        unit = (values - values[0]) / max(int(values[-1] - values[0]), 1)
        # Not by `@`: with many values it starts threads, whose sum is not the same everywhere.
        sums = np.array([1.0, (share * unit).sum(), (share * unit**2).sum()])
        return cls(intensity, histogram, sums)

    def __add__(self, other: "Tally") -> "Tally":
        if self.intensity != other.intensity:
            raise ValueError(f"{self.intensity} and {other.intensity} cannot be added")
        histogram, min_max = self.histogram + other.histogram, self.min_max + other.min_max
        return dataclasses.replace(self, histogram=histogram, min_max=min_max)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What a file holds of it."""
        return {
            "intensity": np.array(self.intensity),
            "histogram": self.histogram,
            "min_max": self.min_max,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Tally":
        """The inverse of `to_arrays`.

        Raises:
            KeyError, ValueError: If the arrays are not those of a tally.
        """
        intensity = str(arrays["intensity"])
        first, last = RANGE[intensity]
        histogram, min_max = arrays["histogram"], arrays["min_max"]
        if histogram.shape != (last - first + 1,) or min_max.shape != (3,):
            raise ValueError("not a tally")
        return cls(intensity, histogram, min_max)

    def mean_std(self, low: float, high: float) -> tuple[float, float]:
        """Mean and standard deviation of all pixels where a window maps them to 0..1.

        Args:
            low: Stored value that becomes 0, as all below.
            high: Stored value that becomes 1, as all above.
        """
        first, last = RANGE[self.intensity]
        unit = np.clip((np.arange(first, last + 1) - low) / (high - low), 0.0, 1.0)
        return self._mean_std((self.histogram * unit).sum(), (self.histogram * unit**2).sum())

    def mean_std_min_max(self) -> tuple[float, float]:
        """The same where each slice is scaled from its own minimum to its maximum."""
        return self._mean_std(self.min_max[1], self.min_max[2])

    def _mean_std(self, values: float, squares: float) -> tuple[float, float]:
        """From the sums over the slices."""
        mean, square = values / self.min_max[0], squares / self.min_max[0]
        return float(mean), math.sqrt(max(float(square - mean**2), 0.0))

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and standard deviation for each named window, and for `slice_min_max`.

        Grey values have the one window `full`.
        """
        windows = WINDOWS if self.intensity == "hu" else {"full": GREY_RANGE[self.intensity]}
        found = {name: self.mean_std(*window) for name, window in windows.items()}
        found["slice_min_max"] = self.mean_std_min_max()
        return {
            name: {"mean": round(mean, 6), "std": round(std, 6)}
            for name, (mean, std) in found.items()
        }
