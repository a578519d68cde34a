"""Thresholds, rates, Brier score and calibration against literal counts and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from ctssl_jax.statistics import (
    BINS,
    bins_of,
    brier,
    calibration,
    sensitivity,
    specificity,
    threshold_at_sensitivity,
    threshold_at_specificity,
)

PATIENTS = np.repeat(np.arange(12), 3)


def cases(seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, len(PATIENTS))
    chances = np.round(1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1.5, (2, len(labels))))), 2)
    return labels, np.stack([1 - chances, chances], axis=-1)


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_the_best_that_keep_the_rate(target, seed):
    labels, scores = cases(seed)
    positive, chance = labels == 1, scores[0, :, 1]
    cuts = [*np.unique(chance), np.inf]
    kept = {cut: np.mean(chance[~positive] < cut) for cut in cuts}
    assert threshold_at_specificity(positive, chance, target) == min(
        cut for cut in cuts if kept[cut] >= target
    )
    found = {cut: np.mean(chance[positive] >= cut) for cut in cuts}
    assert threshold_at_sensitivity(positive, chance, target) == max(
        cut for cut in cuts if found[cut] >= target
    )


def test_without_a_side_there_is_no_threshold():
    scores = np.array([0.1, 0.9])
    assert np.isnan(threshold_at_specificity(np.array([True, True]), scores, 0.9))
    assert np.isnan(threshold_at_sensitivity(np.array([False, False]), scores, 0.9))


def test_weighted_patients_count_as_repeated_cases():
    labels, scores = cases()
    called = (scores[..., 1:] >= 0.4).astype(float)
    weights = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=20)
    found = {
        name: metric(labels, of, PATIENTS)(weights.astype(float))
        for name, metric, of in (
            ("sensitivity", sensitivity, called),
            ("specificity", specificity, called),
            ("brier", brier, scores),
            ("calibration", calibration(np.array([0.25, 0.75])), scores),
        )
    }
    for index, weight in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), weight[PATIENTS])
        truth = labels[rows]
        for run in (0, 1):
            yes = called[run, rows, 0] == 1
            chance = scores[run, rows, 1]
            assert found["sensitivity"][index, run] == pytest.approx(np.mean(yes[truth == 1]))
            assert found["specificity"][index, run] == pytest.approx(np.mean(~yes[truth == 0]))
            assert found["brier"][index, run] == pytest.approx(brier_score_loss(truth, chance))
        of_run = np.repeat([0.25, 0.75], len(rows))
        chance, truth = scores[:, rows, 1].ravel(), np.tile(truth, 2)
        for number in range(BINS):
            inside = (chance >= number / BINS) & (chance < (number + 1) / BINS + (number == 4))
            expected = np.nan
            if inside.any():
                expected = np.average(truth[inside], weights=of_run[inside])
            assert found["calibration"][index, number] == pytest.approx(expected, nan_ok=True)


def test_brier_of_many_classes_is_the_sum_over_them():
    labels = np.array([0, 2])
    scores = np.array([[[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]])
    found = brier(labels, scores, np.array([0, 0]))(np.ones((1, 1)))
    assert found == pytest.approx(np.mean([0.09 + 0.04 + 0.01, 1 + 1]))


def test_a_chance_of_one_is_in_the_last_bin():
    np.testing.assert_array_equal(bins_of(np.array([0.0, 0.2, 0.99, 1.0])), [0, 1, 4, 4])
