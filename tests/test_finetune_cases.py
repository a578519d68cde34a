"""A run on cases from end to end: everything of it counts scans."""

import csv
import importlib
import json

import jax
import numpy as np
import pytest

from ctssl_jax import data, evaluate, finetune
from ctssl_jax.config import EvaluateConfig, SubsetBy
from ctssl_jax.hosts import sharding
from ctssl_jax.log import read_metrics
from ctssl_jax.methods.cases import Learn, Pooling
from ctssl_jax.run.bags import bag_rows
from ctssl_jax.run.subset import training_subset
from ctssl_jax.scores import read_predictions
from data_prep.phantom import source as phantom

SHAPE = {"patients": 12, "slices": 6, "size": 32}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "scans"
    phantom.prepare(path, **SHAPE, val=0.34, test=0.33, lesion_slices=2)
    return path


def smoke(scans, **method):
    config = importlib.import_module("configs.finetune_cases").get_config("smoke")
    config.data.path, config.data.canvas, config.method.view.size = str(scans), 32, 32
    config.steps, config.freeze.epochs = 3, 0
    config.method.view.hflip = 0.0 if method.get("frozen") else 0.5
    for name, value in method.items():
        setattr(config.method, name, value)
    config.validate()
    return config


@pytest.fixture(scope="module")
def frozen(scans, tmp_path_factory, one_device):
    """A run whose encoder learns nothing."""
    workdir = tmp_path_factory.mktemp("frozen") / "run"
    config = smoke(scans, frozen=True, pooling=Pooling.ATTENTION, slices=6)
    config.steps, config.validate_every, config.optim.lr = 40, 20, 1e-2
    return finetune.run(config, workdir), workdir


def test_results_count_scans_and_slices_beside_them(frozen):
    found, workdir = frozen
    assert found["case"] == "scan"
    assert (found["train_cases"], found["train_slices"]) == (4, 24)
    assert (found["val_cases"], found["annotated_cases"]) == (4, 8)
    assert (found["test"]["n"], found["test"]["patients"]) == (4, 4)
    log = (workdir / "log.txt").read_text()
    assert "4 of 4 training scans (24 slices, 4 patients)" in log
    assert "labels in all: 8 scans" in log


def test_predictions_are_by_case(frozen, scans):
    found, workdir = frozen
    cases = data.read_cases(data.open_dataset(scans), "test")
    with (workdir / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert [row["case"] for row in rows] == cases.names.tolist()
    assert [int(row["label"]) for row in rows] == cases.labels.tolist()
    assert [int(row["slices"]) for row in rows] == [6] * 4
    again = read_predictions(workdir / "predictions.csv", "test").metrics()
    assert again["auc"] == pytest.approx(found["test"]["auc"])


def test_a_frozen_encoder_learns_nothing_and_its_head_learns(frozen, scans):
    _, workdir = frozen
    losses = [row["loss"] for row in read_metrics(workdir) if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    from ctssl_jax.run.checkpoint import load_encoder

    config = smoke(scans)
    encoder = config.encoder.build(config.precision)
    params, _ = load_encoder(workdir, encoder, 1)
    fresh = config.method.init(encoder, jax.random.key(0), 1).params["encoder"]
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_head(frozen, scans, tmp_path):
    found, _ = frozen
    config = smoke(scans, frozen=True, pooling=Pooling.ATTENTION, slices=6)
    config.steps, config.validate_every, config.optim.lr = 40, 20, 1e-2

    def killed(*arguments):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.BestWeights, "restore", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config, tmp_path / "run")
    again = finetune.run(config, tmp_path / "run")
    assert again["test"] == found["test"]
    assert again["val"] == found["val"]


@pytest.mark.parametrize("by", [SubsetBy.IMAGE, SubsetBy.PATIENT])
def test_half_of_the_annotations_is_half_of_the_scans(scans, by):
    config = smoke(scans)
    config.fraction, config.subset_by = 0.5, by
    drawn = training_subset(config, data.open_dataset(scans))
    assert len(drawn.cases) == drawn.patients == 2
    assert sorted(drawn.cases.labels) == [0, 1]
    assert len(drawn.rows) == 12


@pytest.mark.slow
def test_training_end_to_end_is_the_same_on_any_number_of_devices(scans, tmp_path):
    """On one device as on four: a case is never divided."""
    found = {}
    for devices in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            mine = jax.devices()[:devices]
            patch.setattr(sharding, "all_devices", lambda mine=mine: mine)
            config = smoke(scans, slices=2)
            config.steps = 2
            finetune.run(config, tmp_path / str(devices))
            found[devices] = read_predictions(tmp_path / str(devices) / "predictions.csv", "test")
    np.testing.assert_allclose(found[1].scores, found[4].scores, atol=1e-3)


def test_frozen_evaluation_is_of_cases(scans, tmp_path):
    config = EvaluateConfig(task="scans", knn_k=(1, 3), linear_c=(0.1,), size=32)
    config.data.path, config.data.canvas, config.encoder.depth = str(scans), 32, 18
    results = evaluate.run(config, tmp_path / "run")
    assert results["knn"]["test"]["n"] == 4
    assert results["train_cases"] == 4
    with np.load(tmp_path / "run" / "embeddings.npz") as arrays:
        assert arrays["test_features"].shape == (4, 512)
    assert (tmp_path / "run" / "figures" / "neighbours.png").exists()


@pytest.mark.slow
def test_slices_that_inherit_their_label_are_told(scans, tmp_path):
    config = importlib.import_module("configs.finetune_covid_ct").get_config("smoke")
    config.data.path, config.data.canvas, config.method.view.size = str(scans), 32, 32
    config.fraction, config.steps, config.freeze.epochs = 1.0, 1, 0
    found = finetune.run(config, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "each slice learns that of its scan" in log
    assert (found["test"]["n"], found["train_slices"]) == (4, 24)
    assert json.loads((tmp_path / "run" / "data.json").read_text())["case"]["of"] == "series"


def test_rows_of_a_step_are_those_of_its_cases(scans):
    cases = data.read_cases(data.open_dataset(scans), "train")
    rows = bag_rows(cases, np.array([2, 0]), 4, smoke(scans).method.draw, 0, 7)
    for row, place in zip(rows, (2, 0), strict=True):
        assert set(row) <= set(cases.rows[place])


def test_learning_slices_takes_their_own_labels(scans):
    from ctssl_jax.run import learning

    config = smoke(scans, pooling=Pooling.MAX, learn=Learn.SLICES)
    dataset = data.open_dataset(scans)
    drawn = training_subset(config, dataset)
    labels = learning.labels(config.method, dataset, "train", drawn)
    assert labels.sum() == 2 * 2  # two slices of each of two scans
    assert learning.labels(smoke(scans).method, dataset, "train", drawn).sum() == 2
