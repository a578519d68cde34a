"""Several pre-trainings of one method, and arms that were trained by different recipes."""

import csv

import numpy as np
import pytest
from test_report import edit_json, write_finetuning, write_pretraining

from ctssl_jax.report import write_report
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.names import arm_name
from ctssl_jax.report.runs import find_runs
from ctssl_jax.report.sections.lead import leads

LUCK = (-0.9, 0.1, 1.0, -0.2, 0.5)
"""What each pre-training brings; 0 on average but for rounding."""

pytestmark = pytest.mark.usefixtures("undrawn")


def write_encoders(root, pretrainings=3, seeds=3, gain=0.0, luck=LUCK, arm="spark"):
    for encoder in range(pretrainings):
        for seed in range(seeds):
            folder = root / f"{arm}-{encoder}-{seed}"
            skill = 1.0 + gain + luck[encoder]
            run = write_finetuning(
                folder, arm=arm, seed=seed, skill=skill, encoder=f"{encoder}bee" * 4
            )
            # Each run its own noise, which `write_finetuning` takes from arm, size and seed.
            assert run == folder
    for seed in range(seeds):
        write_finetuning(root / f"scratch-{seed}", seed=seed, skill=1.0)
    return root


def task_of(root):
    (task,) = compare(find_runs([root])).tasks
    return task


def test_means_are_within_a_pretraining_first(tmp_path):
    write_encoders(tmp_path, pretrainings=3, seeds=3)
    # One encoder has more fine-tunings than the others, and counts no more than they.
    for seed in (3, 4, 5):
        name = tmp_path / f"spark-2-{seed}"
        write_finetuning(name, arm="spark", seed=seed, skill=3.0, encoder="2bee" * 4)
    task = task_of(tmp_path)
    cell = next(cell for cell in task.cells if cell.arm == "spark")
    by_encoder = {}
    for run in cell.runs:
        by_encoder.setdefault(run.results["encoder_run"], []).append(run.results["test"]["auc"])
    assert [len(aucs) for aucs in by_encoder.values()].count(3) == 2
    expected = np.mean([np.mean(aucs) for aucs in by_encoder.values()])
    assert cell.mean("auc") == pytest.approx(expected, abs=1e-12)
    assert abs(expected - np.mean(cell.test("auc"))) > 1e-3
    assert cell.pretrainings == 3
    (pair,) = task.pairs
    assert pair.pretrainings == (3, 0)
    assert pair.parts.sum() == pytest.approx(pair.difference.estimate, abs=1e-12)
    assert (pair.answer.again.fine_tunings, pair.answer.again.pretrainings) == (True, True)


def test_many_seeds_of_few_encoders_are_not_many_runs(tmp_path):
    """Three lucky encoders differ from scratch by less than they differ from each other."""
    write_encoders(tmp_path, pretrainings=3, seeds=5, gain=0.8, luck=(-0.6, 0.1, 1.0))
    (pair,) = task_of(tmp_path).pairs
    assert pair.answer.over_patients.low > 0
    assert pair.difference.low < 0 < pair.difference.high
    assert pair.adjusted > 0.05
    assert pair.difference.verdict == "cannot tell"
    assert pair.ahead[1] == 15  # every encoder of every seed


