"""Learning curves carried on: planted numbers found again, and intervals that hold the truth."""

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from simulated_curves import World, curve

from ctssl_jax.statistics.learning_curve import (
    Curve,
    deviations,
    encoder_spread,
    fit,
    measured,
    quantiles,
    subset_variance,
)
from ctssl_jax.statistics.power_law import PowerLaws, least_squares
from ctssl_jax.statistics.significance import delong

SIZES = np.array([10.0, 14, 20, 30, 48])


def planted(
    means, sizes=SIZES, *, test=0.03, orders=8, spread=0.002, repeat=0.0, patients=60, rarest=30
):
    """A curve of given means, whose test patients shift it as a whole.

    Networks of all 48 patients that there are differ by `repeat`, those of fewer by `spread` too.
    """
    rng = np.random.default_rng(0)
    noise = spread * rng.standard_normal((orders, len(sizes))) * (sizes < 48)
    noise += repeat * rng.standard_normal((orders, len(sizes)))
    values = np.asarray(means) + noise - noise.mean(axis=0)
    groups = rng.standard_normal(patients)
    groups *= test / np.sqrt(np.sum((groups - groups.mean()) ** 2) * (patients - 1) / patients)
    jackknife = values[None] + groups[:, None, None]
    # A value is the mean of five networks, each of which differs more.
    halves = values.mean(axis=0) + np.sqrt(5) * (values - values.mean(axis=0))
    halves = np.stack([halves, halves])[None, :, None]
    return Curve(sizes, values, jackknife, halves, 48.0, patients, patients, rarest, rarest)


def test_least_squares_find_a_planted_law():
    found = least_squares(SIZES, 0.9 - 0.7 * SIZES**-0.6)
    np.testing.assert_allclose(found, (0.9, 0.7, 0.6), rtol=1e-3)


@pytest.mark.parametrize(("a", "b", "c"), [(0.9, 0.7, 0.6), (0.95, 1.2, 1.0), (0.8, 0.5, 0.4)])
def test_a_planted_law_is_carried_on(a, b, c):
    law = fit([planted(a - b * SIZES**-c, test=0.003, rarest=2000)])
    for times in (1, 2, 4):
        truth = a - b * (60.0 * times) ** -c
        assert abs(np.median(law.mean(60 * times)) - truth) < 0.006 * times
        low, high = quantiles(law.mean(60 * times), 0.95)
        assert low < truth < high


def test_without_news_the_gain_is_as_foreseen():
    laws = PowerLaws(SIZES / 60, np.full(5, 0.75), 4.0 * np.eye(5))
    _, gain, power = laws.drawn(np.full((4000, 5), 0.75), np.random.default_rng(0))
    # 0.35 of 1 - 0.75, and as much for its standard deviation, with what is below 0 at 0.
    assert gain.mean() == pytest.approx(0.35 * 0.25 * (norm.cdf(1) + norm.pdf(1)), rel=0.05)
    assert np.median(power) == pytest.approx(0.6, rel=0.15)


def test_no_draw_falls_or_passes_one():
    law = fit([planted(np.full(5, 0.97), test=0.05)])
    at = np.stack([law.mean(n) for n in (60, 90, 240)])
    assert (np.diff(at, axis=0) >= -1e-12).all()
    assert at.max() <= 1
    assert law.network(240).max() <= 1


def test_what_a_test_set_shifts_widens_the_level_and_not_the_gain():
    means = 0.9 - 0.7 * SIZES**-0.6
    few, many = (fit([planted(means, test=test, rarest=2000)]) for test in (0.06, 0.01))
    assert np.std(few.level) > 3 * np.std(many.level)
    assert np.std(few.gain) < 1.5 * np.std(many.gain)


def test_one_network_varies_as_training_sets_do():
    law = fit([planted(0.8 - 0.5 * SIZES**-0.6, test=0.01, spread=0.03, rarest=2000)])
    assert 0.02 < np.sqrt(law.subset) < 0.08
    # The patients at hand are one such draw of N.
    assert np.var(law.level) == pytest.approx(0.01**2 + law.subset, rel=0.3)
    assert np.var(law.luck) == pytest.approx(law.subset, rel=0.1)


