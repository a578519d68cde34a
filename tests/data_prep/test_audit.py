"""Planted leaks are found, and different slices are left in peace."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from memory import write_slices
from PIL import Image

from ctssl_jax.dataset import matching
from ctssl_jax.dataset.alignment import aligned_cosine, features, symmetries, to_waves
from ctssl_jax.dataset.matching import exact_pairs, near_pairs
from ctssl_jax.dataset.signatures import SIDE, Signatures, describe, load_signatures, thumbnail
from ctssl_jax.dataset.verdict import read_verdict
from ctssl_jax.errors import DataError
from data_prep import audit
from data_prep.source import Slice


def picture(seed, size=96):
    """Smooth shapes and fine texture, grey 0 to 255: its spectrum falls as that of pictures."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size + 1
    spectrum = rng.normal(size=(2, *frequency.shape)) / frequency**1.5
    found = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (size, size))
    found = (found - found.min()) / np.ptp(found)
    return np.rint(20 + 200 * found).astype(np.int16)


def ct_slice(seed, patient=None, **fields):
    patient = f"patient {seed // 4}" if patient is None else patient
    fields = {"series": f"series of {patient}", "slice_index": seed % 4, "label": seed % 2} | fields
    return Slice(picture(seed), patient, **fields)


def clean():
    """Patients 0 to 4 in train, 5 and 6 in val, 7 and 8 in test; four slices each."""
    splits = {"train": range(20), "val": range(20, 28), "test": range(28, 36)}
    return {split: [ct_slice(seed) for seed in seeds] for split, seeds in splits.items()}


def verdict(tmp_path, splits, **settings):
    return audit.audit(write_slices(tmp_path / "set", splits, **settings))


def found(findings):
    return {(finding.check, *finding.splits): finding.count for finding in findings}


def test_a_clean_set_passes(tmp_path):
    result = verdict(tmp_path, clean())
    assert result.passed
    assert (result.findings, result.label_conflicts) == ((), ())
    written = json.loads((tmp_path / "set" / "audit.json").read_text())
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert (written["verdict"], written["findings"]) == ("pass", [])
    assert written["fingerprint"] == manifest["fingerprint"]
    assert written["splits"]["val"] == {
        "slices": 8,
        "patients": 2,
        "labels": [4, 4],
        "slices_per_patient": [4, 4.0, 4],
    }


def test_a_patient_in_two_splits_is_found(tmp_path):
    splits = clean()
    splits["test"].append(ct_slice(90, "patient 2", series="a later one"))
    result = verdict(tmp_path, splits)
    assert not result.passed
    assert found(result.findings) == {("patients", "train", "test"): 1}


def test_a_series_in_two_splits_is_found(tmp_path):
    splits = clean()
    splits["val"].append(ct_slice(90, "a second identifier", series="series of patient 2"))
    assert found(verdict(tmp_path, splits).findings) == {("series", "train", "val"): 1}


def test_an_equal_slice_in_two_splits_is_found_and_its_rows_are_named(tmp_path):
    splits = clean()
    splits["test"].append(replace(splits["train"][7], patient="other", series="other"))
    result = verdict(tmp_path, splits)
    assert found(result.findings) == {("exact", "train", "test"): 1}
    ((first, second),) = result.findings[0].examples
    images = {split: load_signatures(tmp_path / "set", split).digest.tolist() for split in splits}
    key = describe(splits["train"][7].image, "grey8").digest
    assert (first, second) == (
        ("train", images["train"].index(key)),
        ("test", images["test"].index(key)),
    )


def as_jpeg(image, quality=40):
    stream = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream)).astype(np.int16)


def resized(image, width, height):
    small = Image.fromarray(image.astype(np.uint8)).resize((width, height))
    return np.asarray(small).astype(np.int16)


EDITS = {
    "JPEG": as_jpeg,
    "brighter": lambda image: image + 30,
    "less contrast": lambda image: np.rint(60 + 0.6 * image).astype(np.int16),
    "smaller": lambda image: resized(image, 60, 48),
    "cropped": lambda image: image[1:, :-2],
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned left": lambda image: np.rot90(image),
    "turned right": lambda image: np.rot90(image, -1),
    "turned round": lambda image: np.rot90(image, 2),
    "transposed": lambda image: image.T,
    "transposed otherwise": lambda image: np.rot90(image, 2).T,
    "all at once": lambda image: as_jpeg(resized(image[2:, 1:].T[:, ::-1], 72, 72) + 20),
}


