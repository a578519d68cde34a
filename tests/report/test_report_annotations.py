"""The section on more annotations: from runs at three sizes, in words, numbers and refusals."""

import csv
from math import inf

import numpy as np
import pytest
from test_report import edit_json, write_finetuning

from ctssl_jax.files import read_json
from ctssl_jax.report import write_report
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.figures.picture import Picture
from ctssl_jax.report.runs import find_runs
from ctssl_jax.report.sections.annotations import (
    Annotations,
    Start,
    lead_sentence,
    needed_words,
    of_task,
    planned,
    saves_sentence,
)
from ctssl_jax.statistics.learning_curve import Curve
from ctssl_jax.statistics.planning import Estimate, Needed
from launch import benchmark_planner

pytestmark = pytest.mark.usefixtures("undrawn")
BLANK = Picture("blank", "", b"")
SIZES = np.array([10.0, 14, 20, 30, 48])


def write_sizes(root, fractions=(0.1, 0.25, 0.5), seeds=2):
    for arm, gain in (("scratch", 0.0), ("spark", 0.8)):
        for fraction in fractions:
            for seed in range(seeds):
                name = root / f"{arm}-{fraction}-{seed}"
                skill = 0.8 + gain + fraction
                write_finetuning(name, arm=arm, fraction=fraction, seed=seed, skill=skill)
                edit_json(name / "data.json", splits={"train": {"patients": 254}})
                edit_json(name / "config.json", config={"seed": seed, "data": {"split": "train"}})
    return root


def curve(shift=0.0, rarest=2000):
    means = 0.9 + shift - 0.7 * SIZES**-0.6
    values = means + 0.001 * np.array([[-1.0], [1.0]])
    jackknife = values[None] + 0.0005 * np.linspace(-1, 1, 60)[:, None, None]
    halves = np.stack([values, values])[None, :, None]
    return Curve(SIZES, values, jackknife, halves, 48.0, 60, 60, rarest, rarest)


def plan_of(arms, targets=()):
    return planned("lung", "scans", "", arms, targets)


def test_curves_of_a_study_are_its_runs(tmp_path):
    (task,) = compare(find_runs([write_sizes(tmp_path)])).tasks
    found = of_task(task, "covid", 1)
    assert found is not None
    assert [start.arm for start in found.starts] == ["scratch", "spark"]
    assert found.unit == "patients"
    (spark,) = found.starts[1].curves
    assert spark.sizes.tolist() == [25.0, 64.0, 127.0]
    assert (spark.patients, spark.pool) == (254, 254.0)
    for place, fraction in enumerate((0.1, 0.25, 0.5)):
        cell = next(c for c in task.cells if c.arm == "spark" and c.fraction == fraction)
        np.testing.assert_allclose(spark.values[:, place], cell.test("auc"), atol=1e-9)


@pytest.mark.parametrize(
    ("said", "at_hand"),
    [
        ({"data": {"split": "train"}}, 280),  # by cases: not 127 / 0.5
        ({"data": {"split": "train+val"}}, 300),
        ({"data": {"split": "train+holdout"}}, None),
        ({"data": {}}, None),
        ({"subset_by": "patient"}, 254),
    ],
)
def test_patients_at_hand_are_those_of_the_split_that_was_drawn_from(tmp_path, said, at_hand):
    """`fraction` is of cases: few slices of a split are of most of its patients."""
    for run in write_sizes(tmp_path).iterdir():
        splits = {"train": {"patients": 280}, "val": {"patients": 20}}
        edit_json(run / "data.json", splits=splits)
        edit_json(run / "config.json", config=said | {"seed": int(run.name[-1])})
    (task,) = compare(find_runs([tmp_path])).tasks
    found = of_task(task, "covid", 1)
    assert (found.patients if found else None) == at_hand


