import dataclasses
import functools
import operator
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax import evaluate, finetune, pretrain
from ctssl_jax.augment import Intensity, IntensityMode, Standardise, to_unit
from ctssl_jax.config import EncoderConfig, EvaluateConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.config_record import config_record
from ctssl_jax.data import DataConfig, open_dataset
from ctssl_jax.dataset.histogram import RANGE, Tally
from ctssl_jax.dataset.windows import WINDOWS, Window
from ctssl_jax.errors import DataError
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import standardise

MIN_MAX = Intensity(mode=IntensityMode.SLICE_MIN_MAX)


def slices(kind, count=4, side=24):
    """Random slices that cover the values of their kind unevenly."""
    random = np.random.default_rng(0)
    first, last = RANGE[kind]
    middle = random.integers(first, last, count)
    spread = random.uniform(0.02, 0.3, count) * (last - first)
    values = random.normal(middle[:, None, None], spread[:, None, None], (count, side, side))
    return np.clip(values, first, last).astype(np.int16)


def total(images, kind):
    return functools.reduce(operator.add, [Tally.of(image, kind) for image in images])


def by_hand(images, intensity, kind):
    """Mean and standard deviation of the pixels as a run sees them."""
    unit = np.asarray(to_unit(jnp.asarray(images), intensity, kind), np.float64)
    return unit.mean(), unit.std()


@pytest.mark.parametrize("window", [*WINDOWS.values(), (-200.0, 4095.0), (37.25, 37.5)])
def test_statistics_of_a_window_are_those_of_the_pixels(window):
    images = slices("hu")
    expected = by_hand(images, Intensity(window_hu=window), "hu")
    assert total(images, "hu").mean_std(*window) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("kind", RANGE)
def test_statistics_of_slices_scaled_by_themselves_are_those_of_the_pixels(kind):
    images = slices(kind)
    expected = by_hand(images, MIN_MAX, kind)
    assert total(images, kind).mean_std_min_max() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("kind", ["grey8", "grey16"])
def test_statistics_of_grey_are_those_of_the_pixels(kind):
    images = slices(kind)
    full = total(images, kind).summary()["full"]
    assert (full["mean"], full["std"]) == pytest.approx(
        by_hand(images, Intensity(), kind), abs=2e-6
    )


def test_numbers_known_beforehand():
    image = np.array([[-1024, -1024], [0, 976]], np.int16)
    tally = Tally.of(image, "hu")
    assert tally.mean_std(-1000.0, 1000.0) == pytest.approx(
        (np.mean([0, 0, 0.5, 0.988]), np.std([0, 0, 0.5, 0.988])), abs=1e-12
    )
    scaled = [0, 0, 1024 / 2000, 1]
    assert tally.mean_std_min_max() == pytest.approx((np.mean(scaled), np.std(scaled)), abs=1e-12)
    constant = Tally.of(np.full((3, 5), 40, np.int16), "hu")
    assert constant.mean_std(-1000.0, 1000.0) == pytest.approx((0.52, 0.0), abs=1e-7)
    assert constant.mean_std_min_max() == (0.0, 0.0)


def test_padding_and_metal_count_as_a_run_sees_them():
    image = np.array([[-3024, -1024], [40, 15_720]], np.int16)
    tally = Tally.of(image, "hu")
    for intensity, found in (
        (Intensity(), tally.mean_std(-1000.0, 1000.0)),
        (MIN_MAX, tally.mean_std_min_max()),
    ):
        assert found == pytest.approx(by_hand(image[None], intensity, "hu"), abs=1e-6)
    below = np.full((2, 2), -3024, np.int16)
    assert Tally.of(below, "hu").mean_std_min_max() == (0.0, 0.0)


def test_each_slice_counts_the_same_whatever_its_size():
    small, large = np.full((2, 3), 1000, np.int16), np.full((40, 50), -1000, np.int16)
    tally = Tally.of(small, "hu") + Tally.of(large, "hu")
    assert tally.mean_std(-1000.0, 1000.0) == pytest.approx((0.5, 0.5), abs=1e-12)
    assert tally.min_max[0] == 2


def test_a_tally_survives_its_file(tmp_path):
    for kind in RANGE:
        tally = total(slices(kind), kind)
        np.savez(tmp_path / "a.npz", **tally.to_arrays())
        with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
            again = Tally.from_arrays(arrays)
        assert again.summary() == tally.summary()
        assert (again + tally).summary() == tally.summary()
    arrays = {**tally.to_arrays(), "histogram": np.zeros(3)}
    with pytest.raises(ValueError, match="not a tally"):
        Tally.from_arrays(arrays)
    with pytest.raises(ValueError, match="hu and grey16 cannot be added"):
        Tally.of(np.zeros((1, 1), np.int16), "hu") + tally


def test_the_order_of_the_sum_is_all_that_could_matter():
    images = slices("hu", 6)
    tallies = [Tally.of(image, "hu") for image in images]
    left = functools.reduce(operator.add, tallies)
    right = (tallies[0] + tallies[1] + tallies[2]) + (tallies[3] + tallies[4] + tallies[5])
    assert left.summary() == right.summary()