def test_an_edited_slice_in_two_splits_is_found(tmp_path):
    splits = clean()
    for number, edit in enumerate(EDITS.values()):
        image = np.ascontiguousarray(edit(splits["train"][number].image))
        splits["test"].append(Slice(image, f"other {number}", f"other {number}", 0, label=0))
    result = verdict(tmp_path, splits)
    assert found(result.findings) == {("near", "train", "test"): len(EDITS)}


def test_blank_and_almost_blank_slices_are_no_duplicates(tmp_path):
    splits = clean()
    for number, split in enumerate(splits):
        black = Slice(np.zeros((96, 96), np.int16), f"blank {split}", f"blank {split}", 0, label=0)
        table = np.full((96, 96), 5, np.int16)
        table[68:70, 30:60] = 200  # of some scanner, below every patient
        table[0, number] += 1
        splits[split] += [black, replace(black, image=table, slice_index=1)]
    assert verdict(tmp_path, splits).passed


def test_duplicates_with_other_labels_are_told_but_do_not_leak(tmp_path):
    splits = clean()
    again = replace(splits["train"][3], slice_index=9, label=1 - splits["train"][3].label)
    splits["train"].append(again)
    result = verdict(tmp_path, splits)
    assert result.passed
    assert found(result.label_conflicts) == {("exact", "train", "train"): 1}
    assert "different labels" in result.table()
    told = "equal slices with different labels: train and train: 1 slices of the second that are"
    assert told in read_verdict(tmp_path / "set").advice(tmp_path)


def test_what_a_pretraining_set_has_of_the_test_is_found_and_not_kept(tmp_path, capsys):
    task = write_slices(tmp_path / "task", clean())
    seen = [ct_slice(seed) for seed in range(50, 60)]
    other = write_slices(tmp_path / "other", {"train": seen}, classes=(), name="scans")
    assert audit.main([f"--data={task}", "--pretrain", str(other)]) == 0
    flipped = replace(clean()["test"][1], image=clean()["test"][1].image[::-1])
    seen += [ct_slice(33), replace(flipped, patient="unknown", series="unknown")]
    leaky = write_slices(tmp_path / "leaky", {"train": seen}, classes=(), name="scans")
    arguments = [f"--data={task}", "--pretrain", str(leaky), str(other)]
    assert audit.main([*arguments, f"--json={tmp_path}/verdict.json"]) == 3
    written = json.loads((tmp_path / "verdict.json").read_text())
    counts = {(row["check"], *row["splits"]): row["count"] for row in written["overlap"]}
    assert counts == {
        (check, "scans train", "test"): 1 for check in ("patients", "series", "exact", "near")
    }
    assert (written["verdict"], written["findings"]) == ("fail", [])
    assert "scans train and test: 1 patients in both" in capsys.readouterr().out
    own = json.loads((task / "audit.json").read_text())
    assert (own["verdict"], own["overlap"]) == ("pass", [])


def test_the_verdict_is_written_over_no_file_but_a_verdict(tmp_path, capsys):
    task = write_slices(tmp_path / "task", clean())
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in before:
        assert audit.main([f"--data={task}", f"--json={path}"]) == 2
        assert f"--json={path}: is " in capsys.readouterr().err
    (task / "audit.json").unlink()
    assert audit.main([f"--data={task}", f"--json={task / 'audit.json'}"]) == 2
    assert not (task / "audit.json").exists()
    for _ in range(2):
        assert audit.main([f"--data={task}", f"--json={tmp_path / 'verdict.json'}"]) == 0
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_the_command_fails_on_leaks_and_tells_no_identity(tmp_path, capsys):
    splits = clean()
    splits["test"].append(ct_slice(90, "patient 2"))
    out = write_slices(tmp_path / "set", splits)
    (out / "audit.json").unlink()
    assert audit.main([f"--data={out}"]) == 3
    printed = capsys.readouterr().out
    assert "verdict: fail" in printed
    assert "train and test: 1 patients in both" in printed
    for text in (printed, (out / "audit.json").read_text()):
        assert "patient 2" not in text
    assert audit.main([f"--data={tmp_path}"]) == 3
    assert "it has no manifest.json" in capsys.readouterr().err


def test_a_set_without_the_split_that_is_pretrained_on_is_refused(tmp_path):
    task = write_slices(tmp_path / "task", clean())
    other = write_slices(tmp_path / "other", {"test": clean()["test"]})
    with pytest.raises(DataError, match="no split 'train'"):
        audit.audit(task, [other])


def of_pictures(images, intensity="grey8"):
    described = [describe(np.ascontiguousarray(image), intensity) for image in images]
    names = np.array([f"{n}" for n in range(len(images))], "S16")
    rows = np.zeros(len(images), np.int32)
    return Signatures(
        np.array([signature.digest for signature in described], np.uint64),
        np.array([signature.dhash for signature in described], np.uint64),
        np.stack([signature.thumbnail for signature in described]),
        names,
        names,
        rows,
        rows,
    )


