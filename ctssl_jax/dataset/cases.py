"""Cases: what one label is of, a scan, a nodule, or the slice itself. They are what is counted.

A `CaseTable` says which records of a split are the slices of which case. A slice task is the
special case of one slice a case: then the cases are the records, in their order.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from ctssl_jax.errors import DataError

SLICE = "slice"


class CaseTable(NamedTuple):
    """The cases of a split, in the order of their first records.

    Attributes:
      labels: class of each case, -1 for none.
      patients: pseudonym of each case's patient.
      names: pseudonym of each case; "" where it is a slice.
      rows: the row numbers of each case's slices, from the first slice to the last.
    """

    labels: Int[np.ndarray, " c"]
    patients: Shaped[np.ndarray, " c"]
    names: Shaped[np.ndarray, " c"]
    rows: Sequence[Int[np.ndarray, " _"]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def slices(self) -> int:
        """How many slices all of them have."""
        return sum(map(len, self.rows))

    @property
    def records(self) -> Int[np.ndarray, " c"]:
        """The smallest row number of each case, which names it within its split."""
        return np.array([rows.min() for rows in self.rows], np.int64)

    @property
    def named(self) -> bool:
        """Whether any case is something else than a slice."""
        return bool(np.any(self.names != ""))

    def means(
        self, features: Float[np.ndarray, "n d"], rows: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "c d"]:
        """The mean feature vector of each case, given those of slices `rows`, ascending."""
        return np.stack([features[np.searchsorted(rows, own)].mean(axis=0) for own in self.rows])

    def take(self, chosen: Int[np.ndarray, " m"]) -> "CaseTable":
        """The cases at the given places."""
        rows = [self.rows[int(place)] for place in chosen]
        return CaseTable(self.labels[chosen], self.patients[chosen], self.names[chosen], rows)

    def slice_rows(self) -> Int[np.ndarray, " n"]:
        """The row numbers of all slices, ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.int64), *self.rows]))


def case_table(
    labels: Int[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"],
    names: Shaped[np.ndarray, " n"],
    order: Int[np.ndarray, " n"],
) -> CaseTable:
    """The cases of records.

    Args:
      labels: of each record's case.
      patients: pseudonym of each record's patient.
      names: pseudonym of each record's case; "" where the record is a case of its own.
      order: by which the slices of a case follow each other; equal ones as the records do.

    Raises:
      DataError: the records of a case do not agree on its label or patient.
    """
    alone = names == ""
    # No pseudonym is a number: what is alone has a name that no other record has.
    keys = np.where(alone, np.char.add("#", np.arange(len(names)).astype(str)), names)
    _, first, owner = np.unique(keys, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    owner, first = place[owner], np.sort(first)
    for of, what in ((labels, "labels"), (patients, "patients")):
        if np.any(of != of[first][owner]):
            raise DataError(f"the slices of a case have different {what}: prepare the data again")
    along = np.lexsort((np.arange(len(names)), order, owner))
    rows = np.split(along, np.cumsum(np.bincount(owner, minlength=len(first)))[:-1])
    return CaseTable(labels[first], patients[first], np.where(alone, "", names)[first], rows)


def case_word(said: Mapping[str, Any]) -> str:
    """What people call one case, by a manifest or a run's `data.json`; older ones know slices."""
    case = said.get("case")
    return str(case["word"]) if isinstance(case, Mapping) and case.get("word") else SLICE


def case_of(said: Mapping[str, Any]) -> str:
    """What the slices of one case share, likewise: "slice" where each is one."""
    case = said.get("case")
    return str(case["of"]) if isinstance(case, Mapping) and case.get("of") else SLICE


def plural(word: str) -> str:
    """Of the word for a case.

    >>> [plural(word) for word in ("scan", "study", "mass", "nodule", "series")]
    ['scans', 'studies', 'masses', 'nodules', 'series']
    """
    if word.endswith("series"):
        return word
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
