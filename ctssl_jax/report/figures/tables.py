"""The numbers of each picture as CSV: what is drawn, unrounded, one row for each mark or point."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

import numpy as np

from ctssl_jax.files import no_formula
from ctssl_jax.report import words
from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.comparison.examples import Example
from ctssl_jax.report.comparison.outcomes import (
    FALSE_POSITIVES,
    calibration_curve,
    confusion,
    mean_roc_curve,
    roc_curves,
)
from ctssl_jax.report.figures.curves import SMALL_PANELS
from ctssl_jax.report.runs import Run
from ctssl_jax.report.sections import findings
from ctssl_jax.statistics import Interval

MEAN = "mean"
"""In the column `seed`: of the mean over pre-trainings, each the mean of its fine-tunings."""
PLACE = ("start", "pretrainings", "fraction", "train_cases", "train_slices")
RUN = ("seed", "encoder")
"""Columns that tell runs apart; `encoder` is the beginning of its run's hash."""


def against_size(task: Task, metrics: tuple[str, ...]) -> str:
    """Of `figures.against_size`; `low` and `high` are the ends of the 95 % interval of the mean.

    `covers` names the luck that the interval holds.
    """
    rows = []
    for metric in metrics:
        for cell in task.cells:
            place = (metric, *_place(cell))
            ends = _ends(cell.interval(metric))
            rows.append((*place, MEAN, "", cell.mean(metric), *ends, words.cell_levels(cell)))
            values = zip(cell.runs, cell.test(metric), strict=True)
            rows += [(*place, *_run(run), value, "", "", "") for run, value in values]
    return as_csv(("metric", *PLACE, *RUN, "value", "low", "high", "covers"), rows)


def decisions(task: Task) -> str:
    """Of the table of thresholds and Brier score."""
    rows = [
        (name, *_place(cell), cell.mean(name), *_ends(cell.interval(name)), words.cell_levels(cell))
        for name in task.cells[0].intervals
        if task.has(name) and name not in ("auc", "f1", "accuracy")
        for cell in task.cells
    ]
    return as_csv(("metric", *PLACE, "value", "low", "high", "covers"), rows)


def examples(found: list[Example]) -> str:
    """Of the table of example cases; `row` is split and row in the runs' predictions.csv."""
    rows = [
        (example.row, example.truth, start.arm, start.chance, start.wrong, start.runs)
        for example in found
        for start in example.starts
    ]
    return as_csv(("row", "truth", "start", "chance", "wrong", "runs"), rows)


def calibration(task: Task) -> str:
    """Of `outcomes.calibration_of_sizes`; intervals are over patients."""
    rows = [(*_place(cell), *each) for cell in task.cells for each in calibration_curve(cell)]
    return as_csv((*PLACE, "predicted", "observed", "low", "high"), rows)


def differences(task: Task) -> str:
    """Every two arms at every size: the numbers of the table of pairs."""
    rows = [
        (
            *(pair.a, pair.pretrainings[0], pair.b, pair.pretrainings[1], pair.fraction),
            *(pair.difference.estimate, pair.difference.low, pair.difference.high),
            *(words.levels(pair.answer.again), pair.answer.p, pair.adjusted),
            findings.pair_verdict(pair)[1],
        )
        for pair in task.pairs
    ]
    names = ("start", "pretrainings", "minus", "minus_pretrainings", "fraction", "difference")
    return as_csv((*names, "low", "high", "covers", "p", "p_adjusted", "verdict"), rows)


def roc(task: Task) -> str:
    """Of `outcome_figures.roc_of_sizes`."""
    rows: list[Sequence[Any]] = []
    for cell in task.cells:
        runs = [(MEAN, ""), *map(_run, cell.runs)]
        for run, curve in zip(runs, [mean_roc_curve(cell), *roc_curves(cell)], strict=True):
            points = zip(FALSE_POSITIVES, curve, strict=True)
            rows += [(*_place(cell), *run, f"{x:.2f}", y) for x, y in points]
    return as_csv((*PLACE, *RUN, "false_positive_rate", "true_positive_rate"), rows)


def confusions(cells: list[Cell], classes: tuple[str, ...]) -> str:
    """Of `outcome_figures.confusion_of_size`, run by run."""
    rows = [
        (*_place(cell), *_run(run), classes[true], classes[predicted], count)
        for cell in cells
        for run, matrix in zip(cell.runs, confusion(cell), strict=True)
        for (true, predicted), count in np.ndenumerate(matrix)
    ]
    return as_csv((*PLACE, *RUN, "true_class", "predicted_class", "cases"), rows)


def pretraining(run: Run) -> str:
    """Of `figures.pretraining_curves`: as logged, one row for each step."""
    names = ["loss", "chance", "nothing_predicted", *SMALL_PANELS.values()]
    columns = {name: dict(zip(*run.series(name), strict=True)) for name in names}
    columns = {name: values for name, values in columns.items() if values}
    steps = sorted(set().union(*columns.values()))
    rows = [
        (f"{step:.0f}", *(values.get(step, "") for values in columns.values())) for step in steps
    ]
    return as_csv(("step", *columns), rows)


def _place(cell: Cell) -> tuple[str, int, float, float, float]:
    cases, slices = (float(np.mean(cell.sizes(unit))) for unit in ("cases", "slices"))
    return cell.arm, cell.pretrainings, cell.fraction, cases, slices


def _ends(interval: Interval) -> list[float | str]:
    return [end if np.isfinite(end) else "" for end in (interval.low, interval.high)]


def _run(run: Run) -> tuple[float | int, str]:
    return run.results["seed"], words.short(run.results.get("encoder_run") or "")


def as_csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV, no cell of which a spreadsheet takes for a formula."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([no_formula(value) for value in row] for row in rows)
    return text.getvalue()
