"""Finished fine-tuning runs put side by side: one cell per task, training size and arm.

An arm is what a run started from: "scratch", or the method that pre-trained its encoder. Only runs
of the same data and the same test cases are averaged or compared; others get a section of their
own and are named as a conflict.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from ctssl_jax.report.runs import Cases, Run
from ctssl_jax.statistics import (
    Difference,
    Interval,
    Spread,
    accuracy,
    bootstrap_interval,
    mean_and_range,
    paired_bootstrap_difference,
)

RESAMPLES = 2000
SCRATCH = "scratch"
NAMES = {
    SCRATCH: "From scratch",
    "spark": "SparK",
    "moco": "MoCo v2",
    "swav": "SwAV",
    "byol": "BYOL",
}


@dataclass(frozen=True)
class Cell:
    """The runs of one arm at one training size, over seeds.

    Intervals are of the mean over the runs. `difference` is the AUC of the arm minus scratch, and
    `seeds_ahead` (seeds in which the arm is above scratch, seeds that both have).
    """

    arm: str
    fraction: float
    runs: tuple[Run, ...]
    auc_interval: Interval
    accuracy_interval: Interval
    difference: Difference | None = None
    seeds_ahead: tuple[int, int] = (0, 0)

    def test(self, metric: str) -> list[float]:
        """One test value per run."""
        return [float(run.results["test"][metric]) for run in self.runs]

    def spread(self, metric: str) -> Spread:
        """Mean and range of a test metric over the runs."""
        return mean_and_range(np.array(self.test(metric)))

    def sizes(self, unit: str) -> list[int]:
        """The distinct numbers of training "slices" or "patients", small to large."""
        counts = {run.results.get(f"train_{unit}") for run in self.runs}
        return sorted(int(count) for count in counts if isinstance(count, int | float))


@dataclass(frozen=True)
class Task:
    """All cells that may be compared: one task, one data fingerprint, one set of test cases."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    test_cases: int
    test_patients: int
    patients_known: bool
    cells: tuple[Cell, ...]

    def arms(self) -> list[str]:
        """Arms with a cell, scratch first, then the methods in their usual order."""
        return sorted({cell.arm for cell in self.cells}, key=arm_order)

    def runs(self) -> list[Run]:
        """Every run that counts here."""
        return [run for cell in self.cells for run in cell.runs]

    def comparisons(self) -> list[Cell]:
        """Cells with a difference to scratch."""
        return [cell for cell in self.cells if cell.difference]


@dataclass(frozen=True)
class Comparison:
    """What the report says about fine-tuning; `runs` are all runs, with duplicates marked."""

    runs: list[Run]
    tasks: list[Task] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


def arm_name(arm: str) -> str:
    """An arm as people call it."""
    return NAMES.get(arm, arm[:40])


def arm_order(arm: str) -> tuple[int, str]:
    """Sorts scratch first and unknown arms last."""
    return (list(NAMES).index(arm) if arm in NAMES else len(NAMES), arm)


def compare(runs: list[Run]) -> Comparison:
    """Sorts runs into tasks and cells and computes every interval and difference."""
    runs = _mark_repeats(runs)
    groups: dict[str, dict[tuple, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.kind == "fine-tuning" and not run.problem:
            groups[run.results["task"]][_comparable(run)].append(run)
    conflicts = [_conflict(name, list(kinds)) for name, kinds in groups.items() if len(kinds) > 1]
    tasks = [_task(group) for kinds in groups.values() for group in kinds.values()]
    return Comparison(runs, tasks, conflicts)


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


def _mark_repeats(runs: list[Run]) -> list[Run]:
    """Leaves one of several equal runs; runs that claim one seed with different results all go."""
    same_seed: dict[tuple, list[Run]] = defaultdict(list)
    marked = []
    for run in runs:
        if run.kind != "fine-tuning" or run.problem:
            marked.append(run)
            continue
        names = ("task", "arm", "fraction", "seed", "encoder_run")
        same_seed[(*(run.results.get(name) for name in names), _comparable(run))].append(run)
    for group in same_seed.values():
        first = group[0].results["test"]
        if all(run.results["test"] == first for run in group):
            marked.append(group[0])
            marked += [replace(run, problem="the same run a second time") for run in group[1:]]
        else:
            problem = "another run has the same seed and size but a different result"
            marked += [replace(run, problem=problem) for run in group]
    order = {run.folder: position for position, run in enumerate(runs)}
    return sorted(marked, key=lambda run: order[run.folder])


def _task(runs: list[Run]) -> Task:
    by_cell: dict[tuple[float, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_cell[float(run.results["fraction"]), run.results["arm"]].append(run)
    cells = {
        (fraction, arm): _cell(arm, fraction, by_cell[fraction, arm])
        for fraction, arm in sorted(by_cell, key=lambda key: (key[0], arm_order(key[1])))
    }
    results, cases = runs[0].results, _cases(runs[0])
    return Task(
        name=results["task"],
        fingerprint=results["data_fingerprint"],
        classes=tuple(str(name) for name in results["classes"]),
        test_cases=len(cases.labels),
        test_patients=len(np.unique(cases.patients)),
        patients_known=cases.patients_known,
        cells=tuple(_against(cell, cells.get((cell.fraction, SCRATCH))) for cell in cells.values()),
    )


def _cases(run: Run) -> Cases:
    assert run.cases is not None, "a run that counts has its test cases"
    return run.cases


def _scores(runs: Iterable[Run]) -> np.ndarray:
    return np.stack([_cases(run).scores for run in runs])


def _cell(arm: str, fraction: float, runs: list[Run]) -> Cell:
    cases = _cases(runs[0])
    known = (cases.labels, _scores(runs), cases.patients)
    return Cell(
        arm,
        fraction,
        tuple(runs),
        auc_interval=bootstrap_interval(*known, n=RESAMPLES),
        accuracy_interval=bootstrap_interval(*known, accuracy, n=RESAMPLES),
    )


def _against(cell: Cell, scratch: Cell | None) -> Cell:
    """Adds the difference to scratch, if there is a scratch cell of the same size."""
    if scratch is None or cell.arm == SCRATCH:
        return cell
    own = {run.results["seed"]: run.results["test"]["auc"] for run in cell.runs}
    other = {run.results["seed"]: run.results["test"]["auc"] for run in scratch.runs}
    shared = own.keys() & other.keys()
    cases = _cases(cell.runs[0])
    return replace(
        cell,
        difference=paired_bootstrap_difference(
            cases.labels, _scores(cell.runs), _scores(scratch.runs), cases.patients, n=RESAMPLES
        ),
        seeds_ahead=(sum(own[seed] > other[seed] for seed in shared), len(shared)),
    )
