"""How sure a small test set lets us be: AUC, intervals by patient, paired differences.

Slices of one patient resemble each other, so the patient, not the slice, is what is drawn anew
(cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69:369, 2007). All that a resample changes
is how often each patient counts, hence a metric is prepared once for its cases and then evaluated
for thousands of weightings of the patients with a few matrix products.

The intervals cover the choice of test patients. They do not cover the luck of a training run: for
that, read the spread over seeds (`mean_and_range`).
"""

from collections.abc import Callable
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Num, Shaped

Statistic = Callable[[Float[np.ndarray, "r g"]], Float[np.ndarray, " r"]]
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], Statistic]


class Interval(NamedTuple):
    """An estimate with its bootstrap interval; `skipped` resamples lacked a class."""

    estimate: float
    low: float
    high: float
    resamples: int
    skipped: int


class Difference(NamedTuple):
    """A minus B on the same cases; `verdict` is "A higher", "B higher" or "cannot tell"."""

    estimate: float
    low: float
    high: float
    resamples: int
    skipped: int
    verdict: str


class Spread(NamedTuple):
    """Mean and range over seeds; the 95% t-interval of the mean is NaN below three seeds."""

    mean: float
    low: float
    high: float
    n: int
    t_low: float
    t_high: float


def roc_auc(labels: Integer[np.ndarray, " n"], scores: Num[np.ndarray, "n *k"]) -> float:
    """Area under the ROC curve: the chance that a positive case scores above a negative one.

    Ties count half (Mann-Whitney). One score column, or two, is binary with class 1 positive; more
    are the plain mean of one class against the rest, over the classes present. NaN if one is alone.
    """
    one_patient = np.zeros(len(labels), dtype=int)
    return float(auc(labels, scores, one_patient)(np.ones((1, 1)))[0])


def auc(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"] | Num[np.ndarray, " n"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the AUC, averaged over runs, as a function of the weights of patients 0..g-1."""
    scores = _as_runs(scores)
    classes = scores.shape[-1]
    parts = []
    for label in range(classes) if classes > 2 else (1,):
        positive = labels == label
        if classes > 2 and not positive.any():
            continue
        wins = np.mean(
            [_wins(positive, run[:, min(label, classes - 1)], patients) for run in scores], 0
        )
        parts.append((patients[positive], patients[~positive], wins))

    def statistic(weights: Float[np.ndarray, "r g"]) -> Float[np.ndarray, " r"]:
        values = []
        for of_positive, of_negative, wins in parts:
            rows, cases = np.unique(of_positive, return_counts=True)
            columns, others = np.unique(of_negative, return_counts=True)
            pairs = (weights[:, rows] @ cases) * (weights[:, columns] @ others)
            won = np.sum((weights[:, rows] @ wins) * weights[:, columns], axis=1)
            values.append(np.divide(won, pairs, out=np.full(len(won), nan), where=pairs > 0))
        return np.mean(values, axis=0)

    return statistic


def accuracy(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the share of cases whose largest score is their label, averaged over runs."""
    right = np.mean(_as_runs(scores).argmax(axis=-1) == labels, axis=0)
    right, cases = np.bincount(patients, weights=right), np.bincount(patients)
    return lambda weights: (weights @ right) / (weights @ cases)


def bootstrap_interval(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"] | Num[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    metric: Metric = auc,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `metric` under resampling of patients.

    With a leading axis of runs (seeds) the metric is their mean, and one resample of the patients
    serves all of them. `groups` names the patient of each case. Resamples that lack a class are
    skipped and counted. With fewer than two patients there is no interval: its ends are NaN.
    """
    names, patients = np.unique(groups, return_inverse=True)
    return Interval(*_bootstrap(metric(labels, scores, patients), len(names), n, seed, level))


def paired_bootstrap_difference(
    labels: Integer[np.ndarray, " n"],
    scores_a: Num[np.ndarray, "*runs_a n k"] | Num[np.ndarray, " n"],
    scores_b: Num[np.ndarray, "*runs_b n k"] | Num[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    metric: Metric = auc,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Interval of the difference A - B of two arms scored on the same cases.

    Both arms see the same resampled patients, so what makes a test set easy or hard cancels. The
    verdict names an arm only when the whole interval lies on its side of zero.
    """
    names, patients = np.unique(groups, return_inverse=True)
    of_a, of_b = metric(labels, scores_a, patients), metric(labels, scores_b, patients)
    result = _bootstrap(lambda weights: of_a(weights) - of_b(weights), len(names), n, seed, level)
    verdict = "A higher" if result[1] > 0 else "B higher" if result[2] < 0 else "cannot tell"
    return Difference(*result, verdict=verdict)


def mean_and_range(values: Num[np.ndarray, " n"]) -> Spread:
    """Mean, smallest and largest of one number per seed, and a 95% t-interval from three on."""
    mean, count, half = float(np.mean(values)), len(values), nan
    if count >= 3:
        half = _t_quantile(count - 1) * float(np.std(values, ddof=1)) / sqrt(count)
    low, high = float(np.min(values)), float(np.max(values))
    return Spread(mean, low, high, count, mean - half, mean + half)


def _as_runs(scores: Num[np.ndarray, "..."]) -> Num[np.ndarray, "runs n k"]:
    """Gives scores their run and class axes: (n,) and (n, k) are one run."""
    return scores[None, :, None] if scores.ndim == 1 else scores.reshape(-1, *scores.shape[-2:])


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
            own = np.sort(own)
            below = np.searchsorted(own, scores[others], side="left")
            not_above = np.searchsorted(own, scores[others], side="right")
            row[:] = np.add.reduceat(len(own) - (below + not_above) / 2, column_starts)
    return wins


def _bootstrap(
    statistic: Statistic, patients: int, n: int, seed: int, level: float
) -> tuple[float, float, float, int, int]:
    """Estimate, both ends of the percentile interval, resamples used, resamples skipped."""
    estimate = float(statistic(np.ones((1, patients)))[0])
    if patients < 2:
        return estimate, nan, nan, 0, 0
    chances = np.full(patients, 1 / patients)
    weights = np.random.default_rng(seed).multinomial(patients, chances, size=n)
    values = statistic(weights.astype(np.float64))
    usable = values[np.isfinite(values)]
    if not len(usable):
        return estimate, nan, nan, 0, n
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return estimate, float(low), float(high), len(usable), n - len(usable)


def _t_quantile(freedom: int) -> float:
    """The 97.5% point of Student's t: the usual table, then Abramowitz and Stegun 26.7.5."""
    if 2 <= freedom <= 9:
        return (4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)[freedom - 2]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
