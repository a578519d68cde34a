import json
import pickle

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from ctssl_jax.errors import ConfigError, DataError
from data_prep import dicom, folder, volumes
from data_prep.folder import Format, make_source
from data_prep.irregular import Irregular
from data_prep.phantom import source as phantom
from data_prep.pipeline.dry_run import dry_run
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.records import pseudonym
from data_prep.readers.images import ImageSource

KEY = b"0123456789abcdef"
TRAIN = {"train": 1.0}
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def volume(path, slices=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.uniform(-1000, 1500, (slices, 15, 12)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))


def run(source, out, fractions=TRAIN):
    return prepare(source, out, key=KEY, fractions=fractions)


def test_unusable_images_are_listed_and_the_rest_goes_on(tmp_path, read):
    source = tmp_path / "in"
    save(source / "a.png", GREY)
    save(source / "b.png", GREY)
    save(source / "c_deep.png", GREY.astype(np.uint16) * 200)
    (source / "e.png").write_text("<html>404</html>")
    (source / "notes.txt").write_text("x")
    (source / ".DS_Store").write_text("x")
    manifest = run(make_source(source), tmp_path / "out")
    assert manifest["intensity"] == "grey8"
    assert manifest["source_kind"] == "image"
    assert manifest["rejected"] == {
        "16-bit image among 8-bit images": 1,
        "not a PNG, JPEG, TIFF or BMP image": 1,
    }
    assert manifest["left_out"] == {
        "not a PNG, JPEG, TIFF or BMP image": 1,
        "hidden (its name begins with a dot)": 1,
    }
    assert len(read(tmp_path / "out")) == 2


def test_patients_and_labels_from_names(tmp_path, read):
    source = tmp_path / "in"
    for kind in ("healthy", "sick"):
        for patient in range(5):
            for k in (2, 10):
                save(source / kind / f"{kind}{patient}_{k}.png", GREY)
    save(source / "sick" / "nobody.png", GREY)
    fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    manifest = run(make_source(source, "folder", r"^([a-z]+\d)_"), tmp_path / "out", fractions)
    assert manifest["classes"] == ["healthy", "sick"]
    assert manifest["rejected"] == {"no patient: --patient_regex does not match": 1}
    found = {split: n["labels"] for split, n in manifest["splits"].items()}
    assert found == {"train": [6, 6], "val": [2, 2], "test": [2, 2]}
    patients = [{r["patient"] for r in read(tmp_path / "out", split)} for split in found]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 10
    assert pseudonym(KEY, "sick0").encode() in set.union(*patients)


def test_slices_of_a_patient_are_in_natural_order(tmp_path, read):
    for k in (10, 9, 100, 1):
        save(tmp_path / "in" / f"p_{k}.png", np.full((3, 3), k, np.uint8))
    run(make_source(tmp_path / "in", patient_regex="^(p)"), tmp_path / "out")
    assert [r["image"][0, 0] for r in read(tmp_path / "out")] == [1, 9, 10, 100]
    assert [r["slice_index"] for r in read(tmp_path / "out")] == [0, 1, 2, 3]


def test_labels_from_a_table(tmp_path, read):
    source, table = tmp_path / "in", tmp_path / "in" / "labels.csv"
    for name in ("a", "b", "c", "x"):
        save(source / "sub" / f"{name}.png", GREY)
    rows = ["file, label,patient,split", "sub/a.png,no,p1,train", "sub/b.png,yes,p1,train"]
    rest = ["sub/c.png,yes,p2,val", "sub/gone.png,no,p3,val"]
    table.write_text("\n".join([*rows, *rest, rows[1]]))
    manifest = run(make_source(source, str(table)), tmp_path / "o")
    assert manifest["classes"] == ["no", "yes"]
    assert manifest["splits"]["train"]["labels"] == [1, 1]
    assert manifest["splits"]["val"]["labels"] == [0, 1]
    assert manifest["rejected"] == {"listed but not there": 1}
    assert manifest["note"] == "1 files are not in --labels and were left out"
    assert {r["patient"].decode() for r in read(tmp_path / "o")} == {pseudonym(KEY, "p1")}
    cases = {
        "1 patients are in more than one split": [*rows, "sub/c.png,yes,p1,val"],
        "line 4 says of a file": [*rows, "sub/a.png,yes,p1,train"],
        "train, val or test in all rows": [*rows, "sub/c.png,yes,p2,"],
        "not in --source": [*rows, "../secret.png,yes,p2,val"],
        "no column file": ["name,label", "1,2"],
    }
    (tmp_path / "secret.png").write_bytes((source / "sub" / "a.png").read_bytes())
    for message, lines in cases.items():
        table.write_text("\n".join(lines))
        with pytest.raises(DataError, match=message) as raised:
            make_source(source, str(table))
        assert str(tmp_path) not in str(raised.value)
    with pytest.raises(DataError, match="CSV file in UTF-8"):
        make_source(source, str(tmp_path / "none.csv"))


