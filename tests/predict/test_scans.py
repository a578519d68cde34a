"""How the scans to predict are prepared: by the flags of preparation, and as the run's own were."""

import numpy as np
import pydicom
import pytest
import SimpleITK

from ctssl_jax.predict import PASSED_ON
from ctssl_jax.predict.__main__ import main
from ctssl_jax.predict.scans import Preparation, prepared
from data_prep.effects import EFFECTS

DECIDED = {"source", "out", "canvas", "max_rejected", "val_fraction", "test_fraction"}
OF_SPLITS = {"folds", "seed", "split_by", "join_duplicates", "not_duplicates", "show_pairs"}
OF_LEARNING = {"positive", "slice_labels", "exclude_patients_of"}
OF_PRINTING = {"case_name", "show_paths", "show_cases", "dry_run", "beam"}
OF_OTHERS = {"dicom", "lesion_slices", "md5", "nodules", "patients", "series", "size", "slices"}


def test_each_flag_of_preparation_is_taken_or_has_no_place_here():
    """What the preparation advises can be said here, too."""
    left = {*DECIDED, *OF_SPLITS, *OF_LEARNING, *OF_PRINTING, *OF_OTHERS}
    assert set(PASSED_ON) == set(EFFECTS) - left


@pytest.fixture
def anonymous(tuned, tmp_path):
    """Scans of several people, anonymised as one."""
    for number, folder in enumerate(tuned.folders("test")):
        for path in folder.rglob("*.dcm"):
            dataset = pydicom.dcmread(path)
            dataset.PatientID = dataset.PatientName = "ANONYMOUS"
            home = tmp_path / "in" / str(number)
            home.mkdir(parents=True, exist_ok=True)
            dataset.save_as(home / path.name)
    return tmp_path / "in"


def test_who_is_a_patient_can_be_said(tuned, anonymous, tmp_path, capfd):
    words = [f"--run={tuned.run}", f"--source={anonymous}", f"--key={tuned.key}", "--workers=0"]
    assert main([*words, f"--out={tmp_path / 'a'}"]) == 3
    assert "Else say --patient_by=study" in capfd.readouterr().err
    assert main([*words, f"--out={tmp_path / 'a'}", "--patient_by=study"]) == 0


def test_scans_are_divided_into_patients_as_the_runs_own_were(tuned, anonymous, tmp_path):
    known = {"options": {"patient_by": "study"}}
    flags = [f"--key={tuned.key}", "--workers=0"]
    dataset = prepared(tmp_path / "a", Preparation(anonymous, 32, flags, False), known)
    assert dataset.manifest["options"]["patient_by"] == "study"
    assert dataset.manifest["splits"]["train"]["patients"] == len(tuned.folders("test"))
    said = Preparation(anonymous, 32, [*flags, "--patient_by=id"], False)
    dataset = prepared(tmp_path / "b", said, known)
    assert dataset.manifest["splits"]["train"]["patients"] == 1


def test_volumes_have_no_studies_to_go_by(tuned, tmp_path):
    values = np.random.default_rng(0).normal(-300, 300, (6, 32, 32)).astype(np.int16)
    (tmp_path / "in").mkdir()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), tmp_path / "in" / "a.nii.gz")
    flags = [f"--key={tuned.key}", "--workers=0", "--values=hu"]
    scans = Preparation(tmp_path / "in", 32, flags, False)
    found = prepared(tmp_path / "out", scans, {"options": {"patient_by": "study"}})
    assert found.manifest["splits"]["train"]["slices"] == 6
