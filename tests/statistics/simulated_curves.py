"""Learning curves whose law is known: networks whose scores are normal, of patients drawn anew.

A network of n patients has the AUC f(n) + e, f(n) = a - b n^-c and e normal with variance s^2 / n,
the mean of what each patient adds to it: in a positive case it adds sqrt(2) probit(AUC) to the
score. Part of a case's score is the same in
every network, for cases are easy or hard.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from ctssl_jax.statistics.learning_curve import Curve, measured


class World(NamedTuple):
    a: float
    b: float
    c: float
    spread: float = 0.1
    """Standard deviation of a network's AUC over training sets, times the root of their size."""
    alike: float = 0.8
    """Of the variance of a case's score, the part that is the same in every network."""

    def mean(self, n):
        return self.a - self.b * np.asarray(n, float) ** -self.c

    def network(self, n, rng, known=0, luck=0.0):
        """The AUC of a network of n patients; `luck` is that of those that are known among them.

        It is in standard deviations of the networks of so many patients.
        """
        added = np.sqrt(known) * luck + np.sqrt(n - known) * rng.standard_normal()
        return np.clip(self.mean(n) + self.spread * added / n, 0.01, 0.999)


def curve(
    world: World, patients: int, rng, orders=8, folds=5, hard=None, luck=None, few=None
) -> Curve:
    """The curve that somebody with so many patients measures, half of them positive, or `few`.

    `hard` is what is the same of each case's score in every network, standard normal, and `luck`
    that of these patients as a training set, in standard deviations.
    """
    pool = patients * (folds - 1) // folds
    sizes = np.unique([max(4, round(share * pool)) for share in (0.2, 0.3, 0.45, 0.65, 1.0)])
    labels = np.arange(patients) % 2 if few is None else few.astype(int)
    fold = np.arange(patients) // 2 % folds
    hard = np.sqrt(world.alike) * (rng.standard_normal(patients) if hard is None else hard)
    scores = np.empty((orders, len(sizes), patients, 2))
    luck = rng.standard_normal() if luck is None else luck
    of_pool = world.spread / np.sqrt(patients) * luck
    of_all = np.sqrt(1 - world.alike) * rng.standard_normal(patients)
    for order in range(orders):
        for number in range(folds):
            own = fold == number
            luck = rng.standard_normal() * world.spread
            for place, size in enumerate(sizes):
                left = np.sqrt(max(1 - size / pool, 0) / size)  # of subsets without replacement
                auc = np.clip(world.mean(size) + of_pool + luck * left, 0.01, 0.999)
                noise = np.sqrt(1 - world.alike) * rng.standard_normal(own.sum())
                if size == pool:  # of all patients every order has the same network
                    noise = of_all[own]
                gap = np.sqrt(2) * norm.ppf(auc)
                scores[order, place, own, 1] = hard[own] + noise + gap * labels[own]
    scores[..., 0] = -scores[..., 1]
    return measured(labels, scores, np.arange(patients), fold, sizes, pool, patients)
