"""Patients of another dataset are left out, by name and by pictures; a dry run writes nothing."""

import json

import numpy as np
import pytest
from memory import KEY, MemorySource
from PIL import Image

from ctssl_jax.dataset.signatures import load_signatures
from ctssl_jax.errors import DataError
from ctssl_jax.files import read_json
from data_prep import dicom, folder
from data_prep.command import table
from data_prep.patients import PatientBy
from data_prep.pipeline.dry_run import dry_run
from data_prep.pipeline.exclude import load_excluded
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.records import pseudonym
from data_prep.source import EXCLUDED, EXCLUDED_BY_CONTENT, Slice

ALL = {"train": 1.0}


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))


def source(images):
    """A series of two slices of each patient."""
    return MemorySource(
        {
            f"series of {name}": [
                Slice(image.astype(np.int16), name, f"series of {name}", index, label=0)
                for index, image in enumerate(mine)
            ]
            for name, mine in images.items()
        }
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    out = tmp_path_factory.mktemp("task") / "task"
    images = {name: [picture([n, k]) for k in range(2)] for n, name in enumerate("abc")}
    prepare(source(images), out, key=KEY, fractions={"train": 0.5, "test": 0.5})
    return out


def test_patients_are_left_out_by_name_and_by_their_pictures(task, tmp_path):
    scans = {
        "a": [picture(50), picture(51)],  # another scan of a patient of the task
        "b under another name": [np.clip(picture([1, 0]).astype(int) + 15, 0, 255), picture(52)],
        "d": [picture(60), picture(61)],
    }
    out = tmp_path / "scans"
    excluded = load_excluded([task], KEY)
    manifest = prepare(source(scans), out, key=KEY, fractions=ALL, excluded=excluded)
    left = manifest["excluded_patients"]
    assert (left["patients_by_name"], left["patients_by_content"]) == (1, 1)
    fingerprint = json.loads((task / "manifest.json").read_text())["fingerprint"]
    assert [row["fingerprint"] for row in left["datasets"]] == [fingerprint]
    assert manifest["left_out"] == {EXCLUDED: 1, EXCLUDED_BY_CONTENT: 2}
    assert set(load_signatures(out, "train").patient) == {pseudonym(KEY, "d").encode()}
    assert "2 excluded (1 by name, 1 by their pictures)" in table(manifest)


def test_who_is_one_person_with_somebody_left_out_is_left_out_too(task, tmp_path):
    """By `--patient_by=joined`, from a name in the dataset or from a picture."""
    scans = {
        "a": [picture(50), picture(51)],
        "A": [picture(53), picture(54)],
        "e": [picture([1, 0]), picture(52)],  # pictures of b
        "E": [picture(55), picture(56)],
        "d": [picture(60), picture(61)],
    }
    excluded = load_excluded([task], KEY)
    asked = {"key": KEY, "fractions": ALL, "excluded": excluded}
    for refused in (
        lambda: prepare(source(scans), tmp_path / "auto", **asked),
        lambda: dry_run(source(scans), KEY, ALL, excluded=excluded.patients),
    ):
        with pytest.raises(DataError, match="2 patients are named in more than one spelling"):
            refused()
    joined = PatientBy.JOINED
    said = dry_run(source(scans), KEY, ALL, excluded=excluded.patients, patient_by=joined)
    assert "3 patients, 2 of them told apart" in said  # who is known by pictures, it cannot tell
    out = tmp_path / "joined"
    manifest = prepare(source(scans), out, patient_by=PatientBy.JOINED, **asked)
    assert set(load_signatures(out, "train").patient) == {pseudonym(KEY, "d").encode()}
    left = manifest["excluded_patients"]
    assert (left["patients_by_name"], left["patients_by_content"]) == (3, 1)


def test_whoever_is_spelled_otherwise_is_left_out_and_that_is_said(tmp_path):
    """A dataset holds pseudonyms alone, of the names as they were spelled there."""
    spelled = {"P-1": "P1", "p2": "P-002", "Lung 3": "LUNG_3", "017": "17"}
    known = {name: [picture([n, 0]), picture([n, 1])] for n, name in enumerate(spelled)}
    prepare(source(known), tmp_path / "task", key=KEY, fractions=ALL)
    excluded = load_excluded([tmp_path / "task"], KEY)
    scans = {other: [picture([9, n])] for n, other in enumerate([*spelled.values(), "P4"])}
    asked = {"key": KEY, "fractions": ALL, "excluded": excluded}
    manifest = prepare(source(scans), tmp_path / "scans", **asked)
    left = manifest["excluded_patients"]
    assert (left["patients_by_name"], left["patients_spelled_otherwise"]) == (4, 4)
    assert manifest["splits"]["train"]["patients"] == 1
    assert "4 of these by name are spelled otherwise than in the dataset" in table(manifest)
    said = dry_run(source(scans), KEY, ALL, excluded=excluded.patients)
    assert "patients excluded by name: 4" in said
    assert "4 of them spelled otherwise" in said
    stands = prepare(source(scans), tmp_path / "id", patient_by=PatientBy.ID, **asked)
    assert stands["splits"]["train"]["patients"] == 5


def test_datasets_of_which_each_is_named_by_its_own_flag_all_count(tmp_path, key_file, capsys):
    def images(home, *numbers):
        (tmp_path / home).mkdir()
        for number in numbers:
            Image.fromarray(picture([11, number])).save(tmp_path / home / f"q{number}.png")
        return f"--source={tmp_path / home}"

    def prepared(out, *words):
        train = ("--val_fraction=0", "--test_fraction=0", "--patient_regex=^(q[0-9])")
        usual = (f"--out={tmp_path / out}", f"--key={key_file}", "--workers=0")
        return folder.main([*words, *usual, *train])

    assert prepared("a", images("A", 1)) == prepared("b", images("B", 2)) == 0
    both = [f"--exclude_patients_of={tmp_path / name}" for name in "ab"]
    assert prepared("c", images("C", 1, 2, 3), *both) == 0
    assert "2 excluded (2 by name" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["patients"] == 1


def test_that_nobody_is_left_out_is_said(task, tmp_path):
    scans = {"x": [picture(70), picture(71)]}
    excluded = load_excluded([task], KEY)
    manifest = prepare(source(scans), tmp_path / "x", key=KEY, fractions=ALL, excluded=excluded)
    said = table(manifest)
    assert "0 excluded" in said
    assert "none of its patients is in this source: is that so?" in said


def test_another_key_is_an_error_not_silence(task, tmp_path):
    with pytest.raises(DataError, match="was prepared with another key"):
        load_excluded([task], KEY[::-1])
    manifest = read_json(task / "manifest.json")
    older = tmp_path / "older"
    older.mkdir()
    (older / "manifest.json").write_text(json.dumps({**manifest, "key": None}))
    with pytest.raises(DataError, match="does not say with which key"):
        load_excluded([older], KEY)
    with pytest.raises(DataError, match="no such dataset"):
        load_excluded([tmp_path / "none"], KEY)


def test_a_dry_run_tells_what_would_become_of_it(task):
    scans = {name: [picture([9, n, k]) for k in range(2)] for n, name in enumerate("xyz")}
    said = dry_run(source(scans), KEY, ALL)
    for line in ("images: 3", "slices: 6", "patients: 3", "a dataset would be made"):
        assert line in said
    names = frozenset([pseudonym(KEY, "x")])
    said = dry_run(source(scans), KEY, ALL, excluded=names)
    assert "patients excluded by name: 1" in said
    assert "slices: 4" in said
    with pytest.raises(DataError, match="it holds no files"):
        dry_run(source({}), KEY, ALL)


def flags(tmp_path, key_file, *more):
    return [
        f"--source={tmp_path / 'in'}",
        f"--out={tmp_path / 'out'}",
        f"--key={key_file}",
        "--workers=0",
        *more,
    ]


def test_a_dry_run_of_a_command_writes_nothing_and_exits_as_it_would(tmp_path, key_file, capsys):
    for label in ("ill", "well"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for n in range(3):
            Image.fromarray(picture(n)).save(tmp_path / "in" / label / f"{n}.png")
    before = sorted(tmp_path.rglob("*"))
    arguments = flags(tmp_path, key_file, "--labels=folder", "--dry_run")
    assert folder.main(arguments) == 0
    said = capsys.readouterr().out
    for line in ("images: 6", "label ill: 3 slices", "label well: 3 slices", "patients: 6 (each"):
        assert line in said
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "in" / "ill" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert folder.main(arguments) == 3
    captured = capsys.readouterr()
    assert "would be rejected: 1" in captured.out
    assert "more than --max_rejected=0.05" in captured.err
    assert folder.main([*arguments, "--val_fraction=2"]) == 2
    assert not (tmp_path / "out").exists()


def test_labelled_scans_of_those_who_are_left_out_are_not_lost(tmp_path, key_file, capsys):
    """Neither for --max_rejected, nor if the table names their very files."""
    for number in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(picture([7, number])).save(tmp_path / "in" / f"p{number}.png")
    rows = [f"p{number}.png,x,P{number}" for number in range(4)]
    few, table = tmp_path / "few.csv", tmp_path / "all.csv"
    few.write_text("\n".join(["file,label,patient", rows[0], rows[1].replace("P1", "Q")]))
    table.write_text("\n".join(["file,label,patient", *rows]))
    train = ("--val_fraction=0", "--test_fraction=0")
    task = flags(tmp_path, key_file, f"--labels={few}", *train)
    assert folder.main(task) == 0
    (tmp_path / "out").rename(tmp_path / "task")
    more = (f"--labels={table}", f"--exclude_patients_of={tmp_path / 'task'}", "--max_rejected=0")
    for word in (("--dry_run",), ()):
        assert folder.main(flags(tmp_path, key_file, *more, *train, *word)) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    left = manifest["excluded_patients"]
    assert (left["patients_by_name"], left["patients_by_content"]) == (1, 1)
    assert (manifest["rejected"], manifest["labelled"]["scans_lost"]) == ({}, 0)


def test_scans_for_pretraining_all_go_to_train_and_irregular_ones_stay(
    tmp_path, key_file, write_ct, capsys
):
    rng = np.random.default_rng(0)
    for patient in range(4):
        for z in (0, 5, 20):  # slices are missing between the second and the third
            stored = rng.integers(0, 1200, (32, 32)).astype(np.int16)
            write_ct(
                tmp_path / "in" / f"{patient}-{z}.dcm",
                stored,
                z=float(z),
                PatientID=f"P{patient}",
                StudyInstanceUID=f"1.2.{patient}",
                SeriesInstanceUID=f"1.2.{patient}.1",
            )
    assert dicom.main(flags(tmp_path, key_file)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: pass"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {name: n["patients"] for name, n in manifest["splits"].items()} == {"train": 4}
    assert manifest["findings"]
    assert not manifest["rejected"]
