"""Where a network looked: the slices that drove it, and in each of them the places.

The map is Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2) of the last stage: what the
log-odds of the case gain by each place of a slice. The features are the maps' global average, so
that the mean slope over the places is that of the features, divided by the number of places.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16, UInt8
from PIL import Image

from ctssl_jax.augment import IntensityKind
from ctssl_jax.augment import views as augment
from ctssl_jax.data import Dataset, on_canvas
from ctssl_jax.files import whole_file
from ctssl_jax.methods.base import PyTree
from ctssl_jax.predict.network import Said, SplitCases, slopes
from ctssl_jax.run.restore import FineTuned

TILE = 192  # pixels a side
GAP = 2
BARS = 48  # height of the strip of shares
HEAT = np.array([255.0, 60.0, 0.0])


def cam(
    stage: Float[np.ndarray, "k h w c"], slope: Float[np.ndarray, "k c"]
) -> Float[np.ndarray, "k h w"]:
    """Grad-CAM of slices: the positive part of the maps weighted by their slopes."""
    return np.maximum(np.einsum("khwc,kc->khw", stage, slope), 0.0)


def last_stage(model: FineTuned, kind: IntensityKind, stored: Int16[np.ndarray, "k s s"]) -> Array:
    """The last stage's maps of slices, as evaluation sees them."""
    view = model.config.method.view

    @jax.jit
    def maps(params: PyTree, stats: PyTree, stored: Int16[Array, "k s s"]) -> Array:
        image = augment.whole_slices(
            stored, model.config.intensity, kind, view.size, view.interpolation
        )
        variables = {"params": params, "batch_stats": stats}
        return jnp.asarray(model.encoder.apply(variables, image, train=False)[-1])

    return maps(model.params["encoder"], model.batch_stats["encoder"], jnp.asarray(stored))


def slice_maps(
    model: FineTuned, dataset: Dataset, seen: SplitCases, place: int, said: Said, top: Sequence[int]
) -> tuple[Int16[np.ndarray, "k s s"], Float[np.ndarray, "k s s"]]:
    """The slices at `top` of a case, as stored, and Grad-CAM of each at their size."""
    source = dataset.source(seen.split)
    rows = [int(seen.cases.rows[place][number]) for number in top]
    stored = np.stack([on_canvas(source[row]["image"], model.config.data) for row in rows])
    stage = np.asarray(last_stage(model, dataset.intensity, stored), np.float32)
    slope = slopes(model.config.method, model.params["head"], seen.of(place), said.target)
    heat = cam(stage, slope[list(top)])
    size = stored.shape[1]
    return stored, np.asarray(jax.image.resize(heat, (len(top), size, size), "bilinear"))


def draw_case(
    path: Path,
    model: FineTuned,
    dataset: Dataset,
    seen: SplitCases,
    place: int,
    said: Said,
    count: int,
) -> None:
    """A PNG of a case: its top slices, below them with Grad-CAM, and the share of each slice.

    The bars run from the first slice to the last; those of the slices shown are in colour.
    """
    top = said.top(min(count, len(said.shares)))
    stored, heat = slice_maps(model, dataset, seen, place, said, top)
    unit = augment.to_unit(jnp.asarray(stored), model.config.intensity, dataset.intensity)
    plain = [_tile(255.0 * each) for each in np.asarray(unit)[..., 0]]
    strongest = max(float(heat.max()), 1e-12)
    marked = [
        _over(grey, _tile(255.0 * each / strongest)) for grey, each in zip(plain, heat, strict=True)
    ]
    rows = [_row([np.repeat(grey[..., None], 3, axis=2) for grey in plain]), _row(marked)]
    bars = _bars(said.shares, set(top), rows[0].shape[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    picture = Image.fromarray(np.concatenate([rows[0], gap, rows[1], gap, bars]))
    with whole_file(path) as temporary:
        picture.save(temporary, format="png")


def _tile(grey: Float[np.ndarray, "s s"]) -> UInt8[np.ndarray, "t t"]:
    whole = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    return np.asarray(whole.resize((TILE, TILE), Image.Resampling.BILINEAR))


def _over(
    grey: UInt8[np.ndarray, "t t"], heat: UInt8[np.ndarray, "t t"]
) -> UInt8[np.ndarray, "t t 3"]:
    strength = 0.6 * heat[..., None] / 255.0
    return np.rint((1 - strength) * grey[..., None] + strength * HEAT).astype(np.uint8)


def _row(tiles: Sequence[UInt8[np.ndarray, "t t 3"]]) -> UInt8[np.ndarray, "t w 3"]:
    padded = [np.pad(tile, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for tile in tiles]
    return np.concatenate(padded, axis=1)[:, :-GAP]


def _bars(
    shares: Float[np.ndarray, " n"], shown: set[int], width: int
) -> UInt8[np.ndarray, "b w 3"]:
    """The shares as bars, as high as the largest is allowed to be."""
    bars = np.full((BARS, width, 3), 255, np.uint8)
    owner = np.minimum(np.arange(width) * len(shares) // width, len(shares) - 1)
    heights = np.rint(BARS * shares / max(float(shares.max()), 1e-12)).astype(int)
    for column, number in enumerate(owner.tolist()):
        colour = HEAT if number in shown else np.array([110.0, 110.0, 110.0])
        bars[BARS - heights[number] :, column] = colour.astype(np.uint8)
    return bars
