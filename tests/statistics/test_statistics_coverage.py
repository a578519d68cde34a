"""How often 95 % intervals hold the truth, and p < 0.05 comes by luck, on data of known truth.

Two levels of luck, as in a study: patients who are hard or easy for every network, each with
several slices that resemble each other, and runs that come out better or worse.
"""

import numpy as np
import pytest
from scipy.stats import norm

from ctssl_jax.statistics import (
    Runs,
    contrast,
    delong,
    delong_difference,
    permutation_difference,
    resampled,
    trained_again,
)

pytestmark = pytest.mark.slow

PATIENTS, SLICES, RUNS = 80, 6, 5
STUDIES = 300
LABELS = np.repeat(np.arange(PATIENTS) % 2, SLICES)
GROUPS = np.repeat(np.arange(PATIENTS), SLICES)
SPREAD = np.sqrt(1.0 + 0.3 + 0.5)  # of a score, over patients, patients for one arm, and slices


def an_arm(rng, patients, skill, run_spread, runs=RUNS):
    """Scores [run, case, 1] of one arm: patients' luck is shared by its runs, and by other arms."""
    own = rng.normal(0, np.sqrt(0.3), PATIENTS)
    slices = rng.normal(0, np.sqrt(0.5), LABELS.shape)
    skills = skill + run_spread * rng.normal(size=(runs, 1))
    return (skills * LABELS + (patients + own)[GROUPS] + slices)[..., None]


def true_auc(skill, run_spread):
    """Mean over runs of Phi(skill / (spread * sqrt 2))."""
    return norm.cdf(skill / np.hypot(SPREAD * np.sqrt(2), run_spread))


def holds(tables, coefficients, truths, arms="") -> bool:
    """`arms` names the arm of each table where training again is covered."""
    who = [Runs(arm, tuple(range(RUNS)), (arm,) * RUNS) for arm in arms]
    how = {"of": who, "again": trained_again(tables, coefficients, who)} if arms else {}
    found = contrast(tables, coefficients, **how)
    return bool(found.low <= np.dot(truths, coefficients) <= found.high)


@pytest.mark.parametrize("run_spread", [0.0, 0.3, 1.0])
def test_intervals_over_patients_and_runs_cover_both(run_spread):
    rng = np.random.default_rng(0)
    skills = (1.5, 1.2, 0.9, 0.9)  # two arms with all the data, and with few
    truths = np.array([true_auc(skill, run_spread) for skill in skills])
    mean, patients_only, gain, lost = [], [], [], []
    for _ in range(STUDIES):
        patients = rng.normal(size=PATIENTS)
        tables = [
            resampled(LABELS, an_arm(rng, patients, skill, run_spread), GROUPS, n=400)
            for skill in skills
        ]
        patients_only.append(holds(tables[:1], [1], truths[:1]))
        mean.append(holds(tables[:1], [1], truths[:1], "a"))
        gain.append(holds(tables[:2], [1, -1], truths[:2], "ab"))
        lost.append(holds(tables, [1, -1, -1, 1], truths, "abab"))
    for found in (mean, gain, lost):
        assert 0.91 <= np.mean(found) <= 0.985
    if run_spread == 1.0:  # most of the luck is then in the runs
        assert np.mean(patients_only) < 0.8


def test_slices_taken_as_patients_cover_too_little_and_find_too_much():
    rng = np.random.default_rng(1)
    truth = np.array([true_auc(1.0, 0.0)])
    cases = np.arange(len(LABELS))
    covered, found = {"patients": [], "slices": []}, {"patients": [], "slices": []}
    normal, different = {"patients": [], "slices": []}, {"patients": [], "slices": []}
    for _ in range(STUDIES):
        patients = rng.normal(size=PATIENTS)
        a, b = (an_arm(rng, patients, 1.0, 0.0, runs=1) for _ in range(2))
        for unit, groups in (("patients", GROUPS), ("slices", cases)):
            covered[unit].append(holds([resampled(LABELS, a, groups, n=400)], [1], truth))
            interval = delong(LABELS, a, groups)
            normal[unit].append(interval.low <= truth[0] <= interval.high)
            found[unit].append(permutation_difference(LABELS, a, b, groups, n=400).p < 0.05)
            different[unit].append(delong_difference(LABELS, a, b, groups).p < 0.05)
    for intervals in (covered, normal):
        assert 0.91 <= np.mean(intervals["patients"]) <= 0.985
        assert np.mean(intervals["slices"]) < 0.8
    for tests in (found, different):
        assert 0.02 <= np.mean(tests["patients"]) <= 0.09
        assert np.mean(tests["slices"]) > 0.15
