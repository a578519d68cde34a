import warnings

import numpy as np
import pytest

from data_prep import dicom
from data_prep.dicom import prepare
from data_prep.records import pseudonym

KEY = b"0123456789abcdef"
TRAIN = {"train": 1.0}
RNG = np.random.default_rng(0)


def pixels(dtype=np.int16, low=0, high=2000):
    return RNG.integers(low, high, (16, 12)).astype(dtype)


def test_rescale_is_of_each_file_and_order_is_of_position(tmp_path, write_ct, read):
    source, n = tmp_path / "in", 6
    stored = [pixels() for _ in range(n)]
    names = RNG.permutation(n)
    scale = [(1, -1024), (2, -1000), (0.5, -1024), (1, 0), (1.5, -200), (3, -1024)]
    for i in range(n):
        slope, intercept = scale[i]
        write_ct(
            source / f"deep{names[i]}" / f"{names[i]}",
            stored[i],
            z=-40 + 3.0 * i,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
            InstanceNumber=int(names[i]),
        )
    prepare(source, tmp_path / "out", key=KEY, fractions=TRAIN)
    records = read(tmp_path / "out")
    assert [r["slice_index"] for r in records] == list(range(n))
    np.testing.assert_allclose([r["position_mm"] for r in records], -40 + 3.0 * np.arange(n))
    for record, raw, (slope, intercept) in zip(records, stored, scale, strict=True):
        np.testing.assert_array_equal(record["image"], np.rint(raw * slope + intercept))
        np.testing.assert_allclose(record["spacing_mm"], [3.0, 0.5, 0.75])
        assert record["patient"].decode() == pseudonym(KEY, "P1")
        assert record["series"].decode() == pseudonym(KEY, "1.2.3.4")


def test_order_is_along_the_normal_of_a_tilted_gantry(tmp_path, write_ct, read):
    tilt = np.deg2rad(20)
    orientation = [1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt))]
    normal = np.cross(orientation[:3], orientation[3:])
    for i, name in enumerate("cab"):
        place = [float(f"{v:.4f}") for v in 5 * i * normal]
        write_ct(
            tmp_path / "in" / name,
            np.full((16, 12), i, np.int16),
            ImageOrientationPatient=orientation,
            ImagePositionPatient=place,
        )
    prepare(tmp_path / "in", tmp_path / "out", key=KEY, fractions=TRAIN)
    records = read(tmp_path / "out")
    assert [r["image"][0, 0] + 1024 for r in records] == [0, 1, 2]
    np.testing.assert_allclose(records[2]["position_mm"], 10, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "padding", "tag", "intercept"),
    [
        (np.int16, -900, ("SS", -900), -20),  # signed, in the SS of its pixels
        (np.int16, -900, ("US", 64636), -20),  # the same, written as unsigned
        (np.int16, -2048, None, -1024),  # no tag: below -1024 HU
        (np.uint16, 3000, ("US", 3000), -1024),  # bright padding
        (np.uint16, 64636, ("SS", -900), -65000),  # unsigned pixels, signed tag
        (np.uint16, 0, ("US", 0), -500),  # padding that would look like fat
    ],
)
def test_padding_becomes_air(tmp_path, write_ct, read, dtype, padding, tag, intercept):
    low = max(1, -1024 - intercept)
    stored = pixels(dtype, low, low + 500)
    stored[:3] = padding
    write_ct(tmp_path / "in" / "a", stored, RescaleIntercept=intercept, padding=tag)
    prepare(tmp_path / "in", tmp_path / "out", key=KEY, fractions=TRAIN)
    (record,) = read(tmp_path / "out")
    assert (record["image"][:3] == -1024).all()
    np.testing.assert_array_equal(record["image"][3:], stored[3:].astype(int) + intercept)


def test_padding_range(tmp_path, write_ct, read):
    stored = pixels(np.uint16, 100, 2000)
    stored[0, :4] = (10, 11, 19, 20)
    write_ct(tmp_path / "in" / "a", stored, PixelPaddingValue=10, PixelPaddingRangeLimit=19)
    prepare(tmp_path / "in", tmp_path / "out", key=KEY, fractions=TRAIN)
    (record,) = read(tmp_path / "out")
    np.testing.assert_array_equal(record["image"][0, :4], [-1024, -1024, -1024, 20 - 1024])


