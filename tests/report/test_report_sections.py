"""The numbers and words of the report's sections, against scikit-learn and by hand."""

import csv
import importlib
import json
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_report import edit_json, write, write_finetuning, write_lines, write_pretraining

from ctssl_jax.config_record import to_json
from ctssl_jax.report import write_report
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.comparison.outcomes import FALSE_POSITIVES, confusion, roc_curves
from ctssl_jax.report.figures import tables
from ctssl_jax.report.runs import find_runs, neighbours, read_run
from ctssl_jax.report.sections.data_card import audit_words, data_cards
from ctssl_jax.report.sections.deviations import NAMES, RELEASED, deviations
from ctssl_jax.report.sections.neighbours import neighbours_section
from ctssl_jax.report.sections.pretraining import SHOWN, gauges, warnings

ORGANS = ("liver", "kidney", "spleen", "bladder")


def cells_of(root, **more):
    """Two seeds from scratch and two of SparK."""
    for arm in ("scratch", "spark"):
        for seed in (0, 1):
            write_finetuning(root / f"{arm}{seed}", arm=arm, seed=seed, **more)
    (task,) = compare(find_runs([root])).tasks
    return task


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    return cells_of(tmp_path_factory.mktemp("binary"))


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    return cells_of(tmp_path_factory.mktemp("organs"), task="organs", classes=ORGANS)


def rows_of(text):
    return list(csv.DictReader(StringIO(text)))


# F1


def test_f1_interval_is_around_the_mean_of_the_runs(binary, organs):
    for task in (binary, organs):
        for cell in task.cells:
            interval = cell.interval("f1")
            assert interval.estimate == pytest.approx(cell.spread("f1").mean, abs=1e-12)
            assert interval.low < interval.estimate < interval.high
            assert interval != cell.interval("accuracy")


# ROC and confusion


def test_roc_curve_is_the_best_rate_of_hits_for_the_false_alarms(binary):
    for cell in binary.cells:
        for run, curve in zip(cell.runs, roc_curves(cell), strict=True):
            positive, scores = run.cases.labels == 1, run.cases.scores[:, 1]
            cuts = [np.inf, *scores]
            false = np.array([np.mean(scores[~positive] >= cut) for cut in cuts])
            true = np.array([np.mean(scores[positive] >= cut) for cut in cuts])
            best = [true[false <= rate + 1e-12].max() for rate in FALSE_POSITIVES]
            np.testing.assert_allclose(curve, best, atol=1e-12)


def test_roc_curves_of_many_classes_are_the_mean_of_each_against_the_rest(organs):
    cell = organs.cells[0]
    cases, curve = cell.runs[0].cases, roc_curves(cell)[0]
    area = np.trapezoid(curve, FALSE_POSITIVES)
    macro = roc_auc_score(cases.labels, cases.scores, multi_class="ovr")
    assert area == pytest.approx(macro, abs=0.01)
    # Shifting the scores of one class changes the macro curve, unlike any monotone change of all.
    moved = replace(cases, scores=np.where(np.arange(4) == 2, -cases.scores, cases.scores))
    other = roc_curves(replace(cell, runs=(replace(cell.runs[0], cases=moved),)))[0]
    assert np.trapezoid(other, FALSE_POSITIVES) < area - 0.1


def test_confusion_counts_true_classes_in_rows(organs):
    for cell in organs.cells:
        for run, matrix in zip(cell.runs, confusion(cell), strict=True):
            expected = np.zeros((4, 4), int)
            for label, scores in zip(run.cases.labels, run.cases.scores, strict=True):
                expected[label, scores.argmax()] += 1
            np.testing.assert_array_equal(matrix, expected)
            assert run.results["test"]["accuracy"] == pytest.approx(np.trace(matrix) / 120)


# The numbers of the pictures