def test_pictures_are_aligned_where_one_was_cut():
    """By 4 % of one edge and 2 % of the opposite, of the rows and of the columns."""
    image = picture(3, 400)
    cut = image[16:-8, 8:-16]
    one, other = (thumbnail(x, "grey8")[None] for x in (image, cut))
    plain = np.sum(features(to_waves(one)) * features(to_waves(other)))
    assert plain < 0.8
    assert aligned_cosine(one, other)[0] > 0.96
    assert aligned_cosine(other, one)[0] > 0.93  # what was cut off is not there
    assert aligned_cosine(one, one)[0] == pytest.approx(1, abs=1e-5)


def test_the_cosine_transform_is_orthonormal():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)
    waves = to_waves(images)
    np.testing.assert_allclose(waves[:, 0, 0], images.mean((1, 2)) * SIDE, rtol=1e-5)
    energy = (images.astype(np.float64) ** 2).sum((1, 2))
    np.testing.assert_allclose((waves**2).sum((1, 2)), energy, rtol=1e-5)


def test_the_symmetries_are_eight_different_ones():
    image = (np.arange(SIDE * SIDE).reshape(1, SIDE, SIDE) % 251).astype(np.uint8)
    turned = {turn.tobytes() for turn in map(np.ascontiguousarray, symmetries(image))}
    by_hand = {
        np.ascontiguousarray(np.rot90(x, n, (1, 2))).tobytes()
        for x in (image, image[:, ::-1])
        for n in range(4)
    }
    assert turned == by_hand


def test_the_pairs_compared_grow_with_the_slices_not_their_square():
    compared = []
    for count in (500, 2000):
        left = of_pictures([picture(seed, SIDE) for seed in range(count)])
        right = of_pictures([picture(-seed - 1 + 10**6, SIDE) for seed in range(count // 4)])
        found = near_pairs(left, right)
        assert len(found.right) == 0
        compared.append(found.compared / len(right))
    assert compared[1] < 4 * compared[0] + 10
    assert compared[1] < 0.1 * 2000
    alike = of_pictures([picture(0, SIDE)] * 3000)
    found = near_pairs(alike, alike.take(slice(0, 100)))
    assert len(set(found.right.tolist())) == 100
    assert len(found.right) <= 3100  # each is in a pair, not each with each
    assert found.compared <= 2100  # 8 symmetries, 8 tables, 32 of a bucket, and one aligned


def test_blocks_find_what_one_index_finds(monkeypatch):
    images = [picture(seed, SIDE) for seed in range(24)]
    left = of_pictures(images)
    copies = [3, 7, 8, 15, 16, 23]  # at the ends of blocks of 8
    others = [picture(1000 + seed, SIDE) for seed in range(3)]
    right = of_pictures([*(images[n][:, ::-1] for n in copies), *others])
    for block, chunk in ((65536, 4096), (8, 4), (1, 2)):
        monkeypatch.setattr(matching, "BLOCK", block)
        monkeypatch.setattr(matching, "CHUNK", chunk)
        found = near_pairs(left, right)
        assert found.left.tolist() == copies
        assert found.right.tolist() == list(range(6))


def test_nothing_is_found_in_nothing():
    some = of_pictures([picture(0, SIDE)])
    none = some.take(slice(0, 0))
    blank = of_pictures([np.zeros((SIDE, SIDE), np.int16)])
    for pairs in (exact_pairs, near_pairs):
        for left, right in ((some, none), (none, some), (blank, some), (blank, blank)):
            assert len(pairs(left, right).left) == len(pairs(left, right).right) == 0
        assert pairs(some, some).right.tolist() == [0]


def test_patients_of_real_ct_are_told_apart_and_edited_copies_found(shared):
    """Every third slice of LIDC crops; the copies are JPEG, mirrored and turned."""
    files = sorted(shared("lidc128").rglob("*.png"))[::3]
    images = [np.asarray(Image.open(file)).astype(np.int16) for file in files]
    patient = np.array([file.name.split("_")[0] for file in files])
    rows = of_pictures(images)
    held_out = np.isin(patient, np.unique(patient)[::4])
    train, test = rows.take(np.flatnonzero(~held_out)), rows.take(np.flatnonzero(held_out))
    assert len(near_pairs(train, test).right) == 0
    copies = [np.rot90(as_jpeg(images[n], 50), n % 4) for n in np.flatnonzero(~held_out)[::9]]
    assert len(near_pairs(train, of_pictures(copies)).right) == len(copies)
