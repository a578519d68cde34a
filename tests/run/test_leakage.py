"""The gate: no run on data that leaks into its test, unless told to, and then marked."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from memory import write_slices

from ctssl_jax import data, evaluate, finetune, pretrain
from ctssl_jax.config import ProbeConfig
from ctssl_jax.data import DataConfig
from ctssl_jax.dataset.signatures import load_file, load_signatures
from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.files import read_json
from ctssl_jax.run import leakage
from ctssl_jax.run.slice_filter import read_filter
from data_prep import duplicates
from data_prep.audit import audit
from data_prep.source import Slice

pytestmark = pytest.mark.usefixtures("tiny_encoder")

CONFIGS = ("spark", "finetune_covid_ct", "evaluate")
RUNS = {"spark": pretrain.run, "finetune_covid_ct": finetune.run, "evaluate": evaluate.run}


def slices(patients, count=4, seed=0):
    """Blobs that differ from patient to patient and from slice to slice."""
    found = []
    for patient in patients:
        rng = np.random.default_rng([seed, *patient.encode()])
        for index in range(count):
            coarse = rng.integers(-1000, 600, (8, 8))
            image = np.kron(coarse, np.ones((8, 8), np.int64)).astype(np.int16)
            image += rng.integers(-9, 9, image.shape, dtype=np.int16)
            found.append(Slice(image, patient, f"series of {patient}", index, label=index % 2))
    return found


def splits():
    return {"train": slices("abcdefgh"), "val": slices("ij"), "test": slices("kl")}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("clean") / "set", splits(), intensity="hu")


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """Patient a is also in test, with another series."""
    leaky = splits()
    leaky["test"] += [replace(item, series="later") for item in slices("a", seed=1)]
    return write_slices(tmp_path_factory.mktemp("leaky") / "set", leaky, intensity="hu")


@pytest.fixture
def copy(clean, tmp_path):
    """The clean dataset, with an audit.json that a test may change."""
    path = tmp_path / "copy"
    path.mkdir()
    for name in ("manifest.json", "audit.json"):
        (path / name).write_text((clean / name).read_text())
    for name in ("ct_slices", "signatures"):
        (path / name).symlink_to(clean / name)
    return path


def smoke(name, path, **changes):
    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    config.data.path = str(path)
    for field, value in changes.items():
        setattr(config.data if field in ("accept_leakage", "filter") else config, field, value)
    config.validate()
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_not_audited_or_fails_is_refused(name, copy, leaky, tmp_path):
    def refused(path, said):
        with pytest.raises(DataError, match=said):
            RUNS[name](smoke(name, path), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused(leaky, "leaks between its splits .train and test share 1 patients.*accept_leakage=true")
    known = read_json(copy / "audit.json")
    (copy / "audit.json").write_text(json.dumps({**known, "fingerprint": "of another"}))
    refused(copy, "audit is of other data: run `python -m data_prep.audit --data=")
    (copy / "audit.json").write_text(json.dumps({**known, "format": 2}))
    refused(copy, "audit is of other data")
    for damaged in ("[]", "{", '{"format": 1}'):
        (copy / "audit.json").write_text(damaged)
        refused(copy, "unreadable: run `python -m data_prep.audit")
    (copy / "audit.json").unlink()
    refused(copy, "not audited for leaks: run `python -m data_prep.audit")
    audit(copy)
    assert leakage.require_audit(data.open_dataset(copy), False) == {"verdict": "pass"}


def test_the_probe_of_a_pretraining_run_has_to_pass_as_well(clean, leaky, tmp_path):
    probe = ProbeConfig(path=str(leaky), every=1, k=1, canvas=64, size=64)
    with pytest.raises(DataError, match="leaks between its splits"):
        pretrain.run(smoke("spark", clean, probe=probe), tmp_path / "run")


def test_an_accepted_leak_is_in_every_result(leaky, tmp_path):
    stamp = {
        "verdict": "fail",
        "accepted": True,
        "findings": [{"check": "patients", "splits": ["train", "test"], "count": 1}],
    }
    for name in ("finetune_covid_ct", "evaluate"):
        config = smoke(name, leaky, accept_leakage=True)
        found = RUNS[name](config, tmp_path / name)
        for file in ("results.json", "data.json"):
            assert json.loads((tmp_path / name / file).read_text())["audit"] == stamp
        assert found["pretraining_overlap"] is None
        assert found["pretraining_audit"] is None


def encoder_run(folder, dataset, rows=None):
    """What a pre-training run leaves of what it saw."""
    folder.mkdir()
    leakage.write_seen(folder, data.open_dataset(dataset), "train", rows)
    return str(folder)


def test_an_encoder_that_saw_other_patients_passes(clean, tmp_path):
    run = encoder_run(tmp_path / "run", clean)
    found = leakage.require_unseen(data.open_dataset(clean), ("val", "test"), run, False)
    assert found == {"patients": 0, "series": 0, "exact": 0, "near": 0}
    assert leakage.require_unseen(data.open_dataset(clean), ("test",), "", False) is None


def test_an_encoder_that_saw_the_test_is_refused_or_marked(clean, tmp_path):
    mirrored = [replace(s, image=s.image[:, ::-1]) for s in slices("i")]
    seen = slices("xyz") + slices("k") + [replace(s, patient="?", series="?") for s in mirrored]
    other = write_slices(tmp_path / "other", {"train": seen}, classes=(), intensity="hu")
    run = encoder_run(tmp_path / "run", other)
    dataset, held_out = data.open_dataset(clean), ("val", "test")
    said = "1 patients, 1 series, 4 equal slices, 4 nearly equal slices of the splits val and test"
    with pytest.raises(DataError, match=said):
        leakage.require_unseen(dataset, held_out, run, False)
    found = leakage.require_unseen(dataset, held_out, run, True)
    assert found == {"patients": 1, "series": 1, "exact": 4, "near": 4, "accepted": True}
    (tmp_path / "run" / leakage.SEEN).unlink()
    assert leakage.require_unseen(dataset, held_out, run, False) == "unknown"


def test_what_was_accepted_in_pretraining_is_known_later(leaky, tmp_path):
    assert leakage.pretraining_audit("") is None
    assert leakage.pretraining_audit(str(tmp_path)) == "unknown"
    (tmp_path / "data.json").write_text("{}")
    assert leakage.pretraining_audit(str(tmp_path)) == "unknown"
    stamp = leakage.require_audit(data.open_dataset(leaky), accept=True)
    (tmp_path / "data.json").write_text(json.dumps({"audit": stamp}))
    assert leakage.pretraining_audit(str(tmp_path)) == stamp
    assert stamp["accepted"] is True


def test_what_a_filter_leaves_out_was_not_seen(clean, tmp_path):
    rows = np.array([1, 5, 6])
    run = encoder_run(tmp_path / "run", clean, rows)
    found = load_file(tmp_path / "run" / leakage.SEEN)
    assert run
    np.testing.assert_array_equal(found.digest, load_signatures(clean, "train").digest[rows])


def test_what_a_fine_tuning_learnt_was_seen(clean, tmp_path):
    def tuned(name, encoder=""):
        config = smoke("finetune_covid_ct", clean, encoder_run=encoder, fraction=1.0)
        finetune.run(config, tmp_path / name)
        return str(tmp_path / name)

    first = tuned("first")
    other = smoke("evaluate", clean, encoder_run=first)
    other.data.split, other.test_split = "test", "train"
    with pytest.raises(DataError, match=r"has seen 10 patients.*of the splits val and train"):
        evaluate.run(other, tmp_path / "evaluated")
    dataset = data.open_dataset(clean)
    assert leakage.require_unseen(dataset, ("test",), first, False)["patients"] == 0  # and known
    assert leakage.require_unseen(dataset, ("val",), first, True)["patients"] == 2  # chosen by

    held_out = write_slices(tmp_path / "other", {"train": slices("kl")}, classes=(), intensity="hu")
    seen = encoder_run(tmp_path / "run", held_out)
    second = tmp_path / "second"
    second.mkdir()
    leakage.pass_on_seen(second, seen)
    leakage.write_learnt(second, dataset, {"train": np.arange(4)})
    third = tmp_path / "third"
    third.mkdir()
    leakage.pass_on_seen(third, str(second))
    found = leakage.require_unseen(dataset, ("train", "test"), str(third), True)
    assert found["patients"] == 3  # one learnt, two seen before that
    (second / leakage.SEEN).unlink()  # as of an import
    assert leakage.require_unseen(dataset, ("test",), str(second), False) == "unknown"
    assert leakage.require_unseen(dataset, ("train",), str(second), True)["patients"] == 1


# The filter


@pytest.fixture
def every_other(clean, tmp_path):
    out = tmp_path / "filter.json"
    arguments = ["--method=every_n", "--n=2", f"--data={clean}", f"--out={out}"]
    assert duplicates.main(arguments) == 0
    return out


def test_a_run_reads_the_rows_of_its_filter_and_no_others(
    clean, every_other, tmp_path, monkeypatch
):
    read, load = [], data._load
    monkeypatch.setattr(data, "_load", lambda *args: read.extend(args[1].tolist()) or load(*args))
    config = smoke("spark", clean, filter=str(every_other), epochs=2.0, picture_every=0)
    run = tmp_path / "run"
    pretrain.run(config, run)
    rows = load_signatures(clean, "train")
    kept = np.flatnonzero(rows.slice_index % 2 == 0)
    assert set(read) == set(kept.tolist())
    assert len(load_file(run / leakage.SEEN)) == len(kept) == 16
    log = (run / "log.txt").read_text().splitlines()
    steps = 2 * 16 // config.batch_size  # not 2 * 32
    assert "16 of 32 slices (filter: every_n)" in log[0]
    assert f"done: {steps:,} steps" in log[-1]
    summary = json.loads((run / "data.json").read_text())["filter"]
    assert (summary["method"], summary["kept"], summary["slices"]) == ("every_n", 16, 32)
    assert str(tmp_path) not in (run / "config.json").read_text()
    dataset = data.open_dataset(clean)
    found = read_filter(config.data, dataset)
    batches = iter(
        data.pretrain_batches(dataset, config.data, batch_size=8, seed=0, indices=found.rows)
    )
    seen = np.concatenate([next(batches)["record"] for _ in range(4)])
    assert sorted(seen.tolist()) == sorted(2 * kept.tolist())
    every_other.write_text(every_other.read_text() + " ")
    with pytest.raises(ConfigError, match=r"made with another data\.filter"):
        pretrain.run(config, run)


def test_a_filter_of_other_data_is_refused(clean, leaky, every_other):
    dataset, reading = data.open_dataset(clean), DataConfig(filter=str(every_other))
    known = json.loads(every_other.read_text())

    def refused(said, config=reading, of=dataset):
        with pytest.raises(DataError, match=said) as caught:
            read_filter(config, of)
        assert str(every_other) not in str(caught.value)

    refused("was made for other data", of=data.open_dataset(leaky))
    refused("is of split 'train', not 'val'", replace(reading, split="val"))
    for rows in ([], [3, 3], [4, 2], [-1, 3], [0, 32], [[0, 1]]):
        every_other.write_text(json.dumps({**known, "rows": rows}))
        refused("rows that are not in the split")
    for content in ("", "[]", json.dumps({**known, "rows": ["a"]}), json.dumps({"rows": [0]})):
        every_other.write_text(content)
        refused("cannot be read as a filter")
    every_other.write_text(json.dumps({**known, "format": 2}))
    refused("format 2")
    every_other.unlink()
    refused("cannot be read as a filter")


@pytest.mark.parametrize("name", ["finetune_covid_ct", "evaluate"])
def test_only_pretraining_takes_a_filter(name, clean):
    with pytest.raises(ConfigError, match=r"data\.filter is for pre-training"):
        smoke(name, clean, filter="some.json")