def test_csv_holds_what_is_drawn(binary):
    rows = rows_of(tables.against_size(binary, ("auc", "f1")))
    assert len(rows) == 2 * 2 * (1 + 2)
    spark = next(cell for cell in binary.cells if cell.arm == "spark")
    (mean,) = [
        row for row in rows if (row["metric"], row["start"], row["seed"]) == ("f1", "spark", "mean")
    ]
    assert float(mean["value"]) == spark.spread("f1").mean
    interval = spark.interval("f1")
    assert (float(mean["low"]), float(mean["high"])) == (interval.low, interval.high)
    assert float(mean["train_slices"]) == 42
    single = [row for row in rows if row["start"] == "spark" and row["metric"] == "auc"][1:]
    assert [float(row["value"]) for row in single] == spark.test("auc")
    assert {row["low"] for row in single} == {""}


def test_csv_of_roc_and_confusion_hold_every_seed(binary):
    rows = rows_of(tables.roc(binary))
    assert len(rows) == 2 * (1 + 2) * 101
    cell = binary.cells[0]
    means = [row for row in rows if (row["start"], row["seed"]) == (cell.arm, "mean")]
    found = [float(row["true_positive_rate"]) for row in means]
    np.testing.assert_array_equal(found, roc_curves(cell).mean(axis=0))
    rows = rows_of(tables.confusions(list(binary.cells), binary.classes))
    assert len(rows) == 2 * 2 * 4
    assert sum(int(row["cases"]) for row in rows) == 2 * 2 * 120
    (one,) = [
        row
        for row in rows
        if (row["start"], row["seed"], row["true_class"], row["predicted_class"])
        == ("scratch", "1", "COVID", "NonCOVID")
    ]
    assert int(one["cases"]) == confusion(cell)[1, 0, 1]


def test_no_text_of_a_run_is_a_formula_in_a_spreadsheet(tmp_path):
    task = cells_of(tmp_path, classes=("=1+1", "@b"))
    for text in (tables.confusions(list(task.cells), task.classes), tables.roc(task)):
        assert not any(
            value.startswith(("=", "@", "+")) for row in rows_of(text) for value in row.values()
        )
    assert "'=1+1" in tables.confusions(list(task.cells), task.classes)


def test_csv_of_a_run_is_its_log(tmp_path):
    run = write_pretraining(tmp_path / "a")
    log = [
        {"step": 10, "loss": 2.5, "lr": 0.1},
        {"step": 10, "knn_auc": 0.7},
        {"step": 20, "lr": 1},
    ]
    write_lines(run / "metrics.jsonl", log)
    found = rows_of(tables.pretraining(read_run(run)))
    assert found == [
        {"step": "10", "loss": "2.5", "lr": "0.1", "knn_auc": "0.7"},
        {"step": "20", "loss": "", "lr": "1.0", "knn_auc": ""},
    ]


# Pre-training


def log_of(spreads, **more):
    return [
        {"step": step, "loss": 5.0, "embedding_std": spread, "effective_rank": 3.0, **more}
        for step, spread in enumerate(spreads, start=1)
    ]


def test_a_collapse_is_named_with_its_step_and_so_is_its_end(tmp_path):
    run = write_pretraining(tmp_path / "a", pictures=0)
    write_lines(run / "metrics.jsonl", log_of([0.8, 0.05, 0.04, 0.03, 0.7]))
    first, last = warnings(read_run(run))
    assert first.startswith(
        "Step 3: WARNING: collapse: all embeddings are nearly equal (spread 0.0"
    )
    assert last == "Step 5: no longer: collapse"
    assert gauges(read_run(run))[0][:4] == ("Embedding spread", "0.8", "0.03", "0.7")
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "Step 3: WARNING: collapse" in html
    assert "No warning" not in html


def test_a_healthy_run_has_no_warning_and_an_endless_list_is_cut(tmp_path):
    run = write_pretraining(tmp_path / "a", pictures=0)
    write_lines(run / "metrics.jsonl", log_of([0.8] * 9, prototypes_used=2.0))  # of how many?
    assert warnings(read_run(run)) == []
    lost = {"step": 10, "loss": float("nan"), "chance": 4.0}  # and no number to compare with it
    write_lines(run / "metrics.jsonl", [*log_of([0.8] * 9), lost])
    assert warnings(read_run(run)) == []
    write_lines(run / "metrics.jsonl", log_of([0.05, 0.05, 0.8] * 20))
    lines = warnings(read_run(run))
    assert len(lines) == SHOWN + 1
    assert lines[SHOWN - 1] == "34 more, then"
    assert lines[-1] == "Step 60: no longer: collapse"


