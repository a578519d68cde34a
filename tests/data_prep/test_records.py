import hashlib
import hmac
import json
import stat

import numpy as np
import pytest

from ctssl_jax.errors import ConfigError, DataError, StorageError
from data_prep import records
from data_prep.records import Slice, load_key, pseudonym, to_hu, write_dataset
from data_prep.split import split_by_patient, split_fractions

THIRDS = {"train": 0.6, "val": 0.2, "test": 0.2}


def slices(n, patient="p", label=-1, size=(6, 5)):
    rng = np.random.default_rng(len(patient) + n)
    for i in range(n):
        image = rng.integers(-1024, 3000, size).astype(np.int16)
        yield Slice(image, patient, f"{patient}s", i, i * 2.5, (2.5, 0.5, 0.75), label)


def write(out, by_split, **changes):
    arguments = {"name": "t", "source_kind": "image", "intensity": "hu", "rejected": []}
    return write_dataset(out, classes=("a", "b"), slices=by_split, **(arguments | changes))


def test_records_come_back_as_they_went_in(tmp_path, read):
    out = tmp_path / "sub" / "out"
    manifest = write(
        out,
        {"train": slices(5, "p", 1), "val": lambda: slices(2, "qq", 0), "test": []},
        rejected=[("file 3", "cut off"), ("file 4", "cut off")],
    )
    for record, item in zip(read(out), slices(5, "p", 1), strict=True):
        assert record["image"].dtype == np.int16
        np.testing.assert_array_equal(record["image"], item.image)
        np.testing.assert_array_equal(record["spacing_mm"], [2.5, 0.5, 0.75])
        assert record["patient"] == b"p"
        assert record["series"] == b"ps"
        assert record["source_kind"] == b"image"
        assert (record["slice_index"], record["position_mm"]) == (
            item.slice_index,
            item.position_mm,
        )
        assert record["label"] == 1
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert manifest["splits"] == {
        "train": {"slices": 5, "patients": 1, "series": 1, "labels": [0, 5]},
        "val": {"slices": 2, "patients": 1, "series": 1, "labels": [2, 0]},
    }
    assert manifest["rejected"] == {"cut off": 2}
    assert (out / "rejected.csv").read_text().splitlines()[1] == "file 3,cut off"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_unknown_geometry_is_nan(tmp_path, read):
    write(tmp_path / "o", {"train": [Slice(np.zeros((2, 2), np.int16), "p", "s", 0)]})
    (record,) = read(tmp_path / "o")
    assert np.isnan(record["position_mm"])
    assert np.isnan(record["spacing_mm"]).all()


def test_fingerprint_is_of_the_content_not_the_order(tmp_path):
    def fingerprint(name, items, split="train"):
        return write(tmp_path / name, {split: items})["fingerprint"]

    items = list(slices(4, "p", 1))
    same = fingerprint("a", items)
    assert fingerprint("b", items[::-1]) == same
    changed = items[0].image.copy()
    changed[0, 0] += 1
    other = [Slice(changed, *[getattr(items[0], f) for f in ("patient", "series", "slice_index")])]
    assert fingerprint("c", [*other, *items[1:]]) != same
    assert fingerprint("d", list(slices(4, "p", 0))) != same
    assert fingerprint("e", items, "val") != same


@pytest.mark.parametrize(
    "error", [DataError("bad"), KeyboardInterrupt(), ValueError("x"), OSError(28, "No space left")]
)
def test_a_failure_leaves_nothing(tmp_path, error):
    def failing():
        yield from slices(3)
        raise error

    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write(tmp_path / "out", {"train": failing})
    assert list(tmp_path.iterdir()) == []


def test_taken_out_and_empty_result_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", {"train": slices(1)})
    with pytest.raises(DataError, match="exists and is not empty"):
        write(tmp_path / "out", {"train": slices(1)})
    with pytest.raises(DataError, match=r"no CT slices found .*2 x not CT"):
        write(tmp_path / "o", {"train": []}, rejected=[("1", "not CT"), ("2", "not CT")])
    assert not (tmp_path / "o").exists()


def test_writing_is_silent_unless_it_lasts(tmp_path, capfd, monkeypatch):
    write(tmp_path / "a", {"train": slices(20)})
    assert capfd.readouterr() == ("", "")
    clock = iter(range(0, 1000))
    monkeypatch.setattr(records.time, "monotonic", lambda: next(clock))
    progress = records._Progress(20)
    for _ in range(12):
        progress.step()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(", done at")[0] for line in lines] == [
        "5 slices, 1.0 slices/s",
        "10 slices, 1.0 slices/s",
    ]


def test_hu_are_rounded_clipped_and_padding_is_air():
    values = np.array([-3024, -1024.4, -999.5, 0.49, 40.6, 40000, np.nan, -np.inf, np.inf])
    expected = [-1024, -1024, -1000, 0, 41, 32767, -1024, -1024, 32767]
    np.testing.assert_array_equal(to_hu(values), np.array(expected, np.int16))


def test_pseudonym_is_hmac_sha256():
    expected = hmac.new(b"k" * 16, b"LIDC-IDRI-0001", hashlib.sha256).hexdigest()[:16]
    assert pseudonym(b"k" * 16, " LIDC-IDRI-0001 ") == expected


def test_key_is_made_once_and_private(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "DEFAULT_KEY_FILE", tmp_path / "deep" / "pseudonym.key")
    key = load_key()
    assert len(key) == 64
    assert load_key() == key
    assert stat.S_IMODE((tmp_path / "deep" / "pseudonym.key").stat().st_mode) == 0o600
    with pytest.raises(DataError, match="no such file"):
        load_key(tmp_path / "none.key")
    (tmp_path / "short.key").write_text("abc")
    with pytest.raises(DataError, match="at least 16"):
        load_key(tmp_path / "short.key")


def test_split_depends_on_the_set_and_the_seed_only():
    patients = [f"p{i}" for i in range(50)]
    split = split_by_patient(patients, THIRDS, seed=1)
    assert split == split_by_patient(reversed(patients * 2), THIRDS, seed=1)
    assert split != split_by_patient(patients, THIRDS, seed=2)
    assert [list(split.values()).count(s) for s in THIRDS] == [30, 10, 10]


@pytest.mark.parametrize("n", [3, 4, 7])
def test_every_split_gets_a_patient_if_there_are_enough(n):
    split = split_by_patient(map(str, range(n)), {"train": 0.9, "val": 0.05, "test": 0.05})
    assert set(split.values()) == {"train", "val", "test"}
    assert set(split_by_patient(["a"], THIRDS).values()) == {"train"}


def test_split_is_stratified_by_label():
    labels = {f"p{i}": int(i < 10) for i in range(60)} | {"odd": 7, "other": 8}
    split = split_by_patient(labels, THIRDS, labels=labels)
    for label, total in ((0, 50), (1, 10)):
        counts = [sum(split[p] == s for p in labels if labels[p] == label) for s in THIRDS]
        assert counts == [0.6 * total, 0.2 * total, 0.2 * total]
    assert len(split) == 62


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.9, 0.2)])
def test_fractions_that_leave_no_train_are_refused(val, test):
    with pytest.raises(ConfigError, match=f"--val_fraction={val} and --test_fraction={test}"):
        split_fractions(val, test)