def test_luck_that_networks_of_the_same_patients_have_does_not_shrink():
    means = 0.8 - 0.5 * SIZES**-0.6
    alike, apart = (
        fit([planted(means, test=0.01, spread=0.03, repeat=repeat, orders=40, rarest=2000)])
        for repeat in (0.0, 0.02)
    )
    assert alike.repeat == pytest.approx(0, abs=1e-12)
    # A value is the mean of five networks.
    assert np.sqrt(apart.repeat) == pytest.approx(0.02 * np.sqrt(5), rel=0.25)
    assert np.sqrt(apart.subset) == pytest.approx(np.sqrt(alike.subset), rel=0.35)
    for n in (60, 240):
        beside = [np.var(law.network(n) - law.mean(n)) for law in (alike, apart)]
        more = apart.repeat + (apart.subset - alike.subset) * beside[0] / alike.subset
        assert beside[1] - beside[0] == pytest.approx(more, rel=0.2)


@pytest.mark.parametrize("n", [30, 60, 120, 240])
def test_a_network_keeps_the_luck_of_the_patients_at_hand(n):
    """As if AUC were the mean of what each patient adds; the luck of 60 patients was measured."""
    law = fit([planted(0.8 - 0.5 * SIZES**-0.6, test=0.01, spread=0.03, rarest=2000)])
    beside = law.network(n) - law.mean(n)
    rng, added = np.random.default_rng(0), np.sqrt(60 * law.subset)
    patients = added * rng.standard_normal((20_000, 240))
    of_all, of_network = patients[:, :60].mean(axis=1), patients[:, :n].mean(axis=1)
    expected = np.cov(of_network, of_all)
    found = np.cov(beside, law.luck)
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.02 * law.subset)


def test_few_other_test_patients_widen_what_they_will_show():
    law = fit([planted(0.9 - 0.7 * SIZES**-0.6)])
    few, all_of_them = law.network(120, 20), law.network(120)
    assert np.std(few) > 1.3 * np.std(all_of_them)


def test_test_patients_are_drawn_alike_for_every_arm():
    one, other = (fit([planted(top - 0.5 * SIZES**-0.6)]) for top in (0.9, 0.85))
    assert np.corrcoef(one.level, other.level)[0, 1] > 0.8


def test_pretrainings_that_differ_widen_the_interval():
    means = 0.85 - 0.5 * SIZES**-0.6
    alike = [planted(means) for _ in range(3)]
    apart = [planted(means + shift) for shift in (-0.05, 0.0, 0.05)]
    assert (fit(alike).encoder, fit(alike).encoders) == (pytest.approx(0), 2)
    assert fit(apart).encoder == pytest.approx(0.05)
    assert np.std(fit(apart).level) > 1.3 * np.std(fit(alike).level)
    one, other = (fit(curves) for curves in (apart, alike))
    beyond = [np.median(np.abs(law.network(120) - law.mean(120))) for law in (one, other)]
    assert beyond[0] > 0.02 + beyond[1]  # one encoder more, beside the error of their mean


def test_other_arms_lend_one_degree_of_freedom():
    means = 0.85 - 0.5 * SIZES**-0.6

    def arm(*shifts):
        return [planted(means + shift) for shift in shifts]

    own, lender = arm(-0.01, 0.01), arm(-0.03, 0.0, 0.03)
    assert encoder_spread(own) == (pytest.approx(np.sqrt(2) * 0.01), 1)
    assert encoder_spread(own, [arm(0.1), arm(0.0, 0.1)]) == (pytest.approx(np.sqrt(2) * 0.01), 1)
    pooled = np.sqrt((2 * 0.01**2 + 0.03**2) / 2)
    assert encoder_spread(own, [lender, arm(0.1)]) == (pytest.approx(pooled), 2)
    assert encoder_spread(arm(0.0), [lender]) == (0.0, 0)
    alone, helped = fit(own), fit(own, others=[arm(-0.01, 0.0, 0.01)])
    widths = [np.ptp(quantiles(law.network(120), 0.95)) for law in (alone, helped)]
    assert widths[1] < 0.6 * widths[0]