# Neighbours


def write_evaluation(folder, labels=((0, 0, 1), (1, 1, 0)), arm="spark"):
    config = {"arm": arm, "task": "covid_ct", "seed": 0}
    write(folder / "config.json", {"type": "EvaluateConfig", "hash": "e" * 16, "config": config})
    write(
        folder / "data.json", {"name": "covid", "fingerprint": "cd" * 32, "classes": ["no", "yes"]}
    )
    write(folder / "results.json", {"scored": False})
    write(folder / "STATUS", "done\n")
    rows = [
        f"{query},{rank},{rank},{label},0.1\n"
        for query, row in enumerate(labels)
        for rank, label in enumerate(row)
    ]
    write(folder / "figures/neighbours.csv", "query,rank,record,label,distance\n" + "".join(rows))
    Image.new("L", (30, 20)).save(folder / "figures/neighbours.png")
    return folder


def test_neighbours_are_shown_with_the_classes_of_each_row(tmp_path):
    write_evaluation(tmp_path / "a")
    write_evaluation(tmp_path / "b", arm="random", labels=((1, 0, 7),))
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    text = " ".join(re.sub(r"<[^>]*>", "", html).split())
    assert "SparK on covid_ct" in text
    assert "no: no, yes yes: yes, no" in text
    assert "Random encoder on covid_ct" in text
    assert "yes: no, ?" in text  # a label that the data does not have
    assert (tmp_path / "out/figures/neighbours-2.png").exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda run: (run / "figures/neighbours.csv").unlink(),
        lambda run: write(run / "figures/neighbours.csv", "query,rank\n1,2\n"),
        lambda run: write(run / "figures/neighbours.csv", "query,label\n1,one\n"),
        lambda run: write(run / "figures/neighbours.csv", ""),
        lambda run: write(run / "figures/neighbours.png", "<svg onload=alert(1)>"),
        lambda run: (run / "figures/neighbours.png").unlink(),
    ],
)
def test_neighbours_that_cannot_be_read_are_not_shown(tmp_path, harm):
    run = write_evaluation(tmp_path / "a")
    assert neighbours(read_run(run)) is not None
    harm(run)
    assert neighbours(read_run(run)) is None
    write_report([tmp_path], tmp_path / "out")
    assert "Nearest neighbours" not in (tmp_path / "out/report.html").read_text()


# Data


def test_a_card_says_what_the_data_is(tmp_path):
    run = write_finetuning(tmp_path / "a", arm="spark")
    edit_json(
        run / "data.json",
        intensity="grey8",
        classes=["COVID", "NonCOVID"],
        splits={"train": {"slices": 1425, "patients": 271, "series": 300, "labels": [1191, 234]}},
        origin={"citation": "Zhao et al. 2020", "licence": "none stated", "download": "somewhere"},
        source_kind="covid_ct",
        canvas=224,
        audit={"verdict": "pass"},
        filter={"method": "dhash", "kept": 400, "slices": 1425},
    )
    seen = {"patients": 0, "series": 0, "exact": 2, "near": 3}
    edit_json(run / "results.json", pretraining_overlap=seen)
    (card,) = data_cards([read_run(run)])
    assert card.splits == [("train", "1,425", "271", "300", "COVID 1,191, NonCOVID 234")]
    facts = dict(card.facts)
    assert facts["Pixels"] == "8-bit grey; no Hounsfield units"
    assert (facts["Licence"], facts["To be cited"]) == ("none stated", "Zhao et al. 2020")
    assert facts["Seen in pre-training"] == "SparK: 2 equal slices, 3 nearly equal slices"
    assert facts["Reduced to"] == "224 px a side, when prepared"
    assert facts["Fewer slices"] == "dhash keeps 400 of 1,425"
    assert facts["Leakage between splits"].startswith("None found")
    write_report([tmp_path], tmp_path / "out")
    assert "Zhao et al. 2020" in (tmp_path / "out/report.html").read_text()


