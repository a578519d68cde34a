"""What a classifier of two classes is worth where it decides: thresholds, Brier score, calibration.

A threshold is chosen on validation and used on test, as it would be in a clinic. So the rate that
was asked for is not met exactly, and both rates of the test are given.
"""

from math import nan

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, Shaped

from ctssl_jax.statistics.metric import Metric, Statistic, as_runs

BINS = 5
"""Of predicted chances, in a calibration curve: equally wide."""


def threshold_at_specificity(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], target: float
) -> float:
    """The lowest score from which a case is called positive that keeps `target` of the negatives.

    Infinite where no score does; NaN without negatives.

    >>> sick = np.array([False, False, False, False, True, True])
    >>> scores = np.array([0.1, 0.2, 0.3, 0.8, 0.7, 0.9])
    >>> threshold_at_specificity(sick, scores, 0.75), threshold_at_specificity(sick, scores, 1.0)
    (0.7, 0.9)
    """
    negatives = scores[~positive]
    if not len(negatives):
        return nan
    candidates = np.append(np.unique(scores), np.inf)
    kept = np.mean(negatives[:, None] < candidates, axis=0)
    return float(candidates[np.argmax(kept >= target - 1e-12)])


def threshold_at_sensitivity(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], target: float
) -> float:
    """The highest score from which a case is called positive that finds `target` of the positives.

    NaN without positives.
    """
    if not positive.any():
        return nan
    candidates = np.unique(scores)[::-1]
    found = np.mean(scores[positive][:, None] >= candidates, axis=0)
    return float(candidates[np.argmax(found >= target - 1e-12)])


def sensitivity(
    labels: Integer[np.ndarray, " n"],
    called: Num[np.ndarray, "*runs n k"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the share of cases of class 1 that are called so (1, else 0), for each run."""
    return _share(labels == 1, as_runs(called)[..., 0], patients)


def specificity(
    labels: Integer[np.ndarray, " n"],
    called: Num[np.ndarray, "*runs n k"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the share of the other cases that are not called class 1, for each run."""
    return _share(labels != 1, 1 - as_runs(called)[..., 0], patients)


def brier(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the mean squared error of the chances of each run (Brier, 1950).

    Two classes: of that of class 1, from 0 to 1. More: summed over the classes, from 0 to 2.
    """
    runs = as_runs(scores)
    truth = labels[:, None] == np.arange(runs.shape[-1])
    squares = (runs - truth) ** 2
    errors = squares[..., 1] if runs.shape[-1] == 2 else squares.sum(axis=-1)
    return _share(np.ones(len(labels), dtype=bool), errors, patients)


def calibration(weights: Float[np.ndarray, " runs"]) -> Metric:
    """The metric whose columns are the share of class 1 in each of `BINS` of predicted chances.

    All runs together, each counting as `weights` say. NaN where a bin is empty.
    """

    def prepare(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> Statistic:
        chances, count = as_runs(scores)[..., 1], int(patients.max()) + 1
        sums, cases = np.zeros((2, count, BINS))
        for weight, bins in zip(weights, bins_of(chances), strict=True):
            np.add.at(cases, (patients, bins), weight)
            np.add.at(sums, (patients, bins), weight * (labels == 1))

        def statistic(drawn: Float[np.ndarray, "r g"]) -> Float[np.ndarray, "r bins"]:
            total, of = drawn @ sums, drawn @ cases
            return np.divide(total, of, out=np.full(total.shape, nan), where=of > 0)

        return statistic

    return prepare


def bins_of(chances: Float[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
    """The bin of each predicted chance."""
    return np.clip((chances * BINS).astype(int), 0, BINS - 1)


def _share(
    counted: Bool[np.ndarray, "*runs n"],
    values: Shaped[np.ndarray, "runs n"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """The mean of `values` over the cases that are counted; NaN where there is none."""
    count = int(patients.max()) + 1
    among = np.broadcast_to(counted, values.shape)
    sums = _by_patient(np.where(among, values, 0), patients, count)
    cases = _by_patient(among.astype(float), patients, count)

    def statistic(weights: Float[np.ndarray, "r g"]) -> Float[np.ndarray, "r runs"]:
        total, of = weights @ sums, weights @ cases
        return np.divide(total, of, out=np.full(total.shape, nan), where=of > 0)

    return statistic


def _by_patient(
    values: Num[np.ndarray, "runs n"], patients: Integer[np.ndarray, " n"], count: int
) -> Float[np.ndarray, "g runs"]:
    return np.stack([np.bincount(patients, run, count) for run in values], axis=1)
