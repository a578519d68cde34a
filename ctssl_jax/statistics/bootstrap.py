"""Intervals of means, differences, slopes and drops: patients drawn anew, runs by Student's t.

The patient is what is drawn anew (cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69:369,
2007), the same patients for every run of every arm, so that what makes a test set easy or hard
cancels in differences. An interval over patients is about the networks that were trained. One over
runs as well is about training again, with another seed. For that the runs are not drawn anew:
five values drawn with replacement spread a fifth too little and have no tails. Their error is
drawn from Student's t instead, so that with very many patients the interval is the usual
t-interval over seeds. Below three runs nothing is claimed about training again.
"""

from collections.abc import Sequence
from math import isfinite, nan, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Num, Shaped
from scipy.stats import t as student_t

from ctssl_jax.statistics.metric import Metric, auc

Table = Float[np.ndarray, "r _"]
"""A metric by run: row 0 on the test set, the others on resamples of its patients."""

FEWEST_RUNS = 3
"""Below so many runs nothing is claimed about training again."""


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
    n: int = 2000,
    seed: int = 0,
) -> Table:
    """The metric of each run on the test set and on `n` resamples of its patients.

    `groups` names the patient of each case. The same groups, `n` and `seed` give the same
    resamples, so tables made with them can be set against each other. Rows that lack a class are
    NaN. With fewer than two patients there is nothing to draw: row 0 stands alone.
    """
    names, patients = np.unique(groups, return_inverse=True)
    count = len(names)
    weights = np.ones((1, count))
    if count > 1:
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n)
        weights = np.concatenate([weights, drawn])
    return metric(labels, scores, patients)(weights)


def contrast(
    tables: Sequence[Table],
    coefficients: Sequence[float | int] | Float[np.ndarray, " m"],
    *,
    over_runs: bool = False,
    paired: bool = False,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a weighted sum of the tables' means over runs.

    Args:
      tables: of `resampled`, one for each arm and size, on the same resamples.
      coefficients: [1] is a mean, [1, -1] a difference; `slope` and `drop` give others.
      over_runs: cover training again as well. NaN ends if a table has fewer than three runs. A
        little too wide, for the runs' spread holds some of the patients' luck once more.
      paired: run i of every table had the same seed, so what they share cancels.
      seed: of the draws for the runs.
      level: chance to cover.

    Resamples that lack a class are skipped and counted. Without patients to draw the ends are NaN.

    Raises:
      ValueError: `paired` tables differ in their number of runs.
    """
    weighted = [factor * table for factor, table in zip(coefficients, tables, strict=True)]
    estimate, *draws = sum(table.mean(axis=1) for table in weighted)
    values = np.array(draws)
    if over_runs:
        values = values + _training_again([x[0] for x in weighted], paired, len(values), seed)
    usable = values[np.isfinite(values)]
    skipped = len(values) - len(usable)
    if not len(usable):
        return Interval(float(estimate), nan, nan, 0, skipped)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high), len(usable), skipped)


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
    over_runs: bool = False,
) -> Interval:
    """Interval of `metric`, over patients or over patients and runs.

    With a leading axis of runs (seeds) the metric is their mean. See `resampled` and `contrast`.
    """
    table = resampled(labels, scores, groups, metric, n=n, seed=seed)
    return contrast([table], [1], level=level, over_runs=over_runs, seed=seed)


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


def _training_again(
    values: Sequence[Float[np.ndarray, " _"]], paired: bool, n: int, seed: int
) -> Float[np.ndarray, " n"]:
    """Draws the error of a sum of means over runs; NaN where a mean is over too few."""
    if paired:
        if len({len(of_table) for of_table in values}) > 1:
            raise ValueError("contrast: paired tables need the same number of runs")
        values = [np.sum(values, axis=0)]
    if min(map(len, values)) < FEWEST_RUNS:
        return np.full(n, nan)
    rng = np.random.default_rng([seed, 1])  # not the numbers that drew the patients
    errors = [
        rng.standard_t(len(of_table) - 1, size=n) * np.std(of_table, ddof=1) / sqrt(len(of_table))
        for of_table in values
    ]
    return np.sum(errors, axis=0)
