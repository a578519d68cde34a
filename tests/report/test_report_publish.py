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
