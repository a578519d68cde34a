"""P-values against published numbers, SciPy, scikit-learn's AUC, brute force and known answers."""

from itertools import combinations, product
from math import isnan

import numpy as np
import pytest
from scipy.stats import norm, permutation_test, rankdata
from sklearn.metrics import roc_auc_score

from ctssl_jax.statistics import (
    delong,
    delong_difference,
    flip_p_values,
    holm,
    permutation_difference,
    roc_auc,
    swap_contributions,
)

# Ratings of 109 CT images, 1 to 5 (Hanley and McNeil, Radiology 143:29, 1982, table I).
NORMAL, ABNORMAL = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]

# Albumin, total protein, K-G score and outcome of 43 patients (DeLong et al., Biometrics 44:837,
# 1988, as the example of SAS/STAT's PROC LOGISTIC gives them).
OVARIAN = np.fromstring(
    """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
    1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
    4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
    3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
    3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
    3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
    3.6 6.6 5 1
    """,
    sep=" ",
).reshape(-1, 4)
LABELS = (OVARIAN[:, 3] == 0).astype(int)
ALBUMIN, PROTEIN, SCORE = -OVARIAN[:, 0], -OVARIAN[:, 1], OVARIAN[:, 2]


def wins(labels, scores):
    """Who beats whom, one row a positive case, one column a negative one."""
    gap = scores[labels == 1][:, None] - scores[labels == 0]
    return (gap > 0) + 0.5 * (gap == 0)


def clustered(seed, patients=12, cases=70, runs=1):
    """Cases of patients who have both classes, and the correlated scores of two arms."""
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(0, patients, cases), rng.integers(0, 2, cases)
    hardness = rng.normal(size=patients)[groups]
    a, b = (
        np.round(rng.normal(size=(runs, cases)) + skill * labels + hardness, 1)[..., None]
        for skill in (1.0, 0.4)
    )
    return labels, *((a[0, :, 0], b[0, :, 0]) if runs == 1 else (a, b)), groups


