"""Intervals of a metric near 0 or 1, where too few patients are on the rarer side to be drawn anew.

Drawn anew, ten positives that are all found are all found again: the bootstrap's interval of that
sensitivity is 1 to 1, and that of an AUC of 1 likewise. So where fewer than `FEW` patients are
expected on the rarer side, ends are at least those of a score interval, whose error is that of the
end and not of the estimate: Wilson's of a share (J. Am. Stat. Assoc. 22:209, 1927), and of an AUC
the fifth of Newcombe (Stat. Med. 25:559, 2006). Both are given patients, not cases, so that many
cases of a patient count as one. That is far too wide where there are many patients, each of many
cases that differ; so from `MANY` patients on the bootstrap stands alone.
"""

from collections.abc import Iterator
from math import isfinite, sqrt

import numpy as np
from jaxtyping import Bool, Integer, Shaped
from scipy.optimize import brentq
from scipy.stats import norm

from ctssl_jax.statistics.bootstrap import Interval

FEW = 5
"""The usual bound for the normal approximation of a binomial."""
MANY = 30
"""Patients of the smaller side from which on the bootstrap stands alone."""
SHARES = ("accuracy", "f1", "sensitivity", "specificity")
"""Metrics that are taken for a share of patients; F1, which is none, of those of its class."""


def widened(
    found: Interval,
    metric: str,
    labels: Integer[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"],
    *,
    level: float = 0.95,
) -> Interval:
    """The interval of a metric, at least as wide as a score interval where patients are few.

    Args:
      found: of the bootstrap over patients.
      metric: `auc` or one of `SHARES`, of cases of these labels; any other stays as it is.
      labels: of the cases.
      patients: whose each case is.
      level: chance to cover.
    """
    estimate = found.estimate
    if not (isfinite(estimate) and isfinite(found.low)):
        return found
    if metric == "auc":
        # The mean over classes: those of enough patients keep the bootstrap's ends.
        bootstrap = (found.low, found.high)
        ends = [
            newcombe(estimate, *sides, level) if _few(min(sides), estimate) else bootstrap
            for sides in _sides(labels, patients)
        ]
    elif metric in SHARES:
        count = len(np.unique(patients[_counted(metric, labels)]))
        ends = [wilson(estimate, count, level)] if count and _few(count, estimate) else []
    else:
        ends = []
    if not ends:
        return found
    low, high = np.mean(ends, axis=0)
    return found._replace(low=min(found.low, float(low)), high=max(found.high, float(high)))


def _few(count: int, estimate: float) -> bool:
    """Whether so many patients are few, and fewer on the rarer side."""
    return count < MANY and count * min(estimate, 1 - estimate) < FEW


def wilson(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share among `count` patients.

    >>> [round(end, 3) for end in wilson(1.0, 10)]
    [0.722, 1.0]
    """
    z = norm.ppf((1 + level) / 2)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) * z / (1 + z**2 / count)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def newcombe(
    area: float, positives: int, negatives: int, level: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval of an AUC by so many patients of either side (2006, method 5).

    >>> [round(end, 3) for end in newcombe(1.0, 10, 10)]
    [0.8, 1.0]
    """
    z, both = norm.ppf((1 + level) / 2), positives * negatives
    more = (positives + negatives) / 2 - 1

    def beyond(end: float, estimate: float) -> float:
        """How far an end is from the estimate, less what it may be; 0 at the end."""
        spread = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end)))
        return (end - estimate) ** 2 - z**2 * spread / both

    def low(estimate: float) -> float:
        if estimate <= 0:
            return 0.0
        nearest = min(estimate, 1 - 1e-9)  # 1 itself solves it for an estimate of 1
        return float(brentq(beyond, 0, nearest, args=(estimate,)))

    return low(area), 1 - low(1 - area)


def _sides(
    labels: Integer[np.ndarray, " n"], patients: Shaped[np.ndarray, " n"]
) -> Iterator[tuple[int, int]]:
    """Patients with cases of a class, and with others: of class 1 of two, else of each class."""
    present = np.unique(labels)
    for label in present if len(present) > 2 else present[-1:]:
        own = labels == label
        sides = len(np.unique(patients[own])), len(np.unique(patients[~own]))
        if min(sides):
            yield sides


def _counted(metric: str, labels: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """The cases that a share is of."""
    binary = labels.max() < 2
    if metric == "specificity":
        return labels != 1
    if metric == "sensitivity" or (metric == "f1" and binary):
        return labels == 1
    return np.ones(len(labels), dtype=bool)
