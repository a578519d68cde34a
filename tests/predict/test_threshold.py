"""The threshold of a run, as its predictions on validation give it."""

import numpy as np
import pytest

from ctssl_jax.config import FinetuneConfig
from ctssl_jax.errors import StorageError
from ctssl_jax.methods import Supervised
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.predict.network import Said
from ctssl_jax.predict.tables import Threshold, called, choose_threshold, decide
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run.restore import FineTuned
from ctssl_jax.scores import Scored, write_predictions

PATIENTS = 200


def run_of(path, odds):
    """A run whose network gives validation these log-odds of class 1, every second case ill."""
    sick = 1 / (1 + np.exp(-odds.astype(np.float32)))
    scores = np.stack([1 - sick, sick], axis=1)
    labels = np.arange(len(odds)) % 2
    scored = Scored(labels, np.arange(len(odds)).astype(str), scores)
    write_predictions(path / "predictions.csv", {"val": scored})
    run_folder.write_results(path, {})
    of, config = {"classes": ["well", "ill"]}, FinetuneConfig(method=Supervised())
    return FineTuned(path, {}, of, config, ResNet(depth=18), {}, {}), scored


@pytest.mark.parametrize("by", ["sensitivity", "specificity"])
@pytest.mark.parametrize(("centre", "spread"), [(0, 2), (8, 3), (12, 2)])
def test_its_own_validation_reaches_what_it_promises(tmp_path, by, centre, spread):
    for seed in range(10):
        odds = centre + spread * np.random.default_rng(seed).standard_normal(PATIENTS)
        model, scored = run_of(tmp_path, odds)
        threshold = choose_threshold(model, by, 0.9)
        decisions = [decide(Said(own, own, own, 1), threshold) for own in scored.scores]
        assert decisions == called(scored.scores[:, 1], threshold).astype(int).tolist()
        of = np.array(decisions)[scored.labels == (by == "sensitivity")]
        assert (of == (by == "sensitivity")).mean() >= 0.9


def test_changed_predictions_give_none(tmp_path):
    model, _ = run_of(tmp_path, np.random.default_rng(0).standard_normal(PATIENTS))
    table = tmp_path / "predictions.csv"
    table.write_text(table.read_text().replace(",0.", ",0.9", 1))
    with pytest.raises(StorageError, match=r"predictions\.csv is damaged, or was changed"):
        choose_threshold(model, "sensitivity", 0.9)


def test_predictions_of_a_run_that_noted_no_sums_give_one(tmp_path):
    model, _ = run_of(tmp_path, np.random.default_rng(0).standard_normal(PATIENTS))
    run_folder.write_json(tmp_path / "results.json", {})
    assert 0 < choose_threshold(model, "sensitivity", 0.9).value < 1


@pytest.mark.parametrize(
    ("by", "label", "missing"), [("sensitivity", 0, "ill"), ("specificity", 1, "well")]
)
def test_where_validation_lacks_a_class_the_likeliest_is_told(tmp_path, by, label, missing):
    model, scored = run_of(tmp_path, np.random.default_rng(0).standard_normal(PATIENTS))
    one = scored._replace(labels=np.full(PATIENTS, label))
    write_predictions(tmp_path / "predictions.csv", {"val": one})
    run_folder.write_results(tmp_path, {})
    threshold = choose_threshold(model, by, 0.9)
    assert np.isnan(threshold.value)
    assert threshold.chosen == f"the likeliest class, as no case of validation is {missing}"


def test_a_threshold_of_an_older_file_is_compared_as_a_double():
    """As a single it would be rounded to the probability, which the table shows below it."""
    below = np.float32(0.9)
    assert float(below) < 0.9
    assert not called(below, Threshold(0.9, ""))
