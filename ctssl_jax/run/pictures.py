"""Pictures that a run draws while it goes on, of the same slices each time."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int16, Key
from PIL import Image

from ctssl_jax.augment import Intensity, IntensityKind, IntensityMode
from ctssl_jax.augment import views as augment
from ctssl_jax.config import PretrainConfig
from ctssl_jax.data import Dataset
from ctssl_jax.dataset.canvas import to_canvas
from ctssl_jax.files import whole_file
from ctssl_jax.hosts import distributed
from ctssl_jax.methods.base import TrainState
from ctssl_jax.nn.resnet import ResNet

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
        low, high = intensity.bounds(kind)
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
    if not distributed.is_first():
        return
    tiles = [np.pad(row, ((0, 0), (0, GAP), (0, GAP)), constant_values=1.0) for row in rows]
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles], axis=0)
    grid = grid[: grid.shape[0] - GAP, : grid.shape[1] - GAP]
    grid = np.nan_to_num(grid, nan=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        Image.fromarray(np.round(grid * 255).astype(np.uint8)).save(temporary, format="png")


class Slices(NamedTuple):
    """What all pictures of a run show: stored slices, their keys, and what the numbers are."""

    stored: Int16[np.ndarray, "b h w"]
    keys: Key[Array, " b"]
    kind: IntensityKind

    def show(self, rows: Iterable[Any], config: PretrainConfig, path: Path) -> None:
        """Writes rows of network inputs as one picture."""
        window = config.display_window_hu
        shown = [to_display(np.asarray(row), config.intensity, self.kind, window) for row in rows]
        save_grid(shown, path)


def read_slices(dataset: Dataset, config: PretrainConfig, count: int = 8) -> Slices:
    """Reads slices spread over the training split."""
    source = dataset.source(config.data.split)
    rows = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    stored = [to_canvas(source[int(i)]["image"], config.data.canvas) for i in rows]
    keys = augment.image_keys(jax.random.key(config.seed), 0, jnp.asarray(rows))
    return Slices(np.stack(stored), keys, dataset.intensity)


def draw_views(slices: Slices, config: PretrainConfig, workdir: Path) -> None:
    """`figures/views.png`: the whole slices, and below them each view that the method draws."""
    groups, size = config.method.views, max(group.size for group in config.method.views)

    @jax.jit
    def draw(stored: Int16[Array, "b h w"], keys: Key[Array, " b"]) -> Any:
        unit = augment.to_unit(stored, config.intensity, slices.kind)
        whole = augment.resize(unit, size, augment.Interpolation.BILINEAR)
        views = (whole[None], *augment.make_views(keys, unit, groups))
        return tuple(augment.normalise(view, config.intensity) for view in views)

    drawn = draw(jnp.asarray(slices.stored), slices.keys)
    slices.show(views_rows(drawn, size), config, workdir / "figures" / "views.png")


def reconstruction(
    slices: Slices, config: PretrainConfig, encoder: ResNet, workdir: Path
) -> Callable[[TrainState, int], None]:
    """Draws input, masked input and reconstruction of the same slices under the same masks."""
    method: Any = config.method

    @jax.jit
    def reconstruct(state: TrainState) -> Any:
        stored, view = jnp.asarray(slices.stored), method.view
        image = augment.whole_slices(
            stored, config.intensity, slices.kind, view.size, view.interpolation
        )
        return method.reconstruct(encoder, state, image, slices.keys)

    def draw(state: TrainState, number: int) -> None:
        path = workdir / "figures" / f"reconstruction_{number:07}.png"
        slices.show(reconstruct(state), config, path)

    return draw
