"""Which part of a labelled training split a run sees: the small-data axis of the study."""

import enum

import numpy as np
from jaxtyping import Int, Shaped

from ctssl_jax.errors import ConfigError, DataError


class SubsetBy(enum.Enum):
    """What is drawn for a subset: single images (the paper), or patients with all their images."""

    IMAGE = "image"
    PATIENT = "patient"


def subset(
    labels: Int[np.ndarray, "n"],
    patients: Shaped[np.ndarray, "n"],
    fraction: float,
    seed: int,
    by: SubsetBy = SubsetBy.IMAGE,
) -> Int[np.ndarray, "m"]:
    """Row numbers, ascending, of a random `fraction` of the records, in the classes' proportions.

    IMAGE draws `int(fraction * n)` images. PATIENT draws that fraction of the patients, each
    counted in the class of most of its images. At least one of each class. Depends on nothing but
    the arguments; of one seed, smaller subsets are contained in larger ones.

    Raises:
      ConfigError: `fraction` is not in (0, 1].
      DataError: a record has no label.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction}: must be above 0 and at most 1")
    if len(labels) == 0 or labels.min() < 0:
        raise DataError(
            f"a labelled subset needs labels: {np.count_nonzero(labels < 0)} of {len(labels)} "
            "records have none"
        )
    if by is SubsetBy.IMAGE:
        return np.sort(_first_of_strata(labels, fraction, seed))
    _, owner = np.unique(patients, return_inverse=True)
    votes = np.zeros((owner.max() + 1, labels.max() + 1), np.int64)
    np.add.at(votes, (owner, labels), 1)
    drawn = _first_of_strata(votes.argmax(axis=1), fraction, seed)
    return np.flatnonzero(np.isin(owner, drawn))


def _first_of_strata(
    strata: Int[np.ndarray, "n"], fraction: float, seed: int
) -> Int[np.ndarray, "m"]:
    """The first `int(fraction * n)` of one fixed random order that keeps the strata in proportion.

    Item number r (from 0) of a stratum of N is due at (r + 1/2) / N of the order: Sainte-Laguë's
    apportionment, which unlike the largest remainder never takes a place back as the total grows.
    The first of each stratum comes before all others.
    """
    # Raw bits: NumPy keeps these, not what `Generator` makes of them, the same across versions.
    draw = np.random.PCG64(seed).random_raw(len(strata))
    order = np.lexsort((draw, strata))
    _, start, count = np.unique(strata[order], return_index=True, return_counts=True)
    rank = np.arange(len(strata)) - np.repeat(start, count)
    due = np.where(rank == 0, 0.0, (rank + 0.5) / np.repeat(count, count))
    order = order[np.lexsort((draw[order], due))]
    return order[: max(int(fraction * len(strata)), len(count))]
