"""Batches of cases: which slices, in which order, the same on any number of processes."""

from contextlib import closing

import numpy as np
import pytest
from memory import write_slices

from ctssl_jax.data import DataConfig, labelled_batches, open_dataset, read_cases
from ctssl_jax.errors import DataError
from ctssl_jax.methods.cases import Draw
from ctssl_jax.run.bags import bag_batches, drawn_slices
from data_prep.source import Slice

LENGTHS = (5, 1, 12, 3, 2, 7)
DATA = DataConfig(canvas=32)


def slices(grouped=True):
    """Slice k of case c holds 100 c + k in its corner; its own label is 1 in slice 1 alone."""
    for case, length in enumerate(LENGTHS):
        for k in range(length):
            image = np.random.default_rng([case, k]).integers(0, 50, (32, 32)).astype(np.int16)
            image[0, 0] = 100 * case + k
            yield Slice(
                image,
                f"p{case}",
                f"p{case}",
                k,
                label=case % 2,
                case=f"c{case}" if grouped else "",
                slice_label=int(k == 1) if k < 2 else -1,
            )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "cases"
    return open_dataset(write_slices(out, {"train": list(slices())}, intensity="hu"))


def batches(dataset, **changes):
    settings = {
        "split": "train",
        "cases": read_cases(dataset, "train"),
        "slices": 4,
        "draw": Draw.EVEN,
        "batch_size": 4,
        "seed": 0,
    }
    return bag_batches(dataset, DATA, **settings | changes)


def take(stream, count, start=0):
    with closing(iter(stream)) as iterator:
        iterator.set_state({"next_index": start})
        return [next(iterator) for _ in range(count)]


def seen(batch):
    """Case and slice of each place of a batch, by its pixels; -1 where it is padding."""
    corner = batch["image"][:, 0, 0].astype(int)
    return np.where(batch["valid"], corner, -1).reshape(len(batch["label"]), -1)


def test_each_case_has_its_slices_in_order_and_padding(dataset):
    for batch in take(batches(dataset), 4):
        assert batch["image"].shape == (16, 32, 32)
        for bag, label in zip(seen(batch), batch["label"], strict=True):
            own = bag[bag >= 0]
            (case,) = set(own // 100)
            assert label == case % 2
            assert len(own) == min(4, LENGTHS[case])
            assert (np.diff(own) > 0).all()
            assert (bag[len(own) :] == -1).all()
            if LENGTHS[case] <= 4:
                assert own.tolist() == [100 * case + k for k in range(LENGTHS[case])]
        padding = ~batch["valid"]
        assert (batch["record"][padding] == -1).all()
        assert (batch["image"][padding] == 0).all()


def test_slices_have_their_own_label_or_that_of_their_case(dataset):
    (batch,) = take(batches(dataset), 1)
    for bag, own, label in zip(
        seen(batch), batch["slice_label"].reshape(4, 4), batch["label"], strict=True
    ):
        for corner, found in zip(bag, own, strict=True):
            if corner >= 0:
                assert found == {0: 0, 1: 1}.get(corner % 100, label)


def test_every_case_comes_once_an_epoch_and_the_slices_change(dataset):
    cases = np.concatenate([seen(batch).max(axis=1) // 100 for batch in take(batches(dataset), 3)])
    assert sorted(cases[:6]) == sorted(cases[6:]) == list(range(6))
    long = [bag for batch in take(batches(dataset), 9) for bag in seen(batch) if bag[0] // 100 == 2]
    assert len({tuple(bag) for bag in long}) > 1


def test_a_batch_is_a_function_of_seed_and_step(dataset):
    straight, jumped = take(batches(dataset), 5), take(batches(dataset), 1, start=4)
    for key, value in straight[4].items():
        np.testing.assert_array_equal(jumped[0][key], value)
    other = take(batches(dataset, seed=1), 5)
    assert any(np.any(a["record"] != b["record"]) for a, b in zip(straight, other, strict=True))
    index = np.concatenate([batch["index"] for batch in straight])
    np.testing.assert_array_equal(index, np.arange(5 * 16))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_the_batches_of_one(dataset, processes):
    (whole,) = take(batches(dataset), 1, start=2)
    parts = [
        take(batches(dataset, process_index=p, process_count=processes), 1, start=2)[0]
        for p in range(processes)
    ]
    for key, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)


def test_one_slice_a_case_is_the_stream_of_slices(tmp_path):
    out = write_slices(tmp_path / "o", {"train": list(slices(grouped=False))}, intensity="hu")
    dataset = open_dataset(out)
    bags = take(batches(dataset, slices=1, batch_size=8), 5)
    plain = labelled_batches(dataset, DATA, split="train", indices=None, batch_size=8, seed=0)
    for bag, batch in zip(bags, take(plain, 5), strict=True):
        assert bag["valid"].all()
        for key, value in batch.items():
            np.testing.assert_array_equal(bag[key], value)


@pytest.mark.parametrize("draw", Draw)
@pytest.mark.parametrize(("count", "slices"), [(5, 8), (8, 8), (9, 8), (1000, 8), (1000, 999)])
def test_slices_are_drawn_without_repetition(draw, count, slices):
    for seed in range(20):
        found = drawn_slices(count, slices, draw, np.random.PCG64(seed))
        assert len(found) == min(count, slices)
        assert (np.diff(found) > 0).all()
        assert found[0] >= 0
        assert found[-1] < count


def test_even_slices_are_at_equal_distances_and_all_are_seen_in_time():
    drawn = [drawn_slices(40, 10, Draw.EVEN, np.random.PCG64(seed)) for seed in range(60)]
    assert all(set(np.diff(found)) == {4} for found in drawn)
    assert set(np.concatenate(drawn).tolist()) == set(range(40))
    random = [drawn_slices(40, 10, Draw.RANDOM, np.random.PCG64(seed)) for seed in range(60)]
    assert any(len(set(np.diff(found))) > 1 for found in random)
    assert set(np.concatenate(random).tolist()) == set(range(40))


def test_features_take_the_place_of_images(dataset):
    cases = read_cases(dataset, "train")
    features = np.arange(cases.slices, dtype=np.float32)[:, None] * [1.0, 10.0]
    settings = {"split": "train", "cases": cases, "slices": 4, "draw": Draw.EVEN}
    stream = bag_batches(
        dataset, DATA, features=features.astype(np.float32), batch_size=4, seed=0, **settings
    )
    images = take(batches(dataset), 3)
    for batch, image in zip(take(stream, 3), images, strict=True):
        np.testing.assert_array_equal(batch["record"], image["record"])
        expected = np.where(batch["record"] < 0, 0, batch["record"])
        np.testing.assert_array_equal(batch["features"], expected[:, None] * [1.0, 10.0])


def test_no_cases_is_an_error(dataset):
    with pytest.raises(DataError, match="the subset has no cases"):
        batches(dataset, cases=read_cases(dataset, "train").take(np.zeros(0, int)))
