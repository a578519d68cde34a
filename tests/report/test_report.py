"""The report on canned run folders. Every number in them comes from the small simulation below."""

import csv
import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from ctssl_jax.errors import DataError
from ctssl_jax.report import write_report
from ctssl_jax.report.__main__ import main
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.figures.curves import smooth
from ctssl_jax.report.runs import find_runs, read_run
from ctssl_jax.report.sections.lead import leads
from ctssl_jax.report.words import leakage
from ctssl_jax.statistics import bootstrap_interval

FINGERPRINT = "3f" * 32
ENV = {
    "python": "3.11.9",
    "jax": "0.10.2",
    "flax": "0.12.8",
    "ctssl_jax": "0.1.0",
    "commit": "0123456789ab",
    "device": "NVIDIA H100",
    "device_count": 4,
    "precision": "bfloat16",
}


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_lines(path: Path, rows: list[dict]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_pretraining(folder: Path, *, hash: str = "feed" * 4, pictures: int = 5) -> Path:
    rng = np.random.default_rng(0)
    write(
        folder / "config.json",
        {
            "type": "PretrainConfig",
            "hash": hash,
            "config": {"seed": 0, "method": {"mask_ratio": 0.6}, "data": {"path": "<private>"}},
        },
    )
    write(folder / "env.json", ENV)
    write(folder / "data.json", {"name": "synthetic", "fingerprint": "ab" * 32})
    write(folder / "STATUS", "done\n")
    steps = np.arange(50, 30001, 50)
    write_lines(
        folder / "metrics.jsonl",
        [
            {
                "step": int(step),
                "epoch": step / 500,
                "grad_norm": 1.0,
                "input_wait": 0.02,
                "loss": float(0.35 + 0.65 * np.exp(-step / 3500) + rng.normal(0, 0.02)),
                "lr": float(2e-4 * min(step / 2500, 0.5 + 0.5 * np.cos(np.pi * step / 30000))),
                "weight_decay": float(0.04 + 0.16 * (0.5 - 0.5 * np.cos(np.pi * step / 30000))),
                "images_per_second": float(1930 + rng.normal(0, 40)),
            }
            for step in steps
        ],
    )
    (folder / "figures").mkdir()
    for index in range(pictures):
        rows, columns = np.mgrid[0:194, 0:518]
        disc = np.hypot(rows % 65 - 32, columns % 65 - 32) < 26
        noise = rng.normal(0, 60 / (index + 1), disc.shape)
        picture = np.clip(40 + 150 * disc + noise * (rows > 129), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(
            folder / f"figures/reconstruction_{(index + 1) * 6000:07}.png"
        )
    return folder


def simulate(classes: int, skill: float, seed: int, patients: int = 60):
    """Two test slices per patient; scores are as good as `skill` and differ by seed."""
    case = np.random.default_rng(1000)
    label = np.repeat(case.integers(0, classes, patients), 2)
    hardness = np.repeat(case.normal(size=(patients, classes)), 2, axis=0)
    own = np.random.default_rng(seed).normal(size=hardness.shape)
    scores = np.exp(skill * np.eye(classes)[label] + 0.8 * hardness + 0.5 * own)
    return label, scores / scores.sum(axis=1, keepdims=True)


def write_finetuning(
    folder: Path,
    *,
    arm="scratch",
    fraction=0.1,
    seed=0,
    skill=1.0,
    task="covid_ct",
    classes=("COVID", "NonCOVID"),
    fingerprint=FINGERPRINT,
    patients=60,
    encoder="feed" * 4,
    named=True,
) -> Path:
    noise = hash_of(f"{arm}{fraction}{seed}{task}")
    labels, scores = simulate(len(classes), skill, noise, patients)
    predicted = scores.argmax(axis=1)
    many = len(classes) > 2
    test = {
        "auc": float(roc_auc_score(labels, scores if many else scores[:, 1], multi_class="ovr")),
        "accuracy": float(np.mean(predicted == labels)),
        "f1": float(f1_score(labels, predicted, average="macro" if many else "binary")),
        "n": len(labels),
        "patients": patients,
    }
    write(
        folder / "config.json",
        {"type": "FinetuneConfig", "config": {"seed": seed}, "hash": f"{noise:016x}"},
    )
    write(folder / "env.json", ENV)
    write(folder / "data.json", {"name": task, "fingerprint": fingerprint})
    write(folder / "STATUS", "done\n")
    write_lines(
        folder / "metrics.jsonl",
        [
            {"step": 10, "epoch": 1, "loss": 0.7, "lr": 1e-4, "images_per_second": 310.4},
            {"step": 10, "epoch": 1, "val_loss": 0.6, "val_auc": 0.7},
        ],
    )
    slices = round(425 * fraction)
    write(
        folder / "results.json",
        {
            "task": task,
            "arm": arm,
            "encoder_run": None if arm == "scratch" else encoder,
            "fraction": fraction,
            "train_slices": slices,
            "train_patients": round(slices * 0.6),
            "seed": seed,
            "select_by": "auc",
            "best_epoch": 12,
            "epochs": 30,
            "val": {"auc": 0.8, "accuracy": 0.7, "f1": 0.7},
            "test": test,
            "classes": list(classes),
            "data_fingerprint": fingerprint,
            "config_hash": f"{noise:016x}",
            "test_reads": 1,
        },
    )
    with (folder / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        names = [f"score_{index}" for index in range(len(classes))]
        table.writerow(["split", "record", "patient", "label", *names])
        table.writerow(["val", "v", "pv", 0, *([0.0] * len(classes))])
        order = np.random.default_rng(seed).permutation(len(labels))  # runs may differ in order
        for index in order:
            patient = f"p{index // 2}" if named else ""
            table.writerow(["test", f"r{index:04}", patient, labels[index], *scores[index]])
    return folder


def hash_of(text: str) -> int:
    return int(sha256(text.encode()).hexdigest()[:16], 16)


def write_study(root: Path, fractions=(0.05, 0.1, 0.25, 0.5, 1.0), seeds: int = 3) -> Path:
    """Scratch against SparK at several sizes of one task."""
    for fraction in fractions:
        for seed in range(seeds):
            name = f"{fraction}-{seed}"
            skill = 0.3 + 0.35 * np.log10(fraction * 100)
            write_finetuning(root / f"scratch-{name}", fraction=fraction, seed=seed, skill=skill)
            gain = 0.45 * (1 - fraction) ** 3
            write_finetuning(
                root / f"spark-{name}",
                arm="spark",
                fraction=fraction,
                seed=seed,
                skill=skill + gain,
            )
    return root


def edit_json(path: Path, **changes) -> None:
    write(path, {**json.loads(path.read_text()), **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    root = write_study(tmp_path_factory.mktemp("study"), fractions=(0.1, 1.0), seeds=2)
    write_pretraining(root / "pretrain")
    unfinished = write_finetuning(root / "unfinished", arm="spark", seed=7, skill=9.0)
    write(unfinished / "STATUS", "running\n")
    return root


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("out") / "report"
    write_report([study], out)
    return (out / "report.html").read_text(), out


def numbers_of(task: str, arm: str, fraction: float, comparison):
    (found,) = [
        cell
        for each in comparison.tasks
        if each.name == task
        for cell in each.cells
        if (cell.arm, cell.fraction) == (arm, fraction)
    ]
    return found


def test_page_is_one_offline_file_without_scripts(page):
    html, out = page
    assert "<script" not in html
    assert "default-src 'none'" in html
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    here = ("data:image/png;base64,", "#")
    beside = [address for address in addresses if not address.startswith(here)]
    tables = {f"figures/{path.name}" for path in (out / "figures").glob("*.csv")}
    assert len(beside) == len(tables)
    assert set(beside) == tables
    assert not re.search(r"url\(|@import|https?://", html)


def test_every_picture_has_an_alternative_text_and_is_also_a_file(page):
    html, out = page
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 10
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    drawn = (
        "auc-1",
        "f1-accuracy-1",
        "roc-1",
        "calibration-1",
        "confusion-1-1",
        "confusion-1-2",
        "pretraining-1-curves",
    )
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {
        *(f"{name}{end}" for name in drawn for end in (".png", "-dark.png", ".csv")),
        *(f"pretraining-1-reconstruction-{step}.png" for step in (6000, 18000, 30000)),
        "differences-1.csv",
        "decisions-1.csv",
    }
    for name in (name for name in names if name.endswith(".png")):
        with Image.open(out / "figures" / name) as picture:
            picture.verify()


def test_cells_average_the_seeds_and_nothing_else(study, page):
    cell = numbers_of("covid_ct", "spark", 0.1, compare(find_runs([study])))
    files = [json.loads((study / f"spark-0.1-{seed}/results.json").read_text()) for seed in (0, 1)]
    aucs = [file["test"]["auc"] for file in files]
    spread = cell.spread("auc")
    assert (spread.mean, spread.low, spread.high, spread.n) == (
        pytest.approx(np.mean(aucs)),
        min(aucs),
        max(aucs),
        2,
    )
    assert cell.sizes("slices") == [42]
    assert f"<b>{np.mean(aucs):.3f}</b>" in page[0]
    accuracies = [file["test"]["accuracy"] for file in files]
    assert f"<b>{np.mean(accuracies):.3f}</b>" in page[0]


def test_interval_is_the_joint_bootstrap_of_the_mean_over_seeds(study):
    cell = numbers_of("covid_ct", "scratch", 0.1, compare(find_runs([study])))
    assert cell.mean("auc") == pytest.approx(cell.spread("auc").mean, abs=1e-12)
    cases = cell.runs[0].cases
    # Rows are written in another order by every run: the second run must be aligned to the first.
    assert (cell.runs[1].cases.labels == cases.labels).all()
    scores = np.stack([run.cases.scores for run in cell.runs])
    assert cell.interval("auc") == bootstrap_interval(cases.labels, scores, cases.patients)
    alone = bootstrap_interval(cases.labels, scores, np.arange(len(cases.labels)))
    assert cell.interval("auc") != alone


def test_difference_and_verdict_follow_the_numbers(tmp_path):
    for seed in range(3):
        write_finetuning(tmp_path / f"a{seed}", seed=seed, skill=0.1)
        write_finetuning(tmp_path / f"b{seed}", arm="spark", seed=seed, skill=2.0)
        write_finetuning(tmp_path / f"c{seed}", arm="byol", seed=seed, skill=0.1)
        write_finetuning(tmp_path / f"d{seed}", seed=seed, fraction=1.0, skill=2.0)
        write_finetuning(tmp_path / f"e{seed}", arm="spark", fraction=1.0, seed=seed, skill=2.0)
    comparison = compare(find_runs([tmp_path]))
    better = numbers_of("covid_ct", "spark", 0.1, comparison)
    scratch = numbers_of("covid_ct", "scratch", 0.1, comparison)
    assert better.difference.verdict == "A higher"
    assert better.ahead == (3, 3)
    gap = better.spread("auc").mean - scratch.spread("auc").mean
    assert better.difference.estimate == pytest.approx(gap, abs=1e-12)
    assert numbers_of("covid_ct", "byol", 0.1, comparison).difference.verdict == "cannot tell"
    assert scratch.difference is None
    (lead,) = leads(comparison)
    assert lead.trust == [
        "3 repeats (seeds) at each size.",
        "SparK and BYOL stand on one pre-training each: what is said is of this encoder, not of "
        "the method, for the luck of its pre-training is in no number.",
    ]
    (kind, spark), (unclear, byol), *_ = lead.verdicts
    assert (kind, unclear) == ("higher", "unclear")
    low, high = better.difference.low, better.difference.high
    assert spark == (
        "The AUC of this SparK encoder is higher than from scratch with 42 training slices "
        f"(by {gap:.3f}, {low:.3f} to {high:.3f}); with 425 training slices the two cannot be told "
        "apart."
    )
    assert byol == (
        "Cannot tell: this BYOL encoder and training from scratch cannot be told apart with 42 "
        "training slices."
    )


def test_numbers_of_the_first_screen_are_those_of_the_tables(study, page):
    html, out = page
    (lead,) = leads(compare(find_runs([study])))
    assert lead.numbers.startswith(
        "120 test cases from 60 patients, 62 positive (NonCOVID). Learnt"
    )
    told = re.findall(r"\d\.\d{3}", lead.numbers)
    with (out / "figures" / "auc-1.csv").open() as file:
        means = [row for row in csv.DictReader(file) if row["seed"] == "mean"]
    # At the largest size and the smallest: pre-trained, then scratch, each with its interval.
    order = [("spark", "1.0"), ("scratch", "1.0"), ("spark", "0.1"), ("scratch", "0.1")]
    rows = {(row["start"], row["fraction"]): row for row in means}
    expected = [
        f"{float(rows[place][name]):.3f}" for place in order for name in ("value", "low", "high")
    ]
    assert told == expected
    first_screen = html[: html.index("</header>")]
    assert lead.numbers in first_screen
    assert 'src="data:image/png' in first_screen


def test_many_classes_use_the_macro_auc(tmp_path):
    organs = ("liver", "kidney", "spleen", "bladder")
    for arm in ("scratch", "moco"):
        write_finetuning(tmp_path / arm, arm=arm, task="organs", classes=organs, skill=1.0)
    runs = write_report([tmp_path], tmp_path / "out")
    assert [run.problem for run in runs] == ["", ""]
    html = (tmp_path / "out/report.html").read_text()
    assert "liver, kidney, spleen, bladder" in html
    assert "mean of each class against the rest" in html
    assert "on a single training run each" in html


@pytest.mark.parametrize(
    ("harm", "phrase"),
    [
        (lambda run: write(run / "STATUS", "failed:4"), "not finished (status failed:4)"),
        (lambda run: (run / "STATUS").unlink(), "not finished (status unknown)"),
        (lambda run: (run / "config.json").unlink(), "config.json is missing"),
        (lambda run: write(run / "config.json", "{"), "config.json is not valid JSON"),
        (lambda run: write(run / "config.json", "[" * 100_000), "config.json is not valid JSON"),
        (lambda run: write(run / "config.json", {"type": "Other"}), "type Other"),
        (lambda run: (run / "config.json").write_bytes(b"\xff\xfe"), "config.json cannot be read"),
        (lambda run: write(run / "env.json", []), "env.json is not a JSON object"),
        (lambda run: (run / "results.json").unlink(), "results.json is missing"),
        (lambda run: edit_json(run / "results.json", fraction=0), "out of range"),
        (lambda run: edit_json(run / "results.json", seed=None), "no number seed"),
        (lambda run: edit_json(run / "results.json", seed=True), "no number seed"),
        (lambda run: edit_json(run / "results.json", seed=10**400), "no number seed"),
        (lambda run: edit_json(run / "results.json", encoder_run=["a"]), "encoder_run"),
        (
            lambda run: edit_json(run / "results.json", arm="\ud800"),
            "results.json is not valid JSON",
        ),
        (lambda run: edit_json(run / "results.json", classes="ab"), "two or more classes"),
        (lambda run: edit_json(run / "results.json", test={"auc": float("nan")}), "no test auc"),
        (
            lambda run: edit_json(
                run / "results.json", test={"auc": 0.01, "accuracy": 1, "f1": 1, "n": 120}
            ),
            "results.json says AUC 0.010, its predictions give",
        ),
        (
            lambda run: edit_json(
                run / "results.json", test={"auc": 0.5, "accuracy": 1, "f1": 1, "n": 119}
            ),
            "disagree on the test cases",
        ),
        (lambda run: (run / "predictions.csv").unlink(), "predictions.csv is missing"),
        (lambda run: write(run / "predictions.csv", "split\ntest\n"), "not as documented"),
    ],
)
def test_a_bad_run_is_left_out_with_its_reason(tmp_path, harm, phrase):
    write_finetuning(tmp_path / "good", seed=0)
    harm(write_finetuning(tmp_path / "bad", seed=1, skill=9))
    comparison = compare(find_runs([tmp_path]))
    (bad,) = [run for run in comparison.runs if run.problem]
    assert phrase in bad.problem
    (task,) = comparison.tasks
    assert [run.results["seed"] for run in task.runs()] == [0]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("strange", [None, [], {"a": []}, "x", -1, 1e999, True, 10**400])
def test_strange_values_that_nothing_depends_on_do_no_harm(tmp_path, strange):
    run = write_finetuning(tmp_path / "a")
    edit_json(run / "results.json", test_reads=strange, train_patients=strange, select_by=strange)
    edit_json(run / "env.json", commit=strange, device=strange, device_count=strange)
    overlap = strange if strange != "x" else {"patients": "x", "near": None}
    edit_json(run / "results.json", audit=strange, pretraining_overlap=overlap)
    edit_json(run / "results.json", pretraining_audit=strange)
    edit_json(run / "data.json", fingerprint=strange, audit=strange)
    edit_json(run / "config.json", hash=strange)
    assert [run.problem for run in write_report([tmp_path], tmp_path / "out")] == [""]


def test_what_was_pretrained_on_data_that_fails_is_marked():
    assert leakage({"audit": {"verdict": "pass"}, "pretraining_audit": "unknown"}) == ""
    results = {"audit": {"verdict": "pass"}, "pretraining_audit": {"verdict": "fail"}}
    assert leakage(results) == "leakage: pre-trained on data that fails its audit"


@pytest.mark.usefixtures("undrawn")
def test_results_on_data_that_leaks_are_marked_wherever_they_stand(tmp_path, capsys):
    study = write_study(tmp_path / "study", fractions=(0.1,), seeds=2)
    clean = write_report([study], tmp_path / "clean")
    assert "leakage" not in (tmp_path / "clean" / "report.html").read_text()
    assert not any(run.problem for run in clean)
    for seed in (0, 1):
        folder = study / f"spark-0.1-{seed}"
        seen = {"patients": 0, "series": 0, "exact": 0, "near": 3, "accepted": True}
        edit_json(folder / "results.json", pretraining_overlap=seen, audit={"verdict": "pass"})
    edit_json(
        study / "scratch-0.1-1" / "results.json",
        audit={"verdict": "fail", "accepted": True, "findings": []},
        pretraining_overlap=None,
    )
    edit_json(study / "scratch-0.1-0" / "results.json", pretraining_overlap="unknown")
    assert main([str(study), "--out", str(tmp_path / "out")]) == 0
    assert "3 runs are on data that leaks into the test: marked" in capsys.readouterr().err
    html = (tmp_path / "out" / "report.html").read_text()
    # Each in two tables of results, and once for each run.
    assert html.count("leakage: test data seen in pre-training") == 2 + 2
    assert html.count("leakage: splits leak") == 2 + 1
    assert html.count("overlap with pre-training unknown") == 1
    assert "Test data was seen in training: results below are marked." in html


def test_page_lists_what_it_left_out(page):
    html, _ = page
    assert "10 runs read, 1 of them left out" in html
    assert html.count("left out: not finished (status running)") == 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("other", [{"fingerprint": "77" * 32}, {"patients": 50}])
def test_runs_of_different_data_are_never_averaged(tmp_path, other):
    write_finetuning(tmp_path / "a", seed=0)
    write_finetuning(tmp_path / "b", arm="spark", seed=0, **other)
    write_finetuning(tmp_path / "c", seed=1, **other)
    comparison = compare(find_runs([tmp_path]))
    assert len(comparison.conflicts) == 1
    assert "never averaged" in comparison.conflicts[0]
    assert len(comparison.tasks) == 2
    assert all(len(cell.runs) == 1 for task in comparison.tasks for cell in task.cells)
    compared = [cell for task in comparison.tasks for cell in task.comparisons()]
    assert len(compared) == 1  # spark with the scratch run of its own data only
    write_report([tmp_path], tmp_path / "out")
    assert "<strong>Conflict.</strong>" in (tmp_path / "out/report.html").read_text()


def test_same_number_of_other_test_cases_is_a_conflict(tmp_path):
    write_finetuning(tmp_path / "a", seed=0)
    other = write_finetuning(tmp_path / "b", seed=1) / "predictions.csv"
    write(other, other.read_text().replace("r0007", "r9999"))
    comparison = compare(find_runs([tmp_path]))
    assert "differ in test cases" in comparison.conflicts[0]
    assert len(comparison.tasks) == 2


def test_cells_of_different_settings_are_refused(tmp_path):
    for seed, epochs in ((0, 30), (1, 30), (2, 100)):
        run = write_finetuning(tmp_path / str(seed), seed=seed)
        edit_json(run / "config.json", config={"seed": seed, "subset_seed": seed, "epochs": epochs})
    comparison = compare(find_runs([tmp_path]))
    assert all("differ in epochs" in run.problem for run in comparison.runs)
    assert comparison.tasks == []


def test_test_split_may_have_another_name(tmp_path):
    run = write_finetuning(tmp_path / "a")
    edit_json(run / "config.json", config={"seed": 0, "test_split": "holdout"})
    table = run / "predictions.csv"
    write(table, table.read_text().replace("test,", "holdout,"))
    assert read_run(run).problem == ""


def test_a_seed_counts_once(tmp_path):
    write_finetuning(tmp_path / "a", seed=0)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    problems = [run.problem for run in compare(find_runs([tmp_path])).runs]
    assert problems == ["", "the same run a second time"]


def test_two_results_for_one_seed_are_both_refused(tmp_path):
    write_finetuning(tmp_path / "a", seed=0, skill=1.0)
    write_finetuning(tmp_path / "b", seed=0, skill=2.0)
    comparison = compare(find_runs([tmp_path]))
    assert all("different result" in run.problem for run in comparison.runs)
    assert comparison.tasks == []


def test_a_place_named_twice_is_read_once(tmp_path):
    write_finetuning(tmp_path / "deep/er/run")
    assert len(find_runs([tmp_path, tmp_path / "deep", tmp_path / "deep/er/run"])) == 1


@pytest.mark.usefixtures("undrawn")
def test_what_runs_say_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    run = write_finetuning(tmp_path / "a", classes=(evil, "b"), task=evil, arm="<b>$\\frac$")
    edit_json(run / "env.json", commit=evil, device=evil)
    edit_json(run / "config.json", hash=evil)
    write(write_finetuning(tmp_path / "b", seed=1) / "STATUS", evil)
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "<script" not in html
    assert "<b>$" not in html
    assert html.count("&lt;script&gt;") > 3


def test_page_shows_no_folder_no_patient_and_no_private_value(page, study):
    html = re.sub(r"base64,[^\"]*", "", page[0])
    for secret in (str(study), study.name, "scratch-0.1-0", "unfinished", "p17", "r0017"):
        assert secret not in html


@pytest.mark.usefixtures("undrawn")
def test_unknown_patients_are_said(tmp_path):
    write_finetuning(tmp_path / "a", named=False)
    (task,) = compare(find_runs([tmp_path])).tasks
    assert (task.test_patients, task.patients_known) == (120, False)
    write_report([tmp_path], tmp_path / "out")
    assert "unattributed cases" in (tmp_path / "out/report.html").read_text()


def test_pretraining_alone_makes_a_page(tmp_path):
    write_pretraining(tmp_path / "a", pictures=1)
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "nothing is compared" in html
    assert html.count('class="slices"') == 1


def test_pretraining_is_named_by_the_arm_that_used_it(page):
    assert "pre-training · SparK" in page[0]


def test_resumed_and_torn_logs_are_read(tmp_path):
    run = write_pretraining(tmp_path / "a")
    write(
        run / "metrics.jsonl",
        '{"step": 1, "loss": 3}\n{"step": 2, "loss": 9}\n'
        '{"step": 2, "loss": 2}\n{"step": 3, "loss": NaN}\n{"step": 4, "lo',
    )
    steps, loss = read_run(run).series("loss")
    assert (steps.tolist(), loss.tolist()) == ([1, 2], [3, 2])


def test_a_picture_that_is_none_is_not_shown(tmp_path):
    run = write_pretraining(tmp_path / "a", pictures=2)
    (run / "figures/reconstruction_0000001.png").write_text("<svg onload=alert(1)>")
    write_report([tmp_path], tmp_path / "out")
    assert (tmp_path / "out/report.html").read_text().count('class="slices"') == 2


def test_smoothing_keeps_lines_and_length():
    line = np.linspace(0.0, 5.0, 1000)
    np.testing.assert_allclose(smooth(line), line, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise).std() < 0.4 * noise.std()


def test_same_runs_same_bytes_and_no_leftovers(tmp_path):
    write_finetuning(tmp_path / "runs/a")
    write_pretraining(tmp_path / "runs/b")
    write_report([tmp_path / "runs"], tmp_path / "out")
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    write_report([tmp_path / "runs"], tmp_path / "out")
    again = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert again == first
    assert {path.suffix for path in again} == {".csv", ".png", ".html"}


def test_figures_of_a_report_before_do_not_stay_beside_another(tmp_path):
    write_finetuning(tmp_path / "runs/a")
    write_pretraining(tmp_path / "runs/b")
    write_report([tmp_path / "runs"], tmp_path / "out")
    figures = tmp_path / "out" / "figures"
    (figures / "mine.png").write_bytes(b"of the user")
    assert (figures / "pretraining-1-curves.png").exists()
    write_report([tmp_path / "runs/a"], tmp_path / "out")
    write_report([tmp_path / "runs/a"], tmp_path / "new")
    left = {path.name for path in figures.iterdir()}
    assert left - {"mine.png"} == {path.name for path in (tmp_path / "new/figures").iterdir()}
    assert "mine.png" in left


def test_matplotlib_is_left_as_it_was(tmp_path):
    write_finetuning(tmp_path / "a")
    matplotlib.rcParams["backend"]  # looking it up sets it
    before = matplotlib.rcParams.copy()
    write_report([tmp_path], tmp_path / "out")
    assert matplotlib.rcParams == before


def test_a_folder_with_an_odd_name_is_told_in_one_line(tmp_path, capsys):
    write(write_finetuning(tmp_path / "runs" / "\x1b[31mred\nline") / "STATUS", "running\n")
    assert main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("\\x1b[31mred\\nline: not finished (status running)")


def test_no_run_is_a_data_error(tmp_path, capsys):
    with pytest.raises(DataError, match="no run found"):
        write_report([tmp_path], tmp_path / "out")
    assert main([str(tmp_path / "nowhere"), f"--out={tmp_path / 'out'}"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path, capsys):
    write_finetuning(tmp_path / "a")
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "a"), f"--out={tmp_path / 'file'}"]) == 5
    assert "cannot be written" in capsys.readouterr().err


def test_command_works_without_jax(tmp_path):
    write_finetuning(tmp_path / "a")
    write(write_finetuning(tmp_path / "b", seed=1) / "STATUS", "running")
    code = (
        "import sys; from ctssl_jax.report.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'jax', 'matplotlib.pyplot'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), f"--out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 left out" in done.stdout
    assert str(tmp_path / "b") in done.stderr


def test_one_start_of_one_size_at_chance_is_drawn_without_a_warning(tmp_path):
    write_finetuning(tmp_path / "runs" / "alone", skill=0.0)
    write_report([tmp_path / "runs"], tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "auc-1.png").stat().st_size > 1000
