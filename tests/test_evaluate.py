"""Frozen features: the features, the two classifiers, what is chosen, and the command."""

import csv
import dataclasses
import functools
import importlib
import json
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory import write_slices

from ctssl_jax import data, evaluate, main
from ctssl_jax.augment import Intensity, Interpolation
from ctssl_jax.augment import views as augment
from ctssl_jax.config import (
    EncoderConfig,
    EvaluateConfig,
    FeatureKind,
    Metric,
    Precision,
    ProbeConfig,
)
from ctssl_jax.config_record import config_record
from ctssl_jax.data import DataConfig
from ctssl_jax.dataset.canvas import to_canvas
from ctssl_jax.dataset.signatures import load_signatures, save_signatures
from ctssl_jax.errors import ConfigError, DataError, DivergedError
from ctssl_jax.frozen import features as frozen_features
from ctssl_jax.frozen import probe as frozen_probe
from ctssl_jax.frozen.classifiers import Fitted, choose, fit_knn, fit_linear
from ctssl_jax.frozen.features import Features, make_radiomics
from ctssl_jax.frozen.radiomics import NAMES
from ctssl_jax.frozen.store import FeatureStore
from ctssl_jax.hosts import distributed, sharding
from ctssl_jax.methods.base import TrainState, init_encoder
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import lock as run_lock
from ctssl_jax.run.checkpoint import Checkpoints
from ctssl_jax.run.subset import subset
from ctssl_jax.scores import classification_metrics
from data_prep.source import Slice

pytestmark = pytest.mark.usefixtures("one_device")

ENCODER = EncoderConfig(depth=18, zero_init_residual=False).build(Precision.FLOAT32)


def labelled(x, labels):
    labels = np.asarray(labels)
    patients = np.array([f"p{row}" for row in range(len(labels))])
    return Features(np.asarray(x, float), labels, patients, np.arange(len(labels)))


