"""Finished fine-tuning runs put side by side: one cell per task, training size and arm.

An arm is what a run started from: "scratch", or the method that pre-trained its encoder. Only runs
of the same data, the same test cases and the same recipe (`recipes`) are averaged or compared;
others get a section of their own and are named as a conflict.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ctssl_jax.dataset.cases import SLICE
from ctssl_jax.report.comparison.folds import pool, unpool
from ctssl_jax.report.comparison.pairs import Pair, Place, Sampled, all_pairs, interval
from ctssl_jax.report.comparison.recipes import (
    alike,
    mixed_pretrainings,
    mixed_seeds,
    tuning_conflicts,
)
from ctssl_jax.report.comparison.robustness import Robustness, robustness
from ctssl_jax.report.names import SCRATCH, SPARK, arm_name, arm_order
from ctssl_jax.report.runs import FROZEN, Cases, Run, is_number
from ctssl_jax.statistics import (
    Difference,
    Interval,
    Spread,
    Training,
    accuracy,
    auc,
    brier,
    f1,
    mean_and_range,
    resampled,
    sensitivity,
    specificity,
    widened,
    within_folds,
)

RESAMPLES = 2000


@dataclass(frozen=True)
class Cell:
    """The runs of one arm at one training size, over pre-trainings and seeds.

    `intervals` are of the mean of each test metric, over patients and the levels of `again`.
    `pair` is that of the arm and scratch.
    """

    arm: str
    fraction: float
    runs: tuple[Run, ...]
    intervals: Mapping[str, Interval]
    again: Training
    pretrainings: int
    pair: Pair | None = None

    @property
    def difference(self) -> Difference | None:
        """The AUC of the arm minus scratch."""
        return self.pair.difference if self.pair else None

    @property
    def ahead(self) -> tuple[int, int]:
        """Pairs of runs of one seed: those in which the arm is above scratch, and all."""
        return self.pair.ahead if self.pair else (0, 0)

    def seeds(self) -> list[float | int]:
        """The seed of each run."""
        return [run.results["seed"] for run in self.runs]

    def test(self, metric: str) -> list[float]:
        """One test value per run."""
        return [float(run.results["test"][metric]) for run in self.runs]

    def weights(self) -> Float[np.ndarray, " runs"]:
        """Of each run in the mean over pre-trainings of the means over fine-tunings."""
        return Sampled(self.runs, {}).who().weights()

    def interval(self, metric: str) -> Interval:
        """Of the mean of a test metric: "auc", "f1" or "accuracy"."""
        return self.intervals[metric]

    def mean(self, metric: str) -> float:
        """Of a test metric over the pre-trainings, each the mean of its fine-tunings."""
        return self.intervals[metric].estimate

    def spread(self, metric: str) -> Spread:
        """Plain mean and range of a test metric over the runs."""
        return mean_and_range(np.array(self.test(metric)))

    @property
    def word(self) -> str:
        """What a case is called."""
        return str(self.runs[0].results["case"])

    def sizes(self, unit: str) -> list[int]:
        """The distinct numbers of training "cases", "slices" or "patients", small to large."""
        parts = [part for run in self.runs for part in run.parts()]
        counts: list[Any] = [run.results.get(f"train_{unit}") for run in parts]
        return sorted({int(count) for count in counts if is_number(count)})


@dataclass(frozen=True)
class Task:
    """All cells that may be compared: one task, one data fingerprint, one set of test cases.

    `word` is what a case is called, a scan or a slice; `test_labels` counts the test cases of each
    class. `folds` is how many folds it was
    cross-validated in, 0 where it was not.
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
    word: str = SLICE
    test_labels: tuple[int, ...] = ()

    def arms(self) -> list[str]:
        """Arms with a cell, scratch first, then the methods in their usual order."""
        return sorted({cell.arm for cell in self.cells}, key=arm_order)

    def runs(self, arm: str = "") -> list[Run]:
        """Every run that counts here, or those of one arm."""
        return [run for cell in self.cells if arm in ("", cell.arm) for run in cell.runs]

    def pretrainings(self, arm: str) -> int:
        """How many an arm stands on: the fewest at any of its sizes."""
        return min(cell.pretrainings for cell in self.cells if cell.arm == arm)

    def has(self, metric: str) -> bool:
        """Whether every cell has a metric: thresholds are not of every task."""
        return all(metric in cell.intervals for cell in self.cells)

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


