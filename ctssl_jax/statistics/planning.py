"""Questions of who plans annotations, answered from learning curves, or refused with a reason.

Every answer is a middle value with a 95 % interval over the draws of a `Law`. Nothing is said
beyond `REACH` times the patients at hand: an end of an interval that lies there is infinite.
"""

from collections.abc import Sequence
from math import inf, isfinite, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from ctssl_jax.statistics.learning_curve import (
    FEWEST_SIZES,
    REACH,
    Curve,
    Law,
    deviations,
    subset_variance,
)

LEVEL = 0.95
FEWEST_PATIENTS, FEWEST_OF_A_CLASS, FEWEST_ORDERS = 20, 8, 2
FALL, FALLS_BY_CHANCE = 0.02, 0.01
"""AUC by which a curve must fall, and the chance of such a fall among all pairs of sizes, before it
is called not monotone."""
MISFIT, STEP = 1e-3, 0.03
"""Chance of a misfit, and AUC by which it must miss, before a curve is called no power law."""


class Estimate(NamedTuple):
    """A middle value and the ends of its 95 % interval."""

    middle: float
    low: float
    high: float


class Brings(NamedTuple):
    """What `more` patients bring: the AUC of one network then, and the gain of the mean AUC."""

    more: int
    auc: Estimate
    gain: Estimate


class Needed(NamedTuple):
    """Patients for an AUC on average, and the chance that `REACH` times those at hand suffice."""

    target: float
    patients: Estimate
    chance: float


def refusal(curves: Sequence[Curve]) -> str:
    """Why nothing is foretold from the curves of an arm, and what it would want; "" where it is."""
    first = curves[0]
    if first.patients < FEWEST_PATIENTS:
        return (
            f"{first.patients} annotated patients are too few: annotate "
            f"{FEWEST_PATIENTS - first.patients} more"
        )
    if first.rarest < FEWEST_OF_A_CLASS:
        return (
            f"the rarest class has {first.rarest} patients to test on, too few: annotate "
            f"{FEWEST_OF_A_CLASS - first.rarest} more of it"
        )
    if not np.isfinite([curve.values for curve in curves]).all():
        return "in some test the cases were of one class: prepare the dataset with fewer folds"
    if min(len(curve.values) for curve in curves) < FEWEST_ORDERS:
        return (
            "one repeat at each training size does not tell luck from learning: give "
            f"{FEWEST_ORDERS} seeds or more"
        )
    if len(first.sizes) < FEWEST_SIZES:
        return f"{len(first.sizes)} training sizes are too few for a curve: give {FEWEST_SIZES}"
    return ""


def refusal_of_shape(curves: Sequence[Curve], law: Law) -> str:
    """Likewise for curves that fall, or rise otherwise than any power law."""
    sizes, means = curves[0].sizes, np.mean([c.values.mean(axis=0) for c in curves], axis=0)
    error = np.mean([deviations(curve) for curve in curves], axis=0)
    orders = subset_variance(curves)[-1]
    pairs = [(i, j) for j in range(len(sizes)) for i in range(j)]
    reach = norm.isf(FALLS_BY_CHANCE / len(pairs))
    falls = [(float(means[i] - means[j]), i, j) for i, j in pairs]
    for fall, i, j in sorted(falls, reverse=True):
        spread = sqrt(np.sum((error[:, j] - error[:, i]) ** 2) + orders[i] + orders[j])
        if fall > max(FALL, reach * spread):
            return (
                f"the AUC falls from {means[i]:.3f} with {sizes[i]:.0f} patients to "
                f"{means[j]:.3f} with {sizes[j]:.0f}, more than luck explains: look for wrong "
                "labels, or give more training steps"
            )
    if law.misfit < MISFIT and law.missed > STEP:
        return (
            "the AUC rises in a step, as no learning curve that is foretold here does (it misses "
            f"{law.missed:.3f} at one size): annotate more, and ask again beyond the step"
        )
    return ""


def brings(law: Law, more: int) -> Brings | None:
    """What `more` patients bring; None beyond `REACH`."""
    n = law.patients + more
    if n > REACH * law.patients:
        return None
    gain = law.mean(n) - law.level
    return Brings(more, _estimate(law.network(n)), _estimate(gain))


def needed(law: Law, target: float) -> Needed:
    """Patients with whom the mean AUC reaches `target`."""
    draws = _reached(law, np.full(len(law.level), target))
    return Needed(target, _estimate(draws), float(np.mean(np.isfinite(draws))))


def saved(law: Law, reference: Law) -> Estimate:
    """Patients by which a start is ahead of another, at the patients at hand.

    So many more the reference needs for the mean AUC that the start has; negative where fewer do.
    The laws are to be of the same patients, sizes and seed.
    """
    return _estimate(_reached(reference, law.level) - law.patients)


def _reached(law: Law, target: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Patients at which each draw of the mean reaches its target; inf beyond `REACH`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        left = 1 - (target - law.level) / law.gain
        n = law.patients * left ** (-1 / law.power)
    n = np.where(law.gain > 0, n, np.where(target <= law.level, 0.0, inf))
    n = np.where(left > 0, n, np.where(target <= law.level, 0.0, inf))
    return np.where(n > REACH * law.patients, inf, n)


def _estimate(draws: Float[np.ndarray, " d"]) -> Estimate:
    """Quantiles that are values of draws, as some of these may be infinite."""
    ordered = np.sort(draws)
    last = len(ordered) - 1
    low, high = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return Estimate(*(float(ordered[round(q * last)]) for q in (0.5, low, high)))


def known(estimate: Estimate) -> bool:
    """Whether all of an estimate lies within reach."""
    return all(isfinite(value) for value in estimate)
