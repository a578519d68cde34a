"""Test cases that most runs of the largest size call wrong: what went wrong, case by case."""

from dataclasses import dataclass

import numpy as np

from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.runs import Cases

CHOSEN_BY = "specificity"
"""The threshold by which a case is called: that which keeps the specificity asked for."""
SHOWN = 3
"""Of each class."""


@dataclass(frozen=True)
class Start:
    """What the runs of one start say of a case: their mean chance, how many are wrong, of how many.

    The mean is over pre-trainings, each the mean of its fine-tunings, as everywhere.
    """

    arm: str
    chance: float
    wrong: int
    runs: int


@dataclass(frozen=True)
class Example:
    """A case that is called wrong. `row` is its split and row in predictions.csv; names nobody."""

    row: str
    truth: str
    missed: bool
    starts: tuple[Start, ...]


def examples(task: Task) -> list[Example]:
    """First positives that are missed, then false alarms; those that most runs get wrong first.

    Empty of more than two classes, and where a run has no threshold.
    """
    if not task.has(f"sensitivity at {CHOSEN_BY}"):
        return []
    largest = max(cell.fraction for cell in task.cells)
    cells = [cell for cell in task.cells if cell.fraction == largest]
    cases = _cases(cells[0])[0]
    positive = cases.labels == 1
    wrong = np.concatenate(
        [[one.called[CHOSEN_BY] != positive for one in _cases(cell)] for cell in cells]
    )
    often = wrong.mean(axis=0)
    chances = np.stack(
        [cell.weights() @ [one.scores[:, 1] for one in _cases(cell)] for cell in cells]
    )
    far = np.abs(positive - chances.mean(axis=0))
    found = []
    for missed in (True, False):
        of = np.flatnonzero((positive == missed) & (often > 0))
        order = of[np.lexsort((of, -far[of], -often[of]))]
        found += [_example(task, cells, int(place), missed) for place in order[:SHOWN]]
    return found


def _example(task: Task, cells: list[Cell], place: int, missed: bool) -> Example:
    starts = [
        Start(
            cell.arm,
            float(cell.weights() @ [one.scores[place, 1] for one in of]),
            sum(bool(one.called[CHOSEN_BY][place]) != missed for one in of),
            len(of),
        )
        for cell in cells
        for of in [_cases(cell)]
    ]
    row = _cases(cells[0])[0].rows[place]
    return Example(row, task.classes[int(missed)], missed, tuple(starts))


def _cases(cell: Cell) -> list[Cases]:
    return [run.cases for run in cell.runs if run.cases]
