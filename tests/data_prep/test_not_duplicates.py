"""Pairs are shown, and a false one is excepted by name, on the record and for the gate."""

import csv
import json

import pytest
from memory import write_slices
from test_audit import ct_slice, picture

from ctssl_jax import data
from ctssl_jax.dataset.verdict import read_verdict
from ctssl_jax.errors import DataError
from ctssl_jax.run import leakage
from data_prep import audit
from data_prep.not_duplicates import read_not_duplicates
from data_prep.source import Slice

pytestmark = pytest.mark.usefixtures("one_device", "tiny_encoder")


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Slice 0 of train is in test as well, brighter."""
    splits = {"train": [ct_slice(n) for n in range(8)], "test": [ct_slice(n) for n in (30, 31)]}
    splits["test"].append(Slice(picture(0) + 20, "other", "other", 0, label=0))
    return write_slices(tmp_path_factory.mktemp("alike") / "set", splits)


def rewrite(table, word):
    with open(table) as stream:
        rows = list(csv.DictReader(stream))
    with open(table, "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "duplicate": word} for row in rows)
    return rows


def test_a_false_pair_is_shown_excepted_and_told(alike, tmp_path, capsys):
    shown = tmp_path / "shown"
    assert audit.main([f"--data={alike}", f"--show_pairs={shown}"]) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("verdict: fail, and training will refuse it (train and test: 1 ")
    assert any("--show_pairs=FOLDER" in line and "--join_duplicates" in line for line in said)
    assert {path.name for path in shown.iterdir()} == {"pairs.png", "pairs.csv"}
    text = (shown / "pairs.csv").read_text()
    assert str(tmp_path) not in text
    assert "patient" not in text
    assert audit.main([f"--data={alike}", f"--not_duplicates={shown / 'pairs.csv'}"]) == 3
    assert "says `no` of no pair" in capsys.readouterr().err
    (row,) = rewrite(shown / "pairs.csv", "no")
    assert row["check"] == "near"
    assert audit.main([f"--data={alike}", f"--not_duplicates={shown / 'pairs.csv'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "not counted: 1 pairs that --not_duplicates calls none",
        "verdict: pass",
    ]
    assert json.loads((alike / "audit.json").read_text())["not_duplicates"] == [row["pair"]]
    assert read_verdict(alike).not_duplicates == (row["pair"],)
    dataset = data.open_dataset(alike)
    assert leakage.require_audit(dataset, False) == {"verdict": "pass", "not_duplicates": 1}
    run = tmp_path / "run"
    run.mkdir()
    leakage.write_seen(run, dataset, "train", None)
    assert leakage.require_unseen(dataset, ("test",), str(run), False)["near"] == 0
    assert audit.main([f"--data={alike}"]) == 3  # without the file it counts again
    with pytest.raises(DataError, match="1 nearly equal slices"):
        leakage.require_unseen(dataset, ("test",), str(run), False)


def test_equal_slices_and_other_tables_are_no_exceptions(alike, tmp_path):
    table = tmp_path / "pairs.csv"

    def refused(content, said):
        table.write_text(content)
        with pytest.raises(DataError, match=said):
            read_not_duplicates(table)

    same = f"{7:016x}-{7:016x}"
    refused(f"pair,duplicate\n{same},no\n", "line 2: these slices are equal")
    refused("pair,duplicate\nsome,no\n", "line 2: no pair of --show_pairs")
    refused(f"pair,duplicate\n{same},perhaps\n", "line 2: `duplicate` must be no, yes or empty")
    refused("pair\nx\n", "no column duplicate")
    table.write_text(f"pair,duplicate\n{1:016x}-{2:016x},no\n")
    with pytest.raises(DataError, match="none of its pairs is of this dataset"):
        audit.audit(alike, apart=read_not_duplicates(table))


def test_pictures_of_patients_are_written_into_no_dataset_and_over_nothing(alike, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    for folder, said in ((alike / "pairs", "dataset or run"), (run / "a" / "b", "dataset or run")):
        with pytest.raises(DataError, match=said):
            audit.audit(alike, show=folder)
        assert not folder.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        audit.audit(alike, show=tmp_path / "mine")


def test_nothing_is_shown_where_nothing_was_found(tmp_path):
    splits = {"train": [ct_slice(n) for n in range(4)], "test": [ct_slice(30)]}
    out = write_slices(tmp_path / "set", splits)
    assert audit.audit(out, show=tmp_path / "shown").passed
    assert not (tmp_path / "shown").exists()
