"""Intervals near 0 and 1, where the bootstrap's collapse.

Of shares against the table of Newcombe (Stat. Med. 17:857, 1998, method 3); of an AUC against its
defining equation, and both against simulated test sets.
"""

import numpy as np
import pytest
from scipy.stats import norm

from ctssl_jax.statistics import (
    Interval,
    accuracy,
    auc,
    bootstrap_interval,
    f1,
    sensitivity,
    specificity,
    widened,
)
from ctssl_jax.statistics.few_patients import newcombe, wilson

RNG = np.random.default_rng(0)
METRICS = {
    "auc": auc,
    "accuracy": accuracy,
    "f1": f1,
    "sensitivity": sensitivity,
    "specificity": specificity,
}


@pytest.mark.parametrize(
    ("found", "of", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_shares_equal_the_published_table(found, of, low, high):
    assert wilson(found / of, of) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 - found / of, of) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("estimate", [0.0, 0.3, 0.8, 0.99, 1.0])
@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (3, 40), (40, 3), (26, 35)])
def test_an_end_of_an_auc_is_as_far_as_its_own_error(estimate, positives, negatives):
    """By a scan of all ends instead of a root: those not too far from the estimate."""
    ends = np.linspace(0, 1, 200_001)
    exponential = (1 - ends) / (2 - ends) + ends / (1 + ends)
    more = (positives + negatives) / 2 - 1
    variance = ends * (1 - ends) / (positives * negatives) * (1 + more * exponential)
    near = ends[np.abs(ends - estimate) <= norm.ppf(0.975) * np.sqrt(variance) + 1e-12]
    low, high = newcombe(estimate, positives, negatives)
    assert (low, high) == pytest.approx((near.min(), near.max()), abs=1e-5)
    assert low <= estimate <= high
    assert high - low > 0.05


@pytest.mark.parametrize("name", METRICS)
def test_what_is_perfect_on_few_patients_is_not_certain(name):
    labels = np.repeat([0, 1], 5)
    scores = np.stack([1.0 - labels, labels], axis=1)
    given = scores[None, :, 1:] if name in ("sensitivity", "specificity") else scores
    bare = bootstrap_interval(labels, given, np.arange(10), METRICS[name])
    found = widened(bare, name, labels, np.arange(10))
    assert (bare.low, bare.high) == (1, 1)
    assert found.estimate == found.high == 1
    assert found.low < 0.8
    # Cases of one patient are one: twice as many of them make it no surer.
    twice = widened(bare, name, np.repeat(labels, 2), np.repeat(np.arange(10), 2))
    assert twice.low == found.low


def test_what_is_rare_on_neither_side_or_of_many_stays_as_it_is():
    labels, patients = np.repeat([0, 1], 28), np.arange(56)
    found, high = Interval(0.8, 0.71, 0.88, 2000, 0), Interval(0.97, 0.96, 0.98, 2000, 0)
    for name in METRICS:
        assert widened(found, name, labels, patients) == found
        assert widened(high, name, np.repeat(labels, 2), np.arange(112)) == high
    assert widened(high, "auc", labels, patients).low < 0.93
    assert widened(high, "brier", labels, patients) == high
    nothing = Interval(1.0, np.nan, np.nan, 0, 0)
    assert widened(nothing, "auc", labels, patients) is nothing


def test_each_class_of_several_has_its_own_patients():
    labels = np.repeat([0, 1, 2], [20, 20, 2])
    found = widened(Interval(1.0, 1.0, 1.0, 2000, 0), "auc", labels, np.arange(42))
    lows = [newcombe(1.0, count, 42 - count)[0] for count in (20, 20, 2)]
    assert found.low == pytest.approx(np.mean(lows))


def test_one_rare_class_of_many_counts_as_one_of_many():
    labels = np.repeat([0, 1, 2, 3, 4], [40, 40, 40, 40, 2])
    found = widened(Interval(0.98, 0.97, 0.99, 2000, 0), "auc", labels, np.arange(162))
    assert found.low == pytest.approx((4 * 0.97 + newcombe(0.98, 2, 160)[0]) / 5)


@pytest.mark.parametrize("count", [5, 10, 20])
@pytest.mark.parametrize("truth", [0.9, 0.97])
def test_simulated_tests_are_covered(count, truth):
    """Of 200 tests of so many patients a side; the bootstrap alone covers down to 0.11."""
    apart, held = np.sqrt(2) * norm.ppf(truth), {"auc": 0, "sensitivity": 0}
    labels, patients = np.repeat([0, 1], count), np.arange(2 * count)
    for _ in range(200):
        scores = RNG.normal(labels * apart)
        calls = (RNG.random(2 * count) < truth).astype(float)[None, :, None]
        for name, given in (("auc", scores), ("sensitivity", calls)):
            bare = bootstrap_interval(labels, given, patients, METRICS[name], n=300)
            found = widened(bare, name, labels, patients)
            held[name] += found.low <= truth <= found.high
    assert min(held.values()) >= 0.9 * 200, held
