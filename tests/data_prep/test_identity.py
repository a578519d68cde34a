"""No patient identity in any byte that is written or printed: planted marks are nowhere found."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.pipeline import records

NAME, MRN, UID, DATE = "Canary^Yellowbird", "MRN7741903", "1.2.840.99991.7.42", "19470815"
FOLDER = "Yellowbird_Tweety_MRN7741903"
NOTE = "canaryfreetext"
MARKS = [NAME, "Yellowbird", MRN, UID, DATE, FOLDER, "Tweety", NOTE]


@pytest.fixture
def export(tmp_path, write_ct) -> Path:
    """A folder as from a hospital, with good, odd and broken files, a mark in every text."""
    source = tmp_path / FOLDER
    rng = np.random.default_rng(0)
    for series in range(3):
        for index in range(4):
            write_ct(
                source / f"{NAME}_{DATE}" / f"{UID}.{series}" / f"{MRN}-{index}.dcm",
                rng.integers(0, 2000, (32, 32)).astype(np.int16),
                z=float(index if series < 2 else 7 * index * index),
                SeriesInstanceUID=f"{UID}.{series}",
                StudyInstanceUID=f"{UID}.9",
                SOPInstanceUID=f"{UID}.{series}.{index}",
                PatientID=MRN + str(series),
                PatientName=NAME,
                StudyDate=DATE,
                PatientBirthDate=DATE,
                SeriesDescription=NOTE,
                AccessionNumber=MRN,
                InstitutionName=NOTE,
                StudyDescription=NAME,
            )
    good = sorted(source.rglob("*.dcm"))[0].read_bytes()
    (source / f"{NAME}.dcm").write_bytes(good[: len(good) // 2])
    (source / f"{MRN}.dcm").write_bytes(good.replace(b"MONOCHROME2 ", NOTE[:12].encode()))
    # The number of rows as text, the orientation as words.
    (source / f"{DATE}.dcm").write_bytes(good.replace(b"1\\0\\0\\0\\1\\0 ", b"Yellowbird  "))
    (source / f"{UID}.txt").write_text(f"{NAME} {MRN}")
    (source / f"{NAME}.nii.gz").write_bytes(gzip.compress(NAME.encode() * 50)[:40])
    return source


def run(module: str, *flags: str, home: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(home)},
        timeout=120,
    )


def written(out: Path) -> bytes:
    """All bytes of a folder and all names in it; records and arrays uncompressed as well."""
    everything = []
    for path in sorted(out.rglob("*")):
        everything.append(str(path.relative_to(out)).encode())
        if path.is_file():
            everything.append(path.read_bytes())
        if "array_record" in path.name and path.suffix != ".tmp":
            everything += [repr(r).encode() for r in _fields(path)]
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                everything += [arrays[name].tobytes() for name in arrays]
    return b"\n".join(everything)


def _fields(path: Path) -> list[dict]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    fields = [records.decode(r) for r in reader.read_all()] if reader.num_records() else []
    reader.close()
    return fields


def assert_no_mark(text: bytes | str) -> None:
    data = text.encode() if isinstance(text, str) else text
    for mark in MARKS:
        for spelling in {mark, mark.lower(), mark.upper(), mark.replace("^", "_")}:
            assert spelling.encode() not in data, mark


def test_search_finds_a_mark_in_a_record_and_an_array(tmp_path):
    from data_prep.source import Slice

    record = records.encode(Slice(np.zeros((2, 2), np.int16), "", "", 0), MRN, "s", "dicom")
    writer = records.Writer(tmp_path / "x.array_record", compressed=True)
    writer.write(record)
    writer.close()
    with pytest.raises(AssertionError, match=MRN):
        assert_no_mark(written(tmp_path))
    np.savez_compressed(tmp_path / "y.npz", names=np.array([NOTE]).astype("S32"))
    with pytest.raises(AssertionError, match=NOTE):
        assert_no_mark(written(tmp_path).replace(MRN.encode(), b""))


@pytest.mark.parametrize("module", ["data_prep.dicom", "data_prep.folder"])
@pytest.mark.parametrize("irregular", ["reject", "accept_2d"])
def test_no_mark_in_dataset_or_output(export, tmp_path, module, irregular):
    out = tmp_path / "out"
    flags = [f"--source={export}", f"--out={out}", f"--irregular={irregular}", "--workers=2"]
    flags += ["--val_fraction=0", "--test_fraction=0", "--patient_by=id"]
    strict = run(module, *flags, "--max_rejected=0.01", home=tmp_path / "home")
    assert strict.returncode == 3, strict.stderr
    assert_no_mark(strict.stdout + strict.stderr)
    assert_no_mark(written(tmp_path / "out.rejected"))
    assert_no_mark(written(tmp_path / ".out.work"))
    result = run(module, *flags, "--max_rejected=1", home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    assert_no_mark(result.stdout + result.stderr)
    assert_no_mark(written(out))
    manifest = json.loads((out / "manifest.json").read_text())
    kept = sum(split["slices"] for split in manifest["splits"].values())
    assert kept >= (12 if irregular == "accept_2d" else 8)


@pytest.mark.parametrize("flags", [["--source=SOURCE/none"], ["--source=SOURCE", "--key=SOURCE/k"]])
def test_no_mark_in_an_error(export, tmp_path, flags):
    flags = [flag.replace("SOURCE", str(export)) for flag in flags]
    result = run("data_prep.dicom", *flags, f"--out={tmp_path / 'out'}", home=tmp_path / "home")
    assert result.returncode == 3
    assert result.stderr.startswith("data_prep.dicom: ")
    assert_no_mark(result.stdout + result.stderr)


def test_no_mark_in_what_a_killed_preparation_leaves(export, tmp_path):
    for index in range(60):  # more to do, so that the kill comes in the middle
        copy = export / f"copy{index}"
        copy.mkdir()
        first = sorted((export / f"{NAME}_{DATE}" / f"{UID}.0").iterdir())[0].read_bytes()
        (copy / "a.dcm").write_bytes(
            first.replace(f"{UID}.0".encode(), f"{UID}.{index % 7}".encode())
        )
    command = [sys.executable, "-m", "data_prep.dicom", f"--source={export}"]
    command += [f"--out={tmp_path / 'out'}", "--workers=1", "--irregular=accept_2d"]
    command += ["--patient_by=id"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HOME": str(tmp_path / "home")},
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / ".out.work/parts").glob("*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    printed = process.communicate()[0]
    assert_no_mark(printed)
    time.sleep(0.5)  # what was left over of it ends by itself
    assert_no_mark(written(tmp_path / ".out.work"))
