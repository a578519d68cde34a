"""What more annotations would bring: a learning curve, carried on with honest intervals.

The mean AUC of networks that learn from n patients follows an inverse power law,

    f(n) = level + gain (1 - (n / N)^-power),    gain >= 0,  level + gain <= 1,

the usual a - b n^-c with a = level + gain and b = gain N^power: N are the patients at hand, `level`
is f(N), and `gain` is all that any number of further patients could still bring. Figueroa et al.
(BMC Med. Inform. Decis. Mak. 12:8, 2012) fit it by weighted least squares; their intervals hold the
error of the fit alone. What is foretold here is the AUC of one network, trained on one set of n
patients and tested on patients of the same kind, and its interval holds

    test patients     jackknife over patients of the AUC at all sizes, together: one test set is
                      easy or hard at every size, so this shifts a curve more than it bends it
    subsets           the spread of the AUC over training subsets of one size, as far as two halves
                      of the test patients agree on it, and as if each subset had been drawn from
                      new patients: subsets of the N at hand overlap, by which their spread is too
                      small
    repeats           where networks of the same patients differ, by their start and the order of
                      their batches, one network's luck in that does not shrink with patients
    this sample       the N patients at hand are one draw: a shift of the whole curve, as large as
                      the spread over training sets of N. Further patients join them, so that a
                      network of n keeps N / n of that luck
    the law           gain and power are drawn from what fits, not set to what fits best
    pre-trainings     Student's t over the encoders of an arm, where it has several

`gain` and `power` have prior distributions, for three to six noisy points do not tell the three
numbers of a power law. They and `MISFIT` were chosen on the design tasks of docs/planner.md, and no
interval is widened by a factor.
"""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, Shaped

from ctssl_jax.statistics.metric import auc, within_folds
from ctssl_jax.statistics.power_law import PowerLaws

REACH = 4.0
"""Times the patients at hand beyond which nothing is said."""
FEWEST_SIZES = 3
MISFIT = 0.004
"""Standard deviation of what no power law explains of the mean AUC at one size."""
DRAWS = 4000
HALVINGS = 16
"""Ways in which the test patients are parted into two halves."""
GROUPS = 200
"""Most groups of patients of the jackknife; more patients are put together at random."""


class Curve(NamedTuple):
    """AUC of networks of one start at growing numbers of training patients.

    Attributes:
      sizes: training patients, small to large.
      values: AUC of each order of the patients, at each size; in an order larger subsets hold the
        smaller ones.
      jackknife: the same without each group of test patients.
      halves: AUC of single networks, one for each fold, by each of two halves of its test patients,
        which are parted in several ways; NaN where a half lacks a class.
      pool: patients that the subsets were drawn from, on average.
      patients: at hand, N; with validation and folds more than `pool`.
      tested: test patients.
      rarest: patients of the rarest class among them.
      effective: patients of the rarer of two classes whose AUC is as uncertain. Of two classes it
        is `rarest`; of more the AUC of each against the rest varies by its own patients, and their
        mean as of independent ones.
      pretrainings: that the orders start from: one, or each order from another. What orders differ
        by is then pre-training as well.
    """

    sizes: Float[np.ndarray, " k"]
    values: Float[np.ndarray, "r k"]
    jackknife: Float[np.ndarray, "g r k"]
    halves: Float[np.ndarray, "h 2 f r k"]
    pool: float | int
    patients: int
    tested: int
    rarest: int
    effective: float | int
    pretrainings: int = 1