def test_the_verdict_of_an_audit_is_told_in_words():
    findings = [{"check": "patients", "splits": ["train", "test"], "count": 3}]
    failed = audit_words({"verdict": "fail", "accepted": True, "findings": findings})
    assert "train and test share 3 patients" in failed
    assert "which, is not noted" in audit_words({"verdict": "fail"})
    assert audit_words(None) == audit_words("unknown") == "Not known: the runs note no audit."


@pytest.mark.parametrize("strange", [None, [], [None], {"a": []}, {"a": 1}, "x", -1, 1e999, True])
def test_strange_values_make_no_card_fail(tmp_path, strange):
    run = write_finetuning(tmp_path / "a", arm="spark")
    for name in (
        "name",
        "intensity",
        "classes",
        "splits",
        "origin",
        "source_kind",
        "note",
        "canvas",
    ):
        edit_json(run / "data.json", **{name: strange})
    edit_json(run / "data.json", filter=strange, audit={"verdict": "fail", "findings": strange})
    edit_json(run / "results.json", pretraining_overlap={"near": strange})
    edit_json(run / "config.json", config={"seed": 0, "method": strange, "optim": strange})
    evaluation = write_evaluation(tmp_path / "b")
    edit_json(evaluation / "data.json", classes=strange)
    config = {"arm": strange, "task": strange}
    edit_json(evaluation / "config.json", config=config)
    runs = find_runs([tmp_path])
    assert [run.problem for run in runs] == ["", ""]
    assert len(data_cards(runs)) == 2
    assert deviations(runs) == []
    (drawn,) = [found for run in runs if (found := neighbours_section(run, "n"))]
    assert {name for own, others in drawn.rows for name in (own, *others)} == {"?"}


# Deviations


def shipped(name):
    config = importlib.import_module(f"configs.{name}").get_config("as_run")
    return {
        **to_json(config),
        "method": {"type": type(config.method).__name__, **to_json(config.method)},
    }


@pytest.mark.parametrize("name", ["spark", "moco", "swav", "byol", "finetune_covid_ct"])
def test_released_values_are_those_of_the_presets(tmp_path, name):
    config = shipped(name)
    released = RELEASED[config["method"]["type"]]
    for setting, value in released.items():
        found = config
        for part in setting.split("."):
            found = found[part]
        assert found == value, setting
        assert NAMES[setting]
    run = write_pretraining(tmp_path / "a", pictures=0)
    edit_json(run / "config.json", config=config)
    (none,) = deviations([read_run(run)])
    assert none.rows == []
    config["encoder"]["depth"] = 18
    config["optim"]["lr"] = 3e-4
    edit_json(run / "config.json", config=config)
    (some,) = deviations([read_run(run)])
    rows = {setting: here for setting, here, _ in some.rows}
    assert rows == {"depth of the ResNet": "18", "learning rate": "3e−4"}


def test_deviations_are_on_the_page_and_of_finished_runs_alone(tmp_path):
    run = write_pretraining(tmp_path / "a", pictures=0)
    config = shipped("spark")
    config["intensity"]["channels"] = 1
    edit_json(run / "config.json", config=config)
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "Pre-training, SparK: 1 setting differs" in html
    write(run / "STATUS", "running")
    assert deviations([read_run(run)]) == []


def test_environment_names_versions_and_devices_once(tmp_path):
    for seed in (0, 1):
        write_finetuning(tmp_path / str(seed), seed=seed)
    other = write_finetuning(tmp_path / "2", seed=2)
    env = json.loads((other / "env.json").read_text())
    edit_json(other / "env.json", jax="0.11.2", process_count=2, host="secret-name")
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert f"<dt>JAX</dt><dd>{env['jax']}, 0.11.2</dd>" in html
    assert html.count("<dd>NVIDIA H100 × 4</dd>") == 1
    assert "<dt>Processes</dt><dd>2</dd>" in html
    assert "secret-name" not in html
