"""Whether a difference of two AUCs could be the luck of the test patients, and of looking often.

Two independent ways to the same question: patients whose two scores are swapped at random, which
assumes nothing about distributions and is what the report uses, and DeLong's normal approximation,
which is the field's standard and has a standard error. Both are about the networks at hand:
training again is not covered. Five seeds could not show it by swapping alone, for of 2^5 ways to
swap them two are as extreme as any, and 2/32 is above 0.05. It is `levels` that covers it, and the
report goes by the larger of both p.

With `folds`, the fold of a cross-validation that tested each case, everything is computed within
folds and averaged over those that have both sides.
"""

from collections.abc import Iterator
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Num, Shaped
from scipy.stats import norm, rankdata

from ctssl_jax.statistics.metric import as_runs, one_against_rest, placements, share_below

CHUNK = 1 << 22
"""Random signs that are in memory at once."""


class DeLong(NamedTuple):
    """Estimate, standard error, normal interval, two-sided p (of an AUC of 0.5, of no difference).

    The standard error is NaN with fewer than two patients on a side.
    """

    estimate: float
    standard_error: float
    low: float
    high: float
    p: float


class Permutation(NamedTuple):
    """A minus B, and how often swapped scores differ as much; `exact` if all swaps were counted."""

    estimate: float
    p: float
    permutations: int
    exact: bool


def delong(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"] | Num[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None = None,
    *,
    folds: Shaped[np.ndarray, " n"] | None = None,
    level: float = 0.95,
) -> DeLong:
    """AUC of two classes with DeLong's standard error, averaged over runs.

    DeLong et al., Biometrics 44:837, 1988; with `groups`, the patients of the cases, their
    extension to clusters by Obuchowski, Biometrics 53:567, 1997.

    Raises:
      ValueError: there are more than two classes.
    """
    placed = _mean_placements(labels, scores, folds)
    return _delong(labels, placed, groups, folds, 0.5, level)


