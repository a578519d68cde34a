"""A dry run ends as the command would."""

import numpy as np
import pytest
from PIL import Image

from data_prep import dicom, folder


def image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def whole(root, write_ct):
    for number in range(6):
        image(root / "ab"[number % 2] / f"{number}.png", number)
    return folder, ["--labels=folder"]


def one_study_of_two(root, write_ct):
    for number in range(4):
        stored = np.random.default_rng(number).integers(0, 2000, (16, 16)).astype(np.uint16)
        tags = {"PatientID": "PQ"[number // 2], "SeriesInstanceUID": f"1.9.{number // 2}"}
        write_ct(root / f"{number}.dcm", stored, z=2.0 * number, StudyInstanceUID="1.2", **tags)
    return dicom, []


def one_study_of_two_joined(root, write_ct):
    return dicom, [*one_study_of_two(root, write_ct)[1], "--patient_by=joined"]


def class_without_a_slice(root, write_ct):
    for number, name in enumerate(("a/1", "a/2", "b/3")):
        image(root / f"{name}.png", number)
    (root / "b" / "3.png").write_bytes((root / "b" / "3.png").read_bytes()[:60])
    return folder, ["--labels=folder", "--max_rejected=0.9"]


def lost_row(root, write_ct):
    for number in range(8):
        image(root / "first" / f"{number}.png", number)
    (root / "labels.csv").write_text("file,label\nfirst,x\nsecond,x\n")
    return folder, [f"--labels={root / 'labels.csv'}", "--max_rejected=0.3"]


def one_patient(root, write_ct):
    for number in range(2):
        image(root / f"p1_{number}.png", number)
    return folder, ["--patient_regex=^(p[0-9])"]


def scans(root, write_ct):
    """Four folders of two slices, of which each is a case."""
    for number, patient in enumerate("pqrs"):
        for index in range(2):
            image(root / f"s{number}" / f"{patient}_{index}.png", 2 * number + index)
    rows = "".join(f"s{number},{'xy'[number % 2]}\n" for number in range(4))
    (root / "labels.csv").write_text(f"folder,label\n{rows}")
    return folder, [f"--labels={root / 'labels.csv'}", "--patient_regex=^([a-z])_"]


def case_of_two_labels(root, write_ct):
    more = scans(root, write_ct)[1]
    rows = "".join(
        f"s{number}/{patient}_{index}.png,{'xy'[index]},{number}\n"
        for number, patient in enumerate("pqrs")
        for index in range(2)
    )
    (root / "labels.csv").write_text(f"file,label,case\n{rows}")
    return folder, more


ENDS = {
    whole: (0, ""),
    one_study_of_two: (3, "1 of 1 studies (StudyInstanceUID) have more than one patient"),
    one_study_of_two_joined: (0, ""),
    class_without_a_slice: (3, "no slice is left of the class 'b'"),
    lost_row: (3, "left of 1 of 2 labelled scans (--labels, line 3)"),
    scans: (0, ""),
    case_of_two_labels: (3, "different labels"),
    one_patient: (3, "--val_fraction=0 --test_fraction=0"),
}


@pytest.mark.parametrize("make", ENDS, ids=lambda make: make.__name__)
def test_it_ends_as_the_command(make, tmp_path, write_ct, key_file, capsys):
    module, more = make(tmp_path / "in", write_ct)
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", f"--key={key_file}"]
    code, message = ENDS[make]
    for word in ("--dry_run", "--workers=0"):
        assert module.main([*flags, *more, word, "--workers=0"]) == code
        assert message in capsys.readouterr().err
    assert (tmp_path / "out").exists() == (code == 0)


def test_it_counts_what_labels_are_of(tmp_path, write_ct, key_file, capsys):
    module, more = scans(tmp_path / "in", write_ct)
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", f"--key={key_file}"]
    assert module.main([*flags, *more, "--workers=0", "--case_name=study", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "cases (studies): 4" in said
    assert "label x: 2 studies, 4 slices" in said
    module, more = whole(tmp_path / "images", write_ct)
    flags[0] = f"--source={tmp_path / 'images'}"
    assert module.main([*flags, *more, "--workers=0", "--dry_run"]) == 0
    assert "label a: 3 slices" in capsys.readouterr().out
