"""Cross-validated runs in the report: each fold's run is a part of one run over all patients."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from test_report import edit_json, write, write_finetuning

from ctssl_jax.report import write_report
from ctssl_jax.report.comparison.compare import Comparison, compare
from ctssl_jax.report.runs import find_runs
from ctssl_jax.statistics import bootstrap_interval

FOLDS = 3


def write_fold(root: Path, fold: int, arm="scratch", seed=0, named=True, config=()) -> Path:
    """The run that tests a fold; each is trained on other numbers, and better than the last."""
    run = write_finetuning(
        root / f"{arm}-{seed}-fold{fold}",
        arm=arm,
        seed=seed,
        skill=0.2 + 0.4 * fold + 0.3 * (arm == "spark"),
        patients=20 + fold,
        named=named,
    )
    names = [f"fold{number}" for number in range(FOLDS)]
    own = {"seed": seed, "fraction": 0.1, "epochs": 9, "test_split": names[fold]}
    own |= {"val_split": names[fold - 2], "data": {"split": names[fold - 1], "canvas": 64}}
    own |= {"intensity": {"mean": [0.1 * fold]}, **dict(config)}
    edit_json(run / "config.json", config=own)
    edit_json(run / "data.json", splits={name: {"slices": 40} for name in names})
    edit_json(run / "results.json", train_slices=40 + fold)
    text = (run / "predictions.csv").read_text()
    text = re.sub(r",p(\d)", rf",f{fold}p\1", text.replace("\ntest,", f"\nfold{fold},"))
    write(run / "predictions.csv", text)
    return run


@pytest.fixture
def validated(tmp_path):
    """Two arms, two seeds, all folds."""
    for fold in range(FOLDS):
        for arm in ("scratch", "spark"):
            for seed in (0, 1):
                write_fold(tmp_path / "runs", fold, arm, seed)
    return tmp_path / "runs"


def found_in(root: Path) -> Comparison:
    return compare(find_runs([root]))


def by_hand(root: Path, name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Patients, labels and scores of a cross-validation as its files have them."""
    rows = []
    for fold in range(FOLDS):
        with (root / f"{name}-fold{fold}" / "predictions.csv").open() as file:
            own = [row for row in csv.DictReader(file) if row["split"] == f"fold{fold}"]
            rows += sorted(own, key=lambda row: row["record"])
    scores = np.array([[float(row["score_0"]), float(row["score_1"])] for row in rows])
    labels = np.array([int(row["label"]) for row in rows])
    return [row["patient"] for row in rows], labels, scores