def test_a_row_may_name_a_folder_and_a_nearer_one_wins(tmp_path, read):
    source, table = tmp_path / "in", tmp_path / "labels.csv"
    for name in ("p1/a.png", "p1/b.png", "p1/deep/c.png", "p2/d.png"):
        save(source / name, GREY)
    table.write_text("file,label\np1,0\np1/deep,1\np1/b.png,2\np2/,3\n")
    manifest = run(make_source(source, str(table), "^(.)"), tmp_path / "o")
    assert manifest["classes"] == ["0", "1", "2", "3"]
    labels = {r["patient"].decode(): r["label"] for r in read(tmp_path / "o")}
    assert labels == {pseudonym(KEY, p): n for p, n in {"a": 0, "b": 2, "c": 1, "d": 3}.items()}


def test_dicom_and_volumes_may_be_mixed(tmp_path, read):
    source = tmp_path / "in"
    phantom.write_dicom(source / "dicom", patients=2, slices=3, size=32, seed=3)
    volume(source / "case7.nii.gz")
    volume(source / "case8.mhd")
    table = tmp_path / "labels.csv"
    rows = ["file,label,patient", "dicom/patient000,sick,P", "dicom/patient001,well,Q"]
    table.write_text("\n".join([*rows, "case7.nii.gz,sick,", "case8.mhd,well,R"]))
    made = make_source(source, str(table), "^(case.)")
    manifest = run(made, tmp_path / "o")
    assert manifest["intensity"] == "hu"
    assert manifest["source_kind"] == "dicom+volume"
    assert manifest["splits"]["train"] == {
        "slices": 14,
        "patients": 4,
        "series": 4,
        "labels": [7, 7],
    }
    names = {pseudonym(KEY, name): name for name in ("P", "Q", "case7", "R")}
    found = {(names[r["patient"].decode()], int(r["label"])) for r in read(tmp_path / "o")}
    assert found == {("P", 0), ("Q", 1), ("case7", 0), ("R", 1)}
    assert manifest["rejected"] == {}
    assert "1 files are not in --labels" in manifest["note"]  # the data file of case8


def test_without_a_table_the_patient_of_dicom_is_in_its_header(tmp_path, read):
    for seed, name in enumerate(("sick", "well")):
        phantom.write_dicom(tmp_path / "in" / name, patients=2, slices=3, size=32, seed=seed)
    manifest = run(make_source(tmp_path / "in", "folder"), tmp_path / "o")
    assert manifest["classes"] == ["sick", "well"]
    assert manifest["source_kind"] == "dicom"
    found = {(r["patient"].decode(), int(r["label"])) for r in read(tmp_path / "o")}
    assert found == {(pseudonym(KEY, f"phantom-{i}-{k}"), i) for i in (0, 1) for k in (0, 1)}


@pytest.mark.parametrize("given", ["folder", "table"])
def test_a_copy_with_another_label_is_refused(tmp_path, given):
    """As two rows of a table that contradict each other are."""
    source, table = tmp_path / "in", tmp_path / "labels.csv"
    for seed, name in enumerate(("sick", "well")):
        phantom.write_dicom(source / name, patients=20, slices=2, size=32, seed=seed)
    rows = [f"{path.relative_to(source)},{path.parts[-3]}" for path in source.glob("*/*/*")]
    (source / "well" / "copies1").mkdir()
    for path in (source / "sick" / "patient001").iterdir():
        copy = source / "well" / "copies1" / path.name
        copy.write_bytes(path.read_bytes())
        rows.append(f"well/copies1/{path.name},well")
    table.write_text("\n".join(["file,label", *rows]))
    made = make_source(source, "folder" if given == "folder" else str(table))
    with pytest.raises(DataError, match="2 files are copies of others that have another label"):
        run(made, tmp_path / "o")
    assert "with another label" in (tmp_path / "o.rejected" / "rejected.csv").read_text()
    with pytest.raises(DataError, match="2 files are copies of others that have another label"):
        dry_run(made, KEY, TRAIN)
    (source / "well" / "copies1").rename(source / "sick" / "copies1")
    manifest = run(make_source(source, "folder"), tmp_path / "o")
    assert manifest["left_out"] == {"a copy of another file": 2}


def test_patients_of_dicom_in_two_splits_are_an_error(tmp_path):
    source, table = tmp_path / "in", tmp_path / "labels.csv"
    phantom.write_dicom(source, patients=1, slices=2, size=32, seed=3)
    phantom.write_dicom(source / "again", patients=1, slices=2, size=32, seed=3)
    table.write_text("file,label,split\npatient000,a,train\nagain,a,val\n")
    with pytest.raises(DataError, match="1 patients are in more than one split"):
        make_source(source, str(table))