def compare(runs: list[Run], baseline: str = SCRATCH) -> Comparison:
    """Sorts runs into tasks and cells and computes every interval and difference.

    Args:
      runs: of fine-tuning, or of frozen features (`runs.frozen_features`).
      baseline: the arm that the others are set against.
    """
    runs = pool(_marked(runs, _repeats(runs)))
    runs = _marked(runs, _without_auc(runs))
    runs = _marked(runs, mixed_seeds(_cells(runs)) | mixed_pretrainings(_cells(runs), runs))
    groups: dict[str, dict[tuple, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in _fine_tuned(runs):
        groups[run.results["task"]][_comparable(run)].append(run)
    conflicts = [_conflict(name, list(kinds)) for name, kinds in groups.items() if len(kinds) > 1]
    tasks = []
    for name, kinds in groups.items():
        for group in kinds.values():
            parted, apart = alike(group)
            conflicts += [f"{name[:80]}: {said}" for said in [*apart, *tuning_conflicts(group)]]
            tasks += [_task(part, baseline) for part in parted]
    return Comparison(unpool(runs), tasks, list(dict.fromkeys(conflicts)), _encoder_notes(tasks))


def _marked(runs: list[Run], refused: dict[Path, str]) -> list[Run]:
    return [replace(run, problem=refused.get(run.folder, run.problem)) for run in runs]


def _fine_tuned(runs: list[Run]) -> list[Run]:
    scored = ("fine-tuning", FROZEN)
    return [run for run in runs if run.kind in scored and not run.problem]


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
        if all(_same(run.results["test"], first.results["test"]) for run in others):
            refused |= {run.folder: "the same run a second time" for run in others}
        else:
            problem = "another run has the same seed and size but a different result"
            refused |= {run.folder: problem for run in (first, *others)}
    return refused


def _without_auc(runs: list[Run]) -> dict[Path, str]:
    return {
        run.folder: "its test cases are of one class, so that there is no AUC"
        for run in _fine_tuned(runs)
        if not is_number(run.results["test"]["auc"])
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two values are written alike; a number that is none equals itself."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _encoder_notes(tasks: list[Task]) -> list[str]:
    return [
        f"{task.name[:80]}: {arm_name(arm)} averages over {len(encoders)} pre-training runs."
        for task in tasks
        for arm in task.arms()
        for encoders in [{run.results.get("encoder_run") for run in task.runs(arm)}]
        if len(encoders) > 1
    ]


def _task(runs: list[Run], baseline: str) -> Task:
    results, cases = runs[0].results, _cases(runs[0])
    sampled = _sampled(runs)
    pairs = all_pairs(sampled, last=baseline)
    against = {(pair.fraction, pair.a): pair for pair in pairs if pair.b == baseline}
    return Task(
        name=results["task"],
        fingerprint=results["data_fingerprint"],
        classes=tuple(str(name) for name in results["classes"]),
        test_cases=len(cases.labels),
        test_patients=len(np.unique(cases.patients)),
        patients_known=cases.patients_known,
        cells=tuple(_cell(place, of, against.get(place)) for place, of in sampled.items()),
        pairs=pairs,
        robustness=robustness(sampled, pairs, claimed=SPARK),
        folds=len(runs[0].folds),
        word=results["case"],
        test_labels=tuple(np.bincount(cases.labels, minlength=len(results["classes"])).tolist()),
    )


def _sampled(runs: list[Run]) -> dict[Place, Sampled]:
    """Runs by size and arm. All are scored on the same resamples, which are drawn once.

    Ranks are within folds. F1 and accuracy count cases, each called by the network that tests it:
    of all folds together, for a mean of small folds' F1 is biased (Forman and Scholz 2010).
    """
    runs = sorted(runs, key=_order)
    cases, scores = _cases(runs[0]), np.stack([_cases(run).scores for run in runs])
    ranked = auc if cases.folds is None else within_folds(auc, cases.folds)
    tables = {
        name: resampled(
            cases.labels, scores, cases.patients, metric, folds=cases.folds, n=RESAMPLES
        )
        for name, metric in (("auc", ranked), ("f1", f1), ("accuracy", accuracy), ("brier", brier))
    }
    tables |= _at_thresholds(cases, runs)
    columns: dict[Place, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        columns[float(run.results["fraction"]), run.results["arm"]].append(index)
    return {
        place: Sampled(
            tuple(runs[index] for index in own),
            {name: table[:, own] for name, table in tables.items()},
        )
        for place, own in columns.items()
    }


def _at_thresholds(cases: Cases, runs: list[Run]) -> dict[str, Float[np.ndarray, "r runs"]]:
    """Both rates at both thresholds of validation; none where a run has no threshold."""
    tables = {}
    for chosen_by in ("specificity", "sensitivity"):
        if all(chosen_by in _cases(run).called for run in runs):
            called = np.stack([_cases(run).called[chosen_by] for run in runs])[..., None]
            for name, metric in (("sensitivity", sensitivity), ("specificity", specificity)):
                tables[f"{name} at {chosen_by}"] = resampled(
                    cases.labels,
                    called.astype(float),
                    cases.patients,
                    metric,
                    folds=cases.folds,
                    n=RESAMPLES,
                )
    return tables


def _order(run: Run) -> tuple:
    """By size, then arm, then seed."""
    results = run.results
    return results["fraction"], arm_order(results["arm"]), results["seed"], run.hash


def _cell(place: Place, sampled: Sampled, against_scratch: Pair | None) -> Cell:
    (fraction, arm), cases = place, sampled.cases()
    found = {name: interval([sampled], [1], name) for name in sampled.tables}
    intervals = {}
    for name, (both, *_) in found.items():
        metric = name.partition(" at ")[0]  # a rate is named after how its threshold was chosen
        wide = widened(both, metric, cases.labels, cases.patients)
        intervals[name] = _within_range(wide, 2.0 if name == "brier" else 1.0)
    return Cell(
        arm,
        fraction,
        sampled.runs,
        intervals,
        found["auc"][2],
        sampled.who().pretrainings,
        against_scratch,
    )


def _within_range(found: Interval, highest: float = 1.0) -> Interval:
    """An interval of a share, whose ends Student's t may put below 0 or above 1."""
    return found._replace(low=max(found.low, 0.0), high=min(found.high, highest))


def _cases(run: Run) -> Cases:
    assert run.cases is not None, "a run that counts has its test cases"
    return run.cases