def test_scores_are_those_of_the_pooled_predictions(validated):
    (task,) = found_in(validated).tasks
    assert (task.folds, task.test_cases, task.test_patients) == (FOLDS, 126, 63)
    assert [(cell.arm, len(cell.runs)) for cell in task.cells] == [("scratch", 2), ("spark", 2)]
    for cell in task.cells:
        for seed, run in enumerate(cell.runs):
            patients, labels, scores = by_hand(validated, f"{cell.arm}-{seed}")
            test = run.results["test"]
            assert test["auc"] == pytest.approx(roc_auc_score(labels, scores[:, 1]), abs=1e-12)
            predicted = scores.argmax(axis=1)
            assert test["f1"] == pytest.approx(f1_score(labels, predicted))
            assert test["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
            assert (test["n"], test["patients"]) == (126, 63)
            assert run.cases.patients.tolist() == patients
            np.testing.assert_array_equal(run.cases.scores, scores)
        of = [run.cases for run in cell.runs]
        scores = np.stack([cases.scores for cases in of])
        assert cell.auc_interval == bootstrap_interval(of[0].labels, scores, of[0].patients)
        assert cell.fraction == 0.1
        assert cell.sizes("slices") == [40, 41, 42]


def test_pooled_auc_is_not_the_mean_of_the_folds(validated):
    (task,) = found_in(validated).tasks
    folds = [
        json.loads((validated / f"scratch-0-fold{fold}" / "results.json").read_text())
        for fold in range(FOLDS)
    ]
    mean = np.mean([results["test"]["auc"] for results in folds])
    assert abs(task.cells[0].test("auc")[0] - mean) > 1e-3


def test_page_says_how_it_was_tested(validated, tmp_path):
    runs = write_report([validated], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert [run.problem for run in runs] == [""] * 12
    assert "12 runs read." in html
    assert html.count("cross-validated in 3 folds: in each run every patient was tested once") == 1
    assert "126 test cases from 63 patients, cross-validated in 3 folds, 2 seeds" in html
    assert "40–42 slices" in html
    assert "10 % · fold 2" in html


def test_ordinary_runs_stand_beside_and_are_not_called_cross_validated(validated, tmp_path):
    write_finetuning(validated / "ordinary", task="other", fraction=1.0)
    tasks = {task.name: task for task in found_in(validated).tasks}
    assert (tasks["other"].folds, tasks["covid_ct"].folds) == (0, FOLDS)
    shutil.rmtree(validated / "ordinary")
    write_finetuning(validated / "alone", task="other", fraction=1.0)
    write_report([validated / "alone"], tmp_path / "out")
    assert "cross-validated" not in (tmp_path / "out" / "report.html").read_text()


def test_where_a_fold_is_missing_the_others_are_left_out(validated):
    write(validated / "spark-1-fold1" / "STATUS", "running\n")
    comparison = found_in(validated)
    problems = {run.folder.name: run.problem for run in comparison.runs if run.problem}
    assert problems == {
        "spark-1-fold0": "cross-validation lacks fold 1",
        "spark-1-fold1": "not finished (status running)",
        "spark-1-fold2": "cross-validation lacks fold 1",
    }
    assert [len(cell.runs) for cell in comparison.tasks[0].cells] == [2, 1]
    shutil.rmtree(validated / "spark-1-fold0")
    assert "cross-validation lacks folds 0, 1" in {run.problem for run in found_in(validated).runs}


def test_a_copy_of_a_fold_counts_once(validated):
    shutil.copytree(validated / "scratch-0-fold1", validated / "z")
    comparison = found_in(validated)
    assert [run.problem for run in comparison.runs if run.problem] == ["the same run a second time"]
    assert len(comparison.tasks[0].cells[0].runs) == 2


def test_folds_of_other_settings_are_not_put_together(validated):
    write_fold(validated, 1, config={"epochs": 10})
    problems = {run.folder.name: run.problem for run in found_in(validated).runs if run.problem}
    assert problems == {
        "scratch-0-fold0": "cross-validation lacks fold 1",
        "scratch-0-fold1": "cross-validation lacks folds 0, 2",
        "scratch-0-fold2": "cross-validation lacks fold 1",
    }


def test_seeds_of_other_settings_are_refused_fold_by_fold(validated):
    for fold in range(FOLDS):
        write_fold(validated, fold, seed=1, config={"epochs": 10})
    problems = {run.problem for run in found_in(validated).runs if run.results["arm"] == "scratch"}
    assert problems == {"other runs of this arm and size differ in epochs"}


def test_a_count_is_another_fraction_of_each_fold(tmp_path):
    for fold in range(FOLDS):
        run = write_fold(tmp_path, fold, config={"fraction": 1.0, "count": 8})
        edit_json(run / "results.json", fraction=8 / (80 + fold))
    (task,) = found_in(tmp_path).tasks
    assert task.cells[0].fraction == pytest.approx(np.mean([8 / 80, 8 / 81, 8 / 82]))


def test_a_patient_in_two_folds_is_refused(tmp_path):
    for fold in range(FOLDS):
        run = write_fold(tmp_path, fold)
    table = run / "predictions.csv"
    write(table, table.read_text().replace(",f2p3,", ",f0p3,"))
    problems = {run.problem for run in found_in(tmp_path).runs}
    assert problems == {"cross-validation has a patient in two folds"}


def test_cases_without_patients_are_told_apart_by_fold(tmp_path):
    for fold in range(FOLDS):
        write_fold(tmp_path, fold, named=False)
    (task,) = found_in(tmp_path).tasks
    assert (task.test_cases, task.test_patients, task.patients_known) == (126, 126, False)


def test_a_mark_of_one_fold_marks_the_cell(validated, tmp_path):
    run = validated / "spark-0-fold2"
    edit_json(run / "results.json", pretraining_overlap={"patients": 2, "accepted": True})
    write_report([validated], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Test data was seen in training" in html
    assert "leakage: test data seen in pre-training" in html
