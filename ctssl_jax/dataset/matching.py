"""Which slices are one picture: bit for bit, or edited, resized, cropped a little, flipped, turned.

Two slices are near duplicates if the waves of their thumbnails correlate (`features`), in one of
the eight symmetries of the square and with up to 4 % cut from any edge, by a cosine of `NEAR`.
docs/data.md says how often that finds an edited copy, and how alike different patients are.

Not all pairs are compared. Slices are hashed such that near duplicates mostly share a bucket
(cross-polytope hashing: Andoni et al., "Practical and Optimal LSH for Angular Distance", 2015), a
bounded number of each bucket is compared coarsely, and the likeliest partner of each slice in full:
the cost grows with the number of slices, not its square.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8

from ctssl_jax.dataset.signatures import SIDE, Signatures

NEAR = 0.93  # cosine, aligned
COARSE = 0.7  # least cosine of thumbnails of half the side, not aligned
CUTS = (-0.04, -0.02, 0.0, 0.02, 0.04)  # of an edge; below 0: the other slice was cut
# A slice is looked for if so large a share of its thumbnail is so many grey levels off the median:
# air, and a table or head rest without a patient, is like any other.
CONTENT, OFF = 0.07, 13
TABLES = 8
HASHES = 2  # of each table
DIMENSIONS = 64  # that are hashed
BUCKET = 32  # slices of a bucket that are compared with one other
BLOCK = 65536  # slices indexed at once
CHUNK = 4096  # slices hashed at once
ALIGNED = 512  # pairs aligned at once


class Pairs(NamedTuple):
    """Rows of two lots of slices that belong together; `compared` is what it took to find them."""

    left: Int64[np.ndarray, " p"]
    right: Int64[np.ndarray, " p"]
    compared: int = 0

    def take(self, keep: Bool[np.ndarray, " p"]) -> "Pairs":
        """Those to keep."""
        return Pairs(self.left[keep], self.right[keep], self.compared)


def features(waves: Float32[np.ndarray, "*n side side"]) -> Float32[np.ndarray, "*n d"]:
    """Unit vectors of pictures that are compared by their cosine.

    Each wave of the cosine transform is weighted by its frequency, which makes up for the spectrum
    of pictures: everything broad is much alike between patients. The mean is left out and so is the
    scale: brightness and contrast do not matter.
    """
    side = np.arange(waves.shape[-1])
    weighted = waves * np.hypot(side[:, None], side).astype(np.float32)
    flat = weighted.reshape(*waves.shape[:-2], -1)[..., 1:]
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)


def to_waves(pictures: UInt8[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n side side"]:
    """The cosine transform (type II, orthonormal) of each picture."""
    side = pictures.shape[-1]
    transform = _cosines(side, (np.arange(side) + 0.5) / side)
    return transform @ pictures.astype(np.float32) @ transform.T


def symmetries(
    pictures: UInt8[np.ndarray, "n side side"],
) -> Iterator[UInt8[np.ndarray, "n side side"]]:
    """The pictures as they are, and turned and mirrored: eight in all."""
    for turned in (pictures, pictures.transpose(0, 2, 1)):
        for rows in (1, -1):
            for columns in (1, -1):
                yield turned[:, ::rows, ::columns]


def is_blank(signatures: Signatures) -> Bool[np.ndarray, " n"]:
    """Whether a slice has one value throughout: such are equal and yet no duplicates."""
    constant = signatures.thumbnail.max(axis=(1, 2)) == signatures.thumbnail.min(axis=(1, 2))
    return (signatures.dhash == 0) & constant


def exact_pairs(left: Signatures, right: Signatures) -> Pairs:
    """Equal slices: each of `right` that has equals in `left`, with the first of them."""
    usable = np.flatnonzero(~is_blank(left))
    digests, first = np.unique(left.digest[usable], return_index=True)
    hit = np.flatnonzero(np.isin(right.digest, digests))
    return Pairs(usable[first[np.searchsorted(digests, right.digest[hit])]], hit, len(right))


def near_pairs(left: Signatures, right: Signatures) -> Pairs:
    """Near duplicates: each of `right` that has one in `left`, with the likeliest.

    Of a large `left` a block is indexed at a time, so that memory does not grow with it; the block
    that has a near duplicate of a slice first settles it.
    """
    usable, wanted = np.flatnonzero(_has_content(left)), np.flatnonzero(_has_content(right))
    found, compared = [np.empty((2, 0), np.int64)], 0
    for start in range(0, len(usable), BLOCK):
        block = usable[start : start + BLOCK]
        index = _Index(left.thumbnail[block])
        for rows in (wanted[n : n + CHUNK] for n in range(0, len(wanted), CHUNK)):
            pairs = _verified(index, left.thumbnail, block, right.thumbnail, rows)
            found.append(np.stack([pairs.left, pairs.right]))
            compared += pairs.compared
        wanted = np.setdiff1d(wanted, np.concatenate(found, axis=1)[1])
    both = np.concatenate(found, axis=1)
    both = both[:, np.argsort(both[1])]
    return Pairs(both[0], both[1], compared)


def _verified(
    index: "_Index",
    left: UInt8[np.ndarray, "n side side"],
    block: Int64[np.ndarray, " b"],
    right: UInt8[np.ndarray, "m side side"],
    rows: Int64[np.ndarray, " r"],
) -> Pairs:
    """The near duplicates between the `block` of `left` that is indexed and `rows` of `right`."""
    partner, symmetry, compared = _likeliest(index, right[rows])
    found = [np.empty((2, 0), np.int64)]
    for number in range(8):
        mine = np.flatnonzero((partner >= 0) & (symmetry == number))
        for some in (mine[n : n + ALIGNED] for n in range(0, len(mine), ALIGNED)):
            one = left[block[partner[some]]]
            other = [*symmetries(right[rows[some]])][number]
            near = some[aligned_cosine(one, other) >= NEAR]
            found.append(np.stack([block[partner[near]], rows[near]]))
            compared += len(some)
    both = np.concatenate(found, axis=1)
    return Pairs(both[0], both[1], compared)


def _likeliest(
    index: "_Index", pictures: UInt8[np.ndarray, "m side side"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], int]:
    """For each picture the row of the index that is most like it, coarsely; -1 if none is.

    Also the symmetry in which that is so, and how many pairs were compared.
    """
    best = np.full(len(pictures), COARSE, np.float32)
    partner, symmetry = np.full(len(pictures), -1), np.zeros(len(pictures), np.int64)
    compared = 0
    for number, turned in enumerate(symmetries(pictures)):
        for theirs, mine, cosine in index.candidates(turned):
            compared += len(cosine)
            order = np.argsort(cosine, kind="stable")  # of several the best is assigned last
            order = order[cosine[order] > best[mine[order]]]
            best[mine[order]] = cosine[order]
            partner[mine[order]] = theirs[order]
            symmetry[mine[order]] = number
    return partner, symmetry, compared


def aligned_cosine(
    one: UInt8[np.ndarray, "p side side"], other: UInt8[np.ndarray, "p side side"]
) -> Float32[np.ndarray, " p"]:
    """The cosine of each pair after the first is cut, by `CUTS`, to fit the second best.

    The cuts of rows and columns are found in turn.
    """
    side = one.shape[-1]
    grid = (np.arange(side) + 0.5) / side
    cut = [low + (1 - low - high) * grid for low in CUTS for high in CUTS]
    # From waves to waves: the picture between two cuts, interpolated by its own waves.
    warps = np.stack([_cosines(side, grid) @ _cosines(side, x).T for x in cut])
    waves = to_waves(one)
    targets = [features(to_waves(picture)) for picture in (other, other.swapaxes(1, 2))]
    best = np.full(len(one), len(cut) // 2)  # no cut
    found = np.zeros(len(one), np.float32)
    for target in 2 * targets:
        # Columns cut as found before, rows in all ways; then the same of the transposed picture.
        half = waves @ warps[best].swapaxes(1, 2)
        tried = np.tensordot(warps, half, ([2], [1])).transpose(2, 0, 1, 3)
        cosines = (features(tried) @ target[:, :, None])[..., 0]
        best, found = cosines.argmax(axis=1), cosines.max(axis=1)
        waves = waves.swapaxes(1, 2)
    return found


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


def _cosines(side: int, x: Float[np.ndarray, " m"]) -> Float32[np.ndarray, "side m"]:
    """The orthonormal cosine waves of a row of `side` pixels, at places x from 0 to 1."""
    waves = np.sqrt(2 / side) * np.cos(np.pi * np.arange(side)[:, None] * x)
    waves[0] *= np.sqrt(0.5)
    return waves.astype(np.float32)


def _has_content(signatures: Signatures) -> Bool[np.ndarray, " n"]:
    """Whether there is something to recognise."""
    found = np.empty(len(signatures), bool)
    for start in range(0, len(found), CHUNK):
        grey = signatures.thumbnail[start : start + CHUNK].astype(np.int16)
        off = np.abs(grey - np.median(grey, axis=(1, 2), keepdims=True)) > OFF
        found[start : start + CHUNK] = off.mean(axis=(1, 2)) >= CONTENT
    return found
