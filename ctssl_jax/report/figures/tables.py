"""The numbers of each picture as CSV: what is drawn, unrounded, one row for each mark or point."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

import numpy as np

from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.comparison.outcomes import FALSE_POSITIVES, confusion, roc_curves
from ctssl_jax.report.figures.curves import SMALL_PANELS
from ctssl_jax.report.runs import Run

MEAN = "mean"
"""In the column `seed`: of the mean over seeds."""


def against_size(task: Task, metrics: tuple[str, ...]) -> str:
    """Of `figures.against_size`; `low` and `high` are the ends of the 95 % interval of the mean."""
    rows = []
    for metric in metrics:
        for cell in task.cells:
            place = (metric, *_place(cell))
            estimate, interval = cell.spread(metric).mean, cell.interval(metric)
            ends = (end if np.isfinite(end) else "" for end in (interval.low, interval.high))
            rows.append((*place, MEAN, estimate, *ends))
            values = zip(cell.runs, cell.test(metric), strict=True)
            rows += [(*place, run.results["seed"], value, "", "") for run, value in values]
    names = ("metric", "start", "fraction", "train_slices", "seed", "value", "low", "high")
    return _csv(names, rows)


def roc(task: Task) -> str:
    """Of `outcome_figures.roc_of_sizes`."""
    rows: list[Sequence[Any]] = []
    for cell in task.cells:
        curves = roc_curves(cell)
        seeds = [run.results["seed"] for run in cell.runs]
        for seed, curve in zip([MEAN, *seeds], [curves.mean(axis=0), *curves], strict=True):
            points = zip(FALSE_POSITIVES, curve, strict=True)
            rows += [(*_place(cell), seed, f"{x:.2f}", y) for x, y in points]
    names = ("start", "fraction", "train_slices", "seed")
    return _csv((*names, "false_positive_rate", "true_positive_rate"), rows)


def confusions(cells: list[Cell], classes: tuple[str, ...]) -> str:
    """Of `outcome_figures.confusion_of_size`, run by run."""
    rows = [
        (*_place(cell), run.results["seed"], classes[true], classes[predicted], count)
        for cell in cells
        for run, matrix in zip(cell.runs, confusion(cell), strict=True)
        for (true, predicted), count in np.ndenumerate(matrix)
    ]
    names = ("start", "fraction", "train_slices", "seed")
    return _csv((*names, "true_class", "predicted_class", "cases"), rows)


def pretraining(run: Run) -> str:
    """Of `figures.pretraining_curves`: as logged, one row for each step."""
    names = ["loss", "chance", *SMALL_PANELS.values()]
    columns = {name: dict(zip(*run.series(name), strict=True)) for name in names}
    columns = {name: values for name, values in columns.items() if values}
    steps = sorted(set().union(*columns.values()))
    rows = [
        (f"{step:.0f}", *(values.get(step, "") for values in columns.values())) for step in steps
    ]
    return _csv(("step", *columns), rows)


def _place(cell: Cell) -> tuple[str, float, float]:
    return cell.arm, cell.fraction, float(np.mean(cell.sizes("slices")))


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_harmless(value) for value in row] for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """Text from a run that a spreadsheet might take for a formula gets an apostrophe in front."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
