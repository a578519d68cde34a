"""Finished fine-tuning runs put side by side: one cell per task, training size and arm.

An arm is what a run started from: "scratch", or the method that pre-trained its encoder. Only runs
of the same data and the same test cases are averaged or compared; others get a section of their
own and are named as a conflict.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax.report.comparison.folds import pool, unpool
from ctssl_jax.report.comparison.pairs import Pair, Place, Sampled, all_pairs
from ctssl_jax.report.comparison.robustness import Robustness, robustness
from ctssl_jax.report.runs import Cases, Run, is_number
from ctssl_jax.statistics import (
    Difference,
    Interval,
    Spread,
    accuracy,
    auc,
    contrast,
    f1,
    mean_and_range,
    resampled,
)

RESAMPLES = 2000
SCRATCH, SPARK = "scratch", "spark"
NAMES = {
    SCRATCH: "From scratch",
    SPARK: "SparK",
    "moco": "MoCo v2",
    "swav": "SwAV",
    "byol": "BYOL",
    "pretrained": "Pre-trained",
}
FREE_SETTINGS = {"seed", "subset_seed", "encoder_run", "log_every"}
"""What runs of one cell may differ in."""


@dataclass(frozen=True)
class Cell:
    """The runs of one arm at one training size, over seeds.

    Intervals are of the mean over the runs, and over patients. `difference` is the AUC of the arm
    minus scratch and `seeds_ahead` (seeds in which the arm is above scratch, seeds that both have),
    both from the pair of the two (`Pair`).
    """

    arm: str
    fraction: float
    runs: tuple[Run, ...]
    auc_interval: Interval
    f1_interval: Interval
    accuracy_interval: Interval
    difference: Difference | None = None
    seeds_ahead: tuple[int, int] = (0, 0)

    def test(self, metric: str) -> list[float]:
        """One test value per run."""
        return [float(run.results["test"][metric]) for run in self.runs]

    def interval(self, metric: str) -> Interval:
        """Of the mean of a test metric over the runs: "auc", "f1" or "accuracy"."""
        return {
            "auc": self.auc_interval,
            "f1": self.f1_interval,
            "accuracy": self.accuracy_interval,
        }[metric]

    def spread(self, metric: str) -> Spread:
        """Mean and range of a test metric over the runs."""
        return mean_and_range(np.array(self.test(metric)))

    def sizes(self, unit: str) -> list[int]:
        """The distinct numbers of training "slices" or "patients", small to large."""
        parts = [part for run in self.runs for part in run.parts()]
        counts: list[Any] = [run.results.get(f"train_{unit}") for run in parts]
        return sorted({int(count) for count in counts if is_number(count)})


@dataclass(frozen=True)
class Task:
    """All cells that may be compared: one task, one data fingerprint, one set of test cases.

    `folds` is how many folds it was cross-validated in, 0 where it was not.
    `pairs` sets every two arms of a size against each other; `robustness` follows each arm over the
    sizes and is None where there are no two of them.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    test_cases: int
    test_patients: int
    patients_known: bool
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    robustness: Robustness | None
    folds: int = 0

    def arms(self) -> list[str]:
        """Arms with a cell, scratch first, then the methods in their usual order."""
        return sorted({cell.arm for cell in self.cells}, key=arm_order)

    def runs(self, arm: str = "") -> list[Run]:
        """Every run that counts here, or those of one arm."""
        return [run for cell in self.cells if arm in ("", cell.arm) for run in cell.runs]

    def comparisons(self) -> list[Cell]:
        """Cells with a difference to scratch."""
        return [cell for cell in self.cells if cell.difference]


@dataclass(frozen=True)
class Comparison:
    """What the report says about fine-tuning; `runs` are all runs, with those refused marked."""

    runs: list[Run]
    tasks: list[Task] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def arm_name(arm: str) -> str:
    """An arm as people call it."""
    return NAMES.get(arm, arm[:40])


def arm_order(arm: str) -> tuple[int, str]:
    """Sorts scratch first and unknown arms last."""
    return (list(NAMES).index(arm) if arm in NAMES else len(NAMES), arm)


