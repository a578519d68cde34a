import json

import numpy as np
import pytest
from PIL import Image

from ctssl_jax.errors import ConfigError, DataError
from data_prep import folder, images
from data_prep.folder import prepare
from data_prep.records import pseudonym

KEY = b"0123456789abcdef"
TRAIN = {"train": 1.0}
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_pixel_values_of_every_mode(tmp_path):
    colour = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    alpha = RNG.integers(0, 256, (7, 5, 1), dtype=np.uint8)
    deep = RNG.integers(0, 65536, (7, 5)).astype(np.uint16)
    # ITU-R BT.601: the weights 0.299, 0.587 and 0.114.
    luminance = np.floor(colour @ np.array([0.299, 0.587, 0.114]) + 0.5)
    palette = Image.fromarray(GREY).convert("P")
    palette.putpalette([255 - v for v in range(256) for _ in range(3)])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(GREY > 127).save(tmp_path / "one_bit.png")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "int32.tiff")
    equal = np.repeat(GREY[..., None], 3, -1)
    cases = {
        "l.png": (GREY, GREY),
        "l.bmp": (GREY, GREY),
        "l.tiff": (GREY, GREY),
        "rgb_equal.png": (equal, GREY),
        "rgba_equal.png": (np.concatenate([equal, alpha], -1), GREY),
        "la.png": (np.concatenate([GREY[..., None], alpha], -1), GREY),
        "rgb.png": (colour, luminance),
        "rgba.png": (np.concatenate([colour, alpha], -1), luminance),
        "deep.png": (deep, deep.astype(int) - 32768),
        "deep.tiff": (deep, deep.astype(int) - 32768),
        "int32.tiff": (None, deep.astype(int) - 32768),
        "palette.png": (None, 255 - GREY),
        "one_bit.png": (None, np.where(GREY > 127, 255, 0)),
    }
    for name, (pixels, expected) in cases.items():
        if pixels is not None:
            save(tmp_path / name, pixels)
        read = images.read_grey(tmp_path / name)
        assert read.dtype == np.int16
        np.testing.assert_allclose(read, expected, atol=name in ("rgb.png", "rgba.png"))
        if name not in ("rgb.png", "rgba.png"):
            np.testing.assert_array_equal(read, expected)


def test_unusable_images_are_listed_and_the_rest_goes_on(tmp_path, read, monkeypatch):
    source = tmp_path / "in"
    save(source / "a.png", GREY)
    save(source / "b.png", GREY)
    save(source / "c_deep.png", GREY.astype(np.uint16) * 200)
    noisy = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    save(source / "d.png", noisy)
    (source / "d.png").write_bytes((source / "d.png").read_bytes()[:2000])
    (source / "e.png").write_text("<html>404</html>")
    save(source / "f_large.png", np.zeros((80, 80), np.uint8))
    frames = [Image.fromarray(GREY)] * 2
    frames[0].save(source / "g.tiff", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(images, "MAX_PIXELS", 5000)
    manifest = prepare(source, tmp_path / "out", key=KEY, fractions=TRAIN)
    assert manifest["intensity"] == "grey8"
    assert manifest["rejected"] == {
        "16-bit image among 8-bit images": 1,
        "cannot be decoded (damaged or cut off)": 1,
        "not a PNG, JPEG, TIFF or BMP image": 1,
        "more than 5000 pixels": 1,
        "more than one frame": 1,
    }
    assert len(read(tmp_path / "out")) == 2


def test_patients_and_labels_from_names(tmp_path, read):
    source = tmp_path / "in"
    for kind in ("healthy", "sick"):
        for patient in range(5):
            for k in (2, 10):
                save(source / kind / f"{kind}{patient}_{k}.png", GREY)
    save(source / "sick" / "nobody.png", GREY)
    manifest = prepare(
        source,
        tmp_path / "out",
        key=KEY,
        fractions={"train": 0.6, "val": 0.2, "test": 0.2},
        patient_regex=r"^([a-z]+\d)_",
        labels="folder",
    )
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
    flags = {"key": KEY, "fractions": TRAIN, "patient_regex": "^(p)"}
    prepare(tmp_path / "in", tmp_path / "out", **flags)
    assert [r["image"][0, 0] for r in read(tmp_path / "out")] == [1, 9, 10, 100]


def test_labels_from_a_table(tmp_path, read):
    source, table = tmp_path / "in", tmp_path / "labels.csv"
    for name in ("a", "b", "c", "x"):
        save(source / "sub" / f"{name}.png", GREY)
    rows = ["file, label,patient,split", "sub/a.png,no,p1,train", "sub/b.png,yes,p1,train"]
    table.write_text("\n".join([*rows, "sub/c.png,yes,p2,val", "sub/gone.png,no,p3,val"]))
    manifest = prepare(source, tmp_path / "o", key=KEY, fractions=TRAIN, labels=str(table))
    assert manifest["classes"] == ["no", "yes"]
    assert manifest["splits"]["train"]["labels"] == [1, 1]
    assert manifest["splits"]["val"]["labels"] == [0, 1]
    assert manifest["rejected"] == {"listed in --labels but not there": 1, "not in --labels": 1}
    assert {r["patient"].decode() for r in read(tmp_path / "o")} == {pseudonym(KEY, "p1")}
    table.write_text("\n".join([*rows, "sub/c.png,yes,p1,val"]))
    with pytest.raises(DataError, match="1 patients are in more than one split"):
        prepare(source, tmp_path / "o2", key=KEY, fractions=TRAIN, labels=str(table))
    table.write_text("name,label\n1,2\n")
    with pytest.raises(DataError, match="no column file"):
        prepare(source, tmp_path / "o2", key=KEY, fractions=TRAIN, labels=str(table))


@pytest.mark.parametrize("regex", ["(", "p[0-9]"])
def test_a_bad_patient_regex_is_refused(tmp_path, regex):
    with pytest.raises(ConfigError, match="--patient_regex"):
        prepare(tmp_path, tmp_path / "o", key=KEY, fractions=TRAIN, patient_regex=regex)


def test_command_prints_a_table(tmp_path, capfd, key_file):
    save(tmp_path / "in" / "a.png", GREY)
    (tmp_path / "in" / "notes.txt").write_text("x")
    out = tmp_path / "out"
    flags = [f"--source={tmp_path / 'in'}", f"--out={out}", f"--key={key_file}"]
    assert folder.main(flags) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines()[1].split() == ["train", "1", "1", "1"]
    assert "1  not a PNG, JPEG, TIFF or BMP image" in shown.out
    assert folder.main(flags) == 3
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert json.loads((out / "manifest.json").read_text())["source_kind"] == "image"


@pytest.mark.parametrize("module", ["folder", "dicom", "nifti"])
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_missing_and_empty_folders_are_one_line_and_code_3(tmp_path, module, kind, capfd, key_file):
    command = __import__(f"data_prep.{module}", fromlist=["main"]).main
    if kind == "empty":
        (tmp_path / "in").mkdir()
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", f"--key={key_file}"]
    assert command(flags) == 3
    shown = capfd.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert "--source" in shown.err
    assert [p.name for p in tmp_path.iterdir()] == ["in"] * (kind == "empty")


def test_bad_fractions_are_code_2(tmp_path, capfd, key_file):
    flags = [f"--source={tmp_path}", f"--out={tmp_path / 'o'}", f"--key={key_file}"]
    assert folder.main([*flags, "--val_fraction=0.9"]) == 2
    assert "--val_fraction=0.9" in capfd.readouterr().err