class Law(NamedTuple):
    """What fits a curve: draws of its numbers, equal in number for every curve.

    Attributes:
      patients: N.
      level, gain, power: of each draw; see the module.
      luck: of each draw, AUC by which networks of the N patients at hand are better than those of
        other N. `level` is without it.
      subset: variance of one network over training sets of N patients.
      repeat: variance over networks of the same patients.
      test: variance of the AUC at N over test sets of `tested` patients.
      tested: see `Curve`.
      encoder: standard deviation over pre-trainings; 0 where there is one.
      encoders: degrees of freedom that it is known by.
      misfit: p of the measured values if the law were true.
      missed: AUC by which the likeliest law misses one of them, at most.
    """

    patients: int
    level: Float[np.ndarray, " d"]
    gain: Float[np.ndarray, " d"]
    power: Float[np.ndarray, " d"]
    luck: Float[np.ndarray, " d"]
    subset: float
    repeat: float
    test: float
    tested: int
    encoder: float
    encoders: int
    misfit: float
    missed: float

    def mean(self, n: float | int) -> Float[np.ndarray, " d"]:
        """Draws of f(n), the mean over training sets of n patients."""
        return self.level + self.gain * (1 - (n / self.patients) ** -self.power)

    def network(
        self, n: float | int, tested: float | int = inf, seed: int = 0
    ) -> Float[np.ndarray, " d"]:
        """Draws of the AUC of one network of n patients, as `tested` other patients show it.

        With `inf` of them it is the AUC among all patients of the kind. The n are those at hand and
        further ones, or some of those at hand. Each patient is taken to move the AUC by a little of
        its own, all of them together by their mean: N / n of the luck is that of the patients at
        hand, and the variance of the rest is `subset` (N / n) (1 - N / n).
        """
        rng, mean = np.random.default_rng([seed, 3]), self.mean(n)
        share = self.patients / n
        middle = float(np.median(mean))
        room = _room(middle) / _room(self.level)
        measured = self.test * self.tested / tested * room
        further = self.subset * abs(1 - share) * min(share, 1)
        noise = sqrt(further + self.repeat + measured)
        drawn = mean + min(share, 1) * self.luck + noise * rng.standard_normal(len(mean))
        if self.encoders:
            drawn = drawn + self.encoder * rng.standard_t(self.encoders, len(mean))
        return np.clip(drawn, 0, 1)


def measured(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "r k n c"],
    patients: Shaped[np.ndarray, " n"],
    folds: Shaped[np.ndarray, " n"],
    sizes: Num[np.ndarray, " k"],
    pool: float | int,
    at_hand: int,
    seed: int = 0,
) -> Curve:
    """The curve of networks that were trained at several sizes and tested on the same cases.

    Args:
      labels: of the test cases.
      scores: of each order and size.
      patients: of the test cases.
      folds: that tested each case; AUC is computed within them. All alike where there are none.
      sizes: see `Curve`, as `pool`.
      at_hand: N.
      seed: of the groups of patients, where there are too many for one each.
    """
    names, own = np.unique(patients, return_inverse=True)
    runs = scores.reshape(-1, *scores.shape[2:])
    statistic = within_folds(auc, folds)(labels, runs, own)
    groups = _groups(len(names), seed)
    weights = np.concatenate([np.ones((1, len(names))), 1.0 - groups])
    table = statistic(weights).reshape(-1, *scores.shape[:2])
    votes = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(votes, (own, labels), 1)
    holders = (votes > 0).sum(axis=0)
    holders = holders[holders > 0]
    several = scores.shape[-1] > 2
    return Curve(
        np.asarray(sizes, np.float64),
        table[0],
        table[1:],
        np.stack(
            [_halves(labels, scores, own, folds == fold, seed) for fold in np.unique(folds)], 2
        ),
        pool,
        at_hand,
        len(names),
        int(holders.min()),
        float(len(holders) ** 2 / np.sum(1 / holders)) if several else int(holders.min()),
    )


