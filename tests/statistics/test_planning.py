"""What a planner answers, and what it refuses, on planted curves."""

from math import inf

import numpy as np
import pytest
from simulated_curves import World, curve
from test_learning_curve import SIZES, planted

from ctssl_jax.statistics.learning_curve import fit
from ctssl_jax.statistics.planning import (
    brings,
    known,
    needed,
    refusal,
    refusal_of_shape,
    saved,
)

RISING = 0.9 - 0.7 * SIZES**-0.6


def sure(means):
    """A curve that is measured nearly without error."""
    return planted(means, test=0.002, rarest=5000)


def test_a_rising_curve_is_answered():
    curve = planted(RISING)
    assert refusal([curve]) == ""
    assert refusal_of_shape([curve], fit([curve])) == ""


def test_what_more_bring_is_what_the_law_says():
    found = brings(fit([sure(RISING)]), 60)
    assert found is not None
    expected = 0.7 * (60**-0.6 - 120**-0.6)
    assert found.gain.low < expected < found.gain.high
    assert found.gain.middle == pytest.approx(expected, abs=0.006)
    assert found.auc.middle == pytest.approx(0.9 - 0.7 * 120**-0.6, abs=0.01)
    assert found.auc.low < found.auc.middle < found.auc.high


def test_nothing_is_said_beyond_four_times_the_patients():
    law = fit([sure(RISING)])
    assert brings(law, 180) is not None
    assert brings(law, 181) is None
    beyond = needed(law, 0.8999)
    assert beyond.patients.middle == inf
    assert beyond.chance < 0.5
    assert (0.7 / 0.02) ** (1 / 0.6) > 240  # finite, and yet beyond
    assert needed(law, 0.88).patients.middle == inf


def test_patients_for_an_auc():
    found = needed(fit([sure(RISING)]), 0.85)
    truth = (0.7 / 0.05) ** (1 / 0.6)
    assert found.patients.low < truth < found.patients.high
    assert found.patients.middle == pytest.approx(truth, rel=0.1)
    assert found.chance > 0.9


def test_what_a_better_start_saves():
    better, worse = fit([sure(RISING + 0.02)]), fit([sure(RISING)])
    found = saved(better, worse)
    level = 0.92 - 0.7 * 60**-0.6
    truth = (0.7 / (0.9 - level)) ** (1 / 0.6) - 60
    assert 0 < found.low < truth < found.high
    assert saved(worse, better).high < 0


def test_equal_starts_save_nothing_that_can_be_told():
    law = fit([planted(RISING)])
    other = fit([planted(RISING, spread=0.004)])
    found = saved(law, other)
    assert found.low <= 0 <= found.high


def test_a_flat_curve_is_answered_with_hardly_any_gain():
    curve = sure(np.full(5, 0.8))
    law = fit([curve])
    assert refusal_of_shape([curve], law) == ""
    found = brings(law, 60)
    assert found is not None
    assert 0 <= found.gain.low <= found.gain.high < 0.02
    assert not known(needed(law, 0.9).patients)


def test_a_step_is_refused():
    curve = sure([0.55, 0.55, 0.55, 0.9, 0.9])
    assert "rises in a step" in refusal_of_shape([curve], fit([curve]))


def test_a_curve_that_falls_beyond_luck_is_refused():
    curve = sure([0.8, 0.82, 0.81, 0.75, 0.74])
    said = refusal_of_shape([curve], fit([curve]))
    assert said.startswith("the AUC falls from 0.820 with 14 patients to 0.740 with 48")


def test_a_fall_within_luck_is_no_reason():
    curve = planted([0.8, 0.82, 0.81, 0.815, 0.81], spread=0.03)
    assert refusal_of_shape([curve], fit([curve])) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"patients": 2}, "2 annotated patients are too few: annotate 18 more"),
        ({"rarest": 3}, "the rarest class has 3 patients to test on, too few: annotate 5 more"),
    ],
)
def test_too_little_is_refused_with_what_would_be_needed(changed, said):
    assert refusal([planted(RISING)._replace(**changed)]).startswith(said)


def test_two_sizes_are_refused():
    two = planted(RISING[:2], SIZES[:2])
    assert refusal([two]) == "2 training sizes are too few for a curve: give 3"


def test_an_unknown_auc_is_refused():
    curve = planted(RISING)
    values = curve.values.copy()
    values[0, 0] = np.nan
    assert "of one class" in refusal([curve._replace(values=values)])


def test_one_repeat_is_refused():
    curve = planted(RISING)
    one = curve._replace(values=curve.values[:1], jackknife=curve.jackknife[:, :1])
    assert refusal([one]).startswith("one repeat at each training size does not tell luck")


def claims(curves, lift, seed):
    """How often one start is said to save patients, or to cost them, against an equal one."""
    rng, world, found = np.random.default_rng(seed), World(0.85, 0.6, 0.6), []
    for _ in range(curves):
        hard = rng.standard_normal(60)
        starts = (world._replace(a=world.a + lift), world)
        of = [[curve(start, 60, rng, hard=hard)] for start in starts]
        better, worse = (fit(own, draws=1000, arm=arm) for arm, own in enumerate(of))
        answer = saved(better, worse)
        found.append((answer.low > 0, answer.high < 0))
    return np.mean(found, axis=0)


@pytest.mark.slow
def test_equal_starts_are_rarely_told_apart_and_very_different_ones_are():
    assert claims(100, 0.0, 0).sum() <= 0.07
    assert claims(30, 0.12, 1)[0] > 0.5
