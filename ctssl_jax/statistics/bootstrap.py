"""Intervals of means, differences, slopes and drops: patients drawn anew, runs by Student's t.

The patient is what is drawn anew (cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69:369,
2007), the same patients for every run of every arm, so that what makes a test set easy or hard
cancels in differences. An interval over patients is about the networks that were trained. One over
runs as well is about training again (`levels`). For that the runs are not drawn anew: five values
drawn with replacement spread a fifth too little and have no tails. Their error is drawn from
Student's t instead, so that with very many patients the interval is the usual t-interval.

In a cross-validation each patient is tested by the network of one fold. Patients are then drawn
within their fold, and what ranks scores is computed within folds (`metric.within_folds`).
"""

from collections.abc import Sequence
from math import isfinite, nan, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Num, Shaped
from scipy.stats import t as student_t

from ctssl_jax.statistics.levels import FEWEST_RUNS, NOTHING, Runs, Training, training
from ctssl_jax.statistics.metric import Metric, auc

Table = Float[np.ndarray, "r _"]
"""A metric by run: row 0 on the test set, the others on resamples of its patients."""


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


def resampled(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"] | Num[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    metric: Metric = auc,
    *,
    folds: Shaped[np.ndarray, " n"] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Table:
    """The metric of each run on the test set and on `n` resamples of its patients.

    `groups` names the patient of each case, `folds` the fold that tested it, within which patients
    are then drawn. The same groups, folds, `n` and `seed` give the same resamples, so tables made
    with them can be set against each other. Rows that lack a class are NaN. With fewer than two
    patients there is nothing to draw: row 0 stands alone.
    """
    names, patients = np.unique(groups, return_inverse=True)
    count = len(names)
    weights = np.ones((1, count))
    if count > 1:
        fold = np.zeros(count, dtype=int)
        if folds is not None:
            fold[patients] = np.unique(folds, return_inverse=True)[1]
        weights = np.concatenate([weights, _drawn(fold, n, seed)])
    return metric(labels, scores, patients)(weights)


def contrast(
    tables: Sequence[Table],
    coefficients: Sequence[float | int] | Float[np.ndarray, " m"],
    *,
    of: Sequence[Runs] | None = None,
    again: Training = NOTHING,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a weighted sum of the tables' means over runs.

    Args:
      tables: of `resampled`, one for each arm and size, on the same resamples.
      coefficients: [1] is a mean, [1, -1] a difference; `slope` and `drop` give others.
      of: who the runs of each table are: means are taken within a pre-training first. None: all
        runs of a table count alike.
      again: errors of training again (`trained_again`), which are added to the patients'. A little
        too wide, for the runs' spread holds some of the patients' luck once more.
      seed: of the draws for the runs.
      level: chance to cover.

    Resamples that lack a class are skipped and counted. Without patients to draw the ends are NaN.
    """
    estimate, *draws = sum(
        factor * (table @ weights)
        for factor, table, weights in zip(coefficients, tables, _weights(tables, of), strict=True)
    )
    values = np.array(draws) + again.drawn(len(draws), seed)
    usable = values[np.isfinite(values)]
    skipped = len(values) - len(usable)
    if not len(usable):
        return Interval(float(estimate), nan, nan, 0, skipped)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high), len(usable), skipped)


def trained_again(
    tables: Sequence[Table],
    coefficients: Sequence[float | int] | Float[np.ndarray, " m"],
    of: Sequence[Runs],
) -> Training:
    """The errors of training again of a `contrast`: `levels.training` of the rows 0."""
    return training([table[0] for table in tables], of, coefficients)


def spread_over_patients(
    tables: Sequence[Table],
    coefficients: Sequence[float | int] | Float[np.ndarray, " m"],
    of: Sequence[Runs],
) -> float:
    """The bootstrap's standard error of a `contrast`; NaN where no two resamples can be used."""
    draws = sum(
        factor * (table[1:] @ runs.weights())
        for factor, table, runs in zip(coefficients, tables, of, strict=True)
    )
    usable = np.asarray(draws)[np.isfinite(draws)]
    return float(np.std(usable, ddof=1)) if len(usable) > 1 else nan


def slope(sizes: Num[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Coefficients of the least-squares slope against log2 of training size: gain per doubling.

    Raises:
      ValueError: there are no two different sizes.
    """
    logs = np.log2(sizes)
    centred = logs - logs.mean()
    if len(np.unique(sizes)) < 2:
        raise ValueError("slope: needs two different sizes")
    return centred / np.sum(centred**2)


def drop(sizes: Num[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Coefficients of the value at the largest size minus that at the smallest.

    Raises:
      ValueError: there are no two different sizes.
    """
    if len(np.unique(sizes)) < 2:
        raise ValueError("drop: needs two different sizes")
    coefficients = np.zeros(len(sizes))
    coefficients[np.argmax(sizes)], coefficients[np.argmin(sizes)] = 1, -1
    return coefficients


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
    """Interval of `metric` over patients.

    With a leading axis of runs (seeds) the metric is their mean. See `resampled` and `contrast`.
    """
    table = resampled(labels, scores, groups, metric, n=n, seed=seed)
    return contrast([table], [1], level=level, seed=seed)


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
    """Interval over patients of the difference A - B of two arms scored on the same cases.

    The verdict names an arm only when the whole interval lies on its side of zero.
    """
    tables = [resampled(labels, x, groups, metric, n=n, seed=seed) for x in (scores_a, scores_b)]
    found = contrast(tables, [1, -1], level=level)
    return Difference(*found, verdict=verdict(found))


def verdict(*intervals: Interval, p: float = 0.0, alpha: float = 0.05) -> str:
    """Which of A and B is higher, if every interval of A - B that there is and p agree on it.

    Intervals with NaN ends make no claim and are passed over; without any the answer is "cannot
    tell".
    """
    known = [interval for interval in intervals if isfinite(interval.low)]
    if not known or not p < alpha:
        return "cannot tell"
    if all(interval.low > 0 for interval in known):
        return "A higher"
    return "B higher" if all(interval.high < 0 for interval in known) else "cannot tell"


def mean_and_range(values: Num[np.ndarray, " n"]) -> Spread:
    """Mean, smallest and largest of one number per seed, and a 95% t-interval from three on."""
    mean, count, half = float(np.mean(values)), len(values), nan
    if count >= FEWEST_RUNS:
        half = float(student_t.ppf(0.975, count - 1) * np.std(values, ddof=1)) / sqrt(count)
    low, high = float(np.min(values)), float(np.max(values))
    return Spread(mean, low, high, count, mean - half, mean + half)


def _drawn(fold: Integer[np.ndarray, " g"], n: int, seed: int) -> Float[np.ndarray, "n g"]:
    """How often each patient is drawn, fold by fold."""
    rng, weights = np.random.default_rng(seed), np.empty((n, len(fold)))
    for own in (fold == number for number in range(fold.max() + 1)):
        count = int(own.sum())
        weights[:, own] = rng.multinomial(count, np.full(count, 1 / count), size=n)
    return weights


def _weights(
    tables: Sequence[Table], of: Sequence[Runs] | None
) -> list[Float[np.ndarray, " runs"]]:
    if of is None:
        return [np.full(table.shape[1], 1 / table.shape[1]) for table in tables]
    return [runs.weights() for runs in of]
