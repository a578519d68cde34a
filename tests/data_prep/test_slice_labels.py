"""Labels of DICOM: of single slices, by file or SOPInstanceUID, and by any other identifier."""

import numpy as np
import pytest
import SimpleITK

from ctssl_jax.errors import DataError
from data_prep.folder import make_source
from data_prep.irregular import Irregular
from data_prep.patients import PatientBy
from data_prep.pipeline.prepare import prepare

KEY = b"0123456789abcdef"
TRAIN = {"train": 1.0}
SLICES = 4


@pytest.fixture
def export(tmp_path, write_ct):
    """Two patients, two studies of each, one series of each; slice k of series i holds 10 i + k."""
    for i in range(4):
        for k in range(SLICES):
            stored = np.full((8, 8), 1024 + 10 * i + k, np.uint16)
            stored[:4] = np.random.default_rng([i, k]).integers(0, 200, (4, 8))
            write_ct(
                tmp_path / "in" / f"s{i}" / f"{k}.dcm",
                stored,
                z=2.0 * k,
                SOPInstanceUID=f"1.3.{i}.{k}",
                SeriesInstanceUID=f"1.2.{i}",
                StudyInstanceUID=f"1.1.{i}",
                AccessionNumber=f"A{i}",
                PatientID=f"P{i // 2}",
            )
    return tmp_path / "in"


def labelled(export, rows, **options):
    """A source of a table, given as lines."""
    table = export.parent / "labels.csv"
    table.write_text("\n".join(rows))
    return make_source(export, str(table), **options)


def run(source, out, **options):
    return prepare(source, out, key=KEY, fractions=TRAIN, **options)


def values(read, out):
    """The label of each slice by the value that it holds."""
    return {int(r["image"][-1, -1]): int(r["label"]) for r in read(out)}


NAMES = [(i, k) for i in range(4) for k in range(SLICES)]


@pytest.mark.parametrize("column", ["file", "sop", "SOP Instance UID"])
def test_each_slice_has_its_label(tmp_path, export, read, column):
    name = "s{}/{}.dcm" if column == "file" else "1.3.{}.{}"
    rows = [f"{name.format(i, k)},{'ny'[k % 2]}" for i, k in NAMES]
    manifest = run(labelled(export, [f"{column},label", *rows]), tmp_path / "o")
    assert values(read, tmp_path / "o") == {10 * i + k: k % 2 for i, k in NAMES}
    assert manifest["labels_of"] == "slice"
    assert manifest["classes"] == ["n", "y"]
    assert manifest["labelled"] == {"scans": 16, "scans_lost": 0, "patients": 2, "patients_lost": 0}


@pytest.mark.parametrize("column", ["file", "sop"])
def test_slices_without_a_label_are_left_out_and_their_series_stays_whole(
    tmp_path, export, read, column
):
    name = "s{}/{}.dcm" if column == "file" else "1.3.{}.{}"
    some = [(i, k) for i, k in NAMES if i < 2 and k != 1]  # without them a slice would be missing
    rows = [f"{name.format(i, k)},{'' if k == 2 else i}" for i, k in some]
    manifest = run(labelled(export, [f"{column},label", *rows]), tmp_path / "o")
    assert values(read, tmp_path / "o") == {10 * i + k: i for i in (0, 1) for k in (0, 3)}
    assert manifest["rejected"] == {}
    assert manifest["left_out"] == {"no label in --labels": 4}
    assert "8 files are not in --labels and were left out" in manifest["note"]
    assert "2 rows of --labels give no label" in manifest["note"]


@pytest.mark.parametrize(
    ("column", "names", "expected"),
    [
        ("series", ["1.2.0", "1.2.3"], {0: 0, 3: 1}),
        ("StudyInstanceUID", ["1.1.1", "1.1.2"], {1: 0, 2: 1}),
        ("accession", ["A0", "A2"], {0: 0, 2: 1}),
        ("PatientID", ["P0", "P1"], {0: 0, 1: 0, 2: 1, 3: 1}),
        ("file", ["s0", "s1"], {0: 0, 1: 1}),
    ],
)
def test_a_row_may_speak_of_a_series_study_or_patient(
    tmp_path, export, read, column, names, expected
):
    rows = [f"{name},{'ny'[number]}" for number, name in enumerate(names)]
    manifest = run(labelled(export, [f"{column},label", *rows]), tmp_path / "o")
    found = values(read, tmp_path / "o")
    assert found == {10 * i + k: label for i, label in expected.items() for k in range(SLICES)}
    assert manifest["labels_of"] == "scan"
    assert manifest["labelled"]["scans"] == 2


