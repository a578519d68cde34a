"""Whether values are Hounsfield units: judged by the values of a whole series or volume.

Headers are not believed. A CT shows air or lung, hardly anything below air, soft tissue among what
is not air, and little that is denser than compact bone. Values that were shifted, scaled, wrapped,
inverted or cut to a window fail one of these. How often a real CT fails, and what wrong values
pass, is measured in docs/data.md.

    seen = Evidence()
    for each slice: seen.add(stored, slope, intercept)     # before anything is clipped
    seen.require()                                         # raises Unusable with the reason
"""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Num, Shaped

from data_prep.source import Unusable

# All in HU. Air is -1000, lung -950 to -500, fat -100, soft tissue 20 to 80, compact bone to 1900.
AIR_HU = (-1100, -700)
THIN_HU = (-699, -300)  # between lung and fat
BELOW_0_HU = (-300, -31)  # where values that were made positive are not, but for noise
TISSUE_HU = (-150, 150)
DENSE_HU = 700
INVERTED_AIR_HU = (900, 1100)
SCALE_HU = 3071  # the end of 12 bits; only metal is beyond, on extended scales

# Shares, as fractions. "Body" is all that is denser than AIR_HU.
MIN_AIR = 0.01  # of all
MIN_BODY = 0.002  # of all: a finger in a field of view of half a metre
MIN_TISSUE = 0.1  # of the body
SURE_TISSUE = 0.5  # of the body, that it must be to believe in an offset
MAX_BEYOND = 0.1  # of the body
MAX_DENSE = 0.4  # of the body
MAX_PEAK = 0.6  # of the dense that is as dense as inverted air, where DENSE_TO_JUDGE is dense
DENSE_TO_JUDGE = 0.1  # of the body
MAX_LOW = 0.3  # of a slice; the corners round a field of view are 0.21
MAX_THIN = 0.1  # of a slice without air
MAX_BELOW_0 = 0.05  # of all where an offset is believed in

OFFSETS = (1024, 1000)  # what is added so that nothing is below 0
PADDING_VALUES = 2  # single values below air that may be padding without a tag
SAMPLE = 256  # a slice is looked at in so many rows and columns, or a few more

_FIRST, _LAST = -4096, 16384  # HU that are told apart; what is beyond counts for the nearest

NO_AIR = "not in HU: nothing like air or lung (if that is right: --values=hu)"
BELOW_AIR = "not in HU: too much is below air"
NO_TISSUE = "not in HU: next to nothing like soft tissue"
BEYOND = "not in HU: too much is beyond any CT scale"
DENSE = "not in HU: too much is as dense as bone"
INVERTED = "not in HU: air at +1000 (inverted)"
OFFSET = "not in HU: looks like HU + 1000 or + 1024"
MIXED = "not in HU: single slices are unlike the others"
NO_VALUES = "nothing but padding"


class Values(enum.Enum):
    """What the values of scans are.

    Attributes:
        AUTO: HU, if they look like it.
        HU: HU by the user's word. Nothing need be like air or soft tissue, as in a head without
            its skull; values that no CT can have are refused all the same.
        GREY8: Grey from 0 to 255.
    """

    AUTO = "auto"
    HU = "hu"
    GREY8 = "grey8"


HOUNSFIELD = (Values.AUTO, Values.HU)


class Shares(NamedTuple):
    """How the values of some voxels are spread, in voxels; see the constants above."""

    low: int
    air: int
    body: int
    thin: int
    below_0: int
    tissue: int
    dense: int
    as_inverted_air: int
    beyond: int

    @property
    def all(self) -> int:
        """Without padding."""
        return self.low + self.air + self.body

    @property
    def has_air(self) -> bool:
        """Whether enough is like air or lung."""
        return self.air >= MIN_AIR * self.all

    @property
    def is_judged(self) -> bool:
        """Whether there is anything but air."""
        return self.body > 0 and self.body >= MIN_BODY * self.all

    @property
    def is_dense(self) -> bool:
        """Whether too much is like bone or metal."""
        return self.dense > MAX_DENSE * self.body or self.beyond > MAX_BEYOND * self.body