def test_one_pretraining_is_this_encoder_wherever_it_is_named(tmp_path):
    write_encoders(tmp_path / "runs", pretrainings=1, seeds=3, gain=2.0, luck=(0.0,))
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "The AUC of this SparK encoder is higher than from scratch" in html
    assert "SparK stands on one pre-training: what is said is of this encoder" in html
    assert html.count("this SparK encoder higher") == 2  # of the two tables
    assert "SparK (one encoder)" in html
    assert "over patients and fine-tunings" in html
    with (tmp_path / "out/figures/auc-1.csv").open() as file:
        rows = {row["start"]: row for row in csv.DictReader(file) if row["seed"] == "mean"}
    assert (rows["spark"]["pretrainings"], rows["scratch"]["pretrainings"]) == ("1", "0")
    with (tmp_path / "out/figures/differences-1.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["pretrainings"], row["verdict"]) == ("1", "this SparK encoder higher")


def test_several_pretrainings_speak_for_the_method(tmp_path):
    write_encoders(
        tmp_path / "runs", pretrainings=4, seeds=3, gain=2.5, luck=(0.0, 0.1, -0.1, 0.05)
    )
    task = task_of(tmp_path / "runs")
    (lead,) = leads(compare(find_runs([tmp_path / "runs"])))
    ((kind, sentence),) = lead.verdicts
    assert kind == "higher"
    assert sentence.startswith("The AUC of SparK is higher than from scratch")
    assert "pre-trained by SparK (4 pre-trainings) AUC" in lead.numbers
    assert not any("one pre-training" in said for said in lead.trust)
    assert task.pairs[0].difference.verdict == "A higher"
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "SparK (4 pre-trainings)" in html
    assert "over patients, fine-tunings and pre-trainings" in html
    assert "ahead in 12 of 12 pairs of one seed" in html


def set_recipe(root, of, **config):
    for run in find_runs([root]):
        if run.results["arm"] == of:
            edit_json(run.folder / "config.json", config={**run.config, **config})


def two_arms(root, seeds=2):
    for seed in range(seeds):
        write_finetuning(root / f"a{seed}", seed=seed, skill=0.2)
        write_finetuning(root / f"b{seed}", arm="spark", seed=seed, skill=2.0)
    set_recipe(root, "scratch", epochs=10, arm="scratch", optim={"lr": 1e-3, "b2": 0.9})
    set_recipe(root, "spark", epochs=10, arm="spark", optim={"lr": 1e-3, "b2": 0.9})
    return root


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"epochs": 50}, "epochs"),
        ({"optim": {"lr": 3e-4, "b2": 0.9}}, "optim.lr"),
        ({"intensity": {"mode": "slice_min_max"}}, "intensity.mode"),
        ({"epochs": 50, "batch_size": 8}, "batch_size and epochs"),
    ],
)
def test_arms_of_different_recipes_are_a_conflict_and_not_compared(tmp_path, config, named):
    set_recipe(two_arms(tmp_path / "runs"), "spark", **config)
    comparison = compare(find_runs([tmp_path / "runs"]))
    (said,) = comparison.conflicts
    assert "From scratch and SparK were trained by different recipes" in said
    assert f"they differ in {named}." in said
    assert [task.arms() for task in comparison.tasks] == [["scratch"], ["spark"]]
    assert not any(task.pairs for task in comparison.tasks)
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "<strong>Conflict.</strong> covid_ct: From scratch and SparK were trained by" in html


@pytest.mark.parametrize(
    "config",
    [{"encoder": {"zero_init_residual": True}}, {"log_every": 7}, {"seed": 5}],
)
def test_what_an_arm_is_may_differ(tmp_path, config):
    set_recipe(two_arms(tmp_path), "spark", **config)
    comparison = compare(find_runs([tmp_path]))
    assert comparison.conflicts == []
    assert len(comparison.tasks[0].pairs) == 1


def test_a_recipe_of_one_size_is_compared_at_that_size(tmp_path):
    """All arms may have another recipe at another size."""
    two_arms(tmp_path)
    for seed in range(2):
        for arm in ("scratch", "spark"):
            run = write_finetuning(tmp_path / f"{arm}{seed}", arm=arm, seed=seed, fraction=1.0)
            edit_json(run / "config.json", config={"seed": seed, "epochs": 99})
    assert compare(find_runs([tmp_path])).conflicts == []


def test_a_learning_rate_chosen_on_validation_is_said_and_no_conflict(tmp_path):
    set_recipe(two_arms(tmp_path / "runs"), "spark", optim={"lr": 3e-4, "b2": 0.9})
    for run in find_runs([tmp_path / "runs"]):
        rate = run.config["optim"]["lr"]
        tuning = {"lr": rate, "candidates": [3e-4, 1e-3], "seeds": [100, 101], "split": "val"}
        edit_json(run.folder / "results.json", tuning=tuning)
    assert compare(find_runs([tmp_path / "runs"])).conflicts == []
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    said = "Learning rates chosen on validation, at numbers of training slices: "
    assert f"{said}From scratch 1e−3 at 42; SparK 3e−4 at 42." in html
    spark = tmp_path / "runs/b0/results.json"
    edit_json(spark, tuning={"lr": 3e-4, "candidates": [3e-4], "seeds": [1], "split": "test"})
    said = compare(find_runs([tmp_path / "runs"])).conflicts
    assert said == [
        "covid_ct: the learning rate of SparK was not chosen on validation.",
        "covid_ct: the learning rate of SparK was chosen on seeds that are compared here.",
    ]
    edit_json(spark, tuning=None)  # one is chosen, one is not
    assert "other runs" not in str(compare(find_runs([tmp_path / "runs"])).conflicts)


