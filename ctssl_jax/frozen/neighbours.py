"""Which training cases an encoder takes for most alike: a picture to judge its features by eye.

A case is shown by its middle slice. The queries are cases of validation, spread over the split
before anything is known of them: what people look at is not the test. Their neighbours are those of
`classifiers.fit_knn`.
"""

import csv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ctssl_jax import data
from ctssl_jax.augment import views as augment
from ctssl_jax.config import EvaluateConfig
from ctssl_jax.data import Dataset
from ctssl_jax.dataset.canvas import to_canvas
from ctssl_jax.files import whole_file
from ctssl_jax.frozen.features import Features
from ctssl_jax.run.pictures import save_grid

QUERIES = 6
NEAREST = 5
TILE = 128
"""Side of a slice in the picture, in pixels."""


def nearest(
    train: Features, queries: Features, k: int
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Cosine distances of each query's k nearest training slices, and their places in `train`."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
    return model.fit(train.x.astype(np.float64)).kneighbors(queries.x.astype(np.float64))


def draw_neighbours(
    train: Features, val: Features, dataset: Dataset, config: EvaluateConfig, workdir: Path
) -> None:
    """`figures/neighbours.png`: a row for each query, itself first, then the nearest by distance.

    Slices are shown as they enter the network. `figures/neighbours.csv` says of each tile the
    `query` (its row), `rank` (0 is the query itself), `record` (row number in its split), `label`
    and cosine `distance`.
    """
    spread = np.linspace(0, len(val.labels) - 1, min(QUERIES, len(val.labels))).astype(int)
    queries = val.take(spread)
    distances, found = nearest(train, queries, min(NEAREST, len(train.labels)))
    shown, rows = [], []
    for query, (near, places) in enumerate(zip(distances, found, strict=True)):
        tiles = [
            (config.val_split, int(queries.records[query]), queries.labels[query], 0.0),
            *(
                (config.data.split, int(train.records[place]), train.labels[place], distance)
                for place, distance in zip(places, near, strict=True)
            ),
        ]
        shown.append(_slices(dataset, config, [tile[:2] for tile in tiles]))
        rows += [
            (query, rank, record, label, f"{distance:.6f}")
            for rank, (_, record, label, distance) in enumerate(tiles)
        ]
    save_grid(shown, workdir / "figures" / "neighbours.png")
    table = workdir / "figures" / "neighbours.csv"
    with whole_file(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "rank", "record", "label", "distance"])
        writer.writerows(rows)


def _shown(dataset: Dataset, split: str, record: int) -> int:
    """The row of the slice that stands for a case: the middle one."""
    cases = data.read_cases(dataset, split)
    rows = cases.rows[int(np.flatnonzero(cases.records == record)[0])]
    return int(rows[len(rows) // 2])


def _slices(
    dataset: Dataset, config: EvaluateConfig, places: list[tuple[str, int]]
) -> Float[np.ndarray, "b 128 128"]:
    """A slice of each case, by split and record, 0..1."""
    shown = [(split, _shown(dataset, split, record)) for split, record in places]
    stored = [dataset.source(split)[row]["image"] for split, row in shown]
    tiles = jnp.asarray(np.stack([to_canvas(image, TILE) for image in stored]))
    return np.asarray(augment.to_unit(tiles, config.intensity, dataset.intensity))[..., 0]
