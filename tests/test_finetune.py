"""A labelled run from end to end, on the smoke preset."""

import csv
import importlib
import json
import shutil

import jax
import numpy as np
import pytest

from ctssl_jax import data, finetune
from ctssl_jax.config import SubsetBy
from ctssl_jax.dataset.signatures import load_file, load_signatures, save_signatures
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.files import read_json
from ctssl_jax.log import duration, read_metrics
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run.subset import Subset, subset, training_subset, validation_subset
from ctssl_jax.scores import Scored, classification_metrics, read_predictions, write_predictions

pytestmark = pytest.mark.usefixtures("tiny_encoder")


def smoke(phantom_path, **changes):
    config = importlib.import_module("configs.finetune_covid_ct").get_config("smoke")
    config.data.path, config.fraction = str(phantom_path), 0.5
    for name, value in changes.items():
        setattr(config, name, value)
    config.validate()
    return config


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory, phantom_path):
    from ctssl_jax import pretrain

    config = importlib.import_module("configs.spark").get_config("smoke")
    config.data.path, config.epochs = str(phantom_path), 3.0  # as in test_train
    workdir = tmp_path_factory.mktemp("spark") / "run"
    pretrain.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def results(tmp_path_factory, phantom_path, encoder_run):
    folder = tmp_path_factory.mktemp("finetune")
    arms = {"scratch": "", "spark": str(encoder_run)}
    return {
        arm: (
            finetune.run(smoke(phantom_path, encoder_run=run, arm=arm), folder / arm),
            folder / arm,
        )
        for arm, run in arms.items()
    }


def test_results_say_what_was_done(results, encoder_run, phantom_path):
    for arm, (found, workdir) in results.items():
        assert run_folder.read_results(workdir) == found
        assert found["arm"] == arm
        assert (found["train_slices"], found["fraction"]) == (16, 0.5)
        assert found["test"]["n"] == 8
        assert found["test"]["patients"] == 1
        assert found["test_reads"] == 1
        assert found["classes"] == ["no lesion", "lesion"]
        assert (workdir / "STATUS").read_text() == "done\n"
    spark = json.loads((encoder_run / "config.json").read_text())["hash"]
    assert results["spark"][0]["encoder_run"] == spark
    assert results["scratch"][0]["encoder_run"] is None


def test_results_say_that_the_encoder_saw_nothing_of_the_test(results, encoder_run):
    for arm, (found, _) in results.items():
        assert found["audit"] == {"verdict": "pass"}
        assert found["pretraining_audit"] == ({"verdict": "pass"} if arm == "spark" else None)
        nothing = {"patients": 0, "series": 0, "exact": 0, "near": 0}
        assert found["pretraining_overlap"] == (nothing if arm == "spark" else None)
    assert len(load_file(encoder_run / "seen.npy")) == 32