class Evidence:
    """What was seen of the values of a series or volume, slice by slice, in bounded memory."""

    def __init__(self) -> None:
        self._counts = np.zeros(_LAST - _FIRST + 1, np.int64)
        self._slices = self._odd = 0
        self._far_below: set[float] = set()

    def add(
        self,
        stored: Num[np.ndarray, "*shape"],
        slope: float = 1.0,
        intercept: float = 0.0,
        padding: tuple[int, int] | None = None,
        times: Int[np.ndarray, "*shape"] | None = None,
    ) -> None:
        """Counts a slice, of which every so many rows and columns are looked at.

        Args:
            stored: As in the file; NaN and infinity are padding.
            slope: HU for each stored unit, as claimed.
            intercept: HU of stored 0, as claimed.
            padding: Lowest and highest stored value that is padding by the word of the file.
            times: How often each is in the `sample` of the slice, where that is known; else
                `stored` is the slice.
        """
        if times is None:
            stored = sample(stored)
            times = np.ones(stored.shape, np.int64)
        known = _is_known(stored, padding) & (times > 0)
        values, times = stored[known] * slope + intercept, times[known]
        if values.size and values.min() < _FIRST and len(self._far_below) <= PADDING_VALUES:
            self._far_below.update(np.unique(values[values < _FIRST])[: PADDING_VALUES + 1])
        bins = np.clip(values, _FIRST, _LAST).astype(np.intp) - _FIRST
        counts = np.bincount(bins, times, len(self._counts)).astype(np.int64)
        self._slices += 1
        self._odd += _is_odd(counts)
        self._counts += counts

    def require(self, values: Values = Values.AUTO) -> None:
        """Raises unless the values can be HU.

        Args:
            values: What the user says of them.

        Raises:
            Unusable: With the reason.
        """
        reason = self.reason(values)
        if reason:
            raise Unusable(reason)

    def reason(self, values: Values = Values.AUTO) -> str:
        """Why the values are no HU, "" if they can be; see `require`."""
        seen = _shares(self._counts)
        if len(self._far_below) > PADDING_VALUES:
            return BELOW_AIR
        if not seen.all:
            return NO_VALUES
        if 0 < self._odd <= self._slices / 2:
            return MIXED
        if not seen.has_air and _is_shifted(self._counts):
            return OFFSET
        return _reason(seen, values) or (MIXED if self._odd else "")


def sample(image: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "some_h some_w"]:
    """Every so many rows and columns of a slice: what is looked at."""
    return image[tuple(slice(None, None, max(1, n // SAMPLE)) for n in image.shape)]


def _is_known(
    stored: Num[np.ndarray, "*shape"], padding: tuple[int, int] | None
) -> Bool[np.ndarray, "*shape"]:
    known = np.isfinite(stored)
    return known if padding is None else known & ((stored < padding[0]) | (stored > padding[1]))


def _shares(counts: Int[np.ndarray, " values"]) -> Shares:
    """Counts the voxels by range; single values below air are padding and left out."""
    below = np.concatenate([[0], np.cumsum(counts)])

    def between(low: int, high: int) -> int:
        return int(below[high - _FIRST + 1] - below[low - _FIRST])

    lows = counts[: AIR_HU[0] - _FIRST]
    padding = np.partition(lows, -PADDING_VALUES)[-PADDING_VALUES:].sum()
    return Shares(
        low=int(lows.sum() - padding),
        air=between(*AIR_HU),
        body=between(AIR_HU[1] + 1, _LAST),
        thin=between(*THIN_HU),
        below_0=between(*BELOW_0_HU),
        tissue=between(*TISSUE_HU),
        dense=between(DENSE_HU, _LAST),
        as_inverted_air=between(*INVERTED_AIR_HU),
        beyond=between(SCALE_HU + 1, _LAST),
    )


def _reason(seen: Shares, values: Values) -> str:
    if seen.low > max(seen.air, MIN_AIR * seen.all):
        return BELOW_AIR
    if seen.beyond > MAX_BEYOND * seen.body:
        return BEYOND
    if seen.dense > DENSE_TO_JUDGE * seen.body and seen.as_inverted_air > MAX_PEAK * seen.dense:
        return INVERTED
    if seen.is_dense:
        return DENSE
    if values is Values.HU:
        return ""
    if not seen.has_air:
        return NO_AIR
    return "" if seen.is_judged and seen.tissue >= MIN_TISSUE * seen.body else NO_TISSUE


def _is_shifted(counts: Int[np.ndarray, " values"]) -> bool:
    """Whether the values minus a usual offset are HU beyond doubt, with hardly any below 0."""
    unshifted = _shares(counts)
    if unshifted.thin + unshifted.below_0 > MAX_BELOW_0 * unshifted.all:
        return False
    for offset in OFFSETS:
        seen = _shares(np.concatenate([counts[offset:], np.zeros(offset, counts.dtype)]))
        sure = seen.is_judged and seen.tissue >= SURE_TISSUE * seen.body
        if sure and not _reason(seen, Values.AUTO):
            return True
    return False


def _is_odd(counts: Int[np.ndarray, " values"]) -> bool:
    """Whether a slice by itself cannot be HU, as if its rescale were another one.

    Slices without air are real, and so are slices of bone or metal, or of much that is between air
    and fat; none is both.
    """
    seen = _shares(counts)
    if seen.low > MAX_LOW * max(1, seen.all):
        return True
    thin = seen.thin > MAX_THIN * seen.all
    return not seen.has_air and (seen.is_dense or thin or _is_shifted(counts))
