"""Subsets: size, proportions, nesting, seeds."""

from itertools import pairwise

import numpy as np
import pytest

from ctssl_jax.config import SubsetBy
from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.run.subset import random_order, subset


def population(counts, per_patient=4, seed=0):
    """Shuffled labels, and patients that each have one class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    patients = np.array([f"p{n // per_patient}" for n in range(len(labels))])
    order = np.random.default_rng(seed).permutation(len(labels))
    return labels[order], patients[order]


FRACTIONS = [0.001, 0.05, 0.1, 0.1239, 0.25, 0.37, 0.5, 0.75, 0.9, 1.0]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_subset_has_the_papers_size_in_the_classes_proportions(fraction):
    labels, patients = population([600, 300, 97, 3])
    rows = subset(labels, patients, fraction, 0)
    assert len(rows) == max(int(fraction * 1000), 4)
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows], minlength=4)
    assert (counts >= 1).all()
    if fraction >= 0.05:
        np.testing.assert_allclose(counts, fraction * np.array([600, 300, 97, 3]), atol=1.5)


def test_subset_of_all_is_everything():
    labels, patients = population([30, 11])
    for by in SubsetBy:
        np.testing.assert_array_equal(subset(labels, patients, 1.0, 3, by), np.arange(41))


@pytest.mark.parametrize("by", SubsetBy)
def test_smaller_subsets_of_a_seed_lie_in_larger_ones(by):
    labels, patients = population([57, 31, 12])
    drawn = [set(subset(labels, patients, f, 5, by)) for f in np.linspace(0.01, 1, 100)]
    assert all(small <= large for small, large in pairwise(drawn))


@pytest.mark.parametrize("by", [by for by in SubsetBy if by is not SubsetBy.FIRST])
def test_subset_follows_from_the_seed_and_another_seed_draws_others(by):
    labels, patients = population([200, 200])
    first, again, other = (subset(labels, patients, 0.1, seed, by) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 0.5 * len(first)


def test_subset_is_the_same_on_every_machine_and_version():
    labels = np.arange(30) % 3 // 2
    assert subset(labels, labels.astype(str), 0.2, 0).tolist() == [3, 11, 13, 15, 20, 21]


def test_subset_by_patient_takes_whole_patients_of_every_class():
    labels, patients = population([400, 200, 40], per_patient=5)
    rows = subset(labels, patients, 0.25, 0, SubsetBy.PATIENT)
    drawn = set(patients[rows])
    assert len(drawn) == int(0.25 * 128)
    assert set(np.flatnonzero(np.isin(patients, list(drawn)))) == set(rows)
    np.testing.assert_allclose(np.bincount(labels[rows]) / 5, [20, 10, 2], atol=1)


def test_subset_by_patient_counts_a_patient_in_its_commonest_class():
    labels = np.array([0, 0, 1, 1, 1, 0])
    patients = np.array(["x", "x", "x", "y", "y", "y"])
    rows = subset(labels, patients, 0.01, 0, SubsetBy.PATIENT)  # one of each class: both
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]


def slice_labels(positive, patients=20, slices=30, of=6):
    """Labels of slices: a positive patient has a class above 0 on a minority of slices."""
    labels = np.zeros((patients, slices), int)
    for patient, label in enumerate(positive):
        labels[patient, :of] = label
    return labels.ravel(), np.repeat([f"p{n}" for n in range(patients)], slices)


def of_one_stratum(labels, patients, count, seed):
    """What is drawn where every patient is of the commonest class: the first of a random order."""
    order = random_order(len(set(patients)), seed)[:count]
    return np.flatnonzero(np.isin(patients, np.unique(patients)[order]))


@pytest.mark.parametrize("positive", [[1] * 8, [1] * 3, [1, 1, 1, 2, 2]])
@pytest.mark.parametrize("asked", [{"count": 4}, {"count": 7}, {"fraction": 0.05}])
def test_patients_of_every_class_are_drawn_where_each_is_a_minority_of_slices(positive, asked):
    labels, patients = slice_labels(positive)
    given, lacking = {"fraction": 1.0, **asked}, 0
    for seed in range(60):
        rows = subset(labels, patients, seed=seed, by=SubsetBy.PATIENT, **given)
        assert set(labels[rows]) == set(labels)
        drawn = len(set(patients[rows]))
        assert drawn == asked.get("count", drawn)
        before = of_one_stratum(labels, patients, drawn, seed)
        lacking += (whole := set(labels[before]) == set(labels)) is False
        if whole:
            np.testing.assert_array_equal(rows, before)
    assert lacking  # seeds that had been of too few classes


def test_subsets_by_patient_that_had_lacked_a_class_lie_in_larger_ones():
    labels, patients = slice_labels([1, 1, 2])
    for seed in range(20):
        drawn = [
            set(subset(labels, patients, 1.0, seed, SubsetBy.PATIENT, count=count))
            for count in range(3, 21)
        ]
        assert all(small < large for small, large in pairwise(drawn))


@pytest.mark.parametrize("fraction", [0.29, 0.57, 0.58, 0.07, 0.14])
def test_no_item_is_lost_to_the_last_bits_of_a_fraction(fraction):
    labels, patients = population([50, 50], per_patient=1)
    for by in SubsetBy:
        assert len(subset(labels, patients, fraction, 0, by)) == round(fraction * 100)


@pytest.mark.parametrize("by", SubsetBy)
def test_a_count_draws_what_its_fraction_draws(by):
    labels, patients = population([57, 31, 12])
    items = 25 if by is SubsetBy.PATIENT else 100
    for count in (3, 7, 25):
        expected = subset(
            labels, patients, (count + 0.5) / (items + 1e-9) if count < items else 1.0, 5, by
        )
        np.testing.assert_array_equal(subset(labels, patients, 1.0, 5, by, count=count), expected)


def test_a_count_that_is_not_there_to_take_is_refused():
    labels, patients = population([57, 31, 12])
    with pytest.raises(ConfigError, match=r"count=101: the training split has 100 images"):
        subset(labels, patients, 1.0, 0, count=101)
    with pytest.raises(ConfigError, match=r"count=2: .* 100 images, and 3 are the fewest"):
        subset(labels, patients, 1.0, 0, count=2)
    with pytest.raises(ConfigError, match=r"count=26: the training split has 25 patients"):
        subset(labels, patients, 1.0, 0, SubsetBy.PATIENT, count=26)


def test_first_images_are_those_of_the_file_whatever_the_seed():
    labels, patients = population([60, 40])
    for seed in (0, 1):
        assert subset(labels, patients, 0.1239, seed, SubsetBy.FIRST).tolist() == list(range(12))


def test_unstratified_images_are_a_plain_draw():
    labels, patients = population([980, 20])
    drawn = [subset(labels, patients, 0.1, seed, SubsetBy.IMAGE_UNSTRATIFIED) for seed in range(50)]
    assert {len(rows) for rows in drawn} == {100}
    rare = [int((labels[rows] == 1).sum()) for rows in drawn]
    assert min(rare) == 0 < 2 < max(rare)  # in proportion there would always be 2
    np.testing.assert_allclose(np.mean(rare), 2, atol=0.6)


def test_subset_of_unlabelled_records_is_refused():
    with pytest.raises(DataError, match="2 of 3 records have none"):
        subset(np.array([-1, 0, -1]), np.array(["a", "b", "c"]), 0.5, 0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_subset_of_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(ConfigError, match="fraction="):
        subset(np.array([0, 1]), np.array(["a", "b"]), fraction, 0)
