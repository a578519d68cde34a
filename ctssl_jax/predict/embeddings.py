"""Features of cases, for retrieval and clustering: a file of them, and who is next to whom."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ctssl_jax.augment import views as augment
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.data import Dataset, on_canvas
from ctssl_jax.files import whole_file
from ctssl_jax.predict.earlier import ARRAYS, FEATURES, NEIGHBOURS
from ctssl_jax.predict.network import SplitCases
from ctssl_jax.predict.tables import write_csv
from ctssl_jax.run.likeness import unit
from ctssl_jax.run.pictures import save_grid

NEAREST = 5


def write_features(out: Path, seen: Sequence[SplitCases], names: Sequence[Sequence[str]]) -> None:
    """Writes `features.npz` and `features.csv`, each whole or not at all.

    The NPZ holds `case` and `features` [c, d], the mean over each case's slices, and of all slices
    `slice_features` [n, d], `slice_case` and `slice` (place in the case). The CSV holds the cases.
    """
    cases = np.array([name for of in names for name in of])
    means = np.concatenate([one.means() for one in seen]).astype(np.float32)
    every = [
        (name, number, features)
        for one, of in zip(seen, names, strict=True)
        for place, name in enumerate(of)
        for number, features in enumerate(one.of(place))
    ]
    with whole_file(out / ARRAYS) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            case=cases,
            features=means,
            slice_case=np.array([name for name, _, _ in every]),
            slice=np.array([number for _, number, _ in every], np.int32),
            slice_features=np.stack([features for _, _, features in every]).astype(np.float32),
        )
    patients = [patient for one in seen for patient in one.cases.patients]
    counts = [len(rows) for one in seen for rows in one.cases.rows]
    rows = [
        [name, patient, count, *(f"{value:.6g}" for value in mean)]
        for name, patient, count, mean in zip(cases, patients, counts, means, strict=True)
    ]
    header = ["case", "patient", "slices", *(f"feature_{k}" for k in range(means.shape[1]))]
    write_csv(out / FEATURES, header, rows)


def draw_neighbours(
    out: Path,
    config: FinetuneConfig,
    dataset: Dataset,
    seen: Sequence[SplitCases],
    names: Sequence[Sequence[str]],
    query: tuple[int, int],
) -> None:
    """`neighbours/CASE.png`: the middle slice of a case and of those nearest to it by cosine.

    `neighbours/CASE.csv` names them, with their distances.
    """
    places = [(split, place) for split, of in enumerate(names) for place in range(len(of))]
    means = unit(np.concatenate([one.means() for one in seen]))
    apart = 1 - means @ means[places.index(query)]
    apart[places.index(query)] = -1.0  # itself comes first, before whatever equals it
    order = np.argsort(apart, kind="stable")[: 1 + NEAREST]
    tiles = []
    for split, place in (places[n] for n in order):
        one = seen[split]
        rows = one.cases.rows[place]
        record = dataset.source(one.split)[int(rows[len(rows) // 2])]
        tiles.append(on_canvas(record["image"], config.data))
    shown = augment.to_unit(jnp.asarray(np.stack(tiles)), config.intensity, dataset.intensity)
    name = names[query[0]][query[1]]
    save_grid([np.asarray(shown)[..., 0]], out / NEIGHBOURS / f"{name}.png")
    rows = [[names[places[n][0]][places[n][1]], f"{max(float(apart[n]), 0.0):.6f}"] for n in order]
    write_csv(out / NEIGHBOURS / f"{name}.csv", ["case", "distance"], rows)
