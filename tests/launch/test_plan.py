"""The planner's command, from a dataset and an encoder to its page."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

from configs import spark
from ctssl_jax import data
from ctssl_jax.config_record import config_record
from ctssl_jax.dataset.signatures import load_signatures, save_signatures
from ctssl_jax.files import read_json
from ctssl_jax.frozen.features import Features
from ctssl_jax.methods.base import Start, init_encoder
from ctssl_jax.run import checkpoint
from data_prep.phantom import source as phantom
from launch import benchmark_planner
from launch.plan import starts
from launch.plan.__main__ import main

pytestmark = pytest.mark.usefixtures("one_device", "tiny_encoder")


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory):
    """A run whose encoder is random: what it is worth is not the question here."""
    config, run = spark.get_config("smoke"), tmp_path_factory.mktemp("runs") / "spark"
    encoder = config.encoder.build(config.precision)
    params, stats = init_encoder(encoder, jax.random.key(0), 64, 1)
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config_record(config)))
    checkpoint.save_start(run, Start({"encoder": params}, {"encoder": stats}))
    (run / "STATUS").write_text("done\n")
    return run


@pytest.fixture(scope="module")
def patients_path(tmp_path_factory):
    """A phantom of 60 patients of two slices, half of them with nodules, with train and test."""
    path = tmp_path_factory.mktemp("data") / "patients"
    phantom.prepare(path, patients=60, slices=2, size=64, nodules=8, val=0.1, test=0.4)
    return path


def argv(data_path, run, out, *more):
    return [f"--data={data_path}", f"--encoders={run}", f"--workdir={out}", *more]


def test_a_plan_of_a_dataset(tmp_path, patients_path, encoder_run, capsys):
    words = argv(patients_path, encoder_run, tmp_path / "plan", "--target=0.9", "--orders=2")
    assert main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "more annotated scans would bring" in said
    assert "AUC 0.9 from SparK (one encoder): " in said
    found = read_json(tmp_path / "plan" / "plan.json")["plans"][0]
    assert [start["start"] for start in found["starts"]] == ["spark", "random"]
    assert found["starts"][1]["encoders"] == 3
    rows = list(csv.DictReader((tmp_path / "plan" / "plan.csv").read_text().splitlines()))
    assert {row["start"] for row in rows} == {"spark", "random"}
    page = (tmp_path / "plan" / "plan.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    for file in (tmp_path / "plan").glob("plan.*"):
        assert str(patients_path.parent) not in file.read_text()
    # The features are remembered: no encoder runs again, and the numbers are the same.
    before = (tmp_path / "plan" / "plan.json").read_bytes()
    assert main(words) == 0
    assert "img/s" not in capsys.readouterr().out
    assert (tmp_path / "plan" / "plan.json").read_bytes() == before


def test_too_few_patients_are_refused_in_one_line(tmp_path, phantom_path, encoder_run, capsys):
    assert main(argv(phantom_path, encoder_run, tmp_path / "plan")) == 3
    said = capsys.readouterr().err
    assert said.startswith("launch.plan: 6 annotated patients are too few to foretell")
    assert said.count("\n") == 1
    assert not (tmp_path / "plan" / "plan.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data=x"], "--encoders is missing"),
        (["--encoders=x"], "--data is missing"),
        ([], "give --data with --encoders, or --sweeps, or both"),
        (["--sweeps=x", "--target=2"], "an AUC is above 0.5 and below 1"),
        (["--sweeps=x", "--target=high"], "give one AUC or more"),
        (["--data=x", "--encoders=y", "--orders=1"], "--orders=1: give 2 or more"),
        (["--data=x", "--encoders=y", "--size=8"], "--size=8: must be 32 to 1024 pixels"),
        (["--sweeps=x", "--seed=1"], "--seed is of probes"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, words, said, capsys):
    assert main([*words, f"--workdir={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_an_unfinished_encoder_is_refused_or_marked(tmp_path, patients_path, encoder_run, capsys):
    run = tmp_path / "run"
    shutil.copytree(encoder_run, run)
    (run / "STATUS").write_text("running\n")
    words = argv(patients_path, run, tmp_path / "plan", "--orders=2")
    assert main(words) == 2
    assert "set --accept_unfinished\n" in capsys.readouterr().err
    assert main([*words, "--accept_unfinished"]) == 0
    assert "MARKED: an encoder of an unfinished run" in capsys.readouterr().out
    page = (tmp_path / "plan" / "plan.html").read_text()
    assert page.count("an encoder of an unfinished run") == 2


def test_what_leaks_is_refused_and_the_flag_is_the_planners(
    tmp_path, patients_path, encoder_run, capsys
):
    run, leaky = tmp_path / "run", tmp_path / "leaky"
    shutil.copytree(encoder_run, run)
    save_signatures(run / "seen.npy", [load_signatures(patients_path, "test")])
    assert main(argv(patients_path, run, tmp_path / "plan")) == 3
    said = capsys.readouterr().err
    assert f"the encoder of {run} has seen 24 patients" in said
    assert said.endswith("with every result marked, set --accept_leakage\n")
    shutil.copytree(patients_path, leaky)
    audit = {"verdict": "fail", "findings": [{"check": "near", "splits": ["train"], "count": 1}]}
    (leaky / "audit.json").write_text(json.dumps(read_json(leaky / "audit.json") | audit))
    assert main(argv(leaky, encoder_run, tmp_path / "plan")) == 3
    assert capsys.readouterr().err.endswith("with every result marked, set --accept_leakage\n")


def test_one_encoder_named_twice_is_refused(tmp_path, patients_path, encoder_run, capsys):
    twice = f"{encoder_run},{encoder_run}"
    assert main(argv(patients_path, twice, tmp_path / "plan")) == 2
    assert "has the weights of another one" in capsys.readouterr().err


def test_sweeps_without_three_sizes_are_refused(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    assert main([f"--sweeps={tmp_path / 'runs'}", f"--workdir={tmp_path / 'plan'}"]) == 3
    assert "no run found" in capsys.readouterr().err


def test_damaged_features_are_made_anew(tmp_path, patients_path, encoder_run):
    dataset = data.open_dataset(patients_path)
    start = starts.starts_of(dataset, [str(encoder_run)], 0, False)[0]
    first = starts.case_features(start, dataset, tmp_path)
    (tmp_path / start.file).write_bytes(b"PK")
    again = starts.case_features(start, dataset, tmp_path)
    np.testing.assert_array_equal(first.x, again.x)


def test_the_test_split_is_the_only_one_that_is_tested(patients_path):
    dataset = data.open_dataset(patients_path)
    folds = starts.fold_of_cases(dataset)
    tested = dataset.manifest["splits"]["test"]["patients"]
    assert (folds == 0).sum() == tested
    assert (folds == -1).sum() == len(folds) - tested


def planted(patients=240):
    rng = np.random.default_rng(0)
    labels = (np.arange(patients) % 2).astype(np.int32)
    x = rng.standard_normal((patients, 8)).astype(np.float32)
    x[:, 0] += labels
    names = np.array([f"p{n:03}" for n in range(patients)])
    return Features(x, labels, names, np.arange(patients, dtype=np.int32))


def test_held_out_patients_are_apart():
    parted = benchmark_planner.part(planted(), 40, np.random.default_rng(0))
    assert parted is not None
    assert len(parted.order) == 160
    assert sorted([*parted.order, *parted.test]) == list(range(240))
    assert np.mean(parted.order[:40] % 2) == pytest.approx(0.5, abs=0.05)
    short = benchmark_planner.part(planted(120), 40, np.random.default_rng(0))
    assert short is not None
    assert len(short.order) == 80
    assert benchmark_planner.part(planted(80), 40, np.random.default_rng(0)) is None


def test_the_benchmark_counts_what_its_rows_say():
    held = benchmark_planner.measure(planted(), 2, 40, [0], orders=2)
    assert held is not None
    rows = [{"task": "planted", **row} for row in benchmark_planner.rows(held)]
    assert [row["times"] for row in rows] == [2, 4]
    assert np.isfinite(rows[0]["others"])
    rows[0] |= {"theirs": 0.7, "0.8": (0.71, 0.8), "0.95": (0.69, 0.8), "foretold": 0.75}
    found = benchmark_planner.summary(rows[:1])
    assert (found["within 80%"], found["within 95%"]) == (0.0, 1.0)
    assert found["error foretold"] == pytest.approx(0.05)
    (line,) = [x for x in benchmark_planner.table(rows) if x.startswith("| planted | 40 | 2 N")]
    assert "| 0.000 | 1.000 |" in line


def test_the_benchmark_command(tmp_path, patients_path, encoder_run, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_planner.nested, "ORDERS", 2)
    words = [f"--encoders={encoder_run}", f"--cache={tmp_path}", "--sizes=20", "--splits=1"]
    task, out = f"--data=chest={patients_path}", tmp_path / "found.json"
    assert benchmark_planner.main([*words, task, f"--out={out}"]) == 0
    assert "| chest | 20 | 2 N | 4 |" in capsys.readouterr().out
    rows = read_json(out)["rows"]
    assert {row["start"] for row in rows} == {"spark", "random"}
    assert all(0 <= row["theirs"] <= 1 for row in rows)
    assert benchmark_planner.main([*words, "--data=chest"]) == 2
    assert "give NAME=DATASET or NAME=DATASET@PIXELS" in capsys.readouterr().err