def fit(
    curves: Sequence[Curve],
    draws: int = DRAWS,
    seed: int = 0,
    arm: int = 0,
    others: Sequence[Sequence[Curve]] = (),
) -> Law:
    """The power laws that fit the mean of the curves of an arm, one for each of its pre-trainings.

    Each draw is a refit of the measured means with errors of the size of theirs, and with a power
    and a gain drawn beforehand (for a linear model with normal errors that is a draw from the
    posterior exactly). The errors of the test patients are the same in every call with one seed, so
    that arms which were tested on the same patients can be set against each other draw by draw. All
    other errors are drawn for each arm by itself, as its number `arm` says; what two arms that
    learnt from the same subsets share of these is not known, and so not taken off a difference.

    Args:
      curves: of the arm.
      draws: how many.
      seed: of all that is drawn.
      arm: number of the arm.
      others: curves of the other arms; see `encoder_spread`.

    Raises:
      ValueError: there are fewer than `FEWEST_SIZES` sizes or two orders, or an AUC is not known.
    """
    first = curves[0]
    sizes, at_hand = first.sizes, first.patients
    values = np.mean([curve.values.mean(axis=0) for curve in curves], axis=0)
    if len(sizes) < FEWEST_SIZES or len(first.values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"fit: wants the AUC at {FEWEST_SIZES} sizes or more, of two orders")
    of_patients = np.mean([deviations(curve) for curve in curves], axis=0)  # [groups, sizes]
    subset, repeat, orders = subset_variance(curves)
    steady = of_patients.T @ of_patients + np.diag(orders) + MISFIT**2 * np.eye(len(sizes))
    chosen = PowerLaws(sizes / at_hand, values, steady)
    rng, shared = np.random.default_rng([seed, 1, arm]), np.random.default_rng([seed, 2])
    patients = shared.standard_normal((draws, len(of_patients)))
    degrees = max(first.effective - 1, 1)
    tails = np.sqrt(degrees / shared.chisquare(degrees, draws))
    errors = (patients * tails[:, None]) @ of_patients
    errors += rng.standard_normal(errors.shape) * np.sqrt(orders + MISFIT**2)
    level, gain, power = chosen.drawn(values + errors, rng)
    encoder, encoders = encoder_spread(curves, others)
    luck = sqrt(subset) * rng.standard_normal(draws)
    level = level - luck
    if encoders:
        level += encoder / sqrt(len(curves)) * rng.standard_t(encoders, draws)
    level = np.clip(level, 0, 1)
    return Law(
        at_hand,
        level,
        np.minimum(gain, 1 - level),
        power,
        luck,
        subset,
        repeat,
        float(np.sum(of_patients[:, -1] ** 2)),
        first.tested,
        encoder,
        encoders,
        *chosen.misfit(),
    )


def _groups(count: int, seed: int) -> Bool[np.ndarray, "g n"]:
    """Which patients each group has: one each, or about equally many at random."""
    if count <= GROUPS:
        return np.eye(count, dtype=bool)
    member = np.random.default_rng([seed, 4]).permutation(np.arange(count) % GROUPS)
    return np.arange(GROUPS)[:, None] == member


def _halves(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "r k n c"],
    patients: Integer[np.ndarray, " n"],
    tested: Bool[np.ndarray, " n"],
    seed: int,
) -> Float[np.ndarray, "h 2 r k"]:
    """AUC of a fold's networks by two halves of its patients: of each class every other one."""
    names, first, own = np.unique(patients[tested], return_index=True, return_inverse=True)
    rng, half = np.random.default_rng([seed, 5]), np.empty((HALVINGS, len(names)))
    for row in half:
        order = np.lexsort((rng.random(len(names)), labels[tested][first]))
        row[order] = (np.arange(len(names)) + rng.integers(2)) % 2
    runs = scores[:, :, tested].reshape(-1, tested.sum(), scores.shape[-1])
    both = auc(labels[tested], runs, own)(np.concatenate([half, 1.0 - half]))
    return both.reshape(2, HALVINGS, *scores.shape[:2]).swapaxes(0, 1)


def deviations(curve: Curve) -> Float[np.ndarray, "g k"]:
    """Rows whose sum of squares is the variance over test patients of the mean at each size.

    The last row is a floor. Where nearly all cases are ranked rightly the absence of any one of
    them changes little, which does not make the AUC of further patients certain. An AUC of r
    patients of the rarer class is taken to vary no less than A (1 - A) / 2 r, about that of normal
    scores, with half a wrongly ranked pair of r^2 more in A.
    """
    means = curve.jackknife.mean(axis=1)
    groups = len(means)
    rows = (means - means.mean(axis=0)) * sqrt((groups - 1) / groups)
    pairs = curve.effective**2
    ranked = (curve.values.mean(axis=0) * pairs + 0.5) / (pairs + 1)
    floor = ranked * (1 - ranked) / (2 * curve.effective)
    least = np.sqrt(np.maximum(floor - np.sum(rows**2, axis=0), 0))
    return np.concatenate([rows, least[None]])


