"""Probes on nested subsets: who learns, who is tested, and what they are worth."""

import numpy as np
import pytest

from ctssl_jax.errors import DataError
from ctssl_jax.frozen import nested
from ctssl_jax.frozen.classifiers import fit_linear
from ctssl_jax.frozen.features import Features

RNG = np.random.default_rng(0)


def made(patients=30, cases=2, shift=1.0):
    """Cases of patients of one class each; only the first feature tells the class."""
    owner = np.repeat(np.arange(patients), cases)
    labels = (owner % 2).astype(np.int32)
    x = RNG.standard_normal((len(owner), 6)).astype(np.float32)
    x[:, 0] += shift * labels
    return Features(x, labels, owner, np.arange(len(owner), dtype=np.int32))


@pytest.fixture
def learnt(monkeypatch):
    """The features that each probe learnt from."""
    found = []

    def spy(train, *settings):
        found.append(train)
        return fit_linear(train, *settings)

    monkeypatch.setattr(nested, "fit_linear", spy)
    return found


def test_larger_subsets_hold_the_smaller_and_no_test_patient(learnt):
    features, folds = made(), np.repeat(np.arange(30) // 2 % 3, 2)
    nested.probe_scores(features, folds, [4, 8, 20], 2, orders=2)
    of = [set(train.patients.tolist()) for train in learnt]
    assert list(map(len, of)) == [4, 8, 20] * 6
    for start in range(0, 18, 3):
        assert of[start] < of[start + 1] < of[start + 2]
        tested = set(features.patients[folds == start // 6].tolist())
        assert not of[start + 2] & tested
    assert of[0] != of[3]


def test_scores_are_those_of_the_probe(learnt):
    features, folds = made(), np.repeat(np.arange(30) // 2 % 3, 2)
    scores = nested.probe_scores(features, folds, [10], 2, orders=1)
    for fold, train in enumerate(learnt):
        own = folds == fold
        probe = fit_linear(train, 2, nested.ITERATIONS, nested.PENALTY)
        np.testing.assert_allclose(scores[0, 0, own], probe.predict(features.x[own]))


def test_two_encoders_learn_from_the_same_subsets(learnt):
    features, folds = made(), np.repeat(np.arange(30) // 2 % 3, 2)
    for x in (features.x, features.x[:, ::-1]):
        nested.probe_scores(features._replace(x=x), folds, [6], 2, orders=2, seed=3)
    first, second = learnt[:6], learnt[6:]
    assert [a.patients.tolist() for a in first] == [b.patients.tolist() for b in second]


def test_a_test_split_is_never_learnt_from(learnt):
    features = made()
    folds = np.where(features.patients < 20, nested.NEVER, 0)
    curve = nested.probe_curve(features, folds, [4, 10, 20], 2, orders=2)
    assert max(train.patients.max() for train in learnt) < 20
    assert (curve.patients, curve.pool, curve.tested, curve.halves.shape[2]) == (20, 20.0, 10, 1)
    assert curve.values.shape == (2, 3)


def test_a_curve_of_what_can_be_learnt_rises():
    curve = nested.probe_curve(
        made(60, 1, 2.0), np.arange(60) // 2 % 5, [4, 8, 16, 32, 48], 2, orders=4
    )
    means = curve.values.mean(axis=0)
    assert means[-1] > means[0] + 0.05
    assert means[-1] > 0.8
    assert (curve.patients, curve.pool, curve.tested, curve.halves.shape[2]) == (60, 48.0, 60, 5)
    assert curve.rarest == 30


def test_sizes_reach_from_a_fifth_to_the_smallest_pool():
    features, folds = made(60, 1), np.arange(60) // 2 % 5
    assert nested.sizes_of(features, folds) == [10, 14, 22, 31, 48]
    assert nested.sizes_of(made(8, 1), np.arange(8) // 2 % 4) == [4, 6]


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (made(2), "2 annotated patients are too few to foretell what more would bring"),
        (made(12), "annotate 8 more"),
    ],
)
def test_too_few_patients_are_refused(features, said):
    with pytest.raises(DataError, match=said):
        nested.require_enough(features, ("no", "yes"))


def test_a_rare_class_is_refused():
    features = made(30, 1)
    labels = np.where(np.arange(30) < 3, 1, 0).astype(np.int32)
    with pytest.raises(DataError, match=r"class 'yes' has 3 annotated .* annotate 5 more"):
        nested.require_enough(features._replace(labels=labels), ("no", "yes"))
    nested.require_enough(features, ("no", "yes"))


def test_one_class_alone_teaches_nothing():
    features = made(20, 1)
    same = features._replace(labels=np.zeros(20, np.int32))
    scores = nested.probe_scores(same, np.arange(20) % 2, [4], 2, orders=1)
    assert np.unique(scores).tolist() == [0.5]
