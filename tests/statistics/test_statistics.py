"""Intervals and comparisons against sklearn, SciPy, known answers and simulated truth."""

from math import isnan

import numpy as np
import pytest
from scipy.stats import linregress, norm, t
from sklearn.metrics import f1_score, roc_auc_score

from ctssl_jax.statistics import (
    Interval,
    Runs,
    accuracy,
    auc,
    bootstrap_interval,
    contrast,
    drop,
    f1,
    mean_and_range,
    paired_bootstrap_difference,
    resampled,
    roc_auc,
    slope,
    trained_again,
    verdict,
)


def simulated(rng, patients=40, slices=1, shift=1.0):
    """Binary cases of known AUC Phi(shift / sqrt 2); all slices of a patient are copies."""
    labels = np.arange(patients) % 2
    scores = rng.normal(labels * shift)
    return (
        np.repeat(labels, slices),
        np.repeat(scores, slices),
        np.repeat(np.arange(patients), slices),
    )


@pytest.mark.parametrize("decimals", [1, 6])
def test_binary_auc_equals_sklearn_with_and_without_ties(decimals):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.round(rng.normal(labels), decimals)
    assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    both = np.stack([-scores, scores], axis=1)
    assert roc_auc(labels, both) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_multiclass_auc_equals_sklearn_macro_one_vs_rest():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 300)
    scores = rng.dirichlet(np.ones(5), 300) + 0.3 * np.eye(5)[labels]
    scores /= scores.sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert roc_auc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_macro_auc_is_over_the_classes_present():
    labels = np.array([0, 0, 2, 2])
    scores = np.array([[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    assert roc_auc(labels, scores) == 0.75
    assert bootstrap_interval(labels, scores, np.arange(4)).resamples > 1500


def test_auc_known_answers():
    labels = np.array([0, 0, 1, 1])
    assert roc_auc(labels, np.array([0.1, 0.2, 0.3, 0.4])) == 1.0
    assert roc_auc(labels, np.array([0.4, 0.3, 0.2, 0.1])) == 0.0
    assert roc_auc(labels, np.ones(4)) == 0.5
    assert roc_auc(labels, np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert isnan(roc_auc(np.zeros(4, dtype=int), np.arange(4.0)))
    assert isnan(roc_auc(np.full(4, 2), np.ones((4, 3))))


@pytest.mark.parametrize("classes", [2, 3])
def test_weighting_patients_equals_repeating_their_cases(classes):
    """The oracle of the fast bootstrap: literal repetition of cases, scored by sklearn."""
    rng = np.random.default_rng(2)
    patients = rng.integers(0, 12, 120)
    labels = rng.integers(0, classes, 120)
    scores = np.round(rng.dirichlet(np.ones(classes), (2, 120)) + 0.2 * np.eye(classes)[labels], 2)
    scores /= scores.sum(axis=-1, keepdims=True)
    weights = rng.integers(0, 4, (3, 12))
    computed = auc(labels, scores, patients)(weights.astype(float))
    for row, value in zip(weights, computed, strict=True):
        again = np.repeat(np.arange(120), row[patients])
        expected = [
            roc_auc_score(
                labels[again], run[again] if classes > 2 else run[again, 1], multi_class="ovr"
            )
            for run in scores
        ]
        assert value == pytest.approx(expected, abs=1e-12)


def test_accuracy_by_weights():
    labels, patients = np.array([0, 1, 1]), np.array([0, 0, 1])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    by_weights = accuracy(labels, scores, patients)(np.array([[1.0, 1.0], [2.0, 0.0]]))
    np.testing.assert_allclose(by_weights, [[2 / 3], [1 / 2]])
    interval = bootstrap_interval(labels, scores, patients, accuracy)
    assert (interval.low, interval.high) == (0.5, 1.0)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    truth = norm.cdf(1 / np.sqrt(2))
    hits = 0
    for _ in range(200):
        labels, scores, groups = simulated(rng, patients=60)
        interval = bootstrap_interval(labels, scores, groups, n=400)
        hits += interval.low <= truth <= interval.high
    assert 0.89 <= hits / 200 <= 0.985


def test_level_sets_the_width():
    labels, scores, groups = simulated(np.random.default_rng(4))
    narrow = bootstrap_interval(labels, scores, groups, level=0.5)
    wide = bootstrap_interval(labels, scores, groups, level=0.95)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_copies_of_a_patient_add_no_certainty():
    labels, scores, patients = simulated(np.random.default_rng(5), slices=10)
    by_patient = bootstrap_interval(labels, scores, patients)
    by_slice = bootstrap_interval(labels, scores, np.arange(len(labels)))
    once = bootstrap_interval(labels[::10], scores[::10], patients[::10])
    assert by_patient.high - by_patient.low > 2 * (by_slice.high - by_slice.low)
    assert by_patient == pytest.approx(once)


def test_seed_decides_the_resamples():
    cases = simulated(np.random.default_rng(6))
    assert bootstrap_interval(*cases, seed=1) == bootstrap_interval(*cases, seed=1)
    assert bootstrap_interval(*cases, seed=1) != bootstrap_interval(*cases, seed=2)


def test_resamples_without_a_class_are_skipped_and_counted():
    labels, scores = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    interval = bootstrap_interval(labels, scores, np.arange(4), n=1000)
    expected = 0.75**4 + 0.25**4  # none of the one positive, or nothing but it
    assert interval.skipped + interval.resamples == 1000
    assert interval.skipped / 1000 == pytest.approx(expected, abs=0.05)
    assert interval[:3] == (1.0, 1.0, 1.0)


def test_one_patient_gives_no_interval():
    labels, scores = np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])
    interval = bootstrap_interval(labels, scores, np.array(["p", "p", "p"]))
    assert interval.estimate == 1.0
    assert isnan(interval.low)
    assert (
        paired_bootstrap_difference(labels, scores, -scores, np.array(["p", "p", "p"])).verdict
        == "cannot tell"
    )


def test_identical_scores_differ_by_exactly_nothing():
    labels, scores, groups = simulated(np.random.default_rng(7))
    result = paired_bootstrap_difference(labels, scores, scores.copy(), groups)
    assert result[:3] == (0.0, 0.0, 0.0)
    assert result.verdict == "cannot tell"


def test_verdict_names_the_better_arm():
    rng = np.random.default_rng(8)
    labels, good, groups = simulated(rng, patients=100, shift=3)
    poor = rng.normal(size=100)
    ahead = paired_bootstrap_difference(labels, good, poor, groups)
    behind = paired_bootstrap_difference(labels, poor, good, groups)
    assert (ahead.verdict, behind.verdict) == ("A higher", "B higher")
    assert ahead.estimate == pytest.approx(roc_auc(labels, good) - roc_auc(labels, poor))
    assert ahead[:3] == pytest.approx((-behind.estimate, -behind.high, -behind.low))


def test_pairing_narrows_the_difference():
    rng = np.random.default_rng(9)
    labels, scores, groups = simulated(rng, patients=80)
    alike = scores + 0.1 * rng.normal(size=80)
    paired = paired_bootstrap_difference(labels, scores, alike, groups)
    alone = bootstrap_interval(labels, scores, groups)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_runs_of_an_arm_are_averaged():
    rng = np.random.default_rng(10)
    labels, first, groups = simulated(rng)
    second = rng.normal(labels)
    runs = np.stack([first, second])[..., None]
    expected = (roc_auc(labels, first) + roc_auc(labels, second)) / 2
    assert bootstrap_interval(labels, runs, groups).estimate == pytest.approx(expected)
    against_first = paired_bootstrap_difference(labels, runs, first, groups)
    assert against_first.estimate == pytest.approx(expected - roc_auc(labels, first))


@pytest.mark.parametrize("n", [3, 4, 5, 10, 40])
def test_seed_spread_and_t_interval(n):
    values = np.random.default_rng(n).normal(0.8, 0.02, n)
    spread = mean_and_range(values)
    assert spread[:4] == (pytest.approx(values.mean()), values.min(), values.max(), n)
    expected = t.interval(0.95, n - 1, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(n))
    half = (expected[1] - expected[0]) / 2
    assert spread.t_high - spread.mean == pytest.approx(half, rel=1e-9)
    assert spread.mean - spread.t_low == pytest.approx(half, rel=1e-9)


def test_two_seeds_have_no_t_interval():
    spread = mean_and_range(np.array([0.7, 0.9]))
    assert spread[:4] == (pytest.approx(0.8), 0.7, 0.9, 2)
    assert isnan(spread.t_low)


def two_sizes(seed, runs=4, patients=50, many=0.0):
    """Tables of two arms at two sizes; runs of a seed share what `many` says."""
    rng = np.random.default_rng(seed)
    labels, _, groups = simulated(rng, patients=patients)
    shared = many * rng.normal(size=(runs, 1))
    scores = [
        (rng.normal(size=(runs, patients)) + (skill + shared) * labels)[..., None]
        for skill in (2.0, 1.5, 1.0, 0.2)
    ]
    return labels, scores, groups, [resampled(labels, x, groups, n=500) for x in scores]


def test_slope_and_drop_are_of_least_squares_and_of_the_ends():
    sizes, values = np.array([400, 25, 100, 50]), np.array([0.9, 0.61, 0.83, 0.7])
    assert slope(sizes) @ values == pytest.approx(linregress(np.log2(sizes), values).slope)
    assert drop(sizes) @ values == pytest.approx(0.9 - 0.61)
    for coefficients in (slope, drop):
        with pytest.raises(ValueError, match="two different sizes"):
            coefficients(np.array([30, 30]))


def test_contrast_is_the_weighted_sum_on_the_same_resamples():
    labels, scores, groups, tables = two_sizes(20)
    found = contrast(tables, [1, -1, -1, 1])
    means = [np.mean([roc_auc(labels, run) for run in arm]) for arm in scores]
    assert found.estimate == pytest.approx(means[0] - means[1] - means[2] + means[3])
    draws = sum(c * t[1:].mean(axis=1) for c, t in zip([1, -1, -1, 1], tables, strict=True))
    assert found[1:3] == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    difference = paired_bootstrap_difference(labels, scores[0], scores[1], groups, n=500)
    assert contrast(tables[:2], [1, -1]) == difference[:5]


def runs_of(seeds, arm="a", first=0):
    """Runs of one encoder."""
    return Runs(arm, tuple(range(first, first + seeds)), ("e",) * seeds)


def test_with_endless_patients_the_interval_over_runs_is_the_t_interval():
    runs = np.array([0.71, 0.78, 0.74, 0.80, 0.76])
    same_on_every_resample = np.broadcast_to(runs, (200_001, 5))
    who = [runs_of(5)]
    again = trained_again([same_on_every_resample], [1], who)
    found = contrast([same_on_every_resample], [1], of=who, again=again)
    spread = mean_and_range(runs)
    assert found[:3] == pytest.approx((spread.mean, spread.t_low, spread.t_high), abs=5e-4)
    assert contrast([same_on_every_resample], [1])[1:3] == pytest.approx((spread.mean,) * 2)


def test_seeds_in_common_cancel_in_a_paired_contrast_only():
    *_, tables = two_sizes(21, many=0.8)
    (paired, alone), patients = (
        ([runs_of(4), runs_of(4, "b", first)] for first in (0, 10)),
        contrast(tables[:2], [1, -1]),
    )
    paired, alone = (
        contrast(tables[:2], [1, -1], of=who, again=trained_again(tables[:2], [1, -1], who))
        for who in (paired, alone)
    )
    widths = [found.high - found.low for found in (patients, paired, alone)]
    assert widths[0] < widths[1] < 0.8 * widths[2]


def test_two_runs_claim_nothing_about_training_again():
    *_, tables = two_sizes(22, runs=2)
    who = [runs_of(2, arm) for arm in "aabb"]
    assert trained_again(tables, [1, -1, -1, 1], who) == ((), False, False)


@pytest.mark.parametrize(("classes", "share"), [(2, 0.5), (2, 0.05), (4, 0.25)])
def test_many_patients_are_resampled_to_first_order(monkeypatch, classes, share):
    rng = np.random.default_rng(23)
    patients = np.repeat(np.arange(300), 2)
    labels = rng.choice(classes, 600, p=[1 - (classes - 1) * share] + (classes - 1) * [share])
    scores = np.round(rng.dirichlet(np.ones(classes), (2, 600)) + 0.2 * np.eye(classes)[labels], 2)
    exact = resampled(labels, scores, patients)
    monkeypatch.setattr("ctssl_jax.statistics.metric.EXACT_PATIENTS", 299)
    first_order = resampled(labels, scores, patients)
    np.testing.assert_allclose(first_order[0], exact[0], atol=1e-12)
    assert np.abs(first_order - exact).max() > 1e-5  # another path it was
    for coefficients in ([1, 0], [1, -1]):
        (low, high), ends = (
            contrast([table[:, :1], table[:, 1:]], coefficients)[1:3]
            for table in (exact, first_order)
        )
        np.testing.assert_allclose(ends, (low, high), rtol=0, atol=0.02 * (high - low))


def test_verdict_needs_every_interval_and_p():
    above, below, around, none = (
        Interval(0.0, low, high, 100, 0)
        for low, high in ((0.01, 0.1), (-0.1, -0.01), (-0.1, 0.1), (np.nan, np.nan))
    )
    assert verdict(above) == verdict(above, none, p=0.049) == "A higher"
    assert verdict(below, below, p=0.01) == "B higher"
    unclear = [verdict(above, around), verdict(above, p=0.05), verdict(above, p=np.nan)]
    unclear += [verdict(none), verdict(above, below), verdict()]
    assert unclear == ["cannot tell"] * 6


@pytest.mark.parametrize("classes", [2, 4])
def test_f1_of_weighted_patients_is_that_of_repeated_cases(classes):
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 9, 60)
    labels = rng.integers(0, classes - (classes > 2), 60)  # of four classes the last is nobody's
    scores = rng.random((3, 60, classes))
    scores[0, :, -1] = -1.0  # and the first run never predicts it
    weights = rng.multinomial(9, np.full(9, 1 / 9), size=20)
    average = {"average": "macro"} if classes > 2 else {"pos_label": 1}
    expected = []
    for weight in weights:
        rows = np.repeat(np.arange(60), weight[patients])
        each = [
            f1_score(labels[rows], run[rows].argmax(axis=1), zero_division=0.0, **average)
            for run in scores
        ]
        expected.append(each)
    found = f1(labels, scores, patients)(weights.astype(float))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_f1_of_nothing_is_not_a_number():
    labels, scores = np.array([0, 0, 1]), np.array([[[1.0, 0.0]] * 3])
    statistic = f1(labels, scores, np.array([0, 1, 2]))
    np.testing.assert_array_equal(statistic(np.array([[1.0, 1, 0], [1, 1, 1]])), [[np.nan], [0.0]])
