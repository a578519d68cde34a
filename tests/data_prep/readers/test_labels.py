"""What a class is: tables and class folders are read right or refused with the row and column."""

import json

import numpy as np
import pytest
from PIL import Image

from ctssl_jax.errors import ConfigError, DataError
from data_prep import folder
from data_prep.folder import make_source
from data_prep.pipeline.prepare import prepare
from data_prep.spelling import alike, is_missing, respelled

KEY = b"0123456789abcdef"
NAMES = ("a", "b", "c", "d")


def image(path, value=0, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([value, 1]).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def images(tmp_path):
    """A folder of four images."""
    for number, name in enumerate(NAMES):
        image(tmp_path / "in" / f"{name}.png", number)
    return tmp_path / "in"


def from_table(images, text, **encoding):
    table = images.parent / "labels.csv"
    if isinstance(text, str):
        table.write_text(text, **encoding)
    else:
        table.write_bytes(text)
    return make_source(images, str(table))


def labels_of(source):
    """The name of the class of each file that is kept; what has a flaw is left out."""
    return {
        item.path.rsplit("/", 1)[1]: source.classes[item.label] if item.label >= 0 else ""
        for item in source.items()
        if item.flaw is None
    }


BAD = {
    "semicolons": ("file;label\na.png;x\n", r"separated by semicolons \(file, label\)"),
    "tabs": ("file\tlabel\na.png\tx\n", "separated by tabs"),
    "other columns": ("name,kind\na.png,x\n", r"no column label: .* name, kind"),
    "no key": ("label,age\nx,3\n", r"no column file: .* label, age"),
    "no header": ("a.png,x\nb.png,y\n", "no column label"),
    "column twice": ("file,label,Label\na.png,x,y\n", "column label 2 times"),
    "two names of a column": ("file,label,class\na.png,x,y\n", "column label 2 times"),
    "fewer cells": ("file,label\na.png,x\nb.png\n", "line 3: it has 1 cells and the header 2"),
    "more cells": ("file,label\na.png,x\nb.png,x,y\n", "line 3: it has 3 cells"),
    "open quote": ('file,label\n"a.png,x\nb.png,y\n', "quote not closed"),
    "contradiction": ("file,label\na.png,x\n./a.png,y\n", "line 3 .* line 2 .* column label"),
    "case": ("file,label\na.png,COVID\nb.png,covid\n", r"COVID .*line 2.*covid .*line 3"),
    "numbers": ("file,label\na.png,1\nb.png,1.0\n", "one class in 2 spellings"),
    "blanks": ("file,label\na.png,no covid\nb.png,No_Covid\n", "one class in 2 spellings"),
    "blank file": ("file,label\n,x\nb.png,y\n", "line 2, column file: it is empty"),
    "split": ("file,label,split\na.png,x,trian\n", "line 2, column split"),
    "some splits": ("file,label,split\na.png,x,train\nb.png,y,\n", "line 3, column split"),
    "outside": ("file,label\n../a.png,x\n", "line 2, column file: it is not in --source"),
    "windows": ("file,label\nC:\\a.png,x\n", "line 2, column file: it is not in --source"),
    "nothing": ("file,label\n", "no rows"),
    "slices of one volume": (
        "file,Slice Number,label\nv.nii,3,x\nw.nii,1,y\nv.nii,4,x\n",
        "line 4, column slicenumber: this file has rows of several slices, .* is of all its slices",
    ),
    "slices of one series": (
        "series,instance_number,label\n1.2,3,x\n1.2,4,y\n",
        "line 3, column instancenumber: this series has rows of several slices",
    ),
    **{
        f"label {word}": (
            f"file,label\na.png,0\nb.png,{word}\n",
            "line 3, column label: .* no name",
        )
        for word in ("?", "-", ".", "--", "-99", "-999.0")
    },
    **{
        f"patient {word}": (
            f"file,label,patient\na.png,x,17\nb.png,y,{word}\nc.png,x,{word}\n",
            message,
        )
        for word, message in {
            "unknown": "line 3, column patient: unknown is nobody, and 2 rows",
            "?": r"line 3, column patient: \? is nobody",
            "1.23457E+11": "line 3, column patient: a spreadsheet has cut",
        }.items()
    },
    "patient of zeros": (
        "file,label,patient\na.png,x,17171\nb.png,y,00000\nc.png,x,00000\n",
        "line 3, column patient: 00000 is nobody",
    ),
    "cut accession": (
        "accession,label\n1.23457e+11,x\n",
        "line 2, column accession: a spreadsheet",
    ),
    "empty": ("", "no column label: its first line names nothing"),
    "label in Latin-1": ("file,label\na.png,caf\xe9\n".encode("latin-1"), "line 2, column label"),
    "spreadsheet": (b"PK\x03\x04" + bytes(100), "a spreadsheet"),
    "UTF-16": ("file,label\na.png,x\n".encode("utf-16"), "UTF-16"),
    "UTF-16 without mark": ("file,label\na.png,x\n".encode("utf-16-le"), "UTF-16"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_table_that_is_not_clear_is_refused_in_words(images, kind):
    text, message = BAD[kind]
    with pytest.raises(DataError, match=message) as raised:
        from_table(images, text)
    assert "\n" not in str(raised.value)
    assert str(images) not in str(raised.value)


GOOD = {
    "byte order mark and CRLF": ('file,label\r\n"a.png",x\r\nb.png,"y"\r\n', "utf-8-sig"),
    "names of columns": ("File Name, Class \na.png, x\nb.png,y \n", "utf-8"),
    "index of pandas": (",file,label\n0,a.png,x\n1,b.png,y\n", "utf-8"),
    "blank lines and cells": ("file,label,,\n\na.png,x,,\n,,,\nb.png,y,,\n", "utf-8"),
    "slices with files of their own": ("file,slice,label\na.png,1,x\nb.png,2,y\n", "utf-8"),
    "slice twice": ("file,slice,label\na.png,1,x\na.png,1,x\nb.png,1,y\n", "utf-8"),
    "same row twice": ("file,label\na.png,x\nb.png,y\na.png,x\n", "utf-8"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_table_that_is_clear_is_read(images, kind):
    text, encoding = GOOD[kind]
    source = from_table(images, text, encoding=encoding, newline="")
    assert labels_of(source) == {"a.png": "x", "b.png": "y"}


@pytest.mark.parametrize(
    ("column", "cells", "note"),
    [
        ("Set", ("train", "Test", "training"), "column set of --labels is not read: to have its"),
        ("cv_fold", "001", "column cvfold of --labels is not read: --folds draws"),
        ("Subject ID", "778", "column subjectid of --labels is not read: if it says who is a pat"),
        ("age", "778", ""),
        ("kind", ("train", "train", "train"), ""),
        ("kind", ("train", "", "test"), ""),
    ],
)
def test_a_column_that_looks_like_one_to_read_is_told(images, column, cells, note):
    rows = [f"{name}.png,{name > 'a'},{cell}" for name, cell in zip("abc", cells, strict=True)]
    notes = from_table(images, "\n".join((f"file,label,{column}", *rows))).notes()
    told = [text for text in notes if "is not read" in text]
    assert len(told) == bool(note)
    assert all(note in text for text in told)


def test_paths_of_windows_and_whole_paths_are_found(tmp_path):
    image(tmp_path / "in" / "sub" / "a.png")
    image(tmp_path / "in" / "sub" / "b.png")
    rows = f"file,label\nsub\\a.png,x\n{tmp_path}/in/sub/b.png,y\n"
    assert labels_of(from_table(tmp_path / "in", rows)) == {"a.png": "x", "b.png": "y"}


def test_whole_paths_through_a_link_are_found(tmp_path, images):
    (tmp_path / "link").symlink_to(images)
    rows = f"file,label\n{tmp_path}/link/a.png,x\n{images}/b.png,y\n"
    table = tmp_path / "labels.csv"
    table.write_text(rows)
    assert labels_of(make_source(tmp_path / "link", str(table))) == {"a.png": "x", "b.png": "y"}


def test_a_row_without_the_folder_of_its_file_is_told_so(images):
    image(images / "sub" / "e.png", 5)
    items = from_table(images, "file,label\na.png,x\nsub/e.png,y\n").items()
    assert not [item for item in items if item.flaw and item.row]
    items = from_table(images, "file,label\na.png,x\ne.png,y\nin/b.png,y\nf.png,x\n").items()
    told = {item.row: item.flaw[0] for item in items if item.flaw and item.row}
    assert set(told) == {3, 4, 5}
    assert told[3] == told[4] != told[5] == "listed but not there"
    assert "in another folder of --source" in told[3]


@pytest.mark.parametrize("column", ["patient", "series"])
def test_a_table_of_what_no_file_says_is_refused(images, column):
    with pytest.raises(DataError, match=f"rows name each a {column}, .* no DICOM") as raised:
        from_table(images, f"{column},label\na,x\nb,y\n")
    assert ("--patient_regex" in str(raised.value)) == (column == "patient")


@pytest.mark.parametrize("word", ["", "nan", "NaN", "NA", "N/A", "None", "null", "NULL", "<NA>"])
def test_a_label_that_is_not_there_is_no_class(images, tmp_path, word):
    source = from_table(images, f"file,label\na.png,x\nb.png,y\nc.png,{word}\n")
    assert source.classes == ["x", "y"]
    assert any("1 rows of --labels give no label" in note for note in source.notes())
    manifest = prepare(source, tmp_path / "o", key=KEY, fractions={"train": 1.0})
    assert manifest["splits"]["train"]["labels"] == [1, 1]
    assert manifest["left_out"] == {"no label in --labels": 1}
    assert manifest["rejected"] == {}


def test_words_that_mean_something_are_classes(images):
    source = from_table(images, "file,label\na.png,none\nb.png,nano\nc.png,-1\nd.png,1\n")
    assert source.classes == ["1", "-1", "nano", "none"]


def test_patients_may_be_numbered_from_zero_and_one_may_be_unknown(images):
    rows = ("a.png,x,000", "b.png,y,000", "c.png,x,002", "d.png,y,unknown")
    source = from_table(images, "\n".join(("file,label,patient", *rows)))
    assert [item.patient for item in source.items()] == ["000", "000", "002", "unknown"]


def test_a_table_without_any_label_gives_patients_alone(images):
    source = from_table(images, "file,label,patient\na.png,,p\nb.png,,q\n")
    assert source.classes == []
    assert [item.patient for item in source.items() if item.flaw is None] == ["p", "q"]


def test_what_a_table_names_is_wanted(images, tmp_path):
    (images / "c.png").write_bytes(b"RIFF\x10\0\0\0WEBPVP8 ")
    (images / "d.png").write_bytes(b"")
    (images / "notes").write_text("x")
    image(images / ".hidden.png", 9)
    names = ("a.png", "b.png", "c.png", "d.png", "notes", "gone.png", ".hidden.png")
    source = from_table(
        images, "file,label\n" + "".join(f"{n},{i % 2}\n" for i, n in enumerate(names))
    )
    manifest = prepare(source, tmp_path / "o", key=KEY, fractions={"train": 1.0})
    assert manifest["rejected"] == {
        "not a PNG, JPEG, TIFF or BMP image": 3,
        "listed but not there": 1,
    }
    assert manifest["splits"]["train"]["slices"] == 3
    assert manifest["labelled"] == {"scans": 7, "scans_lost": 4, "patients": 0, "patients_lost": 0}
    table = (tmp_path / "o" / "rejected.csv").read_text()
    assert [f"line {line})" in table for line in (4, 5, 6, 7)] == [True] * 4
    with pytest.raises(DataError, match=r"57\.1% of the images were rejected"):
        prepare(source, tmp_path / "again", key=KEY, fractions={"train": 1.0}, max_rejected=0.5)


@pytest.mark.parametrize(
    ("there", "row"),
    [
        ("bu\u0308ck.png", "b\u00fcck.png"),
        ("a1.PNG", "a1.png"),
        ("a1.png", "a1"),
        ("001.png", "1.png"),
        ("c1.nii.gz", "c1"),
        ("P-01/a.png", "p1/a.png"),
    ],
)
def test_a_file_that_a_table_spells_otherwise_is_said_to_be(tmp_path, there, row):
    image(tmp_path / "in" / "right.png", 1)
    (tmp_path / "in" / there).parent.mkdir(exist_ok=True)
    image(tmp_path / "in" / "x.png", 2)
    (tmp_path / "in" / "x.png").rename(tmp_path / "in" / there)
    source = from_table(tmp_path / "in", f"file,label\nright.png,x\n{row},y\ngone.png,y\n")
    flaws = {item.path.rsplit("/in/")[1]: item.flaw[0] for item in source.items() if item.flaw}
    other = "listed, but spelled in another way in the files"
    assert flaws == {row: other, "gone.png": "listed but not there"}


def test_a_series_whose_patient_a_table_spells_otherwise_is_a_fault(tmp_path, write_ct):
    for number, patient in enumerate(("P03", "p-03", "P04", "Q1")):
        home = tmp_path / "in" / f"s{number}"
        stored = np.full((8, 8), 1000, np.uint16)
        write_ct(home / "0.dcm", stored, PatientID=patient, StudyInstanceUID=f"1.2.{number}")
    source = from_table(tmp_path / "in", "patient,label\nP03,x\nP04,y\n")
    flaws = {item.path.split("/")[-2]: item.flaw for item in source.items() if item.flaw}
    assert flaws == {"s1": ("its identifier is spelled in another way in --labels", True)}
    assert "1 files are not in --labels and were left out" in source.notes()


@pytest.mark.parametrize("given", ["folder", "table"])
def test_classes_have_one_order(tmp_path, given):
    names = [str(number) for number in (10, 2, 1, 0, 11)]
    rows = "file,label\n"
    for number, name in enumerate(names):
        image(tmp_path / "in" / name / "x.png", number)
        rows += f"{name}/x.png,{name}\n"
    root = tmp_path / "in"
    source = make_source(root, "folder") if given == "folder" else from_table(root, rows)
    assert source.classes == ["0", "1", "2", "10", "11"]


def test_folders_without_an_image_are_no_classes(tmp_path):
    for number, name in enumerate(("covid/1", "covid/2", "normal/3")):
        image(tmp_path / f"{name}.png", number)
    image(tmp_path / "masks" / "1.png", 5, "1")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "1.xml").write_text("<x/>")
    image(tmp_path / ".ipynb_checkpoints" / "1.png", 7)
    image(tmp_path / "stray.png", 8)
    source = make_source(tmp_path, "folder")
    assert source.classes == ["covid", "normal"]
    assert "2 folders without an image are no classes" in source.notes()
    assert "1 files are masks beside images and were left out" in source.notes()
    assert labels_of(source) == {
        **{"1.png": "covid", "2.png": "covid", "3.png": "normal"},
        "1.xml": "",
    }


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_folders_of_splits_are_splits(tmp_path, layout):
    number = 0
    for split in ("Train", "valid", "testing"):
        for kind in ("covid", "normal"):
            image(tmp_path / layout.format(split=split, kind=kind) / "p" / f"{number}.png", number)
            number += 1
    source = make_source(tmp_path, "folder")
    assert source.classes == ["covid", "normal"]
    places = {(item.split, source.classes[item.label]) for item in source.items()}
    assert places == {(s, k) for s in ("train", "val", "test") for k in ("covid", "normal")}


REFUSED_FOLDERS = {
    "splits beside classes": (("train/a/1", "test/a/2", "covid/3"), "test, train beside other"),
    "images in a split": (("train/a/1", "test/2"), "hold images themselves"),
    "splits in splits": (("train/test/1", "test/train/2"), "folders of splits in folders"),
    "some in splits": (("a/train/1", "a/2", "b/train/3"), "only some of the images"),
    "no folder": (("1", "2"), "no image is in a sub-folder"),
    "sets": (("training_set/a/1", "test_set/b/2"), "test_set, training_set look like splits"),
    "numbered splits": (("train1/a/1", "train2/a/2", "val1/b/3"), "train1, train2, val1 look like"),
    "sets in classes": (("a/train-data/1", "b/testset/2"), "testset, train-data look like splits"),
    "a set beside classes": (
        ("a/1", "b/2", "test_images/3"),
        "test_images beside other folders: it",
    ),
    "one folder around": (("archive/a/1", "archive/b/2"), "one folder, archive, .*2"),
    "around splits": (("x/train/a/1", "x/val/b/2"), "one folder, x, .*2"),
    "in splits": (("train/x/a/1", "val/x/b/2"), "one folder, x, .*2"),
    "sites": (
        ("A/ill/1", "A/well/2", "B/ill/3", "B/well/4"),
        "the 2 folders .* same 2 sub-folders",
    ),
    "sites in splits": (
        ("train/A/ill/1", "train/A/well/2", "val/B/ill/3", "val/B/well/4"),
        "the 2 folders .* the same 2 sub-folders",
    ),
    "patients": (("P/ill/1", "Q/well/2", "R/ill/3", "S/well/4"), "the 4 folders .* 2 sub-folders"),
    "two spellings": (("COVID/1", "Covid/2"), "the folder COVID; the folder Covid"),
}


@pytest.mark.parametrize("kind", REFUSED_FOLDERS)
def test_class_folders_that_are_not_clear_are_refused(tmp_path, kind):
    names, message = REFUSED_FOLDERS[kind]
    for number, name in enumerate(names):
        image(tmp_path / f"{name}.png", number)
    with pytest.raises(DataError, match=message):
        make_source(tmp_path, "folder")


CLEAR_FOLDERS = {
    "patients, numbered in each class": (("a/p1/1", "a/p2/2", "b/p1/3", "b/p2/4"), ["a", "b"]),
    "images of each class": (("a/images/1", "b/images/2"), ["a", "b"]),
    "a folder in one class": (("a/more/1", "a/2", "b/3"), ["a", "b"]),
    "words": (("tested/1", "trained/2"), ["tested", "trained"]),
    "one class alone": (("a/1", "a/2"), ["a"]),
    "scans named like splits": (("a/train_1/1", "a/valid_2/2", "b/train_3/3"), ["a", "b"]),
}


@pytest.mark.parametrize("kind", CLEAR_FOLDERS)
def test_class_folders_that_are_clear_are_read(tmp_path, kind):
    names, classes = CLEAR_FOLDERS[kind]
    for number, name in enumerate(names):
        image(tmp_path / f"{name}.png", number)
    assert make_source(tmp_path, "folder").classes == classes


def test_folders_of_patients_are_no_classes(tmp_path, write_ct):
    def scan(home, patient):
        for z in range(3):
            stored = np.full((8, 8), 1000, np.uint16)
            write_ct(tmp_path / home / f"{z}.dcm", stored, z=float(z), PatientID=patient)

    scan("Doe_Jane/1", "P1")
    scan("Roe_Richard/2", "P2")
    assert make_source(tmp_path, "folder").classes == ["Doe_Jane", "Roe_Richard"]  # may be classes
    scan("Poe_Edgar/3", "P4")
    with pytest.raises(DataError, match=r"each of the 3 folders .* one patient alone") as raised:
        make_source(tmp_path, "folder")
    assert "Doe" not in str(raised.value)
    scan("Doe_Jane/0", "P1")
    scan("Doe_Jane/01", "P3")  # neither its first file nor its last
    assert make_source(tmp_path, "folder").classes == ["Doe_Jane", "Poe_Edgar", "Roe_Richard"]


def test_a_class_of_which_nothing_is_left_is_an_error(tmp_path):
    for number, name in enumerate(("a/1", "a/2", "b/3")):
        image(tmp_path / "in" / f"{name}.png", number)
    whole = tmp_path / "in" / "b" / "3.png"
    whole.write_bytes(whole.read_bytes()[:60])
    source = make_source(tmp_path / "in", "folder")
    with pytest.raises(DataError, match="no slice is left of the class 'b'"):
        prepare(source, tmp_path / "o", key=KEY, fractions={"train": 1.0})


def test_the_positive_class_is_the_last(tmp_path, key_file, capsys):
    for number in range(6):
        image(tmp_path / "in" / ("COVID", "NonCOVID")[number % 2] / f"{number}.png", number)
    flags = [f"--source={tmp_path / 'in'}", f"--key={key_file}", "--workers=0", "--labels=folder"]
    flags += ["--val_fraction=0", "--test_fraction=0"]
    for positive, classes in (
        ("COVID", ["NonCOVID", "COVID"]),
        ("NonCOVID", ["COVID", "NonCOVID"]),
    ):
        out = tmp_path / positive
        assert folder.main([*flags, f"--out={out}", f"--positive={positive}"]) == 0
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["classes"], manifest["positive"]) == (classes, positive)
        assert manifest["splits"]["train"]["labels"] == [3, 3]
    capsys.readouterr()
    assert folder.main([*flags, f"--out={tmp_path / 'x'}", "--positive=flu"]) == 2
    assert "--positive=flu is no class; there are: COVID, NonCOVID" in capsys.readouterr().err
    image(tmp_path / "in" / "third" / "9.png", 9)
    with pytest.raises(ConfigError, match="for two classes"):
        make_source(tmp_path / "in", "folder", positive="COVID")


@pytest.mark.parametrize(
    ("first", "second"),
    [("17", "017"), ("P-17", "p017"), ("LUNG1-001", " lung1-001 "), ("1", "1.0"), ("A B", "a_b")],
)
def test_spellings_of_one_name(first, second):
    assert alike([first, second]) == [sorted([first, second])]
    assert first.strip() in {*respelled(second)}
    assert second.strip() in {*respelled(first)}


@pytest.mark.parametrize("name", ["covid\u200b", "\ufeffcovid", "co\u00advid", "covid\0"])
def test_what_nobody_sees_makes_no_other_name(name):
    assert alike(["covid", name]) == [sorted(["covid", name])]
    assert "covid" in {*respelled(name)}
    assert alike(["1\t1", "11"]) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(("lung1-001", "lung10-01"), ("-1", "1"), ("covid+", "covid-"), ("1-11", "11-1")),
        *(("1.05", "1.5"), ("v1.05", "v1.5"), ("1_1", "11"), ("9" * 20, "9" * 19 + "8")),
    ],
)
def test_names_that_are_two(first, second):
    assert alike([first, second]) == []
    assert not {first, *respelled(first)} & {second, *respelled(second)}
    assert not is_missing(first)