def test_what_is_no_axial_ct_slice_is_left_out_with_its_reason(tmp_path, write_ct):
    cases = {
        "not CT": {"Modality": "MR"},
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "secondary capture": {"SOPClassUID": dicom.SECONDARY_CAPTURE},
        "not axial": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        "no orientation or position": {"ImagePositionPatient": None},
        "no RescaleSlope and RescaleIntercept: HU are not known": {"RescaleIntercept": None},
        "more than one frame in a file": {"NumberOfFrames": 2},
        "not MONOCHROME2": {"PhotometricInterpretation": "MONOCHROME1"},
        "cut off": {"Rows": 17},
        "header cannot be read": {"ImagePositionPatient": [1, 2]},
    }
    for number, tags in enumerate(cases.values()):
        write_ct(tmp_path / "in" / str(number), pixels(), z=float(number), **tags)
    write_ct(tmp_path / "in" / "good", pixels(), SOPInstanceUID="1.2.9")
    write_ct(tmp_path / "in" / "twice", pixels(), SOPInstanceUID="1.2.9")
    (tmp_path / "in" / "page.html").write_text("<html>")
    manifest = prepare(tmp_path / "in", tmp_path / "out", key=KEY, fractions=TRAIN)
    expected = dict.fromkeys(cases, 1) | {"not DICOM": 1, "repeats a SOPInstanceUID": 1}
    assert manifest["rejected"] == expected
    assert manifest["splits"]["train"]["slices"] == 1


def test_patients_without_an_id_are_kept_apart_by_study(tmp_path, write_ct):
    for i in range(4):
        uids = {"StudyInstanceUID": f"1.{i // 2}", "SeriesInstanceUID": f"1.2.{i}"}
        write_ct(tmp_path / "in" / str(i), pixels(), PatientID="", **uids)
    manifest = prepare(tmp_path / "in", tmp_path / "out", key=KEY, fractions=TRAIN)
    assert manifest["splits"]["train"]["patients"] == 2
    assert manifest["splits"]["train"]["series"] == 4


def test_no_identity_is_written_or_shown(tmp_path, write_ct, capfd, key_file):
    canaries = {
        "PatientName": "CANARYNAME^ANNA",
        "PatientID": "CANARYID77",
        "PatientBirthDate": "19470203",
        "SeriesInstanceUID": "1.2.77777.1",
        "StudyInstanceUID": "1.2.77777.2",
        "AccessionNumber": "CANARYACC",
        "InstitutionName": "CANARYHOSPITAL",
        "StudyDate": "20011213",
    }
    source = tmp_path / "CANARYFOLDER"
    for i in range(3):
        uid = f"1.2.77777.3.{i}"
        write_ct(source / f"CANARYFILE{i}", pixels(), z=float(i), SOPInstanceUID=uid, **canaries)
    (source / "CANARYFILE9").write_bytes((source / "CANARYFILE1").read_bytes()[:-50])
    (source / "CANARYFILE8").write_bytes(b"CANARY")
    out = tmp_path / "out"
    flags = [f"--source={source}", f"--out={out}", f"--key={key_file}"]
    assert dicom.main(flags) == 0
    shown = capfd.readouterr()
    written = [shown.out.encode(), shown.err.encode()]
    for path in out.rglob("*"):
        written.append(str(path.relative_to(out)).encode())
        written += [path.read_bytes()] if path.is_file() else []
    for secret in (*canaries.values(), "CANARY", "77777", key_file.read_text(), str(tmp_path)):
        assert not any(secret.encode() in text for text in written), secret


def test_a_header_that_pydicom_warns_of_is_read_in_silence(tmp_path, write_ct, capfd):
    with warnings.catch_warnings(action="ignore"):
        write_ct(
            tmp_path / "in" / "a", pixels(), SeriesInstanceUID="1.2.CANARY", PatientID="X" * 70
        )
    manifest = prepare(tmp_path / "in", tmp_path / "out", key=KEY, fractions=TRAIN)
    assert manifest["splits"]["train"]["slices"] == 1
    assert capfd.readouterr() == ("", "")


def test_a_real_series_in_order(tmp_path, shared, read):
    manifest = prepare(shared("volumes/lidc-0001"), tmp_path / "o", key=KEY, fractions=TRAIN)
    assert manifest["splits"]["train"]["slices"] == 48
    records = read(tmp_path / "o")
    np.testing.assert_allclose(np.diff([r["position_mm"] for r in records]), 2.5, atol=1e-3)
    assert all((r["image"][0, 0], r["image"].min()) == (-1024, -1024) for r in records)


def test_nasty_files_are_records_or_reasons(tmp_path, shared, capfd, key_file):
    source = shared("nasty")
    flags = [f"--source={source}", f"--out={tmp_path / 'o'}", f"--key={key_file}"]
    assert dicom.main(flags) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    total = sum(path.is_file() for path in source.rglob("*"))
    slices, rejected = 0, int(shown.out.split("rejected: ")[1].split()[0])
    for line in shown.out.splitlines()[1:4]:
        slices += int(line.split()[1])
    assert slices + rejected == total