def test_delong_gives_the_published_error_of_hanley_and_mcneils_ratings():
    """Area, standard error and interval as Stata's manual prints them ([R] roctab)."""
    labels = np.repeat([0, 1], [sum(NORMAL), sum(ABNORMAL)])
    ratings = np.concatenate([np.repeat(range(1, 6), counts) for counts in (NORMAL, ABNORMAL)])
    found = delong(labels, ratings)
    assert found.estimate == pytest.approx(0.8932, abs=5e-5)
    assert found.standard_error == pytest.approx(0.0307, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((0.83295, 0.95339), abs=5e-6)


@pytest.mark.parametrize(
    ("scores", "area", "error"),
    [(ALBUMIN, 0.7366, 0.0927), (SCORE, 0.7258, 0.1028), (PROTEIN, 0.6478, 0.1000)],
)
def test_delong_on_the_data_of_his_article(scores, area, error):
    found = delong(LABELS, scores)
    assert found[:2] == pytest.approx((area, error), abs=5e-5)
    assert found.p == pytest.approx(2 * norm.sf((found[0] - 0.5) / found[1]))


@pytest.mark.parametrize(
    ("scores", "difference", "error", "p"),
    [(ALBUMIN, 0.0108, 0.0953, 0.9102), (PROTEIN, -0.0780, 0.1046, 0.4561)],
)
def test_delongs_paired_test_on_the_data_of_his_article(scores, difference, error, p):
    found = delong_difference(LABELS, scores, SCORE)
    assert found[:2] == pytest.approx((difference, error), abs=5e-5)
    assert found.p == pytest.approx(p, abs=5e-5)


def test_delong_of_clusters_equals_obuchowskis_sums():
    """Computed from all pairs of cases and patients, as her article writes them."""
    labels, a, b, groups = clustered(0)
    patients = np.unique(groups)
    won = wins(labels, a) - wins(labels, b)
    theta, (m, n) = won.mean(), won.shape
    x, y = won.mean(axis=1), won.mean(axis=0)
    of_positive, of_negative = groups[labels == 1], groups[labels == 0]
    sums_x = np.array([np.sum(x[of_positive == i] - theta) for i in patients])
    sums_y = np.array([np.sum(y[of_negative == i] - theta) for i in patients])
    i10, i01, i = len(set(of_positive)), len(set(of_negative)), len(patients)
    variance = (
        i10 / (i10 - 1) * np.sum(sums_x**2) / m**2
        + i01 / (i01 - 1) * np.sum(sums_y**2) / n**2
        + 2 * i / (i - 1) * np.sum(sums_x * sums_y) / (m * n)
    )
    found = delong_difference(labels, a, b, groups)
    assert found[:2] == pytest.approx((theta, np.sqrt(variance)), abs=1e-12)
    assert found.standard_error != pytest.approx(
        delong_difference(labels, a, b).standard_error, rel=0.02
    )


def test_delong_of_clusters_is_near_the_jackknife():
    labels, a, _, groups = clustered(1, patients=60, cases=400)
    left_out = [roc_auc(labels[groups != i], a[groups != i]) for i in range(60)]
    jackknife = np.sqrt(59 / 60 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert delong(labels, a, groups).standard_error == pytest.approx(jackknife, rel=0.05)


def test_each_case_a_patient_is_plain_delong():
    labels, a, b, _ = clustered(2)
    alone = np.arange(len(labels))
    assert delong_difference(labels, a, b, alone)[:2] == pytest.approx(
        delong_difference(labels, a, b)[:2]
    )


def test_delong_where_it_has_no_answer():
    labels, a, _, groups = clustered(3)
    assert delong_difference(labels, a, a.copy(), groups)[:2] == (0.0, 0.0)
    assert delong_difference(labels, a, a.copy(), groups).p == 1.0
    assert isnan(delong(labels, a, np.zeros(len(labels), int)).standard_error)
    assert isnan(delong(np.zeros(len(labels), int), a).estimate)
    assert isnan(delong(np.array([0, 0, 1, 1]), np.arange(4.0)).p)  # no error in sight: no p
    with pytest.raises(ValueError, match="two classes"):
        delong(labels, np.ones((len(labels), 3)))


@pytest.mark.parametrize("runs", [1, 3])
def test_permutation_equals_swapping_every_patient_and_scoring_again(runs):
    labels, a, b, groups = clustered(4, patients=7, runs=runs)
    ranks = [rankdata(x.reshape(-1, len(labels)), axis=1) for x in (a, b)]

    def difference(swapped):
        first, second = (
            np.where(swapped[groups], other, own) for own, other in (ranks, ranks[::-1])
        )
        gaps = [
            roc_auc_score(labels, x) - roc_auc_score(labels, y)
            for x, y in zip(first, second, strict=True)
        ]
        return np.mean(gaps)

    swaps = np.array(list(product([False, True], repeat=7)))
    every = np.array([difference(swapped) for swapped in swaps])
    parts = swap_contributions(labels, a, b, groups)
    np.testing.assert_allclose((1 - 2.0 * swaps) @ parts, every, atol=1e-12)
    observed = difference(np.zeros(7, bool))
    found = permutation_difference(labels, a, b, groups)
    assert found.estimate == pytest.approx(observed, abs=1e-12)
    assert (found.permutations, found.exact) == (128, True)
    assert found.p == np.mean(np.abs(every) >= abs(observed) - 1e-12)


def test_permutation_equals_scipys():
    labels, a, b, groups = clustered(5, patients=12)
    parts = swap_contributions(labels, a, b, groups)
    assert parts.sum() == pytest.approx(roc_auc(labels, a) - roc_auc(labels, b), abs=1e-12)
    theirs = permutation_test(
        (parts,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert permutation_difference(labels, a, b, groups).p == pytest.approx(theirs.pvalue)


def test_drawn_swaps_come_near_all_swaps_and_count_the_observed_one():
    labels, a, b, groups = clustered(6, patients=12)
    exact = permutation_difference(labels, a, b, groups)
    drawn = permutation_difference(labels, a, b, groups, n=4000)
    assert (exact.exact, drawn.exact, drawn.permutations) == (True, False, 4000)
    assert drawn.p == pytest.approx(exact.p, abs=0.03)
    far = flip_p_values(np.ones((40, 1)), n=99)  # never reached again but by the one observed
    assert far == pytest.approx(0.01)


def test_permutation_does_not_depend_on_the_scale_of_a_network():
    labels, a, b, groups = clustered(7)
    found = permutation_difference(labels, a, b, groups)
    assert permutation_difference(labels, np.exp(a), 5 + b, groups) == found
    assert permutation_difference(labels, b, a, groups).p == found.p


def test_permutation_of_many_classes_and_of_unequal_numbers_of_runs():
    rng = np.random.default_rng(8)
    labels, groups = rng.integers(0, 4, 120), rng.integers(0, 30, 120)
    a, b = (rng.dirichlet(np.ones(4), (runs, 120)) for runs in (2, 3))
    a += 0.3 * np.eye(4)[labels]
    found = permutation_difference(labels, a, b, groups, n=2000)
    means = [np.mean([roc_auc(labels, run) for run in arm]) for arm in (a, b)]
    assert found.estimate == pytest.approx(means[0] - means[1], abs=1e-12)
    assert found.p < 0.01
    assert permutation_difference(labels, a, a, groups, n=2000).p == 1.0


def test_a_test_set_of_one_class_has_no_p():
    labels, a, b, groups = clustered(9)
    assert isnan(permutation_difference(np.ones_like(labels), a, b, groups).p)


def test_one_draw_serves_many_tests():
    parts = np.random.default_rng(10).normal(0.2, 1, (50, 3))
    together = flip_p_values(parts, n=500)
    np.testing.assert_array_equal(
        together, [flip_p_values(parts[:, [i]], n=500)[0] for i in range(3)]
    )
    assert len(set(together)) == 3


def test_holm_known_answers():
    # The worked example of the literature's textbooks: at 0.05 the first and the last are rejected.
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.6, 0.5])), [1, 1])
    np.testing.assert_array_equal(holm(np.array([])), [])
    np.testing.assert_allclose(holm(np.array([np.nan, 0.03, 0.01])), [np.nan, 0.03, 0.02])


def test_holm_is_the_closure_of_bonferroni():
    """The definition by brute force: rejected if Bonferroni rejects every family it is in."""
    p = np.random.default_rng(11).uniform(size=7) ** 3
    families = [list(f) for size in range(1, 8) for f in combinations(range(7), size)]
    expected = [max(min(1, len(f) * p[f].min()) for f in families if i in f) for i in range(7)]
    np.testing.assert_allclose(holm(p), expected)
