"""First-order and texture features of slices: what there is to learn from without any network.

They are those of radiomics (Zwanenburg et al., Radiology 295:328, 2020), taken over the whole
slice, since nothing here says where in it the finding is. A slice has the features `NAMES`.
"""

import itertools

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

LEVELS = 16  # grey levels of the texture matrices, equal parts of 0..1
BINS = 64  # of the histogram whose entropy and uniformity are taken
DISTANCES = (1, 2, 4)  # pixels
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))  # rows and columns
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
FIRST_ORDER = (
    *("mean", "deviation", "skewness", "kurtosis", "energy", "entropy", "uniformity"),
    *(f"quantile_{quantile:g}" for quantile in QUANTILES),
)
TEXTURE = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
NAMES = (
    *FIRST_ORDER,
    *(f"{name}_{distance}px" for distance, name in itertools.product(DISTANCES, TEXTURE)),
)


def radiomics(x: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b d"]:
    """The features `NAMES` of slices with values in 0..1.

    Texture is of the symmetric grey-level co-occurrence matrix (Haralick et al., IEEE Trans. SMC
    3:610, 1973), of each distance the mean over four directions.
    """
    levels = np.minimum((x * LEVELS).astype(np.int64), LEVELS - 1)
    parts = [first_order(x.reshape(len(x), -1))]
    for distance in DISTANCES:
        of_directions = [
            texture(co_occurrence(levels, (down * distance, across * distance)))
            for down, across in DIRECTIONS
        ]
        parts.append(np.mean(of_directions, axis=0))
    return np.concatenate(parts, axis=1)


def first_order(x: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b f"]:
    """`FIRST_ORDER` of the pixels of slices; a constant slice has skewness and kurtosis 0."""
    x = x.astype(np.float64)
    share = np.stack([np.histogram(row, BINS, (0.0, 1.0))[0] for row in x]) / x.shape[1]
    varies = x.std(axis=1) > 0
    shape = np.zeros((2, len(x)))
    shape[:, varies] = stats.skew(x[varies], axis=1), stats.kurtosis(x[varies], axis=1)
    columns = [
        *(x.mean(axis=1), x.std(axis=1), *shape, np.mean(x**2, axis=1)),
        *(stats.entropy(share, axis=1), np.sum(share**2, axis=1)),
        *np.quantile(x, QUANTILES, axis=1),
    ]
    return np.stack(columns, axis=1)


def co_occurrence(
    levels: Int[np.ndarray, "b h w"], step: tuple[int, int], count: int = LEVELS
) -> Float[np.ndarray, "b {count} {count}"]:
    """How often levels i and j lie `step` rows and columns apart, in either order; sums to 1.

    `step` goes down, and to either side.
    """
    down, across = step
    rows, columns = levels.shape[1] - down, levels.shape[2] - abs(across)
    left, right = max(0, -across), max(0, across)
    one = levels[:, :rows, left : left + columns]
    other = levels[:, down : down + rows, right : right + columns]
    slices = np.arange(len(levels))[:, None, None]
    pairs = (slices * count + one) * count + other
    found = np.bincount(pairs.ravel(), minlength=len(levels) * count * count)
    found = found.reshape(len(levels), count, count)
    found = found + found.transpose(0, 2, 1)
    return found / found.sum(axis=(1, 2), keepdims=True)


def texture(p: Float[np.ndarray, "b l l"]) -> Float[np.ndarray, "b f"]:
    """`TEXTURE` of co-occurrence matrices; the correlation of a constant slice is 1."""
    i, j = np.indices(p.shape[1:])
    apart = np.abs(i - j)

    def mean(values: Float[np.ndarray, "l l"]) -> Float[np.ndarray, " b"]:
        return np.sum(p * values, axis=(1, 2))

    middle = mean(i.astype(float))[:, None, None]
    variance = np.sum(p * (i - middle) ** 2, axis=(1, 2))
    together = np.sum(p * (i - middle) * (j - middle), axis=(1, 2))
    correlation = np.divide(together, variance, out=np.ones_like(variance), where=variance > 0)
    return np.stack(
        [
            *(mean(apart**2.0), mean(apart * 1.0), mean(1 / (1 + apart**2.0))),
            *(np.sqrt(np.sum(p**2, axis=(1, 2))), correlation),
            stats.entropy(p.reshape(len(p), -1), axis=1),
        ],
        axis=1,
    )
