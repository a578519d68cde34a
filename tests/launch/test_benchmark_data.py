"""The benchmarks of preparation and audit run and write what they say; nothing is timed here."""

import json

import pydicom

from launch import benchmark_audit, benchmark_preparation


def test_audit_benchmark_tells_what_share_of_copies_is_found(phantom_path, tmp_path, capsys):
    out = tmp_path / "found.json"
    flags = [f"--data={phantom_path}", "--copies=12", f"--out={out}"]
    assert benchmark_audit.main(flags) == 0
    result = json.loads(out.read_text())
    assert result["found"].keys() == benchmark_audit.EDITS.keys()
    assert result["found"]["JPEG quality 50"] > 0.8 > result["found"]["6 % cut off"]
    assert (result["slices"], result["patients"], result["copies"]) == (32, 4, 12)
    assert result["pairs_of_patients"] == 0
    assert "32 slices of 4 patients" in capsys.readouterr().out
    assert benchmark_audit.main(["--data=none"]) == 3


def test_preparation_benchmark_prepares_what_it_wrote(tmp_path, capfd):
    out = tmp_path / "rates.json"
    flags = ["--series=2", "--slices=3", "--size=32", "--workers=1", f"--folder={tmp_path}"]
    assert benchmark_preparation.main([*flags, f"--out={out}"]) == 0
    (row,) = json.loads(out.read_text())
    assert (row["series"], row["slices"], row["workers"]) == (2, 6, 1)
    assert row["slices_per_second"] > 0
    assert row["peak_mib"] > 20
    assert [path.name for path in tmp_path.iterdir()] == ["rates.json"]


def test_copies_of_a_scan_are_of_other_patients_and_differ(tmp_path):
    benchmark_preparation.write_series(tmp_path / "one", 1, 2, 32)
    copies = tmp_path / "copies"
    assert benchmark_preparation.write_copies(copies, 3, tmp_path / "one" / "000000") == 2
    files = [pydicom.dcmread(path) for path in sorted(copies.rglob("*.dcm"))]
    assert len({file.PatientID for file in files}) == len({f.SeriesInstanceUID for f in files}) == 3
    assert len({file.SOPInstanceUID for file in files}) == 6
    assert len({file.PixelData for file in files[::2]}) == 3
