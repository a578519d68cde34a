"""Frozen features set against each other: numbers as of fine-tunings, of tasks of their own."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import edit_json, write_finetuning

from ctssl_jax import files
from ctssl_jax.report.__main__ import main
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.runs import FROZEN, find_runs, frozen_features, read_run

pytestmark = pytest.mark.usefixtures("undrawn")

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "study.py"


def write_evaluation(folder: Path, **numbers) -> Path:
    """The run folder of an evaluation with the scores of a fine-tuning, by both classifiers."""
    run = write_finetuning(folder, **numbers)
    results = json.loads((run / "results.json").read_text())
    found = {name: results.pop(name) for name in ("test", "val")}
    (run / "results.json").write_text(json.dumps(results | {"linear": found, "knn": found}))
    for name in ("linear", "knn"):
        (run / f"predictions_{name}.csv").write_text((run / "predictions.csv").read_text())
    (run / "predictions.csv").unlink()
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"type": "EvaluateConfig"}))
    return run


@pytest.fixture
def runs(tmp_path):
    """Frozen features of a random encoder and of SparK, and the same scores as fine-tunings."""
    for seed in (0, 1):
        for arm, skill in (("random", 0.4), ("spark", 1.6)):
            numbers = {"arm": arm, "seed": seed, "skill": skill}
            write_evaluation(tmp_path / "runs" / f"frozen-{arm}{seed}", **numbers)
            tuned = {**numbers, "arm": {"random": "scratch"}.get(arm, arm)}
            write_finetuning(tmp_path / "runs" / f"{arm}{seed}", **tuned)
        path = tmp_path / "runs" / f"frozen-radiomics{seed}"
        run = write_evaluation(path, arm="radiomics", seed=seed, skill=1.0)
        record = json.loads((run / "config.json").read_text())
        config = {**record["config"], "features": "radiomics", "linear_c": [1.0]}
        edit_json(run / "config.json", config=config)
    return tmp_path / "runs"


def test_a_linear_probe_is_compared_as_a_fine_tuning_is(runs):
    found = find_runs([runs])
    probes = [frozen_features(run, "linear") for run in found if run.kind == "evaluation"]
    assert [run.kind for run in probes] == [FROZEN] * 6
    (frozen,) = compare(probes, "random").tasks
    assert frozen.name == "covid_ct, linear"
    (tuned,) = compare(found).tasks
    assert tuned.name == "covid_ct"
    of = {cell.arm: cell for cell in frozen.cells}
    assert of["radiomics"].pair.b == "random"  # other features and penalties are what an arm is
    other = {cell.arm: cell for cell in tuned.cells}
    assert of["spark"].interval("auc") == other["spark"].interval("auc")
    assert of["spark"].pair.b == "random"
    assert of["spark"].pair.difference.estimate > 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"linear": None}, "results.json has no linear"),
        ({"classes": []}, "no list of two or more classes"),
        ({"linear": {"test": {"auc": 0.9}}}, "no test accuracy"),
    ],
)
def test_what_is_wrong_with_an_evaluation_is_its_problem(runs, change, said):
    edit_json(runs / "frozen-spark0" / "results.json", **change)
    (run,) = (run for run in find_runs([runs]) if run.folder.name == "frozen-spark0")
    assert said in frozen_features(run, "linear").problem


def test_a_damaged_table_is_told(runs):
    table = runs / "frozen-spark0" / "predictions_linear.csv"
    table.write_text(table.read_text().replace("test,", "toast,"))
    (run,) = (run for run in find_runs([runs]) if run.folder.name == "frozen-spark0")
    assert "disagree on the test cases" in frozen_features(run, "linear").problem


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("predictions_knn.csv", lambda path: path.write_text(""), "is damaged, or was changed"),
        ("predictions_knn.csv", lambda path: path.unlink(), "predictions_knn.csv is missing"),
        ("predictions_knn.csv", lambda path: path.write_bytes(b"\xff"), "cannot be read as text"),
        ("results.json", lambda path: path.unlink(), "results.json is missing"),
        ("results.json", lambda path: path.write_text("["), "results.json is not valid JSON"),
    ],
)
def test_a_damaged_evaluation_is_left_out_and_not_published(runs, tmp_path, name, damage, said):
    run = runs / "frozen-spark0"
    sums = {path.name: files.sha256(path) for path in run.glob("predictions_*.csv")}
    edit_json(run / "results.json", files=sums | {"embeddings.npz": "gone, and not asked for"})
    assert not read_run(run).problem
    damage(run / name)
    assert said in read_run(run).problem
    public = tmp_path / "public"
    assert main([str(run.parent), f"--out={tmp_path / 'out'}", f"--publish={public}"]) == 0
    assert len(list(public.iterdir())) == len(list(runs.iterdir())) - 1


def test_the_studys_tables_are_the_same_of_what_is_published(runs, tmp_path):
    public = tmp_path / "public"
    assert main([str(runs), f"--out={tmp_path / 'out'}", f"--publish={public}"]) == 0
    for name, place in (("own", runs), ("public", public)):
        command = [sys.executable, str(SCRIPT), str(place), f"--out={tmp_path / name}"]
        subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "own.csv").read_text() == (tmp_path / "public.csv").read_text()
    with (tmp_path / "own.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {"covid_ct", "covid_ct, linear"}
    gaps = {row["start"]: row for row in rows if row["question"] == "minus random"}
    assert set(gaps) == {"spark", "radiomics"}
    gap = gaps["spark"]
    assert float(gap["low"]) < float(gap["estimate"]) < float(gap["high"])
