"""Pairs of slices that a person has looked at and that are no duplicates: `--not_duplicates=FILE`.

The file is the table that `--show_pairs` writes, with `no` in the column `duplicate` of the pairs
that are of different people. Only nearly equal slices can be excepted: equal ones, patients and
series in two splits cannot. A pair is named by the digests of its two pictures, so that the file
holds for every dataset that has them, whatever its splits.
"""

from pathlib import Path

from ctssl_jax.dataset.leaks import from_text
from ctssl_jax.dataset.matching import Name
from ctssl_jax.errors import DataError
from data_prep.readers.tables import read_table

COLUMNS = ("pair", "check", "splits", "rows", "duplicate")


def read_not_duplicates(path: Path) -> frozenset[Name]:
    """The pairs that a table calls no duplicates.

    Raises:
        DataError: If it cannot be read, says anything but no, yes or nothing, or says no of no
            pair, or of one that is equal and not only nearly.
    """
    found = set()
    for line, row in enumerate(read_table(path, ("pair", "duplicate"), "--not_duplicates"), 2):
        said = row["duplicate"].lower()
        if said not in ("", "no", "yes"):
            raise DataError(f"--not_duplicates: line {line}: `duplicate` must be no, yes or empty")
        if said != "no":
            continue
        try:
            name = from_text(row["pair"])
        except ValueError as error:
            raise DataError(f"--not_duplicates: line {line}: no pair of --show_pairs") from error
        if name[0] == name[1]:
            raise DataError(
                f"--not_duplicates: line {line}: these slices are equal, pixel for pixel; only "
                "nearly equal ones can be of different people"
            )
        found.add(name)
    if not found:
        raise DataError(
            "--not_duplicates says `no` of no pair: write it into the column `duplicate` of those "
            "that you have looked at and that are of different people"
        )
    return frozenset(found)
