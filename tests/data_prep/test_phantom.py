import numpy as np
import pytest

from data_prep.dicom import DicomSource
from data_prep.phantom import source as phantom
from data_prep.phantom.source import patient_slices
from data_prep.pipeline.prepare import prepare


def test_phantom_is_a_function_of_its_seed():
    first, again, other = (
        list(patient_slices(0, slices=3, size=32, seed=seed)) for seed in (5, 5, 6)
    )
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert (a.label, a.series) == (b.label, b.series)
        assert np.mean(a.image != c.image) > 0.2


def test_phantom_looks_like_ct():
    slices = list(patient_slices(1, slices=9, size=64, seed=0))
    chest, abdomen = slices[6].image, slices[1].image
    for image in (chest, abdomen):
        assert image.dtype == np.int16
        assert abs(np.median(image[:4, 24:40]) + 1000) < 30
        assert image.max() > 300  # bone
        assert np.mean((image > -150) & (image < -50)) > 0.02  # fat
        assert np.mean((image > 0) & (image < 250)) > 0.05  # soft tissue
    lung = (chest > -950) & (chest < -700)
    assert lung[20:44, 10:54].mean() > 0.2
    steps = np.abs(np.diff([item.image.astype(int) for item in slices], axis=0))
    assert steps.mean() < np.abs(chest - abdomen.astype(int)).mean()


def test_a_lesion_changes_a_small_place_only():
    rng = np.random.default_rng(0)
    hu = np.full((128, 128), -850.0)
    lung = np.zeros((128, 128), bool)
    lung[30:100, 20:60] = True
    before = hu.copy()
    phantom.add_lesion(hu, lung, np.zeros_like(lung), rng)
    changed = np.abs(hu - before) > 100
    assert 4 < changed.sum() < 0.03 * changed.size
    assert lung[changed].mean() > 0.5


def test_command_writes_all_labels_in_all_splits(tmp_path, capfd):
    flags = ["--patients=5", "--slices=6", "--size=32"]
    assert phantom.main([f"--out={tmp_path / 'a'}", *flags]) == 0
    assert phantom.main([f"--out={tmp_path / 'b'}", *flags]) == 0
    names = {"a", "b"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert len({(tmp_path / name / "manifest.json").read_text() for name in names}) == 1
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[1:4]]
    assert [row[:4] for row in rows] == [
        ["train", "18", "3", "3"],
        ["val", "6", "1", "1"],
        ["test", "6", "1", "1"],
    ]
    assert [row[4:] for row in rows] == [["9", "9"], ["3", "3"], ["3", "3"]]


def test_dicom_series_bring_the_same_hu(tmp_path, read):
    phantom.write_dicom(tmp_path / "dicom", patients=2, slices=4, size=48, seed=3)
    source = DicomSource(tmp_path / "dicom")
    manifest = prepare(source, tmp_path / "out", key=b"k" * 16, fractions={"train": 1.0})
    assert manifest["splits"]["train"] == {
        "slices": 8,
        "patients": 2,
        "series": 2,
        "labels": [],
    }
    expected = {
        item.image.tobytes(): item
        for patient in range(2)
        for item in patient_slices(patient, slices=4, size=48, seed=3)
    }
    axis = np.arange(48) - 23.5
    outside = np.hypot(*np.meshgrid(axis, axis)) > 24
    matches = with_padding = 0
    for record in read(tmp_path / "out"):
        padded = bool((record["image"][outside] == -1024).all())
        with_padding += padded
        for item in expected.values():
            image = np.where(outside & padded, -1024, item.image)
            if np.array_equal(image, record["image"]):
                matches += 1
                assert record["slice_index"] == item.slice_index
                np.testing.assert_allclose(record["position_mm"], item.position_mm, atol=1e-3)
                np.testing.assert_allclose(record["spacing_mm"], item.spacing_mm, rtol=1e-4)
    assert matches == 8
    assert with_padding == 4  # the second patient is stored signed


def test_impossible_sizes_are_refused(tmp_path, capfd):
    assert phantom.main([f"--out={tmp_path / 'a'}", "--size=4"]) == 2
    assert "--size=4" in capfd.readouterr().err


@pytest.mark.parametrize("size", [17, 40])
def test_any_size(size):
    (item,) = patient_slices(0, slices=1, size=size, seed=0)
    assert item.image.shape == (size, size)


def test_nodules_lie_in_the_lungs_of_every_slice_of_every_other_patient():
    shape = {"slices": 2, "size": 64, "seed": 0}
    for patient in (0, 1):
        with_them = list(patient_slices(patient, **shape, nodules=8))
        without = list(patient_slices(patient, **shape))
        assert [item.label for item in with_them] == [patient % 2] * 2
        assert {item.case for item in with_them} == {f"series {patient}"}
        assert {item.patient for item in with_them}.isdisjoint({item.patient for item in without})
    hu, lung = np.full((128, 128), -850.0), np.zeros((128, 128), bool)
    lung[30:100, 20:60] = True
    phantom.add_nodules(hu, lung, 8, np.random.default_rng(0))
    bright = hu > -100
    assert not bright[~lung].any()
    assert 8 < bright.sum() < 0.3 * lung.sum()


def test_a_phantom_has_one_kind_of_finding(tmp_path, capfd):
    flags = ["--nodules=4", "--lesion_slices=2", f"--out={tmp_path / 'a'}"]
    assert phantom.main(flags) == 2
    assert "one of them" in capfd.readouterr().err
