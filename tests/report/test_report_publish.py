"""A published study gives the numbers of the page again, and no more than they need."""

import csv
import re

import pytest
from test_report import edit_json, write, write_finetuning, write_pretraining
from test_report_folds import write_fold

from ctssl_jax.report.__main__ import main

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def runs(tmp_path):
    """Fine-tunings, a cross-validation, a pre-training, and a run that is left out."""
    root = tmp_path / "Mrs Jones"
    for seed in (0, 1):
        for arm, skill in (("scratch", 0.4), ("spark", 1.6)):
            write_finetuning(root / f"{arm}{seed}", arm=arm, seed=seed, skill=skill, task="organs")
            for fold in range(3):
                write_fold(root, fold, arm, seed)
    write_pretraining(root / "encoder", pictures=0)
    write(write_finetuning(root / "half", seed=9) / "STATUS", "running\n")
    for run in root.iterdir():
        edit_json(run / "env.json", host="ward-7")
        edit_json(run / "data.json", source="/home/jones")
        write(run / "log.txt", "reading /home/jones")
    return root


def test_a_published_study_gives_the_same_page(runs, tmp_path, capsys):
    public, first, again = tmp_path / "public", tmp_path / "first", tmp_path / "again"
    assert main([str(runs), f"--out={first}", f"--publish={public}"]) == 0
    assert "17 runs published" in capsys.readouterr().out
    assert main([str(public), f"--out={again}"]) == 0
    pages = [(out / "report.html").read_text() for out in (first, again)]
    assert "17 runs read" in pages[1]
    numbers = [re.findall(r"[−+]?\d+\.\d{3}", re.sub(r"base64,[^\"]*", "", page)) for page in pages]
    assert len(numbers[0]) > 50
    assert numbers[1] == numbers[0]
    tables = [path.name for path in (first / "figures").glob("*.csv")]
    for name in tables:
        assert (first / "figures" / name).read_bytes() == (again / "figures" / name).read_bytes()


def test_what_is_published_names_nobody(runs, tmp_path):
    public = tmp_path / "public"
    assert main([str(runs), f"--out={tmp_path / 'out'}", f"--publish={public}"]) == 0
    files = [path for path in public.rglob("*") if path.is_file()]
    kinds = ("config.json", "env.json", "data.json", "STATUS", "metrics.jsonl")
    assert {path.name for path in files} == {*kinds, "results.json", "predictions.csv"}
    for path in files:
        assert not re.search("jones|Jones|ward-7", f"{path.relative_to(public)} {path.read_text()}")
    table = next(path for path in files if path.name == "predictions.csv")
    with table.open() as file:
        columns = csv.DictReader(file).fieldnames
    assert columns == ["split", "record", "patient", "label", "score_0", "score_1"]


def test_a_folder_that_is_in_use_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "public").mkdir()
    write(tmp_path / "public" / "mine.txt", "mine")
    assert main([str(runs), f"--out={tmp_path / 'out'}", f"--publish={tmp_path / 'public'}"]) == 5
    assert "--publish" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "public").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "out").exists()


def write_external(folder, auc=0.875):
    """The run folder of an external test, as `ctssl_jax.predict` writes it."""
    write(folder / "config.json", {"type": "PredictConfig", "config": {}, "hash": "e" * 16})
    write(folder / "STATUS", "done\n")
    results = {
        **{"task": "organs", "arm": "spark", "run": "f" * 16, "dataset": "ward", "case": "scan"},
        **{"data_fingerprint": "d" * 64, "external": True, "learnt_from": {"patients": 0}},
        "test": {"n": 40, "patients": 31, "auc": auc},
        "intervals": {"auc": [auc, 0.751, 0.962], "brier": [0.119, 0.083, 0.148]},
        "files": {"cases.csv": "of a file that is not published"},
    }
    write(folder / "results.json", results)
    write(folder / "cases.csv", "case,label,decision,score_1\nMrs Jones,no,yes,0.9\n")


def test_a_published_study_keeps_its_external_tests(runs, tmp_path, capsys):
    write_external(runs / "ward")
    public, first, again = tmp_path / "public", tmp_path / "first", tmp_path / "again"
    assert main([str(runs), f"--out={first}", f"--publish={public}"]) == 0
    assert main([str(public), f"--out={again}"]) == 0
    assert "results.json is missing" not in capsys.readouterr().err
    tables = [
        re.search("<h2>External tests</h2>.*?</table>", (out / "report.html").read_text(), re.S)
        for out in (first, again)
    ]
    assert all(tables)
    assert tables[0][0] == tables[1][0]
    assert "0.875" in tables[0][0]
    assert not any("Jones" in path.read_text() for path in public.rglob("*.*"))


def test_publishing_where_no_run_counts_is_one_line(tmp_path, capsys):
    write(write_finetuning(tmp_path / "runs" / "half") / "STATUS", "running\n")
    public = tmp_path / "public"
    code = main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}", f"--publish={public}"])
    assert (code, public.exists()) == (3, False)
    assert "--publish: no run counts" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "./", "../here"])
def test_a_study_may_be_published_where_one_stands(runs, tmp_path, monkeypatch, capsys, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(runs), f"--out={tmp_path / 'out'}", f"--publish={place}"]) == 0
    assert "17 runs published" in capsys.readouterr().out
    assert (tmp_path / "here" / "run-0017" / "config.json").is_file()
