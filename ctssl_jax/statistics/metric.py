"""AUC, F1 and accuracy as functions of how often each patient counts.

All that a resample changes is that number, hence a metric is prepared once for its cases and then
evaluated for thousands of weightings of the patients with a few matrix products.
"""

from collections.abc import Callable, Iterator
from math import nan

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, Shaped

Statistic = Callable[[Float[np.ndarray, "r g"]], Float[np.ndarray, "r runs"]]
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], Statistic]

EXACT_PATIENTS = 300
"""Up to so many patients the AUC counts every pair of them; above, see `auc`."""


def roc_auc(labels: Integer[np.ndarray, " n"], scores: Num[np.ndarray, " n *k"]) -> float:
    """Area under the ROC curve: the chance that a positive case scores above a negative one.

    Ties count half (Mann-Whitney). One score column, or two, is binary with class 1 positive; more
    are the plain mean of one class against the rest, over the classes present. NaN if one is alone.
    """
    one_patient = np.zeros(len(labels), dtype=int)
    return float(auc(labels, scores, one_patient)(np.ones((1, 1)))[0, 0])


def auc(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"] | Num[np.ndarray, " n"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the AUC of each run as a function of the weights of patients 0..g-1.

    Exact up to `EXACT_PATIENTS` patients. With more, pairs of patients are too many to count for
    every resample: what a weight does to the cases that a case is compared with is then taken to
    first order (Hájek projection), which moves the ends of an interval by under 2 % of its width.
    """
    prepare = _by_pairs if patients.max(initial=0) < EXACT_PATIENTS else _by_placements
    parts = [
        prepare(positive, of_class, patients)
        for positive, of_class in one_against_rest(labels, as_runs(scores))
    ]
    return lambda weights: np.mean([part(weights) for part in parts], axis=0)


def within_folds(metric: Metric, folds: Shaped[np.ndarray, " n"]) -> Metric:
    """The mean over folds of a metric computed within each.

    Scores of different networks are on different scales, so ranking them together measures the
    scales (Forman and Scholz, SIGKDD Explor. 12:49, 2010). A fold that lacks a class, as a whole or
    in a resample, is left out of the mean; where every fold does, it is NaN.

    Args:
      metric: `auc`, or another that ranks scores.
      folds: of each case; a patient is in one fold.
    """

    def prepare(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> Statistic:
        runs, parts = as_runs(scores), []
        for fold in np.unique(folds):
            own = folds == fold
            names, local = np.unique(patients[own], return_inverse=True)
            parts.append((names, metric(labels[own], runs[:, own], local)))

        def statistic(weights: Float[np.ndarray, "r g"]) -> Float[np.ndarray, "r runs"]:
            values = np.stack([part(weights[:, names]) for names, part in parts])
            known = np.isfinite(values)
            total, count = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
            return np.divide(total, count, out=np.full(total.shape, nan), where=count > 0)

        return statistic

    return prepare


def accuracy(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the share of cases whose largest score is their label, for each run."""
    right = as_runs(scores).argmax(axis=-1) == labels
    right = _sums(right.astype(float), patients, int(patients.max()) + 1)
    cases = np.bincount(patients)
    return lambda weights: (weights @ right) / (weights @ cases)[:, None]


def f1(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the F1 of each run as a function of the weights of patients 0..g-1.

    Of class 1 where there are two; of more, the plain mean over the classes that are present or
    predicted. NaN where there is none.
    """
    scores = as_runs(scores)
    classes = scores.shape[-1]
    counted = np.arange(classes) if classes > 2 else np.array([1])
    truth = labels[:, None] == counted
    predicted = scores.argmax(axis=-1)[..., None] == counted
    hits = _by_patient(truth & predicted, patients)
    # F1 = 2 hits / (cases of the class + cases called so)
    cases = _by_patient(truth.astype(int) + predicted, patients)

    def statistic(weights: Float[np.ndarray, "r g"]) -> Float[np.ndarray, "r runs"]:
        total = weights @ cases  # [runs, r, counted]
        with np.errstate(invalid="ignore"):
            each = 2 * (weights @ hits) / total
        present = total > 0
        some = present.any(axis=-1)
        mean = np.where(present, each, 0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
        return np.where(some, mean, nan).T

    return statistic


def as_runs(scores: Num[np.ndarray, "..."]) -> Num[np.ndarray, "runs n k"]:
    """Gives scores their run and class axes: (n,) and (n, k) are one run."""
    return scores[None, :, None] if scores.ndim == 1 else scores.reshape(-1, *scores.shape[-2:])


def one_against_rest(
    labels: Integer[np.ndarray, " n"], scores: Num[np.ndarray, "runs n k"]
) -> Iterator[tuple[Bool[np.ndarray, " n"], Num[np.ndarray, "runs n"]]]:
    """Positive cases and their scores: of class 1 of two, else of each class present in turn."""
    classes = scores.shape[-1]
    for label in range(classes) if classes > 2 else (1,):
        positive = labels == label
        if classes <= 2 or positive.any():
            yield positive, scores[..., min(label, classes - 1)]


def placements(
    positive: Bool[np.ndarray, " n"], scores: Num[np.ndarray, "runs n"]
) -> Float[np.ndarray, "runs n"]:
    """The share of the other side that each case is rightly ordered with, ties half.

    The structural components of DeLong et al. (Biometrics 44:837, 1988); their mean over the
    positive cases is the AUC, and over the negative ones too. NaN where the other side is empty.
    """
    placed = np.full(scores.shape, nan)
    if positive.any() and not positive.all():
        for out, run in zip(placed, scores, strict=True):
            out[positive] = share_below(run[~positive], run[positive])
            out[~positive] = 1 - share_below(run[positive], run[~positive])
    return placed


def share_below(
    reference: Num[np.ndarray, " m"], values: Num[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The share of `reference` that lies below each value, ties half."""
    reference = np.sort(reference)
    below = np.searchsorted(reference, values, side="left")
    return (below + np.searchsorted(reference, values, side="right")) / (2 * len(reference))


def _sums(
    values: Float[np.ndarray, "runs n"], patients: Integer[np.ndarray, " n"], count: int
) -> Float[np.ndarray, "g runs"]:
    """Sums the values of each patient."""
    return np.stack([np.bincount(patients, run, count) for run in values], axis=1)


def _by_patient(
    cases: Shaped[np.ndarray, "runs n k"], patients: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "runs g k"]:
    """Counts the cases of each patient."""
    total = np.zeros((cases.shape[0], patients.max() + 1, cases.shape[2]))
    for run, counts in zip(total, cases, strict=True):
        np.add.at(run, patients, counts)
    return total


def _by_pairs(
    positive: Bool[np.ndarray, " n"],
    scores: Num[np.ndarray, "runs n"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    rows, cases = np.unique(patients[positive], return_counts=True)
    columns, others = np.unique(patients[~positive], return_counts=True)
    wins = [_wins(positive, run, patients) for run in scores]

    def statistic(weights: Float[np.ndarray, "r g"]) -> Float[np.ndarray, "r runs"]:
        of_rows, of_columns = weights[:, rows], weights[:, columns]
        pairs = (of_rows @ cases) * (of_columns @ others)
        won = np.stack([np.sum((of_rows @ run) * of_columns, axis=1) for run in wins], axis=1)
        return _ratio(won, pairs)

    return statistic


def _by_placements(
    positive: Bool[np.ndarray, " n"],
    scores: Num[np.ndarray, "runs n"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    placed, count = placements(positive, scores), int(patients.max()) + 1
    observed = placed[:, positive].mean(axis=1) if positive.any() else nan
    sides = [
        (
            np.bincount(patients[side], minlength=count),
            _sums(placed[:, side], patients[side], count),
        )
        for side in (positive, ~positive)
    ]

    def statistic(weights: Float[np.ndarray, "r g"]) -> Float[np.ndarray, "r runs"]:
        means = [_ratio(weights @ sums, weights @ cases) for cases, sums in sides]
        return means[0] + means[1] - observed

    return statistic


def _ratio(
    sums: Float[np.ndarray, "r runs"], counts: Float[np.ndarray, " r"]
) -> Float[np.ndarray, "r runs"]:
    """Divides; NaN where nothing was counted."""
    counts = np.broadcast_to(counts[:, None], sums.shape)
    return np.divide(sums, counts, out=np.full(sums.shape, nan), where=counts > 0)


def _wins(
    positive: Shaped[np.ndarray, " n"],
    scores: Num[np.ndarray, " n"],
    patients: Integer[np.ndarray, " n"],
) -> Float[np.ndarray, "p q"]:
    """Counts pairs in which the positive case scores higher (ties half), per pair of patients."""
    order = np.argsort(patients, kind="stable")
    wanted, others = order[positive[order]], order[~positive[order]]
    rows, row_starts = np.unique(patients[wanted], return_index=True)
    columns, column_starts = np.unique(patients[others], return_index=True)
    wins = np.zeros((len(rows), len(columns)))
    if wins.size:
        for row, own in zip(wins, np.split(scores[wanted], row_starts[1:]), strict=True):
            own.sort()
            below = np.searchsorted(own, scores[others], side="left")
            below += np.searchsorted(own, scores[others], side="right")
            row[:] = np.add.reduceat(len(own) - below / 2, column_starts)
    return wins
