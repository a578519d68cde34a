import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing

import grain
import numpy as np
import pytest
from memory import KEY, write_slices

from ctssl_jax import files
from ctssl_jax.data import (
    DataConfig,
    evaluation_batches,
    labelled_batches,
    open_dataset,
    pretrain_batches,
    read_labels,
)
from ctssl_jax.errors import ConfigError, DataError
from data_prep.pipeline.records import pseudonym
from data_prep.source import Slice

TRAIN, TEST = 23, 7
DATA = DataConfig(canvas=32)


def slices(split, count):
    """Slice number n is filled with the value n; label n % 3; two slices a patient; odd sizes."""
    for n in range(count):
        image = np.full((32 + 8 * (n % 3), 32 + 11 * (n % 2)), n, np.int16)
        patient = f"{split}{n // 2}"
        yield Slice(image, patient=patient, series=patient, slice_index=n % 2, label=n % 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "tiny"
    splits = {"train": list(slices("train", TRAIN)), "test": list(slices("test", TEST))}
    return write_slices(out, splits, name="tiny", intensity="hu", classes=("a", "b", "c"))


@pytest.fixture(scope="module")
def dataset(folder):
    return open_dataset(folder)


def take(batches, count):
    with closing(iter(batches)) as iterator:
        return [next(iterator) for _ in range(count)]


def names(batches):
    """The numbers of the slices, in the order of the stream."""
    return np.concatenate([batch["image"][:, 0, 0] for batch in batches])


def train(dataset, *, batch_size=5, seed=0, data=DATA, **more):
    return pretrain_batches(dataset, data, batch_size=batch_size, seed=seed, **more)


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


# Training batches.


def test_a_batch_has_the_stated_arrays(dataset):
    (batch,) = take(train(dataset), 1)
    kinds = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert kinds == {
        "image": ("int16", (5, 32, 32)),
        "label": ("int32", (5,)),
        "index": ("int32", (5,)),
        "record": ("int32", (5,)),
    }
    source = dataset.source("train")
    found = [source[int(row)]["image"][0, 0] for row in batch["record"]]
    np.testing.assert_array_equal(found, names([batch]))
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 5, 9] % 3)


def test_transposed_slices_change_rows_and_columns_in_training_and_evaluation(phantom_path):
    dataset = open_dataset(phantom_path)
    plain, turned = (DataConfig(canvas=64, transpose=transpose) for transpose in (False, True))
    for read in (train, evaluated):
        one, other = (next(iter(read(dataset, data=data)))["image"] for data in (plain, turned))
        np.testing.assert_array_equal(other, one.swapaxes(1, 2))
        assert not np.array_equal(other, one)


def evaluated(dataset, data):
    return evaluation_batches(dataset, data, split="test", batch_size=4)


def test_every_record_comes_once_an_epoch_and_epochs_differ(dataset):
    stream = names(take(train(dataset), 14))[: 3 * TRAIN].reshape(3, TRAIN)
    for epoch in stream:
        assert sorted(epoch) == list(range(TRAIN))
    assert len({tuple(epoch) for epoch in stream}) == 3


def test_seed_decides_the_order(dataset):
    assert_same(take(train(dataset, seed=1), 5), take(train(dataset, seed=1), 5))
    assert (
        names(take(train(dataset, seed=1), 5)).tolist()
        != names(take(train(dataset, seed=2), 5)).tolist()
    )


def test_index_counts_through_the_run(dataset):
    index = np.concatenate([batch["index"] for batch in take(train(dataset), 6)])
    np.testing.assert_array_equal(index, np.arange(30))


def test_index_stays_int32_in_the_longest_run(dataset):
    step = 2**31 // 5
    with closing(iter(train(dataset))) as iterator:
        iterator.set_state({"next_index": step})
        index = next(iterator)["index"]
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, (5 * step + np.arange(5)) % 2**31)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_the_batches_of_one(dataset, processes):
    whole = take(train(dataset, batch_size=8), 5)
    parts = [
        take(train(dataset, batch_size=8, process_index=p, process_count=processes), 5)
        for p in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)
    assert parts[0][0]["image"].shape[0] == 8 // processes