@functools.cache
def weights(seed):
    """An encoder whose BatchNorm statistics are those of no batch."""
    params, stats = jax.jit(lambda key: init_encoder(ENCODER, key, 32, 1))(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(jax.device_get(stats))
    rng = np.random.default_rng(seed)
    leaves = [leaf + rng.uniform(-0.1, 0.1, leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.device_get(params), jax.tree.unflatten(tree, leaves)


def state_of(params, stats):
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params={"encoder": params},
        batch_stats={"encoder": stats},
        opt_state=(),
        aux=(),
    )


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory, phantom_path):
    """What a pre-training run leaves behind, without the training."""
    run = tmp_path_factory.mktemp("pretraining")
    intensity = {"mode": "window", "window_hu": [-1000.0, 1000.0], "mean": [0.28], "std": [0.256]}
    config = {"method": {"type": "SparK"}, "intensity": {**intensity, "channels": 1}}
    run_folder.write_json(run / "config.json", {"hash": "feed", "config": config})
    (run / "STATUS").write_text("done\n")
    checkpoints = Checkpoints(run)
    checkpoints.save(state_of(*weights(1)))
    checkpoints.close()
    return run


# The classifiers


def knn_by_hand(train, labels, queries, k, classes):
    """Cosine distance, weight 1 / d, a query at a time."""
    rows = []
    for query in queries:
        cosine = train @ query / (np.linalg.norm(train, axis=1) * np.linalg.norm(query))
        nearest = np.argsort(1 - cosine, kind="stable")[:k]
        votes = np.zeros(classes)
        np.add.at(votes, labels[nearest], 1 / (1 - cosine[nearest]))
        rows.append(votes / votes.sum())
    return np.array(rows)


@pytest.mark.parametrize("k", [1, 4, 30])
def test_knn_equals_an_independent_one(k):
    rng = np.random.default_rng(0)
    lengths = rng.uniform(0.1, 10, (30, 1))  # of the vectors: the cosine does not see them
    train, labels = rng.normal(size=(30, 5)) * lengths, rng.integers(0, 3, 30)
    queries = rng.normal(size=(20, 5))
    found = fit_knn(labelled(train, labels), 3, k).predict(queries)
    np.testing.assert_allclose(found, knn_by_hand(train, labels, queries, k, 3), rtol=1e-9)


def test_knn_numbers_are_pinned():
    """Angles 0, 60 and 90 degrees against one of 20: d = 1 - cos 20, 40 and 70."""
    angles, lengths = np.radians([0, 60, 90]), np.array([[5.0], [1.0], [0.2]])
    train = lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    query = 3 * np.array([[np.cos(np.radians(20)), np.sin(np.radians(20))]])
    scores = {k: fit_knn(labelled(train, [0, 1, 1]), 2, k).predict(query)[0] for k in (1, 2, 3)}
    np.testing.assert_allclose(scores[1], [1, 0])
    np.testing.assert_allclose(scores[2], [0.795056, 0.204944], atol=1e-6)
    np.testing.assert_allclose(scores[3], [0.741055, 0.258945], atol=1e-6)


def test_knn_at_distance_zero_votes_alone():
    train = labelled([[1, 0], [2, 0], [1, 1e-3]], [0, 1, 1])
    np.testing.assert_allclose(fit_knn(train, 2, 3).predict(np.array([[3.0, 0]])), [[0.5, 0.5]])


def test_classes_without_training_slices_have_score_zero():
    train = labelled([[1, 0], [0, 1], [1, 1], [0, 2]], [1, 3, 1, 3])
    for fitted in (fit_knn(train, 4, 2), fit_linear(train, 4, 100, 1.0)):
        scores = fitted.predict(np.array([[1.0, 0.1], [0.1, 1]]))
        assert scores.shape == (2, 4)
        np.testing.assert_array_equal(scores[:, [0, 2]], 0)
        np.testing.assert_array_equal(scores.argmax(axis=1), [1, 3])


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_linear_probe_is_the_optimum_on_standardised_features(c):
    """Its log-odds are linear in what NumPy standardises, and the penalised gradient is 0."""
    rng = np.random.default_rng(0)
    x = rng.normal([5, -300, 0], [0.1, 100, 1], (200, 3))
    labels = (x[:, 0] - 5 + rng.normal(0, 0.1, 200) > 0).astype(int)
    fitted = fit_linear(labelled(x, labels), 2, 2000, c)
    assert fitted.converged
    mean, std = x.mean(axis=0), x.std(axis=0)

    def design(x):
        return np.column_stack([(x - mean) / std, np.ones(len(x))])

    p = fitted.predict(x)[:, 1]
    found, *_ = np.linalg.lstsq(design(x), np.log(p / (1 - p)), rcond=None)
    gradient = design(x).T @ (p - labels) + np.append(found[:3], 0) / c
    np.testing.assert_allclose(gradient, 0, atol=0.02)
    elsewhere = rng.normal([6, 100, 3], [0.1, 10, 1], (50, 3))  # other statistics
    expected = 1 / (1 + np.exp(-design(elsewhere) @ found))
    np.testing.assert_allclose(fitted.predict(elsewhere)[:, 1], expected, rtol=1e-6)


def test_linear_probe_finds_what_is_planted_and_nothing_in_shuffled_labels():
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3
    x = rng.normal(size=(600, 8)) + 4 * np.eye(3, 8)[labels]
    for truth, low, high in ((labels, 0.99, 1.0), (rng.permutation(labels), 0.4, 0.6)):
        fitted = fit_linear(labelled(x[:300], truth[:300]), 3, 2000, 0.1)
        found = classification_metrics(truth[300:], fitted.predict(x[300:]))
        assert low <= found["auc"] <= high


def test_a_solver_cut_short_is_told_and_warns_nobody():
    rng = np.random.default_rng(0)
    train = labelled(rng.normal(size=(50, 9)), rng.integers(0, 2, 50))
    assert not fit_linear(train, 2, 1, 1.0).converged
    assert fit_linear(train, 2, 1000, 1.0).converged


# What is chosen


def test_the_first_listed_of_equals_is_chosen_by_the_metric_asked_for():
    val = labelled(np.zeros((4, 1)), [0, 0, 1, 1])
    scores = {
        1: [0.1, 0.2, 0.3, 0.4],  # AUC 1, accuracy 0.5
        2: [0.1, 0.2, 0.3, 0.4],
        3: [0.1, 0.7, 0.6, 0.8],  # AUC 0.75, accuracy 0.75
    }

    def fit(setting):
        one = np.array(scores[setting])
        return Fitted(lambda x: np.stack([1 - one, one], axis=1))

    assert choose(fit, (3, 2, 1), val, Metric.AUC).setting == 2
    assert choose(fit, (1, 2, 3), val, Metric.AUC).setting == 1
    assert choose(fit, (1, 2, 3), val, Metric.ACCURACY).setting == 3
    assert choose(fit, (1, 3), val, Metric.AUC).tried == {1: 1.0, 3: 0.75}


def smoke(path, **changes):
    config = importlib.import_module("configs.evaluate").get_config("smoke")
    config.data.path = str(path)
    for name, value in changes.items():
        setattr(config, name, value)
    config.validate()
    return config


def test_k_is_chosen_on_validation_where_test_would_choose_another(
    tmp_path, phantom_path, monkeypatch
):
    """Around a validation slice the nearest is right and the next two wrong; around test's not."""

    def direction(degrees):
        return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0.0]

    def planted(embed, dataset, reading, split, mesh, beat):
        labels, patients = data.read_labels(dataset, split)
        x = np.tile([0.0, 0.0, 1.0], (len(labels), 1))  # nobody's neighbour
        if split == "train":
            rows = {c: iter(np.flatnonzero(labels == c)) for c in (0, 1)}
            for c in (0, 1):
                for start, near in ((90 * c, c), (180 + 90 * c, 1 - c)):
                    x[next(rows[near])] = direction(start + 5)
                    x[next(rows[1 - near])] = direction(start - 5.5)
                    x[next(rows[1 - near])] = direction(start - 6)
        else:
            start = {"val": 0, "test": 180}[split]
            x = np.array([direction(start + 90 * label) for label in labels])
        return Features(x, labels, patients, np.arange(len(labels)))

    monkeypatch.setattr(evaluate, "features", planted)
    monkeypatch.setattr(evaluate, "_encoder_weights", lambda *_: ({}, {}))
    config = smoke(phantom_path, fraction=1.0, knn_k=(3, 1))
    config.bn_images = 0  # there is no network here
    found = evaluate.run(config, tmp_path / "run")["knn"]
    assert found["k"] == 1
    assert found["tried"] == [[3, 0.0], [1, 1.0]]
    assert (found["val"]["auc"], found["test"]["auc"]) == (1.0, 0.0)


