"""LIDC-IDRI as its archive lays it out, with made-up pixels."""

import numpy as np
import pytest
from dicom_files import outcome

from ctssl_jax.errors import DataError
from data_prep import lidc
from data_prep.dicom import DicomSource
from data_prep.lidc import LidcSource
from data_prep.source import Place

RNG = np.random.default_rng(0)
PLACE = Place("1.2", "LIDC-IDRI-0001")
ROOT = "1.3.6.1.4.1.14519.5.2.1.6279.6001"


def write_series(write_ct, folder, patient, series, heights, **tags):
    for i, z in enumerate(heights):
        write_ct(
            folder / f"1-{i + 1:03}.dcm",
            RNG.integers(0, 2000, (16, 12)).astype(np.int16),
            z=float(z),
            PatientID=patient,
            StudyInstanceUID=f"{ROOT}.1{series}",
            SeriesInstanceUID=f"{ROOT}.2{series}",
            **tags,
        )


@pytest.fixture(params=["", "manifest-1600709154662/LIDC-IDRI"])
def archive(request, tmp_path, write_ct):
    """Three patients: two series and a radiograph, missing slices, a radiograph alone."""
    root = tmp_path / request.param
    one = root / "LIDC-IDRI-0001"
    write_series(write_ct, one / "01-01-2000-30178" / "30.0-92500", "LIDC-IDRI-0001", 1, range(6))
    write_series(write_ct, one / "01-01-2000-30178" / "31.0-92501", "LIDC-IDRI-0001", 2, range(3))
    write_series(write_ct, one / "35511" / "76", "LIDC-IDRI-0001", 3, [0], Modality="DX")
    (one / "01-01-2000-30178" / "30.0-92500" / "069.xml").write_text("<LidcReadMessage/>")
    two = root / "LIDC-IDRI-0002" / "98329" / "3000522"
    write_series(write_ct, two, "LIDC-IDRI-0002", 4, [3, 4, 5, 8, 9])
    write_series(
        write_ct, root / "LIDC-IDRI-0003" / "1" / "1", "LIDC-IDRI-0003", 5, [0], Modality="CR"
    )
    (tmp_path / "LICENSE").write_text("CC BY 3.0")
    return tmp_path


def test_ct_series_are_kept_with_their_gaps(archive):
    found = outcome(LidcSource(archive))
    assert sorted({one.patient for one in found.slices}) == ["LIDC-IDRI-0001", "LIDC-IDRI-0002"]
    assert len(found.slices) == 6 + 3 + 5
    assert sorted(found.reasons) == ["not CT", "not CT", "not DICOM", "not DICOM"]
    assert not any(rejected.fault for rejected in found.rejected)
    (finding,) = found.findings
    assert (finding.finding, finding.kept) == ("missing slices", True)
    assert finding.detail == "2 missing, widest gap 3 mm"


def test_counts_against_the_published_ones(archive):
    assert LidcSource(archive).notes() == [
        "3 of 1,018 CT series: 1,015 missing",
        "2 of 1,010 patients: 1,008 missing",
    ]


def test_counting_opens_one_slice_of_each_folder(archive, monkeypatch):
    opened = []
    monkeypatch.setattr(DicomSource, "place", lambda self, item: opened.append(item) or PLACE)
    LidcSource(archive).notes()
    assert len(opened) == 6  # five series and the licence


def test_a_complete_archive_lacks_nothing(archive, monkeypatch):
    monkeypatch.setattr(lidc, "SERIES", 3)
    monkeypatch.setattr(lidc, "PATIENTS", 2)
    assert LidcSource(archive).notes() == ["3 of 3 CT series", "2 of 2 patients"]


def test_a_list_of_series_says_how_many_are_missing(archive):
    manifest = archive / "list.tcia"
    uids = [f"{ROOT}.2{i}" for i in (1, 2, 4, 7, 8)]
    manifest.write_text("downloadServerUrl=x\nListOfSeriesToDownload=\n" + "\n".join(uids) + "\n")
    expected = lidc.load_series(manifest)
    assert expected == set(uids)
    notes = LidcSource(archive, expected=expected).notes()
    assert notes[2] == "2 of 5 listed series are missing"
    assert not any(ROOT in note for note in notes)


def test_a_list_that_is_none(tmp_path):
    with pytest.raises(DataError, match="--series: no such file"):
        lidc.load_series(tmp_path / "nothing")
    (tmp_path / "empty").write_text("SeriesInstanceUID\n")
    with pytest.raises(DataError, match="--series holds no SeriesInstanceUID"):
        lidc.load_series(tmp_path / "empty")


def test_a_scan_of_another_set_is_rejected(archive, write_ct):
    write_series(write_ct, archive / "other", "LIDC-IDRI-1", 8, [0])
    write_series(write_ct, archive / "another", "LIDC-IDRI-00011", 9, [0])
    assert outcome(LidcSource(archive)).reasons.count("PatientID is not of LIDC-IDRI") == 2
    assert len(LidcSource(archive).notes()) == 2


def test_the_command_prepares_and_notes(archive, tmp_path_factory, read, key_file, capfd):
    out = tmp_path_factory.mktemp("data") / "lidc"
    flags = [f"--source={archive}", f"--out={out}", f"--key={key_file}", "--workers=0"]
    flags += ["--val_fraction=0", "--test_fraction=0"]
    assert lidc.main(flags) == 0
    shown = capfd.readouterr().out
    assert "3 of 1,018 CT series" in shown
    assert "missing slices" in (out / "findings.csv").read_text()
    records = read(out)
    assert len(records) == 14
    assert {record["source_kind"] for record in records} == {b"dicom"}
    flags = [*flags[:1], f"--out={out}2", *flags[2:], "--irregular=reject"]
    assert lidc.main([*flags, "--max_rejected=1"]) == 0
    assert "irregular series: missing slices" in capfd.readouterr().out


def test_the_real_thing(shared):
    found = outcome(LidcSource(shared("volumes/lidc-0001")))
    assert (len(found.slices), found.reasons, found.findings) == (48, ["not DICOM"], [])
    np.testing.assert_allclose(np.diff([one.position_mm for one in found.slices]), 2.5, atol=1e-3)
    assert all((one.image[0, 0], one.image.min()) == (-1024, -1024) for one in found.slices)
    assert {one.patient for one in found.slices} == {"LIDC-IDRI-0001"}