def test_batch_does_not_depend_on_threads_or_prefetch(dataset):
    one = DataConfig(canvas=32, num_threads=1, prefetch=1)
    many = DataConfig(canvas=32, num_threads=4, prefetch=9)
    assert_same(take(train(dataset, data=one), 8), take(train(dataset, data=many), 8))


def test_threads_and_prefetch_are_those_of_the_config(dataset, monkeypatch):
    asked, options = [], grain.ReadOptions

    def spy(**numbers):
        asked.append(numbers)
        return options(**numbers)

    monkeypatch.setattr(grain, "ReadOptions", spy)
    train(dataset, data=DataConfig(canvas=32, num_threads=3, prefetch=7))
    assert asked == [{"num_threads": 3, "prefetch_buffer_size": 7}]


@pytest.mark.parametrize(("cores", "prefetch", "threads"), [(2, 8, 2), (16, 8, 8), (16, 32, 16)])
def test_each_core_reads_unless_the_config_says_how_many(monkeypatch, cores, prefetch, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda of: set(range(cores)), raising=False)
    assert DataConfig(prefetch=prefetch).threads() == threads
    assert DataConfig(num_threads=3, prefetch=prefetch).threads() == 3


def test_resume_is_bit_equal_and_the_state_is_the_step(dataset):
    whole = take(train(dataset), 9)
    with closing(iter(train(dataset))) as first:
        for _ in range(4):
            next(first)
        state = first.get_state()
    assert state == {"next_index": 4}
    with closing(iter(train(dataset))) as second:
        second.set_state(json.loads(json.dumps(state)))
        assert_same([next(second) for _ in range(5)], whole[4:])


def test_batch_larger_than_the_dataset_is_full(dataset):
    (batch,) = take(train(dataset, batch_size=50), 1)
    seen, times = np.unique(batch["image"][:, 0, 0], return_counts=True)
    assert len(seen) == TRAIN
    assert set(times) == {2, 3}


def test_labelled_batches_keep_to_their_indices(dataset):
    test = evaluation_batches(dataset, DATA, split="test", batch_size=TEST)
    (every,) = list(test)
    rows = np.array([1, 4, 6])
    batches = labelled_batches(dataset, DATA, split="test", indices=rows, batch_size=2, seed=0)
    stream = names(take(batches, 6)).reshape(4, 3)
    for epoch in stream:
        assert sorted(epoch) == sorted(every["image"][rows, 0, 0])


def test_canvas_is_the_size_of_the_batch(dataset):
    (batch,) = take(train(dataset, data=DataConfig(canvas=48)), 1)
    assert batch["image"].shape == (5, 48, 48)


# Evaluation batches.


def test_evaluation_reads_every_record_once_in_order_and_pads(dataset):
    batches = list(evaluation_batches(dataset, DATA, split="test", batch_size=4))
    assert [batch["image"].shape for batch in batches] == [(4, 32, 32)] * 2
    flat = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    np.testing.assert_array_equal(flat["valid"], [True] * TEST + [False])
    np.testing.assert_array_equal(flat["record"], [*range(TEST), -1])
    np.testing.assert_array_equal(flat["label"], [*read_labels(dataset, "test")[0], -1])
    assert sorted(flat["image"][:TEST, 0, 0]) == list(range(TEST))
    assert not flat["image"][TEST].any()
    assert {key: value.dtype.name for key, value in flat.items()} == {
        "image": "int16",
        "label": "int32",
        "index": "int32",
        "valid": "bool",
        "record": "int32",
    }


def test_evaluation_can_be_repeated_and_shared(dataset):
    whole = evaluation_batches(dataset, DATA, split="test", batch_size=4)
    assert_same(list(whole), list(whole))
    parts = [
        list(
            evaluation_batches(
                dataset, DATA, split="test", batch_size=4, process_index=p, process_count=4
            )
        )
        for p in range(4)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, list(whole))


# Labels.


def test_labels_and_patients_are_those_of_the_records(dataset):
    labels, patients = read_labels(dataset, "train")
    (every,) = list(evaluation_batches(dataset, DATA, split="train", batch_size=TRAIN))
    np.testing.assert_array_equal(labels, every["label"])
    expected = [pseudonym(KEY, f"train{n // 2}") for n in every["image"][:, 0, 0]]
    assert patients.tolist() == expected
    assert read_labels(dataset, "train")[0] is labels
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 1


