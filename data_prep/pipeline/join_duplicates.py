"""Patients who share a picture, taken for one: so that no split can come between its copies.

Collections from publications or the web hold copies of a picture under different names. Patients
are then no guard against leakage: the audit fails whatever the split.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

import numpy as np
from jaxtyping import Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ctssl_jax.dataset.leaks import shared
from ctssl_jax.dataset.matching import Name
from ctssl_jax.dataset.signatures import Signatures
from data_prep.pipeline.plan import assign
from data_prep.pipeline.work import Part


def join_duplicates(
    signatures: Signatures,
    parts: Iterable[tuple[str, Part]],
    patients: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
    apart: Collection[Name] = (),
) -> dict[str, str]:
    """Gives patients who share a series, or equal or nearly equal slices, one identifier.

    It splits, looks for what the splits share as the audit does, joins these patients, and repeats
    that until the splits share nothing.

    Args:
        signatures: Of all slices.
        parts: What was read, of a source that leaves all splits open.
        patients: Identifier in the source by pseudonym.
        fractions: As of `assign`.
        seed: As of `assign`.
        apart: Pairs that are no duplicates; see `not_duplicates`.

    Returns:
        `patients`, with the first of their identifiers for all who are joined.
    """
    identifiers = np.array(sorted(patients.values()))
    own = np.searchsorted(identifiers, [patients[name.decode()] for name in signatures.patient])
    first, pairs = np.arange(len(identifiers)), np.empty((2, 0), np.int64)
    while True:
        now = dict(zip(identifiers.tolist(), identifiers[first].tolist(), strict=True))
        joined = {name: now[identifier] for name, identifier in patients.items()}
        split_of = assign(parts, joined, fractions, seed)
        split = np.array([split_of[name] for name in identifiers[first[own]]])
        found = _shared(signatures, split, apart)
        if not found.size:
            return joined
        pairs = np.concatenate([pairs, own[found]], axis=1)
        edges = coo_array((np.ones(len(pairs[0])), tuple(pairs)), shape=2 * identifiers.shape)
        _, group = connected_components(edges, directed=False)
        first = np.unique(group, return_index=True)[1][group]


def _shared(
    signatures: Signatures, split: Shaped[np.ndarray, " n"], apart: Collection[Name]
) -> Shaped[np.ndarray, "2 p"]:
    """Rows of slices in different splits that the audit would find, of one series or alike."""
    found = [np.empty((2, 0), np.int64)]
    for names in combinations(np.unique(split), 2):
        rows = [np.flatnonzero(split == name) for name in names]
        left, right = (signatures.take(mine) for mine in rows)
        for pairs in shared(left, right, apart).values():
            found.append(np.stack([rows[0][pairs.left], rows[1][pairs.right]]))
    return np.concatenate(found, axis=1)
