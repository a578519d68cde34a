"""Draws `views.png`: what each method's shipped config makes of one real CT slice.

    python docs/figures/views.py

The slice is CT_small.dcm, which pydicom carries (MIT): 128 x 128 pixels of a chest. Eight views a
row: pairs of different draws for MoCo, BYOL and SimCLR, 2 large and 6 small crops for SwAV.
"""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pydicom
from pydicom.data import get_testdata_file

from ctssl_jax import data
from ctssl_jax.augment import views as augment

ROWS = [
    ("SparK", "spark", ""),
    ("MoCo v2", "moco", ""),
    ("SwAV", "swav", ""),
    ("BYOL", "byol", ""),
    ("SimCLR", "simclr", ""),
    ("MoCo v2 and\nBYOL, as run", "moco", "as_run"),
    ("SwAV, as run", "swav", "as_run"),
]
COLUMNS = 8
CANVAS = 512


def read_slice() -> np.ndarray:
    """The slice in HU, enlarged to the canvas as the pipeline does."""
    dicom = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    hu = dicom.pixel_array * float(dicom.RescaleSlope) + float(dicom.RescaleIntercept)
    return data.to_canvas(hu.astype(np.int16), CANVAS)


def views(file: str, preset: str, hu: np.ndarray) -> list[np.ndarray]:
    """Eight views in 0..1, from as many draws as that takes."""
    config = importlib.import_module(f"configs.{file}").get_config(preset)
    groups = config.method.views
    draws = COLUMNS // sum(group.count for group in groups)
    keys = augment.image_keys(jax.random.key(0), 0, jnp.arange(draws))
    unit = augment.to_unit(jnp.asarray(hu)[None], config.intensity, "hu")
    unit = jnp.repeat(unit, draws, axis=0)
    drawn = jax.jit(lambda k, x: augment.make_views(k, x, groups))(keys, unit)
    return [np.asarray(view[i, ..., 0]) for i in range(draws) for group in drawn for view in group]


def main() -> None:
    """Writes the picture beside this file."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    hu = read_slice()
    figure, axes = pyplot.subplots(len(ROWS), COLUMNS, figsize=(9.6, 8.2), dpi=110)
    for row, (name, file, preset) in zip(axes, ROWS, strict=True):
        for tile, view in zip(row, views(file, preset, hu), strict=True):
            tile.imshow(view, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            tile.set_xticks([])
            tile.set_yticks([])
            tile.set_xlabel(f"{view.shape[0]} px", fontsize=6, labelpad=1)
        row[0].set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
