"""Which slices of one series belong together: exports put several reconstructions into one.

A kernel that is not everywhere the same is another reconstruction. Another thickness or acquisition
is one only where its slices lie between the others: sequential scanners count every turn of the
gantry as an acquisition, a series may go on with thicker slices, and slices at the same positions
are time points, which `stack` finds as duplicates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from data_prep.readers.stack import POSITION_MM

# Summed length of the parts, in lengths of the whole: above, they lie in each other.
OVERLAP = 1.5


class Made(NamedTuple):
    """How a slice was made; "" for what is not known."""

    kernel: str
    thickness: str
    acquisition: str


def tell_apart(
    positions: Float[np.ndarray, " n"], made: Sequence[Made]
) -> tuple[Int[np.ndarray, " n"], str]:
    """Numbers the reconstructions of a series.

    Args:
        positions: Of the slices along their normal, mm.
        made: How each was made.

    Returns:
        The number of each slice's reconstruction, from 0, and what tells them apart in words,
        "" if there is one.
    """
    numbers, told = np.zeros(len(made), int), []
    for name in Made._fields:
        values = [getattr(one, name) for one in made]
        before = numbers.max()
        for number in range(before + 1):
            numbers = _split(numbers, numbers == number, positions, values, name != "kernel")
        if numbers.max() > before:
            told.append(name)
    return _in_order(numbers, made), " and ".join(told)


def _split(
    numbers: Int[np.ndarray, " n"],
    among: Bool[np.ndarray, " n"],
    positions: Float[np.ndarray, " n"],
    values: Sequence[str],
    must_overlap: bool,
) -> Int[np.ndarray, " n"]:
    """Gives new numbers to all but one of the values, where they tell slices apart."""
    found = np.where(among, values, "")
    kinds = sorted(set(found[among]))
    if len(kinds) < 2 or "" in kinds:
        return numbers
    parts = [found == kind for kind in kinds]
    if must_overlap:
        spread = sum(np.ptp(positions[part]) for part in parts)
        doubled = (np.diff(np.sort(positions[among])) <= POSITION_MM).any()
        if doubled or spread <= OVERLAP * np.ptp(positions[among]):
            return numbers
    numbers = numbers.copy()
    for part in parts[1:]:
        numbers[part] = numbers.max() + 1
    return numbers


def _in_order(numbers: Int[np.ndarray, " n"], made: Sequence[Made]) -> Int[np.ndarray, " n"]:
    """The same groups, numbered by how they were made, whatever the order of the slices."""
    firsts = {number: made[list(numbers).index(number)] for number in set(numbers.tolist())}
    rank = {number: k for k, number in enumerate(sorted(firsts, key=firsts.__getitem__))}
    return np.array([rank[number] for number in numbers.tolist()])
