"""What one label is of: by the rows of the table, by its column, by --case."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ctssl_jax.data import open_dataset, read_cases
from ctssl_jax.dataset.cases import case_of, case_word
from ctssl_jax.errors import ConfigError, DataError
from data_prep import command
from data_prep.cases import CaseOf
from data_prep.folder import make_source
from data_prep.pipeline import records
from data_prep.pipeline.prepare import prepare

KEY = b"0123456789abcdef"
SLICES = 4


@pytest.fixture
def export(tmp_path, write_ct):
    """Two patients, two studies of each, one series of each, each in its folder."""
    for i in range(4):
        for k in range(SLICES):
            stored = np.full((8, 8), 1024 + 10 * i + k, np.uint16)
            stored[:4] = np.random.default_rng([i, k]).integers(0, 200, (4, 8))
            write_ct(
                tmp_path / "in" / f"s{i}" / f"{SLICES - k}.dcm",
                stored,
                z=2.0 * k,
                SOPInstanceUID=f"1.3.{i}.{k}",
                SeriesInstanceUID=f"1.2.{i}",
                StudyInstanceUID=f"1.1.{i}",
                AccessionNumber=f"A{i}",
                PatientID=f"P{i // 2}",
            )
    return tmp_path / "in"


@pytest.fixture
def images(tmp_path):
    """Three scans of different length, two of one patient; the grey of a slice is its number."""
    for scan, length in {"a/x": 12, "a/y": 2, "b/z": 3}.items():
        for k in range(length):
            home = tmp_path / "in" / scan
            home.mkdir(parents=True, exist_ok=True)
            grey = np.random.default_rng(k).integers(0, 200, (16, 16), np.uint8)
            grey[0, 0] = k
            Image.fromarray(grey).save(home / f"{k}.png")
    return tmp_path / "in"


def table(folder, *rows, name="labels.csv"):
    (folder.parent / name).write_text("\n".join(rows) + "\n")
    return str(folder.parent / name)


def prepared(source, out):
    manifest = prepare(source, out, key=KEY, fractions={"train": 1.0})
    return manifest, read_cases(open_dataset(out), "train")


def contents(out, cases, k=(-1, -1)):
    """The slices of each case in their order, by a pixel that tells which each is."""
    source = open_dataset(out).source("train")
    return sorted([int(source[int(row)]["image"][k]) for row in rows] for rows in cases.rows)


@pytest.mark.parametrize(
    ("column", "names", "of", "expected"),
    [
        ("series", ["1.2.0", "1.2.3"], "series", [[0, 1, 2, 3], [30, 31, 32, 33]]),
        ("StudyInstanceUID", ["1.1.1", "1.1.2"], "study", [[10, 11, 12, 13], [20, 21, 22, 23]]),
        ("accession", ["A0", "A2"], "accession", [[0, 1, 2, 3], [20, 21, 22, 23]]),
        ("file", ["s0", "s1"], "folder", [[0, 1, 2, 3], [10, 11, 12, 13]]),
        ("scan", ["s0", "s1"], "folder", [[0, 1, 2, 3], [10, 11, 12, 13]]),
    ],
)
def test_the_rows_of_the_table_say_what_a_case_is(tmp_path, export, column, names, of, expected):
    rows = [f"{name},{'ny'[number]}" for number, name in enumerate(names)]
    labels = table(export, f"{column},label", *rows)
    manifest, cases = prepared(make_source(export, labels), tmp_path / "o")
    assert manifest["case"]["of"] == of
    assert manifest["cases"] == {"train": {"count": 2, "labels": [1, 1]}}
    assert sorted(cases.labels) == [0, 1]
    assert contents(tmp_path / "o", cases) == expected


def test_a_patient_is_one_case_of_all_its_series(tmp_path, export):
    labels = table(export, "PatientID,label", "P0,n", "P1,y")
    manifest, cases = prepared(make_source(export, labels), tmp_path / "o")
    assert manifest["case"] == {"of": "patient", "word": "patient"}
    assert [len(rows) for rows in cases.rows] == [2 * SLICES] * 2


def test_a_row_of_a_slice_makes_slices_the_cases(tmp_path, export):
    rows = [f"1.3.{i}.{k},{'ny'[k % 2]}" for i in range(4) for k in range(SLICES)]
    manifest, cases = prepared(
        make_source(export, table(export, "sop,label", *rows)), tmp_path / "o"
    )
    assert manifest["case"] == {"of": "slice", "word": "slice"}
    assert manifest["cases"] == {}
    assert len(cases) == 4 * SLICES
    assert all(rows.tolist() == [place] for place, rows in enumerate(cases.rows))


def test_volumes_are_cases_by_file(tmp_path, write_volume):
    for number in range(2):
        write_volume(tmp_path / "in" / f"v{number}.nii.gz")
    labels = table(tmp_path / "in", "volume,label", "v0.nii.gz,n", "v1.nii.gz,y")
    manifest, cases = prepared(make_source(tmp_path / "in", labels), tmp_path / "o")
    assert manifest["case"] == {"of": "series", "word": "scan"}
    assert len(cases) == 2


def test_folders_of_images_are_cases_in_the_order_of_their_slices(tmp_path, images):
    labels = table(images, "case,label,patient", "a/x,n,p", "a/y,y,p", "b/z,y,q")
    manifest, cases = prepared(make_source(images, labels, case_name="nodule"), tmp_path / "o")
    assert manifest["case"] == {"of": "folder", "word": "nodule"}
    assert contents(tmp_path / "o", cases, (0, 0)) == [[0, 1], [0, 1, 2], list(range(12))]
    assert manifest["labels_of"] == "scan"
    header, row = command.table(manifest).splitlines()[:2]
    assert header.split() == ["split", "nodules", "slices", "patients", "series", "n", "y"]
    assert row.split() == ["train", "3", "17", "2", "2", "1", "2"]


def test_a_column_beside_the_files_says_which_are_one_case(tmp_path, images):
    rows = [f"a/x/{k}.png,{'one' if k < 5 else 'two'},{'n' if k < 5 else 'y'}" for k in range(12)]
    labels = table(images, "file,case,label", *rows)
    _, cases = prepared(make_source(images, labels, "^in|(.)/"), tmp_path / "o")
    assert contents(tmp_path / "o", cases, (0, 0)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]]


def test_where_patients_are_not_known_a_case_is_one(tmp_path, images, capfd):
    labels = table(images, "case,label", "a/x,n", "a/y,y", "b/z,y")
    source = make_source(images, labels)
    manifest = prepare(source, tmp_path / "o", key=KEY, fractions={"train": 1.0}, show_cases=True)
    cases = read_cases(open_dataset(tmp_path / "o"), "train")
    assert contents(tmp_path / "o", cases, (0, 0)) == [[0, 1], [0, 1, 2], list(range(12))]
    assert len(set(cases.patients)) == 3
    assert not manifest["patients_known"]
    assert "each scan counts as its own patient" in manifest["note"]
    # The one way back to files is on the screen.
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("case ")]
    shown = {line.split(": ")[0].split()[1]: line.split(": ")[1] for line in lines}
    assert shown.keys() == set(cases.names)
    lengths = {shown[name][-3:]: len(r) for name, r in zip(cases.names, cases.rows, strict=True)}
    assert lengths == {"a/x": 12, "a/y": 2, "b/z": 3}


def test_slice_labels_stand_beside_those_of_the_cases(tmp_path, images):
    labels = table(images, "case,label,patient", "a/x,y,p", "b/z,n,q")
    slices = table(images, "file,label", "a/x/3.png,y", "a/x/4.png,n", name="slices.csv")
    _, cases = prepared(make_source(images, labels, slice_labels=slices), tmp_path / "o")
    source = open_dataset(tmp_path / "o").source("train")
    records = [source[int(row)] for rows in cases.rows for row in rows]
    found = {int(r["image"][0, 0]): int(r["slice_label"]) for r in records if r["label"] == 1}
    assert found == {k: {3: 1, 4: 0}.get(k, -1) for k in range(12)}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["file,label", "a/x/3.png,maybe"], r"--slice_labels, line 2: maybe is none of .*, n, y"),
        (["file,label", "a/y/0.png,y"], r"--slice_labels, line 2: 1 of 1 rows name a slice that"),
        (["patient,label", "p,y"], r"--slice_labels: its rows must name slices"),
        (["file,label", "../x.png,y"], r"--slice_labels, line 2, column file: it is not in"),
    ],
)
def test_slice_labels_that_cannot_be_are_refused(images, rows, said):
    labels = table(images, "case,label,patient", "a/x,y,p", "b/z,n,q")
    with pytest.raises(DataError, match=said):
        make_source(images, labels, slice_labels=table(images, *rows, name="slices.csv"))
    with pytest.raises(ConfigError, match="--slice_labels needs --labels"):
        make_source(images, slice_labels=str(images.parent / "slices.csv"))


def test_a_slice_label_of_a_volume_is_refused(tmp_path, write_volume):
    for name in "pq":
        write_volume(tmp_path / "in" / f"{name}.nii.gz")
    labels = table(tmp_path / "in", "file,label", "p.nii.gz,y", "q.nii.gz,n")
    slices = table(tmp_path / "in", "file,slice,label", "p.nii.gz,2,y", name="slices.csv")
    with pytest.raises(DataError, match="--slice_labels, line 2: it names a volume, whose slices"):
        make_source(tmp_path / "in", labels, slice_labels=slices)


def test_unlabelled_scans_are_cases_by_the_users_word(tmp_path, images):
    manifest, cases = prepared(
        make_source(images, "", "^in|(.)/", case=CaseOf.FOLDER), tmp_path / "o"
    )
    assert manifest["case"] == {"of": "folder", "word": "scan"}
    assert contents(tmp_path / "o", cases, (0, 0)) == [[0, 1], [0, 1, 2], list(range(12))]


@pytest.mark.parametrize(
    ("of", "count"), [("auto", 4), ("study", 4), ("patient", 2), ("slice", 16)]
)
def test_unlabelled_series_are_cases(tmp_path, export, of, count):
    _, cases = prepared(make_source(export, case=CaseOf(of)), tmp_path / "o")
    assert len(cases) == count


def test_a_case_of_two_labels_is_refused(tmp_path, export):
    labels = table(export, "series,label", "1.2.0,n", "1.2.1,y", "1.2.2,y", "1.2.3,y")
    with pytest.raises(DataError, match=r"1 cases have slices of several labels"):
        prepared(make_source(export, labels, case=CaseOf.PATIENT), tmp_path / "o")


def test_images_have_no_series(images):
    with pytest.raises(ConfigError, match=r"--case=series: images have no such header"):
        make_source(images, case=CaseOf.SERIES)


def test_no_name_of_a_case_is_written(tmp_path, images):
    labels = table(images, "case,label,patient", "a/x,n,Jane", "b/z,y,Joe")
    prepared(make_source(images, labels), tmp_path / "o")
    for path in (tmp_path / "o").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"a/x" not in content
            assert b"Jane" not in content


def test_an_older_dataset_is_read_as_a_slice_task(tmp_path, images, monkeypatch):
    """Its records have neither a case nor a label of the slice; its manifest says nothing of it."""
    labels = table(images, "case,label,patient", "a/x,n,p", "b/z,y,q")
    new = records.features()
    older = tfds.features.FeaturesDict(
        {name: kind for name, kind in new.items() if name not in ("case", "slice_label")}
    )
    write = records.encode
    monkeypatch.setattr(records, "features", lambda: older)
    records._serializer.cache_clear()
    drop = {"case": "", "slice_label": -1}
    monkeypatch.setattr(
        records, "encode", lambda item, *names: write(replace(item, **drop), *names[:3])
    )
    monkeypatch.setattr(type(older), "encode_example", without(type(older).encode_example, drop))
    manifest, _ = prepared(make_source(images, labels), tmp_path / "o")
    records._serializer.cache_clear()
    for key in ("case", "cases", "options"):
        manifest.pop(key)
    (tmp_path / "o" / "manifest.json").write_text(json.dumps(manifest))
    dataset = open_dataset(tmp_path / "o")
    assert b"slice_label" not in (tmp_path / "o/ct_slices/1.0.0/features.json").read_bytes()
    cases = read_cases(dataset, "train")
    assert [rows.tolist() for rows in cases.rows] == [[n] for n in range(15)]
    assert (case_of(dataset.manifest), case_word(dataset.manifest)) == ("slice", "slice")


def without(encode_example, names):
    """The function on examples without these fields."""
    return lambda self, example: encode_example(
        self, {name: value for name, value in example.items() if name not in names}
    )
