import gzip

import numpy as np
import pytest
import SimpleITK

from data_prep import nifti
from data_prep.nifti import prepare
from data_prep.records import pseudonym

KEY = b"0123456789abcdef"
TRAIN = {"train": 1.0}
RNG = np.random.default_rng(0)


def volume(shape=(4, 5, 6), spacing=(0.5, 0.75, 3.0), origin=(1.0, 2.0, -30.0)):
    """An LPS image of floats around CT's range; shape is z y x."""
    image = SimpleITK.GetImageFromArray(RNG.uniform(-1000, 1500, shape).astype(np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI", "PIR", "SRA"])
def test_slices_are_axial_whatever_the_stored_orientation(tmp_path, read, orientation):
    image = volume()
    save(SimpleITK.DICOMOrient(image, orientation), tmp_path / "in" / "a.nii.gz")
    prepare(tmp_path / "in", tmp_path / "out", key=KEY, fractions=TRAIN)
    records = read(tmp_path / "out")
    expected = np.rint(SimpleITK.GetArrayFromImage(image))
    np.testing.assert_array_equal([r["image"] for r in records], expected)
    np.testing.assert_allclose([r["position_mm"] for r in records], [-30, -27, -24, -21], atol=1e-4)
    np.testing.assert_allclose(records[0]["spacing_mm"], [3.0, 0.75, 0.5], rtol=1e-6)


def test_a_cut_off_file_is_rejected(tmp_path):
    source = tmp_path / "in"
    save(volume((20, 30, 40)), source / "whole.nii.gz")
    save(volume((20, 30, 40)), source / "plain.nii")
    data = (source / "whole.nii.gz").read_bytes()
    (source / "half.nii.gz").write_bytes(data[: len(data) // 2])
    (source / "short.nii.gz").write_bytes(gzip.compress(gzip.decompress(data)[:-100]))
    (source / "flipped.nii.gz").write_bytes(data[:-6] + b"\0\1" + data[-4:])
    (source / "short.nii").write_bytes((source / "plain.nii").read_bytes()[:-100])
    (source / "page.nii").write_text("<html>404</html>" * 50)
    (source / "empty.nii").write_bytes(b"")
    manifest = prepare(source, tmp_path / "out", key=KEY, fractions=TRAIN)
    assert manifest["splits"]["train"]["slices"] == 40
    assert manifest["rejected"] == {
        "cut off or damaged (gzip)": 2,
        "cut off": 2,
        "not NIfTI": 2,
    }


def test_intensity_is_judged(tmp_path, read):
    source = tmp_path / "in"
    labels = RNG.integers(0, 30, (4, 5, 6)).astype(np.uint8)
    grey = np.arange(240, dtype=np.uint8).reshape(4, 10, 6)
    windowed = RNG.uniform(0, 560, (4, 5, 6)).astype(np.float32)
    for name, values in {"labels": labels, "grey": grey, "windowed": windowed}.items():
        save(SimpleITK.GetImageFromArray(values), source / f"{name}.nii")
    save(volume(), source / "ct.nii.gz")
    manifest = prepare(source, tmp_path / "hu", key=KEY, fractions=TRAIN)
    reasons = {"not in Hounsfield units (no value below 0)": 2, "a segmentation, not an image": 1}
    assert manifest["rejected"] == reasons
    assert manifest["intensity"] == "hu"
    grey8 = {"key": KEY, "fractions": TRAIN, "intensity": "grey8"}
    manifest = prepare(source, tmp_path / "grey", **grey8)
    assert manifest["splits"]["train"]["slices"] == 4
    assert manifest["intensity"] == "grey8"
    (first, *_) = read(tmp_path / "grey")
    assert set(np.ravel(first["image"])) <= set(range(256))


def test_patients_are_of_the_file_name(tmp_path, read, key_file):
    for name in ("case1_pre", "case1_post", "case2_pre"):
        save(volume(), tmp_path / "in" / f"{name}.nii.gz")
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'o'}", f"--key={key_file}"]
    assert (
        nifti.main(
            [*flags, "--patient_regex=^(case[0-9]+)", "--val_fraction=0", "--test_fraction=0"]
        )
        == 0
    )
    records = read(tmp_path / "o")
    expected = {pseudonym(key_file.read_bytes(), name).encode() for name in ("case1", "case2")}
    assert {r["patient"] for r in records} == expected
    assert len({r["series"] for r in records}) == 3


def test_real_volumes(tmp_path, shared):
    source = shared("volumes/totalsegmentator-example")
    manifest = prepare(source, tmp_path / "out", key=KEY, fractions=TRAIN)
    assert manifest["splits"]["train"]["slices"] == 112 + 30
    assert manifest["rejected"] == {"a segmentation, not an image": 2}