@pytest.mark.parametrize(("times", "held"), [(1, 0.985), (2, 0.94), (3, 0.90)])
def test_an_interval_with_a_lent_degree_of_freedom_holds_a_third_pretraining(times, held):
    """Less than its name where the arm varies more than those that lend: docs/planner.md."""
    rng, like, inside, draws = np.random.default_rng(0), planted(SIZES * 0.0), 0, 3000

    def arm(*shifts):
        return [like._replace(values=like.values + shift) for shift in shifts]

    for _ in range(draws):
        own, third = times * rng.standard_normal(2), times * rng.standard_normal()
        lent = [arm(*rng.standard_normal(2)), arm(*rng.standard_normal(3))]
        spread, degrees = encoder_spread(arm(*own), lent)
        inside += abs(third - own.mean()) < student.ppf(0.975, degrees) * spread * np.sqrt(1.5)
    assert inside / draws == pytest.approx(held, abs=0.02)


def test_jackknife_variance_is_that_of_delong():
    rng = np.random.default_rng(1)
    labels = np.arange(120) % 2
    scores = rng.standard_normal((1, 1, 120, 1)) + labels[:, None]
    whole = np.zeros(120, int)
    found = measured(labels, scores, np.arange(120), whole, np.array([10.0]), 80.0, 100)
    expected = delong(labels, scores[0, 0]).standard_error
    assert np.sqrt(np.sum(deviations(found) ** 2)) == pytest.approx(expected, rel=0.03)
    assert found.values[0, 0] == pytest.approx(delong(labels, scores[0, 0]).estimate)


def test_perfect_ranks_are_not_certain():
    labels = np.arange(24) % 2
    scores = labels[None, None, :, None] + np.zeros((8, 5, 1, 1))
    found = measured(labels, scores, np.arange(24), np.zeros(24, int), SIZES, 48.0, 60)
    wrong = 0.5 / 145  # half a pair of 12 x 12
    variance = np.sum(deviations(found)[:, -1] ** 2)
    assert variance == pytest.approx(wrong * (1 - wrong) / 24, rel=0.01)


def test_many_classes_are_as_uncertain_as_independent_ones():
    """Of each class against the rest; where all vary alike, no less than what is simulated."""
    rng, labels = np.random.default_rng(6), np.repeat(np.arange(5), [8, 12, 20, 40, 40])
    whole = np.zeros(120, int)

    def found():
        scores = rng.standard_normal((1, 1, 120, 5)) + 2.2 * np.eye(5)[labels]
        return measured(labels, scores, np.arange(120), whole, np.array([10.0]), 80.0, 100)

    many = [found() for _ in range(200)]
    assert many[0].rarest == 8
    expected = 25 / (1 / 8 + 1 / 12 + 1 / 20 + 1 / 40 + 1 / 40)
    assert many[0].effective == pytest.approx(expected)
    variance = np.var([curve.values[0, 0] for curve in many])
    told = np.mean([np.sum(deviations(curve) ** 2) for curve in many])
    assert variance < told < 2.5 * variance


def test_more_patients_than_groups_give_the_same_variance():
    rng = np.random.default_rng(2)
    labels = np.arange(600) % 2
    scores = rng.standard_normal((1, 1, 600, 1)) + labels[:, None]
    found = measured(labels, scores, np.arange(600), np.zeros(600, int), SIZES[:1], 80.0, 100)
    assert len(found.jackknife) == 200
    expected = delong(labels, scores[0, 0]).standard_error
    assert np.sqrt(np.sum(deviations(found) ** 2)) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 0.6])
def test_spread_over_subsets_is_found_beside_that_of_few_test_patients(spread):
    """Where there is none, too little for it to matter is found: no variance is below 0."""
    rng, world = np.random.default_rng(3), World(0.85, 0.5, 0.6, spread=spread)
    found = [subset_variance([curve(world, 60, rng, orders=12)])[0] for _ in range(20)]
    assert np.mean(found) == pytest.approx(spread**2 / 60, rel=0.3, abs=0.02**2)


