"""Which slices are one picture: bit for bit, or edited, resized, cropped a little, flipped, turned.

What is found does not depend on which lot of slices comes first, nor on the order of the slices: a
split that was made so that the audit finds nothing passes the audit.

Not all pairs are compared. Slices are hashed such that near duplicates mostly share a bucket
(cross-polytope hashing: Andoni et al., "Practical and Optimal LSH for Angular Distance", 2015), a
bounded number of each bucket is compared coarsely, and the likeliest partner of each slice in full
(`alignment`): the cost grows with the number of slices, not its square.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped, UInt8, UInt64

from ctssl_jax.dataset.alignment import features, is_near, symmetries, to_waves
from ctssl_jax.dataset.signatures import SIDE, Signatures

COARSE = 0.7  # least cosine of thumbnails of half the side, not aligned
# A slice is looked for if so large a share of its thumbnail is so many grey levels off the median:
# air, and a table or head rest without a patient, is like any other.
CONTENT, OFF = 0.07, 13
TABLES = 12
HASHES = 2  # of each table
DIMENSIONS = 64  # that are hashed
BUCKET = 32  # slices of a bucket that are compared with one other
BLOCK = 65536  # slices indexed at once
CHUNK = 4096  # slices hashed at once
ALIGNED = 512  # pairs aligned at once

Name = tuple[int, int]  # of a pair: the digests of its slices, the smaller first


class Pairs(NamedTuple):
    """Rows of two lots of slices that belong together; `compared` is what it took to find them.

    Of several equal slices, each is in a pair, but not each with each.
    """

    left: Int64[np.ndarray, " p"]
    right: Int64[np.ndarray, " p"]
    compared: int = 0

    def take(self, keep: Bool[np.ndarray, " p"]) -> "Pairs":
        """Those to keep."""
        return Pairs(self.left[keep], self.right[keep], self.compared)


def names(left: Signatures, right: Signatures, pairs: Pairs) -> list[Name]:
    """The name of each pair: it says which pictures they are, whatever the dataset and its rows."""
    both = np.stack([left.digest[pairs.left], right.digest[pairs.right]])
    return list(zip(both.min(axis=0).tolist(), both.max(axis=0).tolist(), strict=True))


def is_blank(signatures: Signatures) -> Bool[np.ndarray, " n"]:
    """Whether a slice has one value throughout: such are equal and yet no duplicates."""
    constant = signatures.thumbnail.max(axis=(1, 2)) == signatures.thumbnail.min(axis=(1, 2))
    return (signatures.dhash == 0) & constant


def exact_pairs(left: Signatures, right: Signatures) -> Pairs:
    """Equal slices: each that has equals in the other lot, with the first of them."""
    lots = [_Distinct(s.digest, np.flatnonzero(~is_blank(s))) for s in (left, right)]
    _, one, other = np.intersect1d(lots[0].value, lots[1].value, return_indices=True)
    return _spread(lots[0], lots[1], np.stack([one, other]), len(right))


def near_pairs(left: Signatures, right: Signatures, apart: Collection[Name] = ()) -> Pairs:
    """Near duplicates: each slice of the smaller lot with the likeliest in the larger, if any.

    Of a large lot a block is indexed at a time, so that memory does not grow with it; the block
    that has a near duplicate of a slice first settles it.

    Args:
        left: One lot of slices.
        right: The other; in which order they are given does not matter.
        apart: Names of pairs that are known to be no duplicates.
    """
    lots = [_Distinct(_key(s), np.flatnonzero(_has_content(s))) for s in (left, right)]
    sides = [_Side(s.thumbnail, lot.row) for s, lot in zip((left, right), lots, strict=True)]
    known = _known(left, right, lots, apart)
    sizes = [(len(lot.row), lot.value.tobytes()) for lot in lots]
    if sizes[0] < sizes[1]:
        found, compared = _look_up(sides[1], sides[0], known[::-1])
        found = found[::-1]
    else:
        found, compared = _look_up(sides[0], sides[1], known)
    return _spread(lots[0], lots[1], found, compared)


class _Distinct:
    """The different values among some rows, ascending, each with the rows that hold it.

    Attributes:
        value: The values.
        row: The first row of each.
    """

    def __init__(self, values: Shaped[np.ndarray, " n"], rows: Int64[np.ndarray, " m"]):
        self.value, first, inverse = np.unique(values[rows], return_index=True, return_inverse=True)
        self.row = rows[first]
        self._rows = rows[np.argsort(inverse, kind="stable")]
        self._start = np.searchsorted(np.sort(inverse), np.arange(len(self.value) + 1))

    def rows(self, number: int) -> Int64[np.ndarray, " k"]:
        """All rows with a value, ascending."""
        return self._rows[self._start[number] : self._start[number + 1]]


def _spread(
    left: _Distinct, right: _Distinct, found: Int64[np.ndarray, "2 p"], compared: int
) -> Pairs:
    """Pairs of values as pairs of rows: each row of a value with the first of the other."""
    pairs = {
        pair
        for one, other in found.T.tolist()
        for pair in (
            *((row, int(right.row[other])) for row in left.rows(one).tolist()),
            *((int(left.row[one]), row) for row in right.rows(other).tolist()),
        )
    }
    rows = np.array(sorted(pairs, key=lambda pair: pair[::-1]), np.int64).reshape(-1, 2)
    return Pairs(rows[:, 0], rows[:, 1], compared)


def _key(signatures: Signatures) -> UInt64[np.ndarray, " n"]:
    """A number for each thumbnail: the same for the same pixels, and for no others."""
    odd = np.random.default_rng(0).integers(2**63, size=SIDE**2 // 8, dtype=np.uint64) * 2 + 1
    keys = np.zeros(len(signatures), np.uint64)
    for start in range(0, len(keys), CHUNK):
        pixels = np.ascontiguousarray(signatures.thumbnail[start : start + CHUNK])
        key = keys[start : start + CHUNK]
        for column, factor in zip(pixels.reshape(len(key), -1).view("<u8").T, odd, strict=True):
            key ^= column
            key *= factor
            key ^= key >> np.uint64(29)
    return keys


class _Side(NamedTuple):
    """Pictures of which only what is used is read: `rows` of all `thumbnail`."""

    thumbnail: UInt8[np.ndarray, "n side side"]
    rows: Int64[np.ndarray, " m"]

    def take(self, which: Int64[np.ndarray, " k"] | slice) -> UInt8[np.ndarray, "k side side"]:
        """Those with the given numbers."""
        return np.ascontiguousarray(self.thumbnail[self.rows[which]])


def _known(
    left: Signatures, right: Signatures, lots: list[_Distinct], apart: Collection[Name]
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """The numbers, in the two lots, of the pictures that are known to be no duplicates."""
    found = set()
    digests = [
        {
            int(digest): number
            for number in range(len(lot.row))
            for digest in s.digest[lot.rows(number)]
        }
        if apart
        else {}
        for s, lot in zip((left, right), lots, strict=True)
    ]
    for one, other in apart:
        for a, b in ((one, other), (other, one)):
            if a in digests[0] and b in digests[1]:
                found.add((digests[0][a], digests[1][b]))
    numbers = np.array(sorted(found), np.int64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


def _look_up(
    left: _Side,
    right: _Side,
    apart: tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]],
) -> tuple[Int64[np.ndarray, "2 p"], int]:
    """For each picture of `right` that has a near duplicate in `left` the likeliest.

    Also how many pairs were compared.
    """
    found, compared = [np.empty((2, 0), np.int64)], 0
    width, wanted = len(right.rows), np.arange(len(right.rows))
    refused = np.sort(apart[0] * width + apart[1])
    for start in range(0, len(left.rows), BLOCK):
        block = left.take(slice(start, start + BLOCK))
        index = _Index(block)
        for rows in (wanted[n : n + CHUNK] for n in range(0, len(wanted), CHUNK)):
            pictures = right.take(rows)
            partner, symmetry, tried = _likeliest(
                index, pictures, refused - start * width, rows, width
            )
            compared += tried
            for number in range(8):
                mine = np.flatnonzero((partner >= 0) & (symmetry == number))
                for some in (mine[n : n + ALIGNED] for n in range(0, len(mine), ALIGNED)):
                    other = [*symmetries(pictures[some])][number]
                    near = some[is_near(block[partner[some]], other)]
                    found.append(np.stack([start + partner[near], rows[near]]))
                    compared += len(some)
        wanted = np.setdiff1d(wanted, np.concatenate(found, axis=1)[1])
    return np.concatenate(found, axis=1), compared


def _likeliest(
    index: "_Index",
    pictures: UInt8[np.ndarray, "m side side"],
    refused: Int64[np.ndarray, " k"],
    rows: Int64[np.ndarray, " m"],
    width: int,
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], int]:
    """For each picture the row of the index that is most like it, coarsely; -1 if none is.

    Also the symmetry in which that is so, and how many pairs were compared. `refused` are pairs
    that are not taken, as row of the index * `width` + the picture's number in `rows`.
    """
    best = np.full(len(pictures), COARSE, np.float32)
    partner, symmetry = np.full(len(pictures), -1), np.zeros(len(pictures), np.int64)
    compared = 0
    for number, turned in enumerate(symmetries(pictures)):
        for theirs, mine, cosine in index.candidates(turned):
            compared += len(cosine)
            order = np.argsort(cosine, kind="stable")  # of several the best is assigned last
            order = order[cosine[order] > best[mine[order]]]
            if len(refused):
                order = order[~np.isin(theirs[order] * width + rows[mine[order]], refused)]
            best[mine[order]] = cosine[order]
            partner[mine[order]] = theirs[order]
            symmetry[mine[order]] = number
    return partner, symmetry, compared


class _Index:
    """Hash tables of pictures at half their side; the same pictures give the same tables."""

    def __init__(self, pictures: UInt8[np.ndarray, "n side side"]):
        self._features = np.concatenate(
            [_coarse(pictures[n : n + CHUNK]) for n in range(0, len(pictures), CHUNK)]
        )
        sample = self._features[:: -(-len(pictures) // CHUNK)]
        self._centre = sample.mean(axis=0)
        # The directions in which slices differ most: turning these alone is faster.
        _, directions = np.linalg.eigh(np.cov(sample.T, bias=True))
        self._basis = directions[:, -DIMENSIONS:].astype(np.float32)
        turns = np.random.default_rng(0).normal(size=(TABLES, HASHES, DIMENSIONS, DIMENSIONS))
        self._turns = np.linalg.qr(turns).Q.astype(np.float32)
        keys = list(self._keys(self._features))
        self._order = [np.argsort(key, kind="stable") for key in keys]
        self._sorted = [key[order] for key, order in zip(keys, self._order, strict=True)]

    def candidates(
        self, pictures: UInt8[np.ndarray, "m side side"]
    ) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float[np.ndarray, " p"]]]:
        """Pairs that share a bucket: row here, row of `pictures`, coarse cosine; table by table."""
        ours = _coarse(pictures)
        for key, known, order in zip(self._keys(ours), self._sorted, self._order, strict=True):
            start = np.searchsorted(known, key, "left")
            size = np.searchsorted(known, key, "right") - start
            taken = np.minimum(size, BUCKET)  # of a large bucket some, spread evenly
            row = np.repeat(np.arange(len(key)), taken)
            number = np.arange(len(row)) - np.repeat(np.cumsum(taken) - taken, taken)
            theirs = order[start[row] + number * size[row] // np.maximum(taken[row], 1)]
            yield theirs, row, np.einsum("pd,pd->p", self._features[theirs], ours[row])

    def _keys(self, ours: Float[np.ndarray, "m d"]) -> Iterator[Int64[np.ndarray, " m"]]:
        """For each table the bucket: in each of `HASHES` turned frames the nearest axis."""
        low = (ours - self._centre) @ self._basis
        for turns in self._turns:
            key = np.zeros(len(low), np.int64)
            for turn in turns:
                turned = low @ turn
                axis = np.abs(turned).argmax(axis=1)
                above = turned[np.arange(len(low)), axis] > 0
                key = (key * DIMENSIONS + axis) * 2 + above
            yield key


def _coarse(pictures: UInt8[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n d"]:
    """Features of the waves of half the frequencies."""
    return features(np.ascontiguousarray(to_waves(pictures)[:, : SIDE // 2, : SIDE // 2]))


def _has_content(signatures: Signatures) -> Bool[np.ndarray, " n"]:
    """Whether there is something to recognise."""
    found = np.empty(len(signatures), bool)
    for start in range(0, len(found), CHUNK):
        grey = signatures.thumbnail[start : start + CHUNK].astype(np.int16)
        off = np.abs(grey - np.median(grey, axis=(1, 2), keepdims=True)) > OFF
        found[start : start + CHUNK] = off.mean(axis=(1, 2)) >= CONTENT
    return found
