"""The pairs of slices that an audit found, side by side: for a person to look at, not to keep.

Writes pairs.png and pairs.csv into a folder of your own. They hold pseudonyms and pixels of
patients: protect them as their source. No dataset and no run holds them.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from ctssl_jax.dataset.leaks import to_text
from ctssl_jax.dataset.manifest import read_manifest
from ctssl_jax.errors import DataError, StorageError
from data_prep.not_duplicates import COLUMNS
from data_prep.pipeline.quality import Tile, contact_sheet

SHOWN = 100  # pairs in the picture, four in a row; the table holds all
Place = tuple[Path, str]  # a dataset and its split


@dataclass(frozen=True)
class Shown:
    """A pair that was found.

    Attributes:
        name: See `matching.names`.
        check: "exact" or "near".
        places: Dataset and split of each of the two.
        rows: Their records.
    """

    name: tuple[int, int]
    check: str
    places: tuple[Place, Place]
    rows: tuple[int, int]


def require_own_folder(folder: Path, datasets: Sequence[Path]) -> None:
    """Raises DataError if the pictures would be in a dataset or run, or over other files."""
    inside = [folder.resolve(), *folder.resolve().parents]
    for place in inside:
        if place in [dataset.resolve() for dataset in datasets] or any(
            (place / name).exists() for name in ("manifest.json", "config.json")
        ):
            raise DataError(
                f"--show_pairs={folder}: this is in a dataset or run folder, which others may be "
                "given: choose a folder of your own"
            )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"--show_pairs={folder} exists and is not empty: choose another")


def write_pairs(folder: Path, pairs: Sequence[Shown]) -> None:
    """Writes pairs.png, of the first `SHOWN`, and pairs.csv, of all; neither if there is none.

    Raises:
        StorageError: If it cannot be written.
    """
    if not pairs:
        return
    pairs = sorted(pairs, key=lambda pair: pair.check != "near")
    tiles = []
    for number, pair in enumerate(pairs[:SHOWN], 1):
        for (dataset, split), row in zip(pair.places, pair.rows, strict=True):
            image, intensity = _image(dataset, split, row)
            tiles.append(Tile(image, intensity, f"{number} {pair.check}\n{split} {row}"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(tiles).save(folder / "pairs.png")
        with open(folder / "pairs.csv", "w", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(("number", *COLUMNS))
            for number, pair in enumerate(pairs, 1):
                splits = " and ".join(split for _, split in pair.places)
                rows = " and ".join(map(str, pair.rows))
                table.writerow((number, to_text(pair.name), pair.check, splits, rows, ""))
    except OSError as error:
        raise StorageError(f"--show_pairs cannot be written: {error.strerror}") from None


def _image(dataset: Path, split: str, row: int) -> tuple[Int16[np.ndarray, "h w"], str]:
    """The pixels of a record and what they are."""
    import tensorflow_datasets as tfds  # slow to import

    manifest = read_manifest(dataset)
    source = tfds.builder_from_directory(str(dataset / manifest["records"])).as_data_source(
        split=split
    )
    return source[row]["image"], manifest["intensity"]
