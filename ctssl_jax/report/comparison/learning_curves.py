"""Learning curves of the starts of a study: its fine-tunings at growing training sizes."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.runs import Run
from ctssl_jax.statistics.learning_curve import FEWEST_SIZES, Curve, measured


def learning_curves(task: Task) -> dict[str, list[Curve]]:
    """The curves of every arm that has three training sizes, one for each of its pre-trainings."""
    return {arm: curves for arm in task.arms() if (curves := _curves(task, arm))}


def _curves(task: Task, arm: str) -> list[Curve]:
    """One curve for each pre-training of an arm, of the seeds that it has at every size."""
    cells = sorted((cell for cell in task.cells if cell.arm == arm), key=lambda c: c.fraction)
    if len(cells) < FEWEST_SIZES:
        return []
    by_encoder: dict[Any, list[dict[Any, Run]]] = defaultdict(list)
    for cell in cells:
        of: dict[Any, dict[Any, Run]] = defaultdict(dict)
        for run in cell.runs:
            of[run.results.get("encoder_run")][run.results["seed"]] = run
        for encoder, runs in of.items():
            by_encoder[encoder].append(runs)
    whole = [at for at in by_encoder.values() if len(at) == len(cells)]
    return [curve for at in whole if (curve := _curve(task, cells, at))]


def _curve(task: Task, cells: Sequence[Cell], at: Sequence[dict[Any, Run]]) -> Curve | None:
    seeds = sorted(set.intersection(*(set(runs) for runs in at)))
    counts = [cell.sizes("patients") for cell in cells]
    if not seeds or not all(counts):
        return None
    sizes = np.array([np.mean(own) for own in counts])
    runs = [[of[seed] for of in at] for seed in seeds]
    cases = runs[0][0].cases
    assert cases is not None, "a run that counts has cases"
    scores = np.array([[run.cases.scores for run in order if run.cases] for order in runs])
    folds = np.zeros(len(cases.labels), int) if cases.folds is None else cases.folds
    pool = float(sizes[-1] / cells[-1].fraction)
    at_hand = task.test_patients if task.folds else round(pool)
    return measured(cases.labels, scores, cases.patients, folds, sizes, pool, at_hand)