def test_intensities_are_not_mixed(tmp_path):
    source = tmp_path / "in"
    volume(source / "case7.nii.gz")
    phantom.write_dicom(source / "dicom", patients=1, slices=2, size=32, seed=3)
    save(source / "preview.png", GREY)
    with pytest.raises(
        DataError, match=r"2 DICOM files and 1 volumes.*1 images.*--format="
    ) as raised:
        make_source(source)
    assert str(tmp_path) not in str(raised.value)
    counts = {}
    for format in (Format.DICOM, Format.VOLUME, Format.IMAGE):
        manifest = run(make_source(source, format=format), tmp_path / format.value)
        counts[format] = (manifest["splits"]["train"]["slices"], manifest["intensity"])
        assert manifest["rejected"] == {}
    assert counts == {
        Format.DICOM: (2, "hu"),
        Format.VOLUME: (4, "hu"),
        Format.IMAGE: (1, "grey8"),
    }


def test_content_decides_not_the_name(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(GREY).save(source / "scan.dcm", format="PNG")
    assert isinstance(make_source(source), ImageSource)
    volume(tmp_path / "v.nrrd")
    (tmp_path / "v.nrrd").rename(source / "scan.dcm")
    assert make_source(source).kind == "volume"


def test_oblique_volumes_are_kept_if_asked_for(tmp_path):
    image = SimpleITK.GetImageFromArray(RNG.uniform(-1000, 1500, (4, 15, 12)))
    cos, sin = np.cos(0.2), np.sin(0.2)
    image.SetDirection([1, 0, 0, 0, cos, -sin, 0, sin, cos])
    (tmp_path / "in").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "in" / "a.nii"))
    source = make_source(tmp_path / "in", irregular=Irregular.ACCEPT_2D)
    assert run(source, tmp_path / "o")["splits"]["train"]["slices"] == 4
    with pytest.raises(DataError, match="irregular volume: oblique"):
        run(make_source(tmp_path / "in"), tmp_path / "o2")


def test_processes_are_not_given_the_list(tmp_path):
    volume(tmp_path / "a.nii")
    source = make_source(tmp_path)
    again = pickle.loads(pickle.dumps(source))
    assert list(again.items()) == []
    (item,) = source.items()
    assert again.place(item) == source.place(item)


@pytest.mark.parametrize("regex", ["(", "p[0-9]"])
def test_a_bad_patient_regex_is_refused(tmp_path, regex):
    with pytest.raises(ConfigError, match="--patient_regex"):
        make_source(tmp_path, patient_regex=regex)


def test_command_prints_a_table(tmp_path, capfd, key_file):
    save(tmp_path / "in" / "a.png", GREY)
    (tmp_path / "in" / "notes.txt").write_text("x")
    out = tmp_path / "out"
    flags = [f"--source={tmp_path / 'in'}", f"--out={out}", f"--key={key_file}", "--workers=0"]
    flags += ["--val_fraction=0", "--test_fraction=0"]
    assert folder.main(flags) == 0
    shown = capfd.readouterr()
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["train", "1", "1", "1"] in rows
    assert "not a PNG, JPEG, TIFF or BMP image" in shown.out
    assert folder.main(flags) == 3
    assert json.loads((out / "manifest.json").read_text())["source_kind"] == "image"


@pytest.mark.parametrize(
    ("highest", "told"), [(218, True), (4095, True), (8000, True), (16383, False), (65535, False)]
)
def test_16_bits_of_which_little_is_used_are_noted(tmp_path, highest, told):
    grey = RNG.uniform(0, 1, (64, 64))
    grey[0, 0] = 0
    for k in range(3):
        image = (grey * highest).astype(np.uint16)
        image[k, k] = 65535  # a dead pixel
        save(tmp_path / f"{k}.png", image)
    (tmp_path / "3.png").write_bytes(b"")
    notes = [note for note in make_source(tmp_path).notes() if "65535" in note]
    assert len(notes) == told
    assert all("slice_min_max" in note for note in notes)


@pytest.mark.parametrize("module", ["folder", "dicom", "volumes", "covid_ct", "hemorrhage"])
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_missing_and_empty_folders_are_one_line_and_code_3(tmp_path, module, kind, capfd, key_file):
    command = __import__(f"data_prep.{module}", fromlist=["main"]).main
    if kind == "empty":
        (tmp_path / "in").mkdir()
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", f"--key={key_file}"]
    assert command([*flags, "--workers=0"]) == 3
    shown = capfd.readouterr()
    assert shown.out == ""
    (line,) = (line for line in shown.err.splitlines() if line.startswith(f"data_prep.{module}: "))
    assert "--source" in line
    assert str(tmp_path) not in line
    assert not (tmp_path / "out").exists()


def test_bad_fractions_are_code_2(tmp_path, capfd, key_file):
    save(tmp_path / "in" / "a.png", GREY)
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'o'}", f"--key={key_file}"]
    assert folder.main([*flags, "--val_fraction=0.9"]) == 2
    assert "--val_fraction=0.9" in capfd.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
@pytest.mark.parametrize("command", [dicom, volumes])
def test_a_command_of_one_format_leads_to_that_of_all(tmp_path, command, dry, capsys):
    save(tmp_path / "in" / "a.png", GREY)
    asked = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", *dry]
    code = command.main(asked)
    said = "".join(capsys.readouterr())
    assert code == 3
    assert "no CT slices found" in said
    assert "`python -m data_prep.folder` reads images too" in said