# The features


@pytest.fixture(scope="module")
def grey_path(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("grey") / "set"
    images = rng.integers(0, 256, (4, 64, 64)).astype(np.int16)
    write(path, {split: [0, 1, 0, 1] for split in ("train", "val", "test")}, images=images)
    return path


def write(path, labels, classes=("no", "yes"), images=np.zeros((4, 32, 32), np.int16)):  # noqa: B008
    slices = {
        split: [
            Slice(images[n], f"patient of {split}", f"series of {split}", n, label=label)
            for n, label in enumerate(truth)
        ]
        for split, truth in labels.items()
    }
    write_slices(path, slices, classes=classes)


@pytest.fixture(scope="module")
def by_hand():
    """Features of stored slices, each alone in its batch, scaled to 0..1 by NumPy."""
    one = jax.jit(
        lambda params, stats, image: ENCODER.apply(
            {"params": params, "batch_stats": stats}, image, train=False
        )[-1].mean(axis=(1, 2))
    )

    def features(params, stats, source, lower, upper, intensity):
        found = []
        for row in range(len(source)):
            stored = to_canvas(source[row]["image"], 48).astype(np.float32)
            unit = np.clip((stored - lower) / (upper - lower), 0, 1)[None, ..., None]
            view = augment.resize(jnp.asarray(unit), 64, Interpolation.BICUBIC)
            view = (np.asarray(view) - intensity.mean[0]) / intensity.std[0]
            found.append(np.asarray(one(params, stats, view))[0])
        return np.array(found)

    return features


@pytest.mark.parametrize("kind", ["hu", "grey8"])
def test_features_are_the_mean_of_the_last_map_whatever_else_is_in_the_batch(
    phantom_path, grey_path, by_hand, kind
):
    path, lower, upper = (phantom_path, -900, 300) if kind == "hu" else (grey_path, 0, 255)
    intensity = Intensity(window_hu=(-900.0, 300.0), mean=(0.4,), std=(0.2,))
    dataset, mesh, (params, stats) = data.open_dataset(path), sharding.make_mesh(), weights(0)
    embed = frozen_features.make_embed(ENCODER, intensity, dataset.intensity, 64, mesh)
    found = frozen_features.features(
        lambda image: embed(params, stats, image), dataset, DataConfig(canvas=48), "val", mesh
    )
    source = dataset.source("val")
    assert found.x.dtype == np.float32
    assert found.x.shape == (len(source), 512)
    assert found.labels.tolist() == [source[row]["label"] for row in range(len(source))]
    expected = by_hand(params, stats, source, lower, upper, intensity)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found.x, expected, rtol=1e-3, atol=1e-4)


