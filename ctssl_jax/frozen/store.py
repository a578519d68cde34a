"""Features that were computed once, for the runs of a sweep that share an encoder and its data."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable

from ctssl_jax.dataset.splits import parts
from ctssl_jax.frozen.features import Features, joined

Compute = Callable[[str], Features]


class FeatureStore:
    """Keeps features of splits in memory, of `most` bytes: then those longest unasked for go."""

    def __init__(self, most: int = 1 << 30):
        self._most = most
        self._kept: OrderedDict[tuple[Hashable, str], Features] = OrderedDict()

    def knows(self, whose: Hashable, splits: Iterable[str]) -> bool:
        """Whether nothing would be computed for these splits."""
        return all((whose, part) in self._kept for split in splits for part in parts(split))

    def features(self, whose: Hashable, split: str, compute: Compute) -> Features:
        """Features of a split, or of a sum as in `fold1+fold2`, part by part.

        Args:
          whose: says encoder, data and how they are read; None is never remembered.
          split: the split or sum.
          compute: of one part.
        """
        return joined([self._part(whose, part, compute) for part in parts(split)])

    def _part(self, whose: Hashable, part: str, compute: Compute) -> Features:
        if whose is None:
            return compute(part)
        if (whose, part) not in self._kept:
            self._kept[whose, part] = compute(part)
            while len(self._kept) > 1 and self._size() > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end((whose, part))
        return self._kept[whose, part]

    def _size(self) -> int:
        return sum(array.nbytes for kept in self._kept.values() for array in kept)
