"""Mean and standard deviation of a run's input, from the statistics of its dataset."""

import dataclasses
import functools
import operator
import zipfile
from typing import TypeVar

import numpy as np

from ctssl_jax.augment import IntensityMode, Standardise
from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.data import Dataset
from ctssl_jax.dataset.histogram import Tally
from ctssl_jax.dataset.splits import parts
from ctssl_jax.errors import DataError
from ctssl_jax.files import open_ordinary

AnyConfig = TypeVar("AnyConfig", PretrainConfig, FinetuneConfig, EvaluateConfig)
DIGITS = 6  # so that no machine's last bit makes another config


def resolve(config: AnyConfig, dataset: Dataset) -> AnyConfig:
    """The config with the numbers that `Standardise.DATASET` stands for, and FIXED in its place.

    They are of all slices of `config.data.split`, each with equal weight, whatever a filter or
    `fraction` leaves of them; no label and no other split is looked at. A labelled run takes those
    of its own dataset: to feed an encoder what it was pre-trained on, give `mean` and `std` of that
    run's config.json.

    Raises:
      ConfigError: a window in HU is chosen for a dataset of grey values.
      DataError: the dataset has no statistics, or its slices are all of one value.
    """
    intensity = config.intensity
    intensity.require_kind(dataset.intensity)
    if intensity.standardise is Standardise.FIXED:
        return config
    split = config.data.split
    tally = functools.reduce(operator.add, (_read_tally(dataset, part) for part in parts(split)))
    if intensity.mode is IntensityMode.SLICE_MIN_MAX:
        found = tally.mean_std_min_max()
    else:
        found = tally.mean_std(*intensity.bounds(dataset.intensity))
    mean, std = (round(number, DIGITS) for number in found)
    if std == 0:
        raise DataError(
            f"{dataset.name}: to intensity, all pixels of split {split!r} are the same; choose "
            "another intensity.window, or prepare the dataset again"
        )
    intensity = dataclasses.replace(
        intensity, standardise=Standardise.FIXED, mean=(mean,), std=(std,)
    )
    return dataclasses.replace(config, intensity=intensity)


def _read_tally(dataset: Dataset, split: str) -> Tally:
    path = dataset.path / "statistics" / f"{split}.npz"
    try:
        with open_ordinary(path) as file, np.load(file, allow_pickle=False) as arrays:
            return Tally.from_arrays(arrays)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{dataset.name}: no readable statistics of split {split!r}, which "
            "intensity.standardise=dataset needs; prepare the dataset again"
        ) from error