def test_an_encoder_that_saw_the_test_is_refused(tmp_path, phantom_path, encoder_run):
    run = tmp_path / "spark"
    shutil.copytree(encoder_run, run)
    save_signatures(run / "seen.npy", [load_signatures(phantom_path, "test")])
    with pytest.raises(
        DataError, match=r"the encoder of .*spark has seen 1 patients, 1 series, 8 equal"
    ):
        finetune.run(smoke(phantom_path, encoder_run=str(run)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_come_from_the_saved_predictions(results):
    found, workdir = results["spark"]
    with (workdir / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    labels = np.array([int(row["label"]) for row in rows])
    scores = np.array([[float(row["score_0"]), float(row["score_1"])] for row in rows])
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    again = classification_metrics(labels, scores)
    assert again == pytest.approx({k: found["test"][k] for k in again})


def test_best_epoch_is_the_earliest_best_of_validation(results):
    found, workdir = results["scratch"]
    rows = [row for row in read_metrics(workdir) if "val_auc" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    best = max(rows, key=lambda row: row["val_auc"])
    assert found["best_epoch"] == best["epoch"]
    assert found["val"]["auc"] == best["val_auc"]


def test_subset_is_written_down_and_the_same_for_all_arms(results, phantom_path):
    texts = {(workdir / "subset.json").read_text() for _, workdir in results.values()}
    assert len(texts) == 1
    found = read_json(next(workdir for _, workdir in results.values()) / "subset.json")
    labels, patients = data.read_labels(data.open_dataset(phantom_path), "train")
    rows = subset(labels, patients, 0.5, 0).tolist()
    assert found == {"split": "train", "by": "image", "seed": 0, "of": 32, "rows": rows}


def test_a_count_is_a_fraction_in_the_results(tmp_path, phantom_path, results):
    config = smoke(phantom_path, count=16, fraction=1.0)
    dataset = data.open_dataset(phantom_path)
    drawn = training_subset(config, dataset)
    assert (len(drawn.rows), drawn.of, drawn.fraction) == (16, 32, 0.5)
    config.subset_by, config.count = SubsetBy.PATIENT, 3
    drawn = training_subset(config, dataset)
    assert (len(drawn.rows), drawn.patients, drawn.fraction) == (24, 3, 0.75)


def test_a_finished_run_of_another_encoder_is_refused(tmp_path, results, phantom_path, encoder_run):
    _, workdir = results["spark"]
    other = tmp_path / "other"
    shutil.copytree(encoder_run, other)
    record = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps(record | {"hash": "another"}))
    with pytest.raises(ConfigError, match="started from another encoder_run"):
        finetune.run(smoke(phantom_path, arm="spark", encoder_run=str(other)), workdir)


def test_repeating_a_finished_run_reads_nothing_again(results, phantom_path, monkeypatch):
    found, workdir = results["scratch"]
    monkeypatch.setattr(finetune, "evaluate", None)
    again = finetune.run(smoke(phantom_path, arm="scratch"), workdir)
    assert again == found


def test_frozen_convolutions_are_the_pretrained_ones(tmp_path, phantom_path, encoder_run):
    """After an epoch of rest, convolutions are as restored and BatchNorm has moved."""
    from ctssl_jax.run.checkpoint import load_encoder

    config = smoke(phantom_path, encoder_run=str(encoder_run))
    encoder = config.encoder.build(config.precision)
    before, _ = load_encoder(encoder_run, encoder, 1)
    seen = {}
    original = finetune.BestWeights.save

    def spy(self, epoch, state, meta):
        seen.setdefault(epoch, jax.device_get(state.params["encoder"]))
        original(self, epoch, state, meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.BestWeights, "save", spy)
        finetune.run(config, tmp_path / "run")
    after = seen[1]
    np.testing.assert_array_equal(after["conv1"]["kernel"], before["conv1"]["kernel"])
    assert np.any(after["bn1"]["scale"] != before["bn1"]["scale"])


def scripted(monkeypatch, scores):
    """Validations find these AUCs, one after the other; returns those not yet used."""
    left = list(scores)

    def metrics(truth, found):
        return {"auc": left.pop(0), "f1": 0.0, "accuracy": 0.0}

    monkeypatch.setattr(finetune, "classification_metrics", metrics)
    return left


@pytest.mark.parametrize(
    ("patience", "frozen", "aucs", "trained"),
    [
        pytest.param(0, 1, [0.9, 0.5, 0.5, 0.5, 0.5], 5, marks=pytest.mark.slow),
        # an equal score is not better
        pytest.param(2, 0, [0.5, 0.6, 0.6, 0.4], 4, marks=pytest.mark.slow),
        (1, 3, [0.9, 0.5, 0.5, 0.5], 4),  # the frozen epochs do not count
    ],
)
def test_patience_ends_a_run_that_gets_no_better(
    tmp_path, phantom_path, encoder_run, monkeypatch, patience, frozen, aucs, trained
):
    config = smoke(phantom_path, encoder_run=str(encoder_run), epochs=5, patience=patience)
    config.fraction, config.freeze.epochs = 0.25, frozen
    left = scripted(monkeypatch, aucs)
    found = finetune.run(config, tmp_path / "run")
    assert left == []
    assert (found["epochs_trained"], found["epochs"]) == (trained, 5)
    assert found["best_epoch"] == 1 + aucs.index(max(aucs))


def test_a_run_that_was_over_when_it_was_killed_is_over(tmp_path, phantom_path, monkeypatch):
    config = smoke(phantom_path, epochs=5, patience=1, fraction=0.25)
    scripted(monkeypatch, [0.6, 0.5])

    def killed(*arguments):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_test_once", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config, tmp_path / "run")
    found = finetune.run(config, tmp_path / "run")  # no validation is left to be asked for
    assert (found["epochs_trained"], found["best_epoch"]) == (2, 1)


@pytest.mark.slow
def test_knobs_of_small_data_change_the_weights_of_a_pretrained_run(
    tmp_path, phantom_path, encoder_run
):
    def weights(name, run=str(encoder_run), **changes):
        config = smoke(phantom_path, encoder_run=run, arm=name, fraction=0.25, **changes)
        config.freeze.epochs = 0
        finetune.run(config, tmp_path / name)
        return np.loadtxt(tmp_path / name / "predictions.csv", delimiter=",", skiprows=1, usecols=4)

    plain = weights("plain")
    assert np.any(weights("decay", layer_decay=0.5) != plain)
    assert np.any(weights("weights", method=weighted(phantom_path)) != plain)
    # A subset in proportion of a balanced split: all weights are 1.
    np.testing.assert_allclose(weights("balanced", balance_classes=True), plain, atol=1e-4)
    scratch = weights("scratch", run="")
    np.testing.assert_array_equal(weights("scratch-decay", run="", layer_decay=0.5), scratch)


def weighted(phantom_path):
    method = smoke(phantom_path).method
    method.class_weights = (1.0, 9.0)
    return method


def test_balanced_weights_are_inverse_to_the_subsets_classes(phantom_path):
    config = smoke(phantom_path, balance_classes=True)
    dataset = data.open_dataset(phantom_path)
    labels, _ = data.read_labels(dataset, "train")
    rows = np.concatenate([np.flatnonzero(labels == 0)[:9], np.flatnonzero(labels == 1)[:3]])
    drawn = Subset(np.sort(rows), len(labels), 1, 0.5)
    assert finetune._balanced(config, dataset, drawn).class_weights == (12 / 18, 12 / 6)
    config.balance_classes = False
    assert finetune._balanced(config, dataset, drawn).class_weights == ()


def test_weights_of_another_number_of_classes_are_named(tmp_path, phantom_path):
    config = smoke(phantom_path)
    config.method.class_weights = (1.0, 2.0, 3.0)
    with pytest.raises(ConfigError, match=r"method.class_weights=.* but phantom has 2 classes"):
        finetune.run(config, tmp_path / "run")


def test_missing_test_split_is_named_before_training(tmp_path, phantom_path):
    config = smoke(phantom_path, test_split="holdout")
    with pytest.raises(DataError, match=r"no split 'holdout'; there is train, val, test"):
        finetune.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_number_of_classes_is_named(tmp_path, phantom_path):
    config = smoke(phantom_path)
    config.method.classes = 5
    with pytest.raises(ConfigError, match=r"method.classes=5 but phantom has 2"):
        finetune.run(config, tmp_path / "run")


def test_both_arms_and_all_methods_get_the_same_subset(phantom_path):
    dataset = data.open_dataset(phantom_path)
    labels, patients = data.read_labels(dataset, "train")
    draws = [subset(labels, patients, 0.5, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_classification_metrics_of_known_cases():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.2, 0.8]])
    assert classification_metrics(labels, scores) == pytest.approx(
        {"auc": 0.75, "f1": 0.5, "accuracy": 0.5}
    )
    three = np.eye(3)[[0, 1, 2, 0]]
    assert classification_metrics(np.array([0, 1, 2, 0]), three)["auc"] == 1.0
    assert np.isnan(classification_metrics(np.array([1, 1]), scores[:2])["auc"])


def test_predictions_come_back_and_damaged_ones_are_named(tmp_path):
    path = tmp_path / "predictions.csv"
    scored = Scored(np.array([0, 1]), np.array(["a", "b"]), np.array([[0.9, 0.1], [0.25, 0.75]]))
    write_predictions(path, {"val": scored})
    for found, written in zip(read_predictions(path, "val"), scored, strict=True):
        np.testing.assert_array_equal(found, written)
    for damage in ("", "split,label\nval,x\n"):
        path.write_text(damage)
        with pytest.raises(StorageError, match=r"predictions\.csv cannot be read: repeat the run"):
            read_predictions(path, "val")


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_scores_of_a_sure_network_come_back_bit_for_bit(tmp_path, kind):
    odds = 10 + 3 * np.random.default_rng(0).standard_normal(500)
    sick = (1 / (1 + np.exp(-odds))).astype(kind)
    scored = Scored(np.arange(500) % 2, np.arange(500).astype(str), np.stack([1 - sick, sick], 1))
    write_predictions(tmp_path / "p.csv", {"val": scored})
    found = read_predictions(tmp_path / "p.csv", "val")
    np.testing.assert_array_equal(found.scores, scored.scores)
    assert found.metrics() == scored.metrics()


def test_scores_of_an_older_file_are_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "split,record,patient,label,score_0,score_1\nval,0,a,1,0,1\nval,1,b,0,1e-06,0.999999\n"
    )
    np.testing.assert_array_equal(read_predictions(path, "val").scores, [[0, 1], [1e-6, 0.999999]])


def test_durations_read_well():
    assert [duration(s) for s in (5, 89, 600, 9660)] == ["5s", "89s", "10m", "2h41m"]


@pytest.fixture(scope="module")
def by_steps(tmp_path_factory, phantom_path, encoder_run):
    """A run of five steps that validates every two on eight slices, and reads no test."""
    config = smoke(phantom_path, encoder_run=str(encoder_run), steps=5, validate_every=2)
    config.val_count, config.read_test, config.freeze.steps = 6, False, 1
    config.tuned_lrs, config.tuned_seeds, config.optim.lr = (1e-3, 3e-3), (8, 9), 3e-3
    config.intensity.window_hu = (-900.0, 600.0)
    workdir = tmp_path_factory.mktemp("steps") / "run"
    config.validate()
    return finetune.run(config, workdir), workdir, config


def test_a_budget_in_steps_is_kept_and_validated_as_often_as_asked(by_steps):
    found, workdir, _ = by_steps
    rows = [row for row in read_metrics(workdir) if "val_auc" in row]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [row["epoch"] for row in rows] == [1, 2, 2.5]
    assert (found["steps_trained"], found["total_steps"]) == (5, 5)
    best = max(rows, key=lambda row: row["val_auc"])
    assert (found["best_step"], found["best_epoch"]) == (best["step"], best["epoch"])


def test_a_cut_validation_split_is_counted_among_the_annotations(by_steps, phantom_path):
    found, workdir, config = by_steps
    record = read_json(workdir / "subset.json")
    drawn = validation_subset(config, data.open_dataset(phantom_path))
    assert record["val"] == {"split": "val", "rows": drawn.rows.tolist()}
    assert (found["val_slices"], found["annotated_slices"]) == (6, 22)
    with (workdir / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    assert [int(row["record"]) for row in rows] == drawn.rows.tolist()
    labels, _ = data.read_labels(data.open_dataset(phantom_path), "val")
    assert [int(row["label"]) for row in rows] == labels[drawn.rows].tolist()
    log = (workdir / "log.txt").read_text()
    assert "6 of 8 validation slices" in log
    assert "labels in all: 22 slices" in log


def test_a_run_that_chooses_a_rate_never_looks_at_the_test(by_steps):
    found, workdir, _ = by_steps
    assert "test" not in found
    assert found["test_reads"] == 0
    lines = (workdir / "predictions.csv").read_text().splitlines()
    assert "test" not in {line.split(",")[0] for line in lines}
    assert found["tuning"] == {
        "lr": 3e-3,
        "candidates": [1e-3, 3e-3],
        "seeds": [8, 9],
        "split": "val",
    }


def test_the_log_has_validations_and_another_intensity(by_steps):
    _, workdir, _ = by_steps
    lines = (workdir / "log.txt").read_text().splitlines()
    assert sum(line.startswith("validation after step") for line in lines) == 3
    (note,) = [line for line in lines if line.startswith("note: intensity")]
    assert "the encoder was pre-trained on other input" in note


@pytest.mark.parametrize(("aucs", "told"), [([0.5, 0.6], True), ([0.6, 0.5], False)])
def test_a_best_that_is_the_last_step_is_told(tmp_path, phantom_path, monkeypatch, aucs, told):
    scripted(monkeypatch, aucs)
    found = finetune.run(smoke(phantom_path, fraction=0.25), tmp_path / "run")
    assert (found["best_step"] == found["total_steps"]) == told
    log = (tmp_path / "run" / "log.txt").read_text()
    assert ("not finished learning" in log) == told


def test_labels_of_scans_are_told(tmp_path, phantom_path):
    copy = tmp_path / "data"
    shutil.copytree(phantom_path, copy)
    manifest = read_json(copy / "manifest.json")
    (copy / "manifest.json").write_text(json.dumps(manifest | {"labels_of": "scan"}))
    finetune.run(smoke(copy, fraction=0.25), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["labels_of"] == "scan"
    assert "note: the labels are of scans" in (tmp_path / "run" / "log.txt").read_text()


def test_evaluation_takes_measured_statistics_and_training_goes_on_with_its_own(
    tmp_path, phantom_path, monkeypatch
):
    """With and without, training ends with the same state; what is kept as best differs."""
    from ctssl_jax.run.checkpoint import Checkpoints

    saved = {}
    original, save = finetune.BestWeights.save, Checkpoints.save

    def spy_best(self, number, state, meta):
        saved.setdefault((name, "best"), []).append(jax.device_get(state))
        original(self, number, state, meta)

    def spy_save(self, state, unfinished=False):
        saved[name, "last"] = jax.device_get(state)
        save(self, state, unfinished)

    monkeypatch.setattr(finetune.BestWeights, "save", spy_best)
    monkeypatch.setattr(Checkpoints, "save", spy_save)
    for name, images in (("measured", 1024), ("running", 0)):
        finetune.run(smoke(phantom_path, bn_images=images), tmp_path / name)
    ours, theirs = saved["measured", "last"], saved["running", "last"]
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.batch_stats, theirs.batch_stats)
    first, plain = saved["measured", "best"][0], saved["running", "best"][0]
    jax.tree.map(np.testing.assert_array_equal, first.params, plain.params)
    mean, lagging = (s.batch_stats["encoder"]["bn1"]["var"] for s in (first, plain))
    assert np.abs(mean - lagging).max() > 0.05  # of which two steps left 81 % of the initial 1


def test_convolutions_that_rest_for_longer_than_the_run_are_named(
    tmp_path, phantom_path, encoder_run
):
    config = smoke(phantom_path, encoder_run=str(encoder_run), steps=2)  # freeze.epochs=1: 2 steps
    with pytest.raises(ConfigError, match=r"rest for 2 steps of 2: set freeze\.steps"):
        finetune.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_before_these_fields_is_refused_in_one_line(tmp_path, phantom_path, results):
    _, workdir = results["scratch"]
    shutil.copytree(workdir, old := tmp_path / "old")
    record = read_json(old / "config.json")
    for name in ("bn_images", "steps", "validate_every", "val_count", "read_test"):
        del record["config"][name]
    (old / "config.json").write_text(json.dumps(record | {"hash": "of before"}))
    with pytest.raises(ConfigError, match=r"made by another config \(config\.bn_images is None"):
        finetune.run(smoke(phantom_path, arm="scratch"), old)


@pytest.mark.parametrize(
    ("by", "count", "named"),
    [
        (SubsetBy.PATIENT, 2, "val_count=2: the validation split has 1 patients"),
        (SubsetBy.IMAGE, 1, "val_count=1: the validation split has 8 images, and 2 are the fewest"),
        (SubsetBy.FIRST, 1, "single class"),
    ],
)
def test_a_validation_split_that_cannot_be_drawn_is_named(phantom_path, by, count, named):
    config = smoke(phantom_path, subset_by=by, val_count=count)
    with pytest.raises(ConfigError, match=named):
        validation_subset(config, data.open_dataset(phantom_path))


@pytest.mark.parametrize(
    ("by", "asked", "named"),
    [
        (SubsetBy.FIRST, {"count": 1}, "count=1: what is drawn of split 'train' holds a single"),
        (SubsetBy.FIRST, {"fraction": 0.01}, "fraction=0.01: what is drawn of split 'train' holds"),
        (SubsetBy.IMAGE_UNSTRATIFIED, {"count": 1}, "count=1: what is drawn of split 'train'"),
    ],
)
def test_a_training_subset_of_one_class_is_refused_in_one_line(phantom_path, by, asked, named):
    config = smoke(phantom_path, subset_by=by, **{"fraction": 1.0, **asked})
    with pytest.raises(ConfigError, match=named):
        training_subset(config, data.open_dataset(phantom_path))
