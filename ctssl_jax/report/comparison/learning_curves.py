"""Learning curves of the starts of a study: its fine-tunings at growing training sizes."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.comparison.recipes import settings
from ctssl_jax.report.runs import Run, is_number
from ctssl_jax.statistics.learning_curve import FEWEST_SIZES, Curve, measured


def learning_curves(task: Task) -> dict[str, list[Curve]]:
    """The curves of every arm that has three training sizes, one for each of its pre-trainings."""
    return {arm: curves for arm in task.arms() if (curves := _curves(task, arm))}


def _curves(task: Task, arm: str) -> list[Curve]:
    """One curve for each pre-training of an arm, of the seeds that it has at every size.

    Where some pre-training has one such seed its fine-tunings do not tell luck from learning. All
    pre-trainings then make one curve, in which each is an order.
    """
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
    repeats = [
        orders for at in by_encoder.values() if len(at) == len(cells) and (orders := _orders(at))
    ]
    if len(repeats) > 1 and min(map(len, repeats)) == 1:
        together = _curve(task, cells, [orders[0] for orders in repeats])
        return [together._replace(pretrainings=len(repeats))] if together else []
    return [curve for orders in repeats if (curve := _curve(task, cells, orders))]


def _orders(at: Sequence[dict[Any, Run]]) -> list[list[Run]]:
    """The runs at every size, of each seed that all sizes have; `at` is by size, then seed."""
    seeds = sorted(set.intersection(*(set(runs) for runs in at)))
    return [[of[seed] for of in at] for seed in seeds]


def _curve(task: Task, cells: Sequence[Cell], orders: Sequence[Sequence[Run]]) -> Curve | None:
    counts = [cell.sizes("patients") for cell in cells]
    if not all(counts):
        return None
    sizes = np.array([np.mean(own) for own in counts])
    cases = orders[0][0].cases
    assert cases is not None, "a run that counts has cases"
    scores = np.array([[run.cases.scores for run in order if run.cases] for order in orders])
    folds = np.zeros(len(cases.labels), int) if cases.folds is None else cases.folds
    pools = [_pool(part) for order in orders for part in order[-1].parts()]
    if None in pools:
        return None
    pool = float(np.mean([of for of in pools if of is not None]))
    at_hand = task.test_patients if task.folds else round(pool)
    return measured(cases.labels, scores, cases.patients, folds, sizes, pool, at_hand)


def _pool(run: Run) -> float | None:
    """Patients of the split that a run's subset was drawn from; None where the run does not say.

    `fraction` tells them only where patients were drawn: a twentieth of the slices is of most
    patients.
    """
    learnt: Any = run.results.get("train_patients")
    fraction = float(run.results["fraction"])
    if not is_number(learnt):
        return None
    splits, drawn_from = run.data.get("splits"), settings(run.config).get("data.split")
    if isinstance(splits, dict) and isinstance(drawn_from, str):
        of = [splits.get(name) for name in drawn_from.split("+")]
        counts: list[Any] = [split.get("patients") for split in of if isinstance(split, dict)]
        if len(counts) == len(of) and all(map(is_number, counts)) and sum(counts) >= learnt:
            return float(sum(counts))
    whole = fraction == 1 or run.config.get("subset_by") == "patient"
    return float(learnt / fraction) if whole else None
