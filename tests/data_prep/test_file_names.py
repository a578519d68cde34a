"""Names that are no UTF-8 are names: of files, folders, patients, and what is shown of them."""

import os

import numpy as np
import pytest
from PIL import Image

from data_prep import dicom, folder, volumes
from data_prep.names import from_bytes, is_text, shown, text_path, to_bytes

LATIN_1 = os.fsdecode("Müller".encode("latin-1"))
SHIFT_JIS = os.fsdecode("画像".encode("shift-jis"))


@pytest.fixture
def prepared(tmp_path, key_file, capfd):
    """Runs a command; returns its exit code and what it said."""

    def run(command, source, *flags):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        words = [f"--source={source}", f"--out={out}", f"--key={key_file}", "--workers=0"]
        code = command.main([*words, "--val_fraction=0", "--test_fraction=0", *flags])
        told = capfd.readouterr()
        assert "Traceback" not in told.err
        return code, told.out + told.err

    return run


def image(path, value=0):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def test_bytes_of_a_name_come_back():
    for name in (LATIN_1, SHIFT_JIS, "a\nb", "Müller"):
        assert from_bytes(to_bytes(name)) == name
        assert is_text(shown(name))
        assert "\n" not in shown(name)
    assert (shown(LATIN_1), shown("Müller"), shown("a\nb")) == (r"M\xfcller", "Müller", r"a\nb")
    assert [is_text(name) for name in (LATIN_1, "Müller")] == [False, True]


def test_a_path_for_libraries_is_text(tmp_path):
    path = tmp_path / f"{LATIN_1}.nii.gz"
    path.write_bytes(b"x")
    with text_path(path) as name:
        assert is_text(name)
        assert name.endswith(".nii.gz")
        with open(name, "rb") as stream:
            assert stream.read() == b"x"
    assert not os.path.lexists(name)


def test_images_in_folders_and_classes_of_any_name(tmp_path, prepared):
    for number in range(4):
        home = tmp_path / "in" / (LATIN_1, SHIFT_JIS)[number % 2]
        image(f"{home}/{LATIN_1}{number}.png", number)
    image(f"{tmp_path}/in/{LATIN_1}/bad.png", 9)
    with open(tmp_path / "in" / LATIN_1 / f"{SHIFT_JIS}.png", "wb") as stream:
        stream.write(b"\x89PNG\r\n")
    regex = r"([^/]+)\.png"
    flags = ("--labels=folder", f"--patient_regex={regex}", "--show_paths", "--max_rejected=0.5")
    code, told = prepared(folder, tmp_path / "in", *flags)
    assert code == 0, told
    assert r"M\xfcller" in told
    assert "images kept: 5" in told


def test_a_table_in_the_encoding_of_the_names(tmp_path, prepared):
    rows = [b"file,label,patient"]
    for number in range(2):
        image(f"{tmp_path}/in/{LATIN_1}{number}.png", number)
        rows.append(os.fsencode(f"{LATIN_1}{number}.png") + b",%d,p%d" % (number, number))
    (tmp_path / "labels.csv").write_bytes(b"\n".join(rows))
    code, told = prepared(folder, tmp_path / "in", f"--labels={tmp_path}/labels.csv")
    assert (code, "images kept: 2" in told) == (0, True), told


@pytest.mark.parametrize("command", [dicom, folder])
def test_dicom_of_any_name(tmp_path, prepared, write_ct, command):
    for k in range(3):
        path = tmp_path / "in" / LATIN_1 / f"{SHIFT_JIS}{k}.dcm"
        stored = np.random.default_rng(k).integers(0, 2000, (16, 16)).astype(np.uint16)
        write_ct(path, stored, z=2.0 * k)
    code, told = prepared(command, tmp_path / "in")
    assert (code, "images kept: 3" in told) == (0, True), told


@pytest.mark.parametrize("command", [volumes, folder])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_of_any_name(tmp_path, prepared, write_volume, command, suffix):
    write_volume(tmp_path / f"plain{suffix}")
    (tmp_path / "in" / SHIFT_JIS).mkdir(parents=True)
    (tmp_path / f"plain{suffix}").rename(tmp_path / "in" / SHIFT_JIS / f"{LATIN_1}{suffix}")
    code, told = prepared(command, tmp_path / "in")
    assert (code, "images kept: 4" in told) == (0, True), told


def test_an_output_that_libraries_cannot_write_is_one_line(tmp_path, capfd):
    image(f"{tmp_path}/in/a.png")
    assert folder.main([f"--source={tmp_path / 'in'}", f"--out={tmp_path}/{LATIN_1}"]) == 2
    assert capfd.readouterr().err == "data_prep.folder: --out: its path must be UTF-8\n"