def compare(runs: list[Run]) -> Comparison:
    """Sorts runs into tasks and cells and computes every interval and difference."""
    runs = pool(_marked(runs, _repeats(runs)))
    runs = _marked(runs, _other_settings(runs))
    groups: dict[str, dict[tuple, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in _fine_tuned(runs):
        groups[run.results["task"]][_comparable(run)].append(run)
    conflicts = [_conflict(name, list(kinds)) for name, kinds in groups.items() if len(kinds) > 1]
    tasks = [_task(group) for kinds in groups.values() for group in kinds.values()]
    return Comparison(unpool(runs), tasks, conflicts, _encoder_notes(tasks))


def _marked(runs: list[Run], refused: dict[Path, str]) -> list[Run]:
    return [replace(run, problem=refused.get(run.folder, run.problem)) for run in runs]


def _fine_tuned(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.kind == "fine-tuning" and not run.problem]


def _cells(runs: list[Run], *more: str) -> list[list[Run]]:
    """Runs of one task, arm, size and test set, kept apart by `more` of their results."""
    cells: dict[tuple, list[Run]] = defaultdict(list)
    for run in _fine_tuned(runs):
        names = ("task", "arm", "fraction", *more)
        cells[(*(run.results.get(name) for name in names), _comparable(run))].append(run)
    return list(cells.values())


def _comparable(run: Run) -> tuple:
    """What two runs must share before their numbers may be averaged or compared."""
    results = run.results
    classes = tuple(str(name) for name in results["classes"])
    return results["data_fingerprint"], results["test"]["n"], classes, _cases(run).digest


def _conflict(task: str, kinds: list[tuple]) -> str:
    titles = ("data fingerprint", "number of test cases", "classes", "test cases")
    differ = [
        title
        for title, values in zip(titles, zip(*kinds, strict=True), strict=True)
        if len(set(values)) > 1
    ]
    return (
        f"{task[:80]}: the runs differ in {' and '.join(differ[:2])}. They are shown in "
        f"{len(kinds)} separate sections and are never averaged or compared with each other."
    )


def _repeats(runs: list[Run]) -> dict[Path, str]:
    """Refuses copies of a run, and all runs that claim one seed with different results."""
    refused: dict[Path, str] = {}
    for first, *others in _cells(runs, "seed", "encoder_run"):
        if all(run.results["test"] == first.results["test"] for run in others):
            refused |= {run.folder: "the same run a second time" for run in others}
        else:
            problem = "another run has the same seed and size but a different result"
            refused |= {run.folder: problem for run in (first, *others)}
    return refused


def _other_settings(runs: list[Run]) -> dict[Path, str]:
    """Refuses cells whose runs were trained differently: nobody can tell which to keep."""
    refused: dict[Path, str] = {}
    for cell in _cells(runs):
        names = sorted({name for run in cell for name in run.config} - FREE_SETTINGS)
        values = {name: {json.dumps(run.config.get(name)) for run in cell} for name in names}
        differing = [name[:40] for name in names if len(values[name]) > 1]
        if differing:
            problem = f"other runs of this arm and size differ in {', '.join(differing)}"
            refused |= {run.folder: problem for run in cell}
    return refused


def _encoder_notes(tasks: list[Task]) -> list[str]:
    return [
        f"{task.name[:80]}: {arm_name(arm)} averages over {len(encoders)} pre-training runs."
        for task in tasks
        for arm in task.arms()
        for encoders in [{run.results.get("encoder_run") for run in task.runs(arm)}]
        if len(encoders) > 1
    ]


def _task(runs: list[Run]) -> Task:
    results, cases = runs[0].results, _cases(runs[0])
    sampled = _sampled(runs)
    pairs = all_pairs(sampled, last=SCRATCH)
    against_scratch = {(pair.fraction, pair.a): pair for pair in pairs if pair.b == SCRATCH}
    return Task(
        name=results["task"],
        fingerprint=results["data_fingerprint"],
        classes=tuple(str(name) for name in results["classes"]),
        test_cases=len(cases.labels),
        test_patients=len(np.unique(cases.patients)),
        patients_known=cases.patients_known,
        cells=tuple(_cell(place, of, against_scratch.get(place)) for place, of in sampled.items()),
        pairs=pairs,
        robustness=robustness(sampled, pairs, claimed=SPARK),
        folds=len(runs[0].folds),
    )


def _sampled(runs: list[Run]) -> dict[Place, Sampled]:
    """Runs by size and arm. All are scored on the same resamples, which are drawn once."""
    runs = sorted(runs, key=_order)
    cases, scores = _cases(runs[0]), np.stack([_cases(run).scores for run in runs])
    tables = [
        resampled(cases.labels, scores, cases.patients, metric, n=RESAMPLES)
        for metric in (auc, f1, accuracy)
    ]
    columns: dict[Place, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        columns[float(run.results["fraction"]), run.results["arm"]].append(index)
    return {
        place: Sampled(tuple(runs[index] for index in own), *(table[:, own] for table in tables))
        for place, own in columns.items()
    }


def _order(run: Run) -> tuple:
    """By size, then arm, then seed."""
    results = run.results
    return results["fraction"], arm_order(results["arm"]), results["seed"], run.hash


def _cell(place: Place, sampled: Sampled, against_scratch: Pair | None) -> Cell:
    fraction, arm = place
    return Cell(
        arm,
        fraction,
        sampled.runs,
        auc_interval=contrast([sampled.auc], [1]),
        f1_interval=contrast([sampled.f1], [1]),
        accuracy_interval=contrast([sampled.accuracy], [1]),
        difference=against_scratch.difference if against_scratch else None,
        seeds_ahead=against_scratch.seeds_ahead if against_scratch else (0, 0),
    )


def _cases(run: Run) -> Cases:
    assert run.cases is not None, "a run that counts has its test cases"
    return run.cases
