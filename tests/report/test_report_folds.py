"""Cross-validated runs in the report: each fold's run is a part of one run over all patients."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from test_report import edit_json, write, write_finetuning

from ctssl_jax.report import write_report
from ctssl_jax.report.comparison.compare import Comparison, compare
from ctssl_jax.report.comparison.outcomes import roc_curves
from ctssl_jax.report.runs import find_runs
from ctssl_jax.statistics import auc, contrast, resampled, within_folds

pytestmark = pytest.mark.usefixtures("undrawn")

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
            test, own = run.results["test"], np.repeat([0, 1, 2], [40, 42, 44])
            aucs = [roc_auc_score(labels[own == f], scores[own == f, 1]) for f in range(FOLDS)]
            assert test["auc"] == pytest.approx(np.mean(aucs), abs=1e-12)
            np.testing.assert_array_equal(run.cases.folds, own)
            predicted = scores.argmax(axis=1)
            assert test["f1"] == pytest.approx(f1_score(labels, predicted))
            assert test["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
            assert (test["n"], test["patients"]) == (126, 63)
            assert run.cases.patients.tolist() == patients
            np.testing.assert_array_equal(run.cases.scores, scores)
        of = [run.cases for run in cell.runs]
        scores = np.stack([cases.scores for cases in of])
        within = within_folds(auc, of[0].folds)
        table = resampled(of[0].labels, scores, of[0].patients, within, folds=of[0].folds)
        np.testing.assert_allclose(cell.interval("auc"), contrast([table], [1]), atol=1e-12)
        assert cell.fraction == 0.1
        assert cell.sizes("slices") == [40, 41, 42]


def rewrite_scores(run: Path, fold: int, patients: int, score, shift: float) -> None:
    """One test case for each patient; `score` of the labels and the patients, moved by `shift`."""
    labels = np.arange(patients) % 2
    values = 1 / (1 + np.exp(-(score(labels, fold) + shift)))
    rows = ["split,record,patient,label,score_0,score_1"]
    rows += [
        f"fold{fold},r{k:03},f{fold}p{k},{labels[k]},{1 - values[k]:.6g},{values[k]:.6g}"
        for k in range(patients)
    ]
    write(run / "predictions.csv", "\n".join(rows) + "\n")
    predicted = values > 0.5
    test = {
        "auc": float(roc_auc_score(labels, values)) if len(set(labels)) == 2 else float("nan"),
        "accuracy": float(np.mean(predicted == labels)),
        "f1": float(f1_score(labels, predicted, zero_division=0.0)),
        "n": patients,
        "patients": patients,
    }
    edit_json(run / "results.json", test=test)


def same_ranks(labels, fold):
    return labels + np.random.default_rng(fold).normal(0, 0.6, len(labels))


def test_arms_that_rank_alike_in_every_fold_cannot_be_told_apart(tmp_path):
    """One arm's score scale moves from fold to fold, which is no difference in ranking."""
    rng = np.random.default_rng(5)
    for seed in range(5):
        for fold in range(FOLDS):
            for arm, moved in (("scratch", 3.0), ("spark", 0.0)):
                run = write_fold(tmp_path / "runs", fold, arm, seed)
                rewrite_scores(run, fold, 40, same_ranks, moved * rng.normal())
    (task,) = found_in(tmp_path / "runs").tasks
    (pair,) = task.pairs
    assert pair.difference.verdict == "cannot tell"
    np.testing.assert_allclose(pair.difference[:3], 0, atol=1e-12)
    assert pair.answer.p == 1
    scratch, spark = task.cells
    assert scratch.mean("auc") == pytest.approx(spark.mean("auc"), abs=1e-12)
    np.testing.assert_allclose(roc_curves(scratch), roc_curves(spark), atol=1e-12)
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Cannot tell: this SparK encoder and training from scratch" in html
    assert "never ranked together" in html


def test_a_fold_of_one_class_is_left_out_of_auc_for_all_arms_and_said(tmp_path):
    for seed in (0, 1):
        for fold in range(FOLDS):
            for arm, sign in (("scratch", 0.5), ("spark", 2.0)):
                run = write_fold(tmp_path / "runs", fold, arm, seed)
                number = 1 if fold == 1 else 30  # one patient has one class
                rewrite_scores(run, fold, number, lambda y, f, s=sign: s * same_ranks(y, f), 0.1)
    (task,) = found_in(tmp_path / "runs").tasks
    assert task.test_cases == 61
    for cell in task.cells:
        for run in cell.runs:
            parts = [part.results["test"]["auc"] for part in run.folds]
            assert np.isnan(parts[1])
            assert run.results["test"]["auc"] == pytest.approx(np.nanmean(parts), abs=1e-12)
    assert np.isfinite(task.pairs[0].difference.low)
    assert task.pairs[0].answer.p == 1  # the same ranks again
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "The test cases of fold 1 are of one class: left out of AUC" in html


def test_without_a_fold_of_two_classes_there_is_no_auc(tmp_path):
    for fold in range(FOLDS):
        rewrite_scores(write_fold(tmp_path, fold), fold, 1, same_ranks, 0.0)
    write_finetuning(tmp_path / "whole", task="other")
    rewrite_scores(tmp_path / "whole", 0, 1, same_ranks, 0.0)
    edit_json(tmp_path / "whole" / "config.json", config={"test_split": "fold0"})
    problems = {run.problem for run in found_in(tmp_path).runs}
    assert problems == {
        "cross-validation has no fold whose test cases are of two classes",
        "its test cases are of one class, so that there is no AUC",
    }


def test_page_says_how_it_was_tested(validated, tmp_path):
    runs = write_report([validated], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert [run.problem for run in runs] == [""] * 12
    assert "12 runs read." in html
    assert html.count("cross-validated in 3 folds: in each run every patient was tested once") == 1
    assert re.search(
        r"126 test cases from 63 patients, \d+ positive \(\w+\); each was tested once, in 3",
        html,
    )
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


def test_each_fold_may_have_a_learning_rate_of_its_own_that_was_chosen(tmp_path):
    for fold in range(FOLDS):
        for arm in ("scratch", "spark"):
            rate = 1e-3 / (fold + 1 + (arm == "spark"))
            run = write_fold(tmp_path, fold, arm, config={"optim": {"lr": rate}})
            split = f"fold{(fold - 2) % FOLDS}"
            tuning = {"lr": rate, "candidates": [rate], "seeds": [100], "split": split}
            edit_json(run / "results.json", tuning=tuning)
    comparison = found_in(tmp_path)
    assert ([run.problem for run in comparison.runs], comparison.conflicts) == ([""] * 6, [])
    assert len(comparison.tasks[0].pairs) == 1


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