def test_halves_part_each_fold_and_class_and_no_patient():
    rng = np.random.default_rng(4)
    patients = np.arange(60) // 2  # two cases each
    labels, folds = patients % 2, patients // 2 % 3
    scores = rng.standard_normal((2, 1, 60, 1)) + labels[:, None]
    found = measured(labels, scores, patients, folds, SIZES[:1], 20.0, 30)
    assert found.halves.shape == (16, 2, 3, 2, 1)
    # Five patients of a class a fold: the mean over the ways to part them is the AUC of the fold.
    many = [
        measured(labels, scores, patients, folds, SIZES[:1], 20.0, 30, seed).halves
        for seed in range(40)
    ]
    of_folds = np.mean(many, axis=(0, 1, 2))  # [folds, orders, sizes]
    np.testing.assert_allclose(of_folds.mean(axis=0), found.values, atol=0.02)
    assert np.std(of_folds[:, 0, 0]) > 0.02


def test_a_half_without_a_class_says_nothing():
    labels = np.array([1, 0, 0, 0, 0, 0])
    scores = np.random.default_rng(5).standard_normal((3, 3, 6, 1))
    found = measured(labels, scores, np.arange(6), np.zeros(6, int), SIZES[:3], 48.0, 60)
    assert np.isnan(found.halves).any(axis=1).all()
    subset, _, orders = subset_variance([found])
    assert subset == 0
    assert (orders > 0).all()


def test_folds_that_have_one_patient_of_a_class_do_not_hide_the_spread_over_subsets():
    rng, world = np.random.default_rng(7), World(0.85, 0.5, 0.6, spread=0.6)
    few = np.arange(60) % 8 == 0  # one or two a fold
    found = [subset_variance([curve(world, 60, rng, orders=12, few=few)])[0] for _ in range(40)]
    assert np.mean(found) == pytest.approx(0.6**2 / 60, rel=0.4)


def test_two_sizes_are_no_curve():
    with pytest.raises(ValueError, match="3 sizes"):
        fit([planted([0.7, 0.8], SIZES[:2])])


def coverage(worlds, curves, seed):
    """Of the network of those at hand and as many further patients again, or three times."""
    rng, held = np.random.default_rng(seed), {0.8: [], 0.95: []}
    for world in worlds:
        for _ in range(curves):
            luck = rng.standard_normal()
            law = fit([curve(world, 60, rng, luck=luck)], draws=1000)
            for times in (2, 4):
                truth = world.network(60 * times, rng, 60, luck)
                for level, found in held.items():
                    low, high = quantiles(law.network(60 * times), level)
                    found.append(low <= truth <= high)
    return {level: float(np.mean(found)) for level, found in held.items()}


WORLDS = (World(0.9, 0.7, 0.6), World(0.8, 0.4, 0.5), World(0.97, 1.0, 0.8), World(0.65, 0.2, 0.5))


def test_intervals_hold_the_truth_of_simulated_curves():
    found = coverage(WORLDS, 5, 0)
    assert found[0.8] > 0.68
    assert found[0.95] > 0.88


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6])
def test_intervals_hold_the_truth_about_as_often_as_they_say(spread):
    """A little more often here: these worlds gain about what the prior expects."""
    found = coverage([world._replace(spread=spread) for world in WORLDS], 100, 1)
    assert 0.78 < found[0.8] < 0.88
    assert 0.93 < found[0.95] < 0.985


@pytest.mark.slow
@pytest.mark.parametrize("encoders", [2, 3, 5])
def test_intervals_hold_another_pretraining(encoders):
    rng, world, held = np.random.default_rng(2), World(0.85, 0.6, 0.6), []

    def drawn():
        return world._replace(a=world.a + 0.05 * rng.standard_normal())

    for _ in range(40):
        seed, luck = int(rng.integers(2**31)), rng.standard_normal()
        # All encoders are tested on the same patients and learn from them.
        of = [curve(drawn(), 60, np.random.default_rng(seed), luck=luck) for _ in range(encoders)]
        law = fit(of, draws=1000)
        for times in (2, 4):
            low, high = quantiles(law.network(60 * times), 0.95)
            held.append(low <= drawn().network(60 * times, rng, 60, luck) <= high)
    assert np.mean(held) > 0.92
