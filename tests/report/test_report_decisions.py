"""Rates at thresholds of validation, Brier score and calibration, by hand from the files."""

import csv

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss
from test_report import edit_json, hash_of, simulate, write, write_finetuning
from test_report_folds import write_fold

from ctssl_jax.report import write_report
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.comparison.outcomes import calibration_curve
from ctssl_jax.report.runs import find_runs

pytestmark = pytest.mark.usefixtures("undrawn")


def add_validation(run, name, split="val", patients=30):
    """Validation cases as good as the test cases, in place of the one that is there."""
    labels, scores = simulate(2, 1.0, hash_of(name), patients)
    rows = [
        row for row in (run / "predictions.csv").read_text().splitlines() if "val,v," not in row
    ]
    rows += [
        f"{split},v{index},v{index // 2},{label},{score[0]:.9g},{score[1]:.9g}"
        for index, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]
    write(run / "predictions.csv", "\n".join(rows) + "\n")


def rows_of(run, split):
    with (run / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return np.array([int(row["label"]) for row in rows]), np.array(
        [float(row["score_1"]) for row in rows]
    )


def rates(run, val="val", test="test"):
    """Sensitivity at 90 % specificity of validation, and the specificity reached, by counting."""
    labels, scores = rows_of(run, val)
    cut = min(c for c in [*scores, np.inf] if np.mean(scores[labels == 0] < c) >= 0.9)
    labels, scores = rows_of(run, test)
    return labels, scores >= cut


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        for arm in ("scratch", "spark"):
            run = write_finetuning(tmp_path / "runs" / f"{arm}{seed}", arm=arm, seed=seed)
            add_validation(run, f"{arm}{seed}")
    return tmp_path / "runs"


def test_thresholds_are_of_validation_and_rates_of_test(runs, tmp_path):
    (task,) = compare(find_runs([runs])).tasks
    for cell in task.cells:
        found = [rates(run.folder) for run in cell.runs]
        sensitivity = np.mean([np.mean(called[labels == 1]) for labels, called in found])
        specificity = np.mean([np.mean(~called[labels == 0]) for labels, called in found])
        interval = cell.interval("sensitivity at specificity")
        assert interval.estimate == pytest.approx(sensitivity, abs=1e-12)
        assert 0 <= interval.low < interval.estimate < interval.high <= 1
        assert cell.mean("specificity at specificity") == pytest.approx(specificity, abs=1e-12)
        errors = [
            brier_score_loss(*map(np.ravel, (run.cases.labels, run.cases.scores[:, 1])))
            for run in cell.runs
        ]
        assert cell.mean("brier") == pytest.approx(np.mean(errors), abs=1e-9)
    write_report([runs], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "threshold at 90 % specificity" in html
    assert f"specificity reached {task.cells[0].mean('specificity at specificity'):.3f}" in html
    with (tmp_path / "out/figures/decisions-1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 2
    assert {row["covers"] for row in rows} == {"patients alone"}


def test_calibration_is_the_share_by_predicted_chance(runs):
    (task,) = compare(find_runs([runs])).tasks
    cell = task.cells[0]
    labels = np.tile(cell.runs[0].cases.labels, 2)
    chances = np.concatenate([run.cases.scores[:, 1] for run in cell.runs])
    curve = calibration_curve(cell)
    assert len(curve) >= 4
    for number, found in enumerate(curve[:4]):
        inside = (chances >= number / 5) & (chances < (number + 1) / 5)
        assert found.predicted == pytest.approx(chances[inside].mean())
        assert found.observed == pytest.approx(labels[inside].mean())
        assert found.low <= found.observed <= found.high


def test_each_fold_has_its_own_threshold(tmp_path):
    for fold in range(3):
        run = write_fold(tmp_path, fold)
        edit_json(run / "config.json", config={**find_runs([run])[0].config, "val_split": "val"})
        add_validation(run, f"fold{fold}")
    (task,) = compare(find_runs([tmp_path])).tasks
    found = [rates(tmp_path / f"scratch-0-fold{fold}", test=f"fold{fold}") for fold in range(3)]
    labels, called = (np.concatenate(parts) for parts in zip(*found, strict=True))
    expected = np.mean(called[labels == 1])
    assert task.cells[0].mean("sensitivity at specificity") == pytest.approx(expected, abs=1e-12)


def test_what_has_no_threshold_says_why(tmp_path):
    write_finetuning(tmp_path / "two/a")
    write_finetuning(tmp_path / "many/a", classes=("a", "b", "c"))
    for name, said in (
        ("two", "Thresholds are left out: the validation cases of a run are not of both classes."),
        ("many", "Thresholds and calibration are of two classes, and left out here."),
    ):
        write_report([tmp_path / name], tmp_path / "out")
        html = (tmp_path / "out/report.html").read_text()
        assert said in html
        assert ("Calibration</summary>" in html) == (name == "two")


def test_examples_are_the_cases_that_most_runs_call_wrong(runs, tmp_path):
    write_report([runs], tmp_path / "out")
    with (tmp_path / "out/figures/examples-1.csv").open() as file:
        rows = [row for row in csv.DictReader(file)]
    wrong = {}
    for run in sorted(runs.iterdir()):
        with (run / "predictions.csv").open() as file:
            records = [row["record"] for row in csv.DictReader(file) if row["split"] == "test"]
        labels, called = rates(run)
        for record, label, call in zip(records, labels, called, strict=True):
            wrong.setdefault((f"test {record}", int(label)), []).append(bool(label) != bool(call))
    for truth, label in (("NonCOVID", 1), ("COVID", 0)):
        often = sorted((sum(of) for (_, own), of in wrong.items() if own == label), reverse=True)
        names = list(dict.fromkeys(row["row"] for row in rows if row["truth"] == truth))
        assert [sum(wrong[name, label]) for name in names] == often[:3]
        for name in names:
            told = [int(row["wrong"]) for row in rows if row["row"] == name]
            assert sum(told) == sum(wrong[name, label])
    html = (tmp_path / "out/report.html").read_text()
    assert html.count("<small>missed</small>") == html.count("<small>false alarm</small>") == 3
    assert "sensitivity for NonCOVID" in html[: html.index("</header>")]