def subset_variance(curves: Sequence[Curve]) -> tuple[float, float, Float[np.ndarray, " k"]]:
    """Of one network over training sets of N patients, of repeats, of the mean at each size.

    What networks of (nearly) all patients that there are differ by is no luck of the subset. The
    variances at the other sizes are brought to N by 1 / n and averaged over sizes.
    """
    first = curves[0]
    seen = np.mean([np.var(curve.values, axis=0, ddof=1) for curve in curves], axis=0)
    own = np.mean([_agreed(curve) for curve in curves], axis=0)
    left = np.maximum(1 - first.sizes / first.pool, 0.0)  # of subsets without replacement
    whole, wide = left < 0.05, left > 0.3
    repeat = float(own[whole].mean()) if whole.any() else 0.0
    if not wide.any():
        wide = left == left.max()
    by_subset = (own[wide] - repeat) / np.maximum(left[wide], 0.05)
    subset = max(float(np.mean(by_subset * first.sizes[wide] / first.patients)), 0.0)
    return subset, max(repeat, 0.0), seen / sum(len(curve.values) for curve in curves)


def _agreed(curve: Curve) -> Float[np.ndarray, " k"]:
    """Covariance over orders of what two halves of a network's test patients say.

    The test patients are few, so that networks which differ by nothing else differ on them. What
    differs on both halves alike is the networks'; a half without a class says nothing.
    """
    apart = curve.halves - curve.halves.mean(axis=3, keepdims=True)
    together = (apart[:, 0] * apart[:, 1]).sum(axis=2) / (len(curve.values) - 1)
    known = np.isfinite(together)
    return np.where(known, together, 0).sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)


def encoder_spread(
    curves: Sequence[Curve], others: Sequence[Sequence[Curve]] = ()
) -> tuple[float, int]:
    """Standard deviation of the AUC over pre-trainings of an arm, and its degrees of freedom.

    Two pre-trainings tell next to nothing of what a third would bring: a 95 % interval of Student's
    t with one degree of freedom is 25 standard deviations wide. Where other arms have two degrees
    of freedom or more, their pooled variance counts as one further degree (moderated t: Smyth,
    Stat. Appl. Genet. Mol. Biol. 3:3, 2004), which makes it 10 wide. It counts no more, for arms
    may differ: of an arm that varies three times as much as the others a 95 % interval then still
    holds 90 %, with full pooling 76 %. Sizes lend nothing: one encoder's curve lies high or low as
    a whole. (0, 0) where the arm has one.
    """
    own = len(curves) - 1
    if own < 1:
        return 0.0, 0
    lent = [(len(arm) - 1, _encoder_variance(arm)) for arm in others if len(arm) > 1]
    known, variance = sum(degrees for degrees, _ in lent), _encoder_variance(curves)
    if known >= 2:
        pooled = sum(degrees * of for degrees, of in lent) / known
        return sqrt((own * variance + pooled) / (own + 1)), own + 1
    return sqrt(variance), own


def _encoder_variance(curves: Sequence[Curve]) -> float:
    """Over the pre-trainings of an arm, of the AUC at its two largest sizes."""
    return float(np.var([curve.values[:, -2:].mean() for curve in curves], ddof=1))


def _room(auc: Float[np.ndarray, " d"] | float) -> float:
    """What the variance of an AUC is in proportion to, about: nothing at 0 and at 1."""
    middle = float(np.median(auc))
    return max(middle * (1 - middle), 0.005)


def quantiles(values: Float[np.ndarray, " d"], level: float) -> tuple[float, float]:
    """Ends of the central interval of draws."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