def delong_difference(
    labels: Integer[np.ndarray, " n"],
    scores_a: Num[np.ndarray, "*runs_a n k"] | Num[np.ndarray, " n"],
    scores_b: Num[np.ndarray, "*runs_b n k"] | Num[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None = None,
    *,
    folds: Shaped[np.ndarray, " n"] | None = None,
    level: float = 0.95,
) -> DeLong:
    """The difference A - B of two AUCs on the same cases, as `delong`.

    Raises:
      ValueError: there are more than two classes.
    """
    placed_a, placed_b = (_mean_placements(labels, x, folds) for x in (scores_a, scores_b))
    return _delong(labels, placed_a - placed_b, groups, folds, 0.0, level)


def permutation_difference(
    labels: Integer[np.ndarray, " n"],
    scores_a: Num[np.ndarray, "*runs_a n k"] | Num[np.ndarray, " n"],
    scores_b: Num[np.ndarray, "*runs_b n k"] | Num[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    *,
    folds: Shaped[np.ndarray, " n"] | None = None,
    n: int = 10_000,
    seed: int = 0,
) -> Permutation:
    """Two-sided test of equal AUC: the two arms' scores of a patient are swapped at random.

    All swaps are counted if there are no more than `n` of them; else `n` are drawn and the one
    observed is counted as one more (Phipson and Smyth, SAGMB 9:39, 2010). See
    `swap_contributions`.
    """
    parts = swap_contributions(labels, scores_a, scores_b, groups, folds=folds)
    p = float(flip_p_values(parts[:, None], n=n, seed=seed)[0])
    exact = _all_swaps(len(parts)) <= n
    return Permutation(float(parts.sum()), p, _all_swaps(len(parts)) if exact else n, exact)


def swap_contributions(
    labels: Integer[np.ndarray, " n"],
    scores_a: Num[np.ndarray, "*runs_a n k"] | Num[np.ndarray, " n"],
    scores_b: Num[np.ndarray, "*runs_b n k"] | Num[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    *,
    folds: Shaped[np.ndarray, " n"] | None = None,
    weights: tuple[Float[np.ndarray, " runs_a"], Float[np.ndarray, " runs_b"]] | None = None,
) -> Float[np.ndarray, " g"]:
    """What each patient adds to the difference A - B of two AUCs, in the order of their names.

    Swapping a patient's scores between A and B turns the sign of his part and leaves the others:
    in the difference of the two areas all that does not cancel is linear in the swaps (Bandos,
    Rockette and Gur, Stat. Med. 24:2873, 2005). So no area is ever computed again, and parts of
    several differences may be added before their signs are turned.

    Scores are replaced by their ranks within a run, as two networks may use the scale differently.
    Run i of A is set against run i of B where they are as many and count alike, else every run of A
    against every one of B; `weights` say how much each counts in its arm's mean, all alike if None.
    More than two classes: the mean of one against the rest.
    """
    names, patients = np.unique(groups, return_inverse=True)
    runs_a, runs_b = as_runs(scores_a), as_runs(scores_b)
    pairs = list(_paired(len(runs_a), len(runs_b), weights))
    parts = np.array(
        [
            np.bincount(patients[own], of_fold, len(names))
            for own in _cases_by_fold(labels, folds)
            for of_fold in [_swap_parts_of(labels[own], runs_a[:, own], runs_b[:, own], pairs)]
            if np.isfinite(of_fold).all()
        ]
    )
    return parts.mean(axis=0) if len(parts) else np.full(len(names), nan)


def flip_p_values(
    parts: Float[np.ndarray, "g tests"], *, n: int = 10_000, seed: int = 0
) -> Float[np.ndarray, " tests"]:
    """Two-sided p of each column's sum, from turning the signs of its patients at random.

    One draw of signs serves all columns. All sign patterns are counted if no more than `n`.
    NaN for a column that holds NaN.
    """
    patients = len(parts)
    observed = np.abs(parts.sum(axis=0)) * (1 - 1e-9)  # as extreme, but for rounding
    exact = _all_swaps(patients) <= n
    rng, reached, total = np.random.default_rng(seed), np.zeros(parts.shape[1]), 0
    n = _all_swaps(patients) if exact else n
    rows = max(1, CHUNK // max(1, patients))
    for start in range(0, n, rows):
        here = np.arange(start, min(start + rows, n))
        turned = (
            here[:, None] >> np.arange(patients) & 1
            if exact
            else rng.integers(0, 2, (len(here), patients), dtype=np.int8)
        )
        reached += np.sum(np.abs((1.0 - 2.0 * turned) @ parts) >= observed, axis=0)
        total += len(here)
    p = reached / total if exact else (1 + reached) / (1 + total)
    return np.where(np.isfinite(observed), p, nan)


def holm(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """P-values adjusted for their number (Holm, Scand. J. Statist. 6:65, 1979).

    Calling what is below 0.05 different keeps the chance of even one false call in the family
    below 0.05, however the tests depend on each other. NaN stays NaN and is not counted.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    adjusted, order = np.full(len(p), nan), np.argsort(p)
    order = order[np.isfinite(p[order])]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def _cases_by_fold(
    labels: Integer[np.ndarray, " n"], folds: Shaped[np.ndarray, " n"] | None
) -> list[Shaped[np.ndarray, " n"]]:
    """Which cases each fold has; all of them where there is no fold."""
    if folds is None:
        return [np.ones(len(labels), dtype=bool)]
    return [folds == fold for fold in np.unique(folds)]


def _paired(
    count_a: int,
    count_b: int,
    weights: tuple[Float[np.ndarray, " a"], Float[np.ndarray, " b"]] | None,
) -> Iterator[tuple[int, int, float]]:
    """Which runs are set against each other, and how much that counts."""
    if weights is None:
        weights = np.full(count_a, 1 / count_a), np.full(count_b, 1 / count_b)
    of_a, of_b = weights
    if count_a == count_b and np.allclose(of_a, of_b, rtol=1e-12, atol=0):
        yield from ((run, run, float(weight)) for run, weight in enumerate(of_a))
    else:
        for a, b in np.ndindex(count_a, count_b):
            yield a, b, float(of_a[a] * of_b[b])


def _swap_parts_of(
    labels: Integer[np.ndarray, " n"],
    scores_a: Num[np.ndarray, "runs_a n k"],
    scores_b: Num[np.ndarray, "runs_b n k"],
    pairs: list[tuple[int, int, float]],
) -> Float[np.ndarray, " n"]:
    """What each case adds to the difference, mean over pairs of runs and over classes."""
    ranked_a, ranked_b = (rankdata(scores, axis=1) for scores in (scores_a, scores_b))
    of_classes = [
        np.sum([w * _swap_parts(positive, runs_a[a], runs_b[b]) for a, b, w in pairs], axis=0)
        for (positive, runs_a), (_, runs_b) in zip(
            one_against_rest(labels, ranked_a), one_against_rest(labels, ranked_b), strict=True
        )
    ]
    return np.mean(of_classes, axis=0)


def _swap_parts(
    positive: Shaped[np.ndarray, " n"],
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """What each case adds to the difference: its place among the other side's A and B scores."""
    if not positive.any() or positive.all():
        return np.full(len(a), nan)
    parts = np.empty(len(a))
    for side, sign in ((positive, 1), (~positive, -1)):
        other = np.concatenate([a[~side], b[~side]])
        gain = share_below(other, a[side]) - share_below(other, b[side])
        parts[side] = sign * gain / np.sum(side)
    return parts


def _all_swaps(patients: int) -> int:
    return 1 << patients


def _mean_placements(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "*runs n k"] | Num[np.ndarray, " n"],
    folds: Shaped[np.ndarray, " n"] | None,
) -> Float[np.ndarray, " n"]:
    """Placements within folds, mean over runs."""
    runs = as_runs(scores)
    if runs.shape[-1] > 2:
        raise ValueError("delong: more than two classes; use the bootstrap")
    ((positive, of_class),) = one_against_rest(labels, runs)
    placed = np.empty(of_class.shape)
    for own in _cases_by_fold(labels, folds):
        placed[:, own] = placements(positive[own], of_class[:, own])
    return placed.mean(axis=0)


def _delong(
    labels: Integer[np.ndarray, " n"],
    placed: Float[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None,
    folds: Shaped[np.ndarray, " n"] | None,
    null: float,
    level: float,
) -> DeLong:
    patients = np.arange(len(labels)) if groups is None else groups
    found = [
        _estimate(labels[own] == 1, placed[own], patients[own])
        for own in _cases_by_fold(labels, folds)
        if folds is None or 0 < np.sum(labels[own] == 1) < np.sum(own)
    ]
    estimate = float(np.mean([mean for mean, _ in found])) if found else nan
    variance = sum(of_fold for _, of_fold in found) / len(found) ** 2 if found else nan
    error = sqrt(variance) if variance >= 0 else nan
    half = norm.ppf((1 + level) / 2) * error
    p = 1.0 if error == 0 and estimate == null else nan
    if error > 0:
        p = float(2 * norm.sf(abs(estimate - null) / error))
    return DeLong(estimate, error, estimate - half, estimate + half, p)


def _estimate(
    positive: Shaped[np.ndarray, " n"],
    placed: Float[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
) -> tuple[float, float]:
    """The mean placement of the positive cases and its variance over patients."""
    names, patients = np.unique(groups, return_inverse=True)
    estimate = float(placed[positive].mean()) if positive.any() else nan
    variance, residuals = 0.0, []
    for side in (positive, ~positive):
        of_patient = np.bincount(patients[side], placed[side] - estimate, len(names))
        residuals.append(of_patient / max(1, np.sum(side)))
        variance += _unbiased(len(np.unique(patients[side]))) * np.sum(residuals[-1] ** 2)
    variance += 2 * _unbiased(len(names)) * np.sum(residuals[0] * residuals[1])
    return estimate, float(variance)


def _unbiased(patients: int) -> float:
    return patients / (patients - 1) if patients > 1 else nan
