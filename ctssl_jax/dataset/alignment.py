"""Whether two thumbnails are one picture, edited, resized or cropped a little.

Two numbers, both taken after one of the two is cut to fit the other best. The *cosine* of the waves
(`features`) knows the picture as a whole; in a head it knows little but the skull, and two skulls
are much alike. The *detail* is the correlation within 3x3 pixels, and tells them apart; it is lost
where the picture is faint and was compressed. docs/data.md has what the thresholds find and how
often they err.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

CUTS = (-0.04, -0.02, 0.0, 0.02, 0.04)  # of an edge; below 0: the other slice was cut
LIKENESS = 0.93  # least of (2 cosine + detail) / 3
# Or, for faint pictures, at which less than FAINT differs, the least cosine alone. FAINT is the
# length of what differs in weighted waves of grey levels: 4000 and more between two heads.
NEAR, FAINT = 0.93, 2400.0
LEAST = 0.9  # cosine without which the detail is not looked at
HOPE = 0.8  # cosine with one of them cut, without which the other is not tried
# Of the detail: its floor and its cap, as shares of the picture's standard deviation. Below the
# floor is noise; above the cap an edge has no more weight.
FLOOR, CAP = 0.05, 0.3


def features(waves: Float32[np.ndarray, "*n side side"]) -> Float32[np.ndarray, "*n d"]:
    """Unit vectors of pictures that are compared by their cosine.

    Each wave of the cosine transform is weighted by its frequency, which makes up for the spectrum
    of pictures: everything broad is much alike between patients. The mean is left out and so is the
    scale: brightness and contrast do not matter.
    """
    flat = _weighted(waves)
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


def is_near(
    one: UInt8[np.ndarray, "p side side"], other: UInt8[np.ndarray, "p side side"]
) -> Bool[np.ndarray, " p"]:
    """Whether each pair is one picture, whichever of the two was cut."""
    near, cosine = _is_near_cut(one, other)
    again = np.flatnonzero(~near & (cosine >= HOPE))
    near[again] = _is_near_cut(other[again], one[again])[0]
    return near


def aligned_cosine(
    one: UInt8[np.ndarray, "p side side"], other: UInt8[np.ndarray, "p side side"]
) -> Float32[np.ndarray, " p"]:
    """The cosine of each pair after the first is cut, by `CUTS`, to fit the second best."""
    return _align(one, other)[0]


def detail(
    one: Float[np.ndarray, "p side side"], other: Float[np.ndarray, "p side side"]
) -> Float[np.ndarray, " p"]:
    """The mean correlation of the 3x3 neighbourhoods of two aligned pictures, at most 1.

    A neighbourhood counts by its own contrast, up to that of `CAP`: an edge is not all.
    """
    x, y = (_standardised(picture) for picture in (one, other))
    mean_x, mean_y = _around(x), _around(y)
    var_x = np.maximum(_around(x * x) - mean_x**2, 0)
    var_y = np.maximum(_around(y * y) - mean_y**2, 0)
    correlation = (_around(x * y) - mean_x * mean_y) / np.sqrt(
        (var_x + FLOOR**2) * (var_y + FLOOR**2)
    )
    weight = np.minimum(np.sqrt(np.maximum(var_x, var_y)), CAP)
    total = weight.sum(axis=(1, 2))
    return (correlation * weight).sum(axis=(1, 2)) / np.maximum(total, 1e-6)


def _is_near_cut(
    one: UInt8[np.ndarray, "p side side"], other: UInt8[np.ndarray, "p side side"]
) -> tuple[Bool[np.ndarray, " p"], Float32[np.ndarray, " p"]]:
    """Whether each pair is one picture with the first cut to fit, and the cosine of that."""
    cosine, fitted = _align(one, other)
    lengths = [np.linalg.norm(_weighted(to_waves(picture)), axis=-1) for picture in (one, other)]
    differs = np.minimum(*lengths) * np.sqrt(np.maximum(1 - cosine.astype(float) ** 2, 0))
    near = (cosine >= NEAR) & (differs <= FAINT)
    looked_at = np.flatnonzero((cosine >= LEAST) & ~near)
    found = detail(fitted[looked_at], other[looked_at].astype(np.float32))
    near[looked_at] = (2 * cosine[looked_at] + found) / 3 >= LIKENESS
    return near, cosine


def _align(
    one: UInt8[np.ndarray, "p side side"], other: UInt8[np.ndarray, "p side side"]
) -> tuple[Float32[np.ndarray, " p"], Float32[np.ndarray, "p side side"]]:
    """The best cosine of each pair, and the first picture as cut for it.

    The cuts of rows and columns are found in turn.
    """
    side = one.shape[-1]
    grid = (np.arange(side) + 0.5) / side
    cut = [low + (1 - low - high) * grid for low in CUTS for high in CUTS]
    # From waves to waves: the picture between two cuts, interpolated by its own waves.
    transform = _cosines(side, grid)
    warps = np.stack([transform @ _cosines(side, x).T for x in cut])
    waves = to_waves(one)
    targets = [features(to_waves(picture)) for picture in (other, other.swapaxes(1, 2))]
    columns = rows = np.full(len(one), len(cut) // 2)  # no cut
    found = np.zeros(len(one), np.float32)
    for target in 2 * targets:
        # Columns cut as found before, rows in all ways; then the same of the transposed picture.
        columns, half = rows, waves @ warps[rows].swapaxes(1, 2)
        tried = np.tensordot(warps, half, ([2], [1])).transpose(2, 0, 1, 3)
        cosines = (features(tried) @ target[:, :, None])[..., 0]
        rows, found = cosines.argmax(axis=1), cosines.max(axis=1)
        waves = waves.swapaxes(1, 2)
    # The last turn was of the transposed picture: its rows are the columns.
    fitted = warps[columns] @ waves @ warps[rows].swapaxes(1, 2)
    return found, transform.T @ fitted @ transform


def _weighted(waves: Float32[np.ndarray, "*n side side"]) -> Float32[np.ndarray, "*n d"]:
    side = np.arange(waves.shape[-1])
    weighted = waves * np.hypot(side[:, None], side).astype(np.float32)
    return weighted.reshape(*waves.shape[:-2], side.size**2)[..., 1:]


def _standardised(pictures: Float[np.ndarray, "p side side"]) -> Float[np.ndarray, "p side side"]:
    values = pictures.astype(np.float64)
    values = values - values.mean(axis=(1, 2), keepdims=True)
    return values / (values.std(axis=(1, 2), keepdims=True) + 1e-6)


def _around(values: Float[np.ndarray, "p side side"]) -> Float[np.ndarray, "p inner inner"]:
    """The mean over 3x3 pixels, where all nine are there."""
    rows = (values[:, :-2] + values[:, 1:-1] + values[:, 2:]) / 3
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 3


def _cosines(side: int, x: Float[np.ndarray, " m"]) -> Float32[np.ndarray, "side m"]:
    """The orthonormal cosine waves of a row of `side` pixels, at places x from 0 to 1."""
    waves = np.sqrt(2 / side) * np.cos(np.pi * np.arange(side)[:, None] * x)
    waves[0] *= np.sqrt(0.5)
    return waves.astype(np.float32)