def test_a_run_that_chose_a_learning_rate_is_left_out_by_name(tmp_path):
    run = two_arms(tmp_path) / "b0"
    edit_json(run / "config.json", config={"seed": 0, "read_test": False})
    edit_json(run / "results.json", test=None)
    problems = [found.problem for found in find_and_compare(tmp_path) if found.problem]
    assert problems == ["it was for choosing a learning rate, and has read no test"]


def test_encoders_of_one_arm_are_pretrained_alike(tmp_path):
    write_encoders(tmp_path, pretrainings=2, seeds=2)
    for encoder, epochs in ((0, 8), (1, 16)):
        run = write_pretraining(tmp_path / f"pre{encoder}", hash=f"{encoder}bee" * 4, pictures=0)
        edit_json(run / "config.json", config={"seed": encoder, "epochs": epochs})
    problems = {run.problem for run in find_and_compare(tmp_path) if run.results.get("arm")}
    assert problems == {"", "the encoders of this arm were pre-trained differently: epochs"}
    edit_json(tmp_path / "pre1/config.json", config={"seed": 1, "epochs": 8})
    assert {run.problem for run in find_and_compare(tmp_path)} == {""}


def find_and_compare(root):
    return compare(find_runs([root])).runs


def test_several_encoders_of_one_arm_are_said(tmp_path):
    write_finetuning(tmp_path / "a", arm="spark", encoder="feed" * 4)
    write_finetuning(tmp_path / "b", arm="spark", encoder="beef" * 4)
    (note,) = compare(find_runs([tmp_path])).notes
    assert note == "covid_ct: SparK averages over 2 pre-training runs."


@pytest.mark.parametrize(
    ("ends", "late"),
    [
        ({"best_epoch": 30}, True),
        ({"best_step": 90, "total_steps": 120}, False),
        ({"best_epoch": 30, "best_step": 90, "total_steps": 120}, False),
        ({"best_step": 120, "total_steps": 120}, True),
    ],
)
def test_what_was_best_at_its_end_has_not_finished_learning(tmp_path, ends, late):
    two_arms(tmp_path / "runs")
    edit_json(tmp_path / "runs/b1/results.json", **ends)
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    said = "Not finished learning: the last validation was the best in 1 of 2 runs of SparK."
    assert (said in html) == late
    assert ("Not finished learning" in html) == late


def test_labels_of_scans_that_slices_got_are_said(tmp_path):
    two_arms(tmp_path / "runs")
    for labels_of, times in ((None, 0), ("slice", 0), ("scan", 3)):
        for run in find_runs([tmp_path / "runs"]):
            edit_json(run.folder / "data.json", labels_of=labels_of)
        write_report([tmp_path / "runs"], tmp_path / "out")
        html = (tmp_path / "out/report.html").read_text()
        # In the lead, the section of the task and the card of the data.
        assert html.count("Each label is of a scan and was given to all its slices") == times


def test_every_method_has_its_own_name():
    import ctssl_jax.methods as methods

    names = {arm: arm_name(arm) for arm in ("spark", "moco", "swav", "byol", "simclr")}
    assert list(names.values()) == ["SparK", "MoCo v2", "SwAV", "BYOL", "SimCLR"]
    for arm in names:
        assert any(arm == name.lower() for name in vars(methods))
    assert arm_name("resnet from elsewhere") == "resnet from elsewhere"


def test_the_page_counts_what_the_labels_are_of(tmp_path):
    """In the task's own word: on the axis, in sentences and in tables."""
    two_arms(tmp_path / "runs")
    for run in find_runs([tmp_path / "runs"]):
        edit_json(run.folder / "results.json", case="nodule", train_cases=41, train_slices=205)
        edit_json(run.folder / "data.json", case={"of": "folder", "word": "nodule"})
    write_report([tmp_path / "runs"], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "41 nodules" in html
    assert "41 annotated nodules" in html
    assert "Training sizes, AUC and all other figures count nodules" in html
    assert "training slices" not in html
    assert "205" not in html.split("<h2>Data")[0].split("</style>")[1]