def test_summary_has_every_named_window():
    summary = total(slices("hu"), "hu").summary()
    assert set(summary) == {*WINDOWS, "slice_min_max"}
    assert set(total(slices("grey8"), "grey8").summary()) == {"full", "slice_min_max"}
    assert all(0 <= n["mean"] <= 1 and 0 <= n["std"] <= 0.5 for n in summary.values())


@pytest.mark.slow
def test_a_slice_takes_under_two_milliseconds():
    image = slices("hu", 1, 512)[0]
    times = []
    for _ in range(50):
        began = time.perf_counter()
        Tally.of(image, "hu")
        times.append(time.perf_counter() - began)
    assert np.median(times) < 2e-3


# From a prepared dataset to the input of a run.


@pytest.fixture(scope="module")
def pixels(phantom_path):
    source = open_dataset(phantom_path).source("train")
    return np.stack([record["image"] for record in source.__getitems__(range(len(source)))])


@pytest.mark.parametrize(
    "intensity",
    [
        Intensity(window=Window.LUNG),
        Intensity(window_hu=(-310.0, 77.0), mean=(0.1, 0.2, 0.3), std=(1.0,), channels=3),
        MIN_MAX,
    ],
)
def test_a_run_standardises_by_its_training_split(phantom_path, pixels, intensity):
    asked = PretrainConfig(intensity=standardised(intensity))
    found = standardise.resolve(asked, open_dataset(phantom_path)).intensity
    expected = by_hand(pixels, intensity, "hu")
    assert (*found.mean, *found.std) == pytest.approx(expected, abs=2e-6)
    assert found.standardise is Standardise.FIXED
    assert (found.mode, found.window, found.channels) == (
        intensity.mode,
        intensity.window,
        intensity.channels,
    )
    assert asked.intensity.standardise is Standardise.DATASET, "the given config is left alone"
    unit = to_unit(jnp.asarray(pixels), found, "hu")
    network_input = (np.asarray(unit, np.float64) - found.mean) / found.std
    assert network_input.mean() == pytest.approx(0, abs=1e-4)
    assert network_input.std() == pytest.approx(1, abs=1e-4)


def standardised(intensity):
    return Intensity(**{**vars(intensity), "standardise": Standardise.DATASET})


def test_the_split_is_the_one_that_is_trained_on(phantom_path):
    dataset = open_dataset(phantom_path)
    config = FinetuneConfig(intensity=standardised(Intensity()))
    train = standardise.resolve(config, dataset).intensity
    config.data.split = "val"
    assert standardise.resolve(config, dataset).intensity != train
    summary = dataset.manifest["statistics"]["train"]["wide"]
    assert (*train.mean, *train.std) == (summary["mean"], summary["std"])


def test_fixed_numbers_are_left_alone(phantom_path):
    config = PretrainConfig()
    assert standardise.resolve(config, open_dataset(phantom_path)) is config


def test_the_record_of_a_run_is_of_the_numbers(phantom_path):
    dataset = open_dataset(phantom_path)
    found = standardise.resolve(PretrainConfig(intensity=standardised(Intensity())), dataset)
    mean, std = found.intensity.mean, found.intensity.std
    assert config_record(found) == config_record(
        PretrainConfig(intensity=Intensity(mean=mean, std=std))
    )


@pytest.mark.parametrize(
    ("command", "config"),
    [
        (pretrain, PretrainConfig(batch_size=4)),
        (finetune, FinetuneConfig(batch_size=4)),
        (evaluate, EvaluateConfig(encoder=EncoderConfig(depth=18))),
    ],
)
def test_every_kind_of_run_records_the_numbers(
    command, config, phantom_path, tmp_path, monkeypatch
):
    opened = []

    def open_run(workdir, config, *args, **kwargs):
        opened.append(config)
        raise InterruptedError

    monkeypatch.setattr(run_folder, "open_run", open_run)
    asked = dataclasses.replace(
        config,
        data=DataConfig(path=str(phantom_path), accept_leakage=True),
        intensity=standardised(Intensity(window=Window.BONE)),
    )
    with pytest.raises(InterruptedError):
        command.run(asked, tmp_path)
    bone = open_dataset(phantom_path).manifest["statistics"]["train"]["bone"]
    assert [(config.intensity.mean, config.intensity.std) for config in opened] == [
        ((bone["mean"],), (bone["std"],))
    ]


def test_a_dataset_without_statistics_is_told(phantom_path, tmp_path):
    dataset = open_dataset(phantom_path)
    config = PretrainConfig(intensity=standardised(Intensity()))
    elsewhere = type(dataset)(tmp_path / "DOE^JANE", dataset.manifest)
    folder = elsewhere.path / "statistics"
    folder.mkdir(parents=True)
    damaged = [None, b"", b"PK\x03\x04", b"no archive"]
    for content in damaged:
        if content is not None:
            (folder / "train.npz").write_bytes(content)
        with pytest.raises(
            DataError, match=r"no readable .*'train'.*; prepare the dataset again"
        ) as e:
            standardise.resolve(config, elsewhere)
        assert "DOE" not in str(e.value)
    np.savez(folder / "train.npz", **Tally.of(np.zeros((4, 4), np.int16), "hu").to_arrays())
    with pytest.raises(DataError, match="all pixels of split 'train' are the same"):
        standardise.resolve(config, elsewhere)