def test_features_that_are_not_finite_are_refused(grey_path):
    with pytest.raises(DivergedError, match="split 'val', are not finite"):
        frozen_features.features(
            lambda image: jnp.full((len(image), 2), jnp.nan),
            data.open_dataset(grey_path),
            DataConfig(canvas=64),
            "val",
            sharding.make_mesh(),
        )


# The command


def command(capsys, path, workdir, *more):
    config = "--config=configs/evaluate.py:smoke"
    arguments = [config, f"--config.data.path={path}", f"--workdir={workdir}", *more]
    code = main.main(["main", *arguments])
    return code, capsys.readouterr()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, phantom_path):
    """The smoke preset with a random encoder: its folder, results and lines."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(distributed, "say", lines.append)
        found = evaluate.run(smoke(phantom_path), workdir)
    return workdir, found, lines


def test_results_say_what_was_done(evaluated, phantom_path):
    workdir, found, lines = evaluated
    assert run_folder.read_results(workdir) == found
    assert (found["task"], found["arm"], found["encoder_run"]) == ("phantom", "random", None)
    assert (found["train_slices"], found["fraction"], found["test_reads"]) == (16, 0.5, 1)
    assert (workdir / "STATUS").read_text() == "done\n"
    assert found["knn"]["k"] in (1, 5)
    assert found["linear"]["C"] in (1e-3, 1e-1)
    assert found["linear"]["converged"]
    for name in ("knn", "linear"):
        assert [setting for setting, _ in found[name]["tried"]] == {
            "knn": [1, 5],
            "linear": [1e-3, 1e-1],
        }[name]
        assert (found[name]["test"]["n"], found[name]["test"]["patients"]) == (8, 1)
    assert [line.split(":")[0] for line in lines if "features of " in line[:12]] == [
        "features of train",
        "features of val",
        "features of test",
    ]
    assert lines.index(next(line for line in lines if line.startswith("linear:"))) < lines.index(
        next(line for line in lines if line.startswith("features of test"))
    ), "the test split is opened after the choice"
    assert f"knn AUC {found['knn']['test']['auc']:.3f}" in lines[-1]
    assert f"linear AUC {found['linear']['test']['auc']:.3f}" in lines[-1]


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_metrics_come_from_the_saved_predictions(evaluated, name):
    workdir, found, _ = evaluated
    with (workdir / f"predictions_{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    for split in ("val", "test"):
        part = [row for row in rows if row["split"] == split]
        assert [int(row["record"]) for row in part] == list(range(8))
        labels = np.array([int(row["label"]) for row in part])
        scores = np.array([[float(row["score_0"]), float(row["score_1"])] for row in part])
        again = classification_metrics(labels, scores)
        assert again == pytest.approx({key: found[name][split][key] for key in again})


def test_embeddings_hold_what_was_scored_and_no_more(evaluated, phantom_path):
    workdir, found, _ = evaluated
    with np.load(workdir / "embeddings.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert sorted(arrays) == sorted(
        f"{split}_{what}"
        for split in ("train", "val", "test")
        for what in ("features", "record", "label")
    )
    assert {name: (a.shape, str(a.dtype)) for name, a in arrays.items() if "train" in name} == {
        "train_features": ((16, 512), "float32"),
        "train_record": ((16,), "int32"),
        "train_label": ((16,), "int32"),
    }
    dataset = data.open_dataset(phantom_path)
    labels, patients = data.read_labels(dataset, "train")
    rows = subset(labels, patients, 0.5, 0)
    np.testing.assert_array_equal(arrays["train_record"], rows)
    np.testing.assert_array_equal(arrays["train_label"], labels[rows])
    train = labelled(arrays["train_features"], arrays["train_label"])
    scores = fit_knn(train, 2, found["knn"]["k"]).predict(arrays["test_features"])
    again = classification_metrics(arrays["test_label"], scores)
    assert again == pytest.approx({key: found["knn"]["test"][key] for key in again})


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_neighbours_are_drawn_of_the_features_that_were_scored(evaluated):
    workdir, _, _ = evaluated
    assert (workdir / "figures/neighbours.png").exists()
    with np.load(workdir / "embeddings.npz", allow_pickle=False) as file:
        arrays = dict(file)
    train, queries = arrays["train_features"], arrays["val_features"]
    with (workdir / "figures/neighbours.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in (row for row in rows if row["rank"] == "1"):
        (query,) = (r for r in rows if (r["query"], r["rank"]) == (row["query"], "0"))
        one = queries[int(query["record"])]
        cosine = train @ one / (np.linalg.norm(train, axis=1) * np.linalg.norm(one))
        assert int(row["record"]) == arrays["train_record"][cosine.argmax()]
        assert float(row["distance"]) == pytest.approx(1 - cosine.max(), abs=1e-5)


def test_the_folder_says_where_the_data_comes_from(evaluated, phantom_path, tmp_path):
    workdir, _, _ = evaluated
    told = json.loads((workdir / "data.json").read_text())
    assert told["source_kind"] == "phantom"
    assert "origin" not in told
    dataset = data.open_dataset(phantom_path)
    dataset.manifest["origin"] = {"citation": "whom", "licence": "CC BY 3.0", "download": "where"}
    run_folder.open_run(tmp_path / "run", smoke(phantom_path), dataset, audit={"verdict": "pass"})
    run_lock.release(tmp_path / "run")
    told = json.loads((tmp_path / "run/data.json").read_text())
    assert told["origin"] == dataset.manifest["origin"]


def test_no_path_reaches_the_folder(evaluated, phantom_path):
    workdir, _, _ = evaluated
    for path in files_of(workdir):
        content = path.read_bytes()
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                content += b"".join(map(file.read, file.namelist()))
        assert str(phantom_path.parent).encode() not in content, path.name


def test_repeating_a_finished_command_says_so_and_changes_nothing(
    evaluated, phantom_path, capsys, monkeypatch
):
    workdir, _, _ = evaluated
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files_of(workdir)}
    monkeypatch.setattr(evaluate, "features", None)
    code, said = command(capsys, phantom_path, workdir)
    assert (code, said.err) == (0, "")
    assert "is done already; test, 8 slices of 1 patients: knn AUC" in said.out
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files_of(workdir)}
    assert after == before
    code, said = command(capsys, phantom_path, workdir, "--config.seed=1")
    assert code == 2
    assert "config.seed is 0 there and 1 here" in said.err


def test_the_encoder_of_a_run_is_scored(tmp_path, phantom_path, encoder_run, capsys, monkeypatch):
    seen = {}
    original = evaluate.make_embed

    def spy(*arguments):
        embed = original(*arguments)
        return lambda params, stats, image: (
            seen.update(params=params, stats=stats) or embed(params, stats, image)
        )

    monkeypatch.setattr(evaluate, "make_embed", spy)
    workdir = tmp_path / "run"
    given = f"--config.encoder_run={encoder_run}"
    code, said = command(capsys, phantom_path, workdir, given)
    assert (code, said.err) == (0, "")
    assert "note:" not in said.out
    found = json.loads((workdir / "results.json").read_text())
    assert (found["arm"], found["encoder_run"]) == ("spark", "feed")
    assert found["pretraining_overlap"] == "unknown"  # an older run: it left no signatures
    params, stats = weights(1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(seen["params"]), params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(seen["stats"]), stats)

    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").symlink_to(encoder_run / "checkpoints")
    config = run_folder.read_json(encoder_run / "config.json")
    run_folder.write_json(other / "config.json", {**config, "hash": "beef"})
    code, said = command(capsys, phantom_path, workdir, f"--config.encoder_run={other}")
    assert code == 2
    assert "evaluated another encoder_run" in said.err


def test_another_intensity_than_in_pretraining_is_told(encoder_run):
    ours = Intensity(mean=(0.5,), std=(0.256,))
    (line,) = run_folder.notes(str(encoder_run), ours)
    assert "note: intensity.mean is [0.28] there and [0.5] here" in line
    ours.mean = (0.28,)
    assert run_folder.notes(str(encoder_run), ours) == []


def test_only_an_encoder_without_statistics_of_its_own_gets_those_of_the_task(
    tmp_path, phantom_path, encoder_run, monkeypatch, capsys
):
    config, dataset = smoke(phantom_path), data.open_dataset(phantom_path)
    rows, mesh = np.arange(8), sharding.make_mesh()

    def are_kept(**changes):
        given = dataclasses.replace(config, **changes)
        found = evaluate._settled(given, dataset, ENCODER, weights(1), rows, mesh)
        return all(
            bool(np.array_equal(ours, theirs))
            for ours, theirs in zip(*map(jax.tree.leaves, (found, weights(1))), strict=True)
        )

    assert not are_kept()
    assert are_kept(bn_images=0)
    assert are_kept(encoder_run=str(encoder_run))
    (tmp_path / "checkpoints").symlink_to(encoder_run / "checkpoints")
    record = run_folder.read_json(encoder_run / "config.json") | {"type": "PretrainConfig"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert not are_kept(encoder_run=str(tmp_path))  # of no step at all
    assert "note: the pre-training is of 0 steps" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "latest_step", lambda run: 44)
    assert are_kept(encoder_run=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--config.fraction=1.5"], 2, "fraction=1.5: must be in (0, 1]"),
        (["--config.size=50"], 2, "size=50: must be a multiple of 32"),
        (["--config.knn_k=()"], 2, "knn_k=(): give one or more"),
        (["--config.knn_k=(0,1)"], 2, "knn_k=(0, 1): give one or more different values above 0"),
        (["--config.linear_c=(1.0,1.0)"], 2, "linear_c=(1.0, 1.0): give one or more"),
        (["--config.val_split=test"], 2, "must be three different splits"),
        (["--config.knn_k=(17,40)"], 2, "knn_k=(17, 40): each is more than the 16 slices"),
        (["--config.test_split=holdout"], 3, "no split 'holdout'"),
        (["--config.encoder_run=nowhere"], 3, "no run at nowhere"),
    ],
)
def test_mistakes_are_one_line_with_an_exit_code(
    capsys, tmp_path, phantom_path, arguments, code, named
):
    found, said = command(capsys, phantom_path, tmp_path / "run", *arguments)
    assert (found, said.err.count("\n")) == (code, 1), said.err
    assert named in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("classes", "labels", "named"),
    [
        (("no", "yes"), (1, 1), "split 'test' holds a single class"),
        (("no", "yes"), (0, -1), "1 of 2 records of split 'test' have no label"),
    ],
)
def test_datasets_that_will_not_do_are_named(capsys, tmp_path, classes, labels, named):
    write(tmp_path / "set", {"train": (0, 1), "val": (0, 1), "test": labels}, classes)
    code, said = command(capsys, tmp_path / "set", tmp_path / "run")
    assert (code, said.err.count("\n")) == (3, 1), said.err
    assert named in said.err
    assert not (tmp_path / "run").exists()


def test_an_unlabelled_set_has_its_features_written_and_nothing_scored(capsys, tmp_path, by_hand):
    rng, path, workdir = np.random.default_rng(0), tmp_path / "set", tmp_path / "run"
    images = rng.integers(0, 256, (5, 64, 64)).astype(np.int16)
    write(path, {"train": [-1] * 5}, (), images)
    flags = ("--config.data.canvas=48", "--config.bn_images=0")  # as the weights by hand
    code, said = command(capsys, path, workdir, *flags, "--config.val_count=3")
    assert (code, said.err) == (0, "")
    assert "val_count=3 has no effect: without labels all slices of train are taken" in said.out
    assert "features of 5 slices of train; without labels nothing is scored" in said.out
    with np.load(workdir / "embeddings.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert sorted(arrays) == ["train_features", "train_label", "train_record"]
    assert arrays["train_record"].tolist() == [0, 1, 2, 3, 4]
    config = EvaluateConfig(encoder=EncoderConfig(depth=18))
    params, stats = jax.device_get(evaluate._encoder_weights(config))
    source = data.open_dataset(path).source("train")
    expected = by_hand(params, stats, source, 0, 255, Intensity(mean=(0.28,), std=(0.256,)))
    np.testing.assert_allclose(arrays["train_features"], expected, rtol=1e-3, atol=1e-4)
    found = json.loads((workdir / "results.json").read_text())
    assert (found["scored"], found["split"], found["slices"]) == (False, "train", 5)
    assert found["audit"] == {"verdict": "pass"}
    assert "test" not in found
    code, said = command(capsys, path, workdir, *flags, "--config.val_count=3")
    assert code == 0
    assert "is done already; features of 5 slices" in said.out


def test_an_encoder_that_saw_the_test_is_refused(capsys, tmp_path, phantom_path, encoder_run):
    run = tmp_path / "spark"
    run.mkdir()
    for name in ("checkpoints", "config.json"):
        (run / name).symlink_to(encoder_run / name)
    save_signatures(run / "seen.npy", [load_signatures(phantom_path, "test")])
    given = f"--config.encoder_run={run}"
    code, said = command(capsys, phantom_path, tmp_path / "run", given)
    assert (code, said.err.count("\n")) == (3, 1)
    assert f"the encoder of {run} has seen 1 patients, 1 series, 8 equal slices" in said.err
    assert not (tmp_path / "run").exists()


def test_k_above_the_subset_is_left_out():
    config = EvaluateConfig(knn_k=(1, 16, 17))
    assert evaluate._neighbours(config, 16) == [1, 16]


def test_the_report_lists_an_evaluation_and_keeps_it_out_of_the_comparison(evaluated):
    from ctssl_jax.report.comparison.compare import compare
    from ctssl_jax.report.runs import find_runs

    workdir, _, _ = evaluated
    comparison = compare(find_runs([workdir]))
    assert [(run.kind, run.status, run.problem) for run in comparison.runs] == [
        ("evaluation", "done", "")
    ]
    assert comparison.tasks == []


def test_configs_are_what_pretraining_starts_from():
    get_config = importlib.import_module("configs.evaluate").get_config
    spark = importlib.import_module("configs.spark").get_config
    for preset in ("", "demo", "smoke"):
        config, pretraining = get_config(preset), spark(preset)
        config.validate()
        assert config.intensity == pretraining.intensity
        assert config.encoder.depth == pretraining.encoder.depth
    assert get_config().size == get_config().data.canvas == 224
    with pytest.raises(ConfigError, match="no preset :tiny; there is :demo, :smoke"):
        get_config("tiny")


# During pre-training


def test_probe_scores_the_current_encoder_on_validation_and_compiles_once(
    phantom_path, by_hand, monkeypatch
):
    intensity = Intensity(window_hu=(-900.0, 300.0), mean=(0.4,), std=(0.2,))
    embeds, splits = [], set()
    make_embed, batches = frozen_probe.make_embed, data.evaluation_batches

    def spy(*arguments):
        embeds.append(make_embed(*arguments))
        return embeds[-1]

    def watch(dataset, reading, *, split, **rest):
        splits.add(split)
        return batches(dataset, reading, split=split, **rest)

    monkeypatch.setattr(frozen_probe, "make_embed", spy)
    monkeypatch.setattr(data, "evaluation_batches", watch)
    mesh = sharding.make_mesh()
    config = ProbeConfig(path=str(phantom_path), every=1, k=5, canvas=48, size=64)
    config.validate()
    probe = frozen_probe.make_probe(config, ENCODER, intensity, mesh)
    dataset = data.open_dataset(phantom_path)
    found = []
    for seed in (0, 1):
        params, stats = weights(seed)
        state = sharding.replicate(state_of(params, stats), mesh)
        found.append(probe(state, seed))
        x = {
            split: by_hand(params, stats, dataset.source(split), -900, 300, intensity)
            for split in ("train", "val")
        }
        labels, val_labels = (data.read_labels(dataset, split)[0] for split in ("train", "val"))
        scores = knn_by_hand(x["train"], labels, x["val"], 5, 2)
        expected = classification_metrics(val_labels, scores)
        assert found[-1] == pytest.approx(
            {"knn_auc": expected["auc"], "knn_accuracy": expected["accuracy"]}
        )
    assert found[0] != found[1]
    assert splits == {"train", "val"}
    assert [embed._cache_size() for embed in embeds] == [1]


def test_probe_that_cannot_work_is_refused_before_training(tmp_path, phantom_path):
    mesh = sharding.make_mesh()
    with pytest.raises(ConfigError, match=r"probe.k=33: phantom has 32 training slices"):
        frozen_probe.make_probe(ProbeConfig(str(phantom_path), 1, k=33), ENCODER, Intensity(), mesh)
    write(tmp_path / "set", {"train": [-1], "val": [-1]}, ())
    with pytest.raises(DataError, match="has no labels"):
        frozen_probe.make_probe(ProbeConfig(str(tmp_path / "set"), 1), ENCODER, Intensity(), mesh)
    for change, named in (
        ({"every": -1}, "probe.every=-1"),
        ({"every": 5}, "probe.every=5 needs probe.path"),
        ({"k": 0}, "probe.k=0"),
        ({"canvas": 16}, "probe.canvas=16"),
        ({"size": 100}, "probe.size=100"),
    ):
        with pytest.raises(ConfigError, match=named):
            ProbeConfig(**change).validate()


# Features that runs share, and features without a network


def test_a_store_computes_each_part_once_and_gives_what_the_whole_gives(grey_path):
    asked = []

    def compute(split):
        asked.append(split)
        return labelled(np.full((2, 3), len(asked)), [0, 1])

    store = FeatureStore()
    assert not store.knows("encoder", ["val+test"])
    first = store.features("encoder", "val+test", compute)
    assert first.records.tolist() == [0, 1, 2, 3]
    assert first.x[:, 0].tolist() == [1, 1, 2, 2]
    assert store.knows("encoder", ["test", "val"])
    assert store.features("encoder", "test", compute).x[:, 0].tolist() == [2, 2]
    assert asked == ["val", "test"]
    store.features("another", "val", compute)
    store.features(None, "val", compute)
    store.features(None, "val", compute)
    assert asked == ["val", "test", "val", "val", "val"]
    assert not store.knows(None, ["val"])

    dataset, mesh = data.open_dataset(grey_path), sharding.make_mesh()
    embed = make_radiomics(Intensity(), dataset.intensity, 64, mesh)
    own = partial(frozen_features.features, embed, dataset, DataConfig(canvas=64), mesh=mesh)
    joined = store.features("grey", "train+test", own)
    for ours, whole in zip(joined, own("train+test"), strict=True):
        np.testing.assert_array_equal(ours, whole)


def test_what_was_longest_unasked_for_goes_first():
    one = labelled(np.zeros((4, 8)), [0, 1, 0, 1])
    store = FeatureStore(most=2 * sum(array.nbytes for array in one))
    for split in ("a", "b", "a", "c"):
        store.features("encoder", split, lambda _: one)
    assert [store.knows("encoder", [split]) for split in "abc"] == [True, False, True]


def test_cells_that_share_an_encoder_find_what_they_find_alone(
    tmp_path, phantom_path, tiny_encoder, monkeypatch
):
    store, reads = FeatureStore(), []
    real = evaluate.features
    monkeypatch.setattr(evaluate, "features", lambda *args: reads.append(args[3]) or real(*args))
    monkeypatch.setattr(evaluate, "_keeps_statistics", lambda config: True)
    for fraction in (0.5, 1.0):
        config = smoke(phantom_path, fraction=fraction, knn_k=(1,))
        shared = evaluate.run(config, tmp_path / f"shared-{fraction}", store=store)
        assert evaluate.run(config, tmp_path / f"alone-{fraction}") == shared
        one, other = (tmp_path / f"{kind}-{fraction}" for kind in ("shared", "alone"))
        for name in ("predictions_linear.csv", "predictions_knn.csv"):
            assert (one / name).read_bytes() == (other / name).read_bytes()
    assert reads == ["train", "val", "test"] * 3  # the store's, and each that is alone


def test_random_encoders_of_two_seeds_share_no_features(grey_path):
    dataset = data.open_dataset(grey_path)
    one, other = (evaluate._whose(EvaluateConfig(seed=n, bn_images=0), dataset) for n in (0, 1))
    assert one is not None
    assert one != other


def test_radiomics_is_scored_without_a_network(tmp_path, phantom_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_encoder", None)
    monkeypatch.setattr(evaluate, "init_encoder", None)
    config = smoke(phantom_path, fraction=1.0, features=FeatureKind.RADIOMICS, knn_k=(1,))
    found = evaluate.run(config, tmp_path / "run")
    assert (found["arm"], found["encoder_run"]) == ("radiomics", None)
    with np.load(tmp_path / "run" / "embeddings.npz", allow_pickle=False) as file:
        assert file["test_features"].shape[1] == len(NAMES)
    with pytest.raises(ConfigError, match="radiomics has no encoder"):
        dataclasses.replace(config, encoder_run="runs/spark").validate()


def test_a_field_that_was_added_later_leaves_older_runs_what_they_are():
    """Their record has no such field; while it has its default neither has ours."""
    assert "features" not in config_record(EvaluateConfig())["config"]
    other = config_record(EvaluateConfig(features=FeatureKind.RADIOMICS))
    assert other["config"]["features"] == "radiomics"
