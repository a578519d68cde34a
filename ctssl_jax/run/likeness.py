"""Whether a case is like those that a network was chosen on: a simple measure in feature space.

A fine-tuning leaves the mean feature vectors of its validation cases, `reference.npz`. A new case
is unlike them if the cosine distance to the nearest of them is more than `TIMES` the largest
distance at which one of them is from its own nearest. That finds another body region or a broken
scan; it is no measure of whether the network is right.
"""

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ctssl_jax.errors import StorageError
from ctssl_jax.files import open_ordinary, whole_file

FILE = "reference.npz"
TIMES = 2.0
FEWEST = 3  # cases to tell by
MOST = 1024  # that are kept


def save_reference(run: Path, means: Float[np.ndarray, "n d"]) -> None:
    """Leaves the mean feature vectors of validation cases, evenly chosen if they are many."""
    chosen = np.linspace(0, len(means) - 1, min(MOST, len(means))).astype(int)
    with whole_file(run / FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, features=means[chosen].astype(np.float32))


def read_reference(run: Path) -> Float[np.ndarray, "n d"] | None:
    """Those of a run; None where it left too few to tell by, as older versions did.

    Raises:
      StorageError: they cannot be read.
    """
    if not (run / FILE).exists():
        return None
    try:
        with open_ordinary(run / FILE) as file, np.load(file, allow_pickle=False) as arrays:
            found = arrays["features"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StorageError(f"{run / FILE} cannot be read: repeat the run that made it") from error
    return found if len(found) >= FEWEST else None


def distances(
    reference: Float[np.ndarray, "n d"], means: Float[np.ndarray, "c d"]
) -> Float[np.ndarray, " c"]:
    """Cosine distance of each case to the nearest of the reference."""
    return (1 - unit(means) @ unit(reference).T).min(axis=1)


def limit(reference: Float[np.ndarray, "n d"]) -> float:
    """The distance beyond which a case is unlike."""
    apart = 1 - unit(reference) @ unit(reference).T
    np.fill_diagonal(apart, np.inf)
    return float(TIMES * apart.min(axis=1).max())


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Each vector by its length, in float64."""
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