def test_the_page_has_the_section_and_its_sentence(tmp_path):
    write_report([write_sizes(tmp_path / "runs")], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("What more annotations would bring: covid_ct") == 1
    assert page.count("50 more annotated patients would bring") == 1
    table = (tmp_path / "out" / "figures" / "annotations-1.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert {row["kind"] for row in rows} == {"measured", "foretold"}
    assert max(float(row["patients"]) for row in rows) == pytest.approx(4 * 254)


def test_two_sizes_make_no_section(tmp_path):
    (task,) = compare(find_runs([write_sizes(tmp_path, (0.1, 0.5))])).tasks
    assert of_task(task, "covid", 1) is None


def test_a_seed_that_a_size_lacks_is_in_no_curve(tmp_path):
    write_sizes(tmp_path, seeds=3)
    edit_json(tmp_path / "spark-0.5-2" / "results.json", seed=7)
    edit_json(
        tmp_path / "spark-0.5-2" / "config.json", config={"seed": 7, "data": {"split": "train"}}
    )
    (task,) = compare(find_runs([tmp_path])).tasks
    found = of_task(task, "covid", 1)
    assert found is not None
    assert [len(start.curves[0].values) for start in found.starts] == [3, 2]


def test_one_fine_tuning_for_each_encoder_makes_one_curve(tmp_path):
    """As in a study whose seed i starts from pre-training i."""
    write_sizes(tmp_path, seeds=3)
    for run in tmp_path.glob("spark-*"):
        edit_json(run / "results.json", encoder_run=f"run{run.name[-1]}")
    (task,) = compare(find_runs([tmp_path])).tasks
    found = of_task(task, "covid", 1)
    assert found is not None
    spark = found.starts[1]
    (together,) = spark.curves
    assert (spark.encoders, spark.refused) == (3, "")
    assert spark.name == "SparK (3 pre-trainings)"
    assert len(together.values) == 3
    cell = next(c for c in task.cells if c.arm == "spark" and c.fraction == 0.5)
    np.testing.assert_allclose(sorted(together.values[:, 2]), sorted(cell.test("auc")))


def test_one_fine_tuning_of_one_encoder_is_refused(tmp_path):
    (task,) = compare(find_runs([write_sizes(tmp_path, seeds=1)])).tasks
    found = of_task(task, "covid", 1)
    assert found is not None
    assert found.starts[1].refused.startswith("one repeat at each training size")


def test_a_better_start_saves_and_a_worse_one_costs():
    found = plan_of({"spark": [curve(0.02)], "random": [curve()]})
    (said,) = found.sentences()
    assert said.startswith("Starting from this SparK encoder saves about ")
    assert said.endswith("scans against a random encoder, at 60 scans.")
    (said,) = plan_of({"spark": [curve(-0.02)], "random": [curve()]}).sentences()
    assert said.startswith("Starting from this SparK encoder costs about ")


def test_what_no_reference_reaches_is_said_once():
    start = Start("spark", (curve(),), None, "", saves=Estimate(inf, inf, inf))
    found = Annotations("", "scans", "", 60, "random", (start,), BLANK)
    said = "Starting from this SparK encoder saves more than 180 scans against a random encoder"
    assert saves_sentence(found, start) == f"{said}, at 60 scans."


def test_what_cannot_be_told_is_said():
    start = Start("spark", (curve(),), None, "", saves=Estimate(5.0, -12.0, inf))
    found = Annotations("", "scans", "", 60, "scratch", (start,), BLANK)
    assert saves_sentence(found, start) == (
        "Cannot tell whether starting from this SparK encoder saves scans against training from "
        "scratch, at 60 scans: anything from a loss of 12 to more than 180 saved fits."
    )


def test_targets_in_words():
    found = plan_of({"spark": [curve()]}, (0.85, 0.95))
    reached, beyond = found.starts[0].needed
    assert needed_words(found, reached).startswith("about ")
    assert needed_words(found, beyond).startswith("cannot tell: more than 240 scans")
    at_hand = Needed(0.6, Estimate(20.0, 15.0, 30.0), 1.0)
    assert needed_words(found, at_hand) == "reached with the 60 at hand"


def test_nothing_is_said_of_100_more_where_that_is_too_far():
    near = curve()._replace(patients=25)
    assert [step.more for step in plan_of({"spark": [near]}).starts[0].brings] == [25, 50]


def test_a_refused_start_says_why_and_has_no_answers():
    found = plan_of({"spark": [curve(rarest=3)], "random": [curve(rarest=3)]})
    assert found.sentences() == []
    assert lead_sentence(found).startswith(
        "More annotations: nothing is foretold, for the rarest class has 3 patients"
    )
    assert found.starts[0].brings == ()


def test_the_planners_benchmark_sets_later_fine_tunings_beside_what_was_foretold(tmp_path, capsys):
    at_hand = write_sizes(tmp_path / "hand", seeds=3)
    for arm, times in (("scratch", 2), ("spark", 2), ("spark", 4)):
        name = tmp_path / "later" / f"{arm}-{times}"
        write_finetuning(name, arm=arm, fraction=1.0, skill=2.0, patients=30)
        edit_json(name / "results.json", train_patients=255 * times)
    out = tmp_path / "rows.json"
    flags = [f"--sweeps=lung={at_hand}:{tmp_path / 'later'}", f"--out={out}"]
    assert benchmark_planner.main(flags) == 0
    rows = read_json(out)["rows"]
    told = {(row["start"], row["times"]): row for row in rows}
    assert set(told) == {("scratch", 2), ("spark", 2), ("spark", 4)}
    (task,) = compare(find_runs([at_hand])).tasks
    found = of_task(task, "lung", 1)
    law = next(start.law for start in found.starts if start.arm == "spark")
    row = told["spark", 4]
    results = read_json(tmp_path / "later" / "spark-4" / "results.json")
    assert (row["n"], row["theirs"]) == (1020, results["test"]["auc"])
    assert (row["patients"], row["tested"]) == (found.patients, 30)
    assert row["foretold"] == pytest.approx(np.median(law.network(1020, 30)), abs=0.01)
    assert row["no change"] == pytest.approx(found.starts[-1].means[-1])
    assert f"| lung | {found.patients} | 2 N | 2 |" in capsys.readouterr().out


def test_the_planners_benchmark_wants_one_task(tmp_path, capsys):
    for task in ("lung", "brain"):
        write_finetuning(tmp_path / "hand" / task, task=task)
    assert benchmark_planner.main([f"--sweeps=a={tmp_path / 'hand'}:{tmp_path / 'hand'}"]) == 3
    assert "2 tasks or recipes are at hand: give one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --data or --sweeps"),
        (["--data=a=b"], "--data: give --encoders and --cache too"),
        (["--sweeps=a=b"], "--sweeps=a=b: give NAME=AT_HAND:LATER, two folders of runs"),
    ],
)
def test_flags_of_the_planners_benchmark(flags, said, capsys):
    assert benchmark_planner.main(flags) == 2
    assert said in capsys.readouterr().err
