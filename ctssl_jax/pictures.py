"""Pictures that a run draws while it goes on: NumPy and Pillow only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from ctssl_jax.augment import Intensity, IntensityKind, IntensityMode

GAP = 2  # pixels between tiles


def to_display(
    image: Float[np.ndarray, "b h w c"],
    intensity: Intensity,
    kind: IntensityKind,
    window_hu: tuple[float, float],
) -> Float[np.ndarray, "b h w"]:
    """Network input -> 0..1 for the eye: HU through `window_hu`, grey as it is; first channel."""
    unit = image[..., 0] * intensity.std[0] + intensity.mean[0]
    if kind == "hu" and intensity.mode is IntensityMode.WINDOW:
        low, high = intensity.window_hu
        unit = (low + unit * (high - low) - window_hu[0]) / (window_hu[1] - window_hu[0])
    return np.clip(unit, 0.0, 1.0)


def views_rows(
    views: Sequence[Float[Any, "_ b _ _ c"]], size: int
) -> list[Float[np.ndarray, "b {size} {size} c"]]:
    """One row for each view of all groups, in the middle of `size` pixels; around it, NaN.

    `views` are NumPy's or JAX's, network input or 0..1: the numbers stay as they are, and
    `to_display` lets NaN pass.
    """
    rows = []
    for group in map(np.asarray, views):
        before = (size - group.shape[2]) // 2
        margin = (before, size - group.shape[2] - before)
        pad = ((0, 0), (0, 0), margin, margin, (0, 0))
        rows += list(np.pad(group, pad, constant_values=np.nan))
    return rows


def save_grid(rows: list[Float[np.ndarray, "b h w"]], path: Path) -> None:
    """Writes rows of equally sized images as one 8-bit PNG, whole or not at all; NaN is grey."""
    tiles = [np.pad(row, ((0, 0), (0, GAP), (0, GAP)), constant_values=1.0) for row in rows]
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles], axis=0)
    grid = grid[: grid.shape[0] - GAP, : grid.shape[1] - GAP]
    grid = np.nan_to_num(grid, nan=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(np.round(grid * 255).astype(np.uint8)).save(temporary, format="png")
    temporary.rename(path)