def test_the_most_specific_identifier_is_the_one_that_counts(tmp_path, export, read):
    rows = ["patient,study,series,label,split", "X,1.1.0,1.2.0,n,train", "Y,1.1.3,1.2.3,y,val"]
    manifest = run(labelled(export, rows), tmp_path / "o")
    assert {s: (n["patients"], n["labels"]) for s, n in manifest["splits"].items()} == {
        "train": (1, [4, 0]),
        "val": (1, [0, 4]),
    }


def test_rows_that_match_nothing_are_named(tmp_path, export):
    rows = ["patient,label", "P0,n", "P1,y", "P7,y", "p-01,n"]
    source = labelled(export, rows)
    manifest = run(source, tmp_path / "o")
    assert manifest["rejected"] == {
        "listed but not there": 1,
        "listed, but spelled in another way in the files": 1,
    }
    assert "(--labels, line 4)" in (tmp_path / "o" / "rejected.csv").read_text()
    assert (
        "labelled scans lost: 2 of 4 (--labels, line 4, 5)"
        in (tmp_path / "o" / "quality.txt").read_text()
    )
    with pytest.raises(DataError, match=r"nothing is left of 2 of 4 labelled scans .*line 4, 5"):
        run(source, tmp_path / "x", max_rejected=0.2)


def test_one_series_is_of_one_patient_and_split(tmp_path, export):
    rows = ["file,label,patient", "s0,n,p", "s0/1.dcm,y,q", "s1,y,r", "s2,n,s"]
    source = labelled(export, rows)
    with pytest.raises(DataError, match=r"1 of 3 studies .* more than one patient"):
        run(source, tmp_path / "o")
    manifest = run(source, tmp_path / "o", patient_by=PatientBy.ID)
    assert manifest["rejected"] == {"one series has several patients or splits": SLICES}


def test_a_labelled_scan_that_is_lost_counts_as_one_beside_its_images(tmp_path, export, write_ct):
    (export / "s3" / "2.dcm").unlink()  # irregular: a quarter of the scans, a fifth of the images
    rows = ["file,label", *(f"s{i},{'ny'[i % 2]}" for i in range(4))]
    source = labelled(export, rows)
    with pytest.raises(DataError, match=r"1 of 4 labelled scans \(--labels, line 5\)"):
        run(source, tmp_path / "o", max_rejected=0.22)
    manifest = run(source, tmp_path / "o", max_rejected=0.25)
    assert manifest["labelled"] == {"scans": 4, "scans_lost": 1, "patients": 2, "patients_lost": 0}
    kept = labelled(export, rows, irregular=Irregular.ACCEPT_2D)
    assert run(kept, tmp_path / "all")["labelled"]["scans_lost"] == 0


def test_a_patient_that_is_lost_counts(tmp_path, export):
    for i in (2, 3):
        for k in range(SLICES):
            path = export / f"s{i}" / f"{k}.dcm"
            path.write_bytes(path.read_bytes()[:-9])
    rows = ["file,label,patient", *(f"s{i},{'ny'[i % 2]},p{i // 2}" for i in range(4))]
    source = labelled(export, rows)
    with pytest.raises(DataError, match=r"50\.0% of the images"):
        run(source, tmp_path / "o", max_rejected=0.3)


def test_what_is_left_out_by_design_is_no_lost_scan(tmp_path, write_volume):
    for number in range(4):
        home = tmp_path / "in" / "ny"[number % 2] / f"p{number}"
        write_volume(home / "ct.nii.gz")
        mask = np.zeros((4, 15, 12), np.uint8)
        mask[1:3] = 1
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), str(home / "mask.nii.gz"))
        (home / "notes.txt").write_text("x")
    source = make_source(tmp_path / "in", "folder", "(p[0-9])/")
    manifest = run(source, tmp_path / "o", max_rejected=0.0)
    assert manifest["labelled"] == {"scans": 4, "scans_lost": 0, "patients": 4, "patients_lost": 0}
    bad = tmp_path / "in" / "y" / "p1" / "ct.nii.gz"
    bad.write_bytes(bad.read_bytes()[:-40])
    source = make_source(tmp_path / "in", "folder", "(p[0-9])/")
    manifest = run(source, tmp_path / "again")
    assert manifest["labelled"] == {"scans": 4, "scans_lost": 1, "patients": 4, "patients_lost": 1}
