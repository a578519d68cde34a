"""The errors of training again, by hand and against SciPy."""

import numpy as np
import pytest
from scipy.stats import norm, t

from ctssl_jax.statistics import (
    Error,
    Runs,
    Training,
    auc,
    delong,
    permutation_difference,
    resampled,
    roc_auc,
    training,
    two_sided_p,
    within_folds,
)

SCRATCH = Runs("scratch", (0, 1, 2, 3), (None,) * 4)
METHOD = Runs("spark", (0, 1, 2, 3) * 3, ("x",) * 4 + ("y",) * 4 + ("z",) * 4)


def values_of(runs, seed=0):
    return np.random.default_rng(seed).normal(0.8, 0.05, len(runs.seeds))


def error_of(numbers):
    return pytest.approx(np.std(numbers, ddof=1) / np.sqrt(len(numbers)))


def test_means_are_within_a_pretraining_first():
    uneven = Runs("a", (0, 1, 2, 0), ("x", "x", "x", "y"))
    np.testing.assert_allclose(uneven.weights(), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    np.testing.assert_allclose(SCRATCH.weights(), 0.25)
    assert (uneven.pretrainings, SCRATCH.pretrainings) == (2, 0)


def test_errors_are_of_the_encoders_and_of_the_paired_seeds():
    of_method, of_scratch = values_of(METHOD), values_of(SCRATCH, 1)
    found = training([of_method, of_scratch], [METHOD, SCRATCH], [1, -1])
    table = of_method.reshape(3, 4)
    encoders, seeds = found.errors
    assert (encoders.scale, encoders.freedom) == (error_of(table.mean(axis=1)), 2)
    assert (seeds.scale, seeds.freedom) == (error_of(table.mean(axis=0) - of_scratch), 3)
    assert (found.fine_tunings, found.pretrainings) == (True, True)


def test_one_encoder_has_no_error_of_pretraining():
    one = Runs("spark", (0, 1, 2, 3), ("x",) * 4)
    values = values_of(one), values_of(SCRATCH, 1)
    found = training(values, [one, SCRATCH], [1, -1])
    ((scale, freedom),) = found.errors
    assert (scale, freedom) == (error_of(values[0] - values[1]), 3)
    assert (found.fine_tunings, found.pretrainings) == (True, False)


def test_encoders_of_one_arm_are_paired_over_sizes():
    few, many = values_of(METHOD, 2), values_of(METHOD, 3)
    found = training([many, few], [METHOD, METHOD], [1, -1])
    drops = (many - few).reshape(3, 4)
    assert [error.scale for error in found.errors] == [
        error_of(drops.mean(axis=1)),
        error_of(drops.mean(axis=0)),
    ]


def test_other_seeds_are_not_paired():
    other = Runs("scratch", (7, 8, 9), (None,) * 3)
    found = training([values_of(SCRATCH), values_of(other)], [SCRATCH, other], [1, -1])
    assert [error.freedom for error in found.errors] == [3, 2]


def test_two_seeds_of_many_encoders_claim_nothing_of_fine_tuning():
    two = Runs("spark", (0, 1) * 3, ("x", "x", "y", "y", "z", "z"))
    found = training([values_of(two)], [two], [1])
    assert (found.fine_tunings, found.pretrainings) == (False, True)
    assert len(found.errors) == 1


def test_p_is_that_of_the_normal_or_of_t_where_one_is_alone():
    nothing = Training((), False, False)
    assert two_sided_p(0.02, 0.01, nothing) == pytest.approx(2 * norm.sf(2))
    assert two_sided_p(0.0, 0.0, nothing) == 1
    assert np.isnan(two_sided_p(0.02, np.nan, nothing))
    for freedom in (1, 2, 9):
        alone = Training((Error(0.01, freedom),), True, True)
        assert two_sided_p(-0.05, 0.0, alone) == pytest.approx(2 * t.sf(5, freedom))
    both = Training((Error(0.01, 2), Error(0.02, 4)), True, True)
    rng = np.random.default_rng(5)
    drawn = 0.02 * rng.standard_normal(400_000) + both.drawn(400_000, 0)
    assert two_sided_p(0.06, 0.02, both) == pytest.approx(np.mean(abs(drawn) >= 0.06), rel=0.05)


# Folds


def folded(seed=0, folds=4, patients=15, shift=0.0):
    """Cases of `folds` networks whose scores lie on scales of their own."""
    rng = np.random.default_rng(seed)
    fold = np.repeat(np.arange(folds), 2 * patients)
    labels = rng.integers(0, 2, len(fold))
    scores = rng.normal(labels) + shift * rng.normal(size=folds)[fold]
    return labels, scores, np.arange(len(fold)) // 2, fold


def test_scales_of_folds_do_not_matter_to_anything_that_ranks():
    labels, scores, patients, fold = folded()
    moved = scores + 100.0 * np.array([3, -1, 2, 0])[fold]
    other = np.random.default_rng(9).normal(labels)
    metric = within_folds(auc, fold)
    tables = [resampled(labels, x, patients, metric, folds=fold, n=200) for x in (scores, moved)]
    np.testing.assert_array_equal(*tables)
    expected = np.mean([roc_auc(labels[fold == k], scores[fold == k]) for k in range(4)])
    assert tables[0][0, 0] == pytest.approx(expected)
    assert roc_auc(labels, scores) > roc_auc(labels, moved) + 0.05
    p = [permutation_difference(labels, x, other, patients, folds=fold) for x in (scores, moved)]
    assert p[0] == p[1]
    assert delong(labels, scores, patients, folds=fold) == delong(
        labels, moved, patients, folds=fold
    )
    assert delong(labels, scores, patients, folds=fold).estimate == pytest.approx(expected)


def test_patients_are_drawn_within_their_fold():
    labels, scores, patients, fold = folded()

    def count(labels, scores, patients):
        of_fold = np.zeros((patients.max() + 1, 4))
        of_fold[patients, fold] = 1
        return lambda weights: weights @ of_fold

    drawn = resampled(labels, scores, patients, count, folds=fold, n=50)
    np.testing.assert_array_equal(drawn, np.full((51, 4), 15))


def test_delong_of_one_fold_is_delong():
    labels, scores, patients, _ = folded(folds=1)
    one = np.zeros(len(labels))
    assert delong(labels, scores, patients, folds=one) == delong(labels, scores, patients)


def test_a_fold_that_lacks_a_class_is_left_out():
    labels, scores, patients, fold = folded()
    labels = np.where(fold == 2, 0, labels)
    table = resampled(labels, scores, patients, within_folds(auc, fold), folds=fold, n=100)
    rest = [roc_auc(labels[fold == k], scores[fold == k]) for k in (0, 1, 3)]
    assert table[0, 0] == pytest.approx(np.mean(rest))
    assert np.isfinite(table).all()
    swapped = permutation_difference(labels, scores, -scores, patients, folds=fold)
    assert swapped.estimate == pytest.approx(2 * np.mean(rest) - 1)
    assert delong(labels, scores, patients, folds=fold).estimate == pytest.approx(np.mean(rest))