# What can be wrong.


def edit_manifest(**changes):
    def edit(folder):
        file = folder / "manifest.json"
        files.write_json(file, files.read_json(file) | changes)

    return edit


def drop_key(folder):
    file = folder / "manifest.json"
    manifest = files.read_json(file)
    del manifest["fingerprint"], manifest["splits"]
    files.write_json(file, manifest)


BREAKAGES = {
    "folder": (shutil.rmtree, ["no such dataset", "python -m data_prep.", ":demo"]),
    "manifest": (lambda f: (f / "manifest.json").unlink(), ["no manifest.json"]),
    "not json": (lambda f: (f / "manifest.json").write_text("{"), ["manifest.json: unreadable"]),
    "not a dict": (lambda f: (f / "manifest.json").write_text("[]"), ["manifest.json: unreadable"]),
    "format": (edit_manifest(format=9), ["format 9", "reads format 1"]),
    "keys": (drop_key, ["lacks splits, fingerprint"]),
    "intensity": (edit_manifest(intensity="suv"), ["'suv'", "hu, grey8, grey16"]),
    "records": (lambda f: shutil.rmtree(f / "ct_slices"), ["no records there"]),
    "no shards": (
        lambda f: [shard.unlink() for shard in f.glob("ct_slices/*/*.array_record*")],
        ["no records there"],
    ),
    "wrong split": (edit_manifest(splits={"val": {"slices": 3}}), ["'train'", "there is val"]),
    "empty split": (edit_manifest(splits={"train": {"slices": 0}}), ["'train' is empty"]),
    "count": (edit_manifest(splits={"train": {"slices": 9}}), ["holds 23", "says 9"]),
    "features": (
        lambda f: (f / "ct_slices/1.0.0/features.json").write_text("{"),
        ["cannot read split 'train'"],
    ),
    "one shard": (
        lambda f: next(f.glob("ct_slices/*/*train.array_record*")).unlink(),
        ["cannot read split 'train'"],
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_dataset_is_refused_in_one_line(folder, tmp_path, name):
    damage, words = BREAKAGES[name]
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(DataError) as refused:
        take(train(open_dataset(copy)), 1)
    message = str(refused.value)
    assert message.startswith(str(copy))
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_an_empty_subset_is_refused(dataset):
    with pytest.raises(DataError, match="subset of split 'test' is empty"):
        labelled_batches(
            dataset, DATA, split="test", indices=np.array([], int), batch_size=2, seed=0
        )


def test_a_batch_that_processes_cannot_share_is_refused(dataset):
    with pytest.raises(ConfigError, match=r"batch_size=6: .* processes \(4\)"):
        train(dataset, batch_size=6, process_count=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"canvas": 0}, "canvas=0"),
        ({"num_threads": -1}, "num_threads=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"num_threads": 5, "prefetch": 4}, "prefetch=4"),
    ],
)
def test_a_wrong_number_is_refused_by_name(change, words):
    DataConfig().validate()
    with pytest.raises(ConfigError, match=f"data.{words}"):
        DataConfig(**change).validate()


# Manners.


def test_dataset_tells_what_the_manifest_says(dataset):
    assert (dataset.name, dataset.intensity, dataset.classes) == ("tiny", "hu", ("a", "b", "c"))
    assert len(dataset.fingerprint) == 64
    assert len(dataset.source("train")) == TRAIN
    assert dataset.source("test")[0]["image"].dtype == np.int16


def test_reading_needs_no_network(dataset, monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(take(train(open_dataset(dataset.path)), 2)) == 2


def test_tfds_is_imported_late_and_quietly_and_tensorflow_never(folder):
    program = f"""
import sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "label", DeprecationWarning)  # TFDS with Beam's protobuf
from absl import logging
logging.set_verbosity(logging.INFO)
from ctssl_jax.data import *
assert "tensorflow_datasets" not in sys.modules
dataset = open_dataset({str(folder)!r})
batches = list(evaluation_batches(dataset, DataConfig(canvas=32), split="test", batch_size=4))
assert len(batches) == 2
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
assert logging.get_verbosity() == logging.INFO
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
