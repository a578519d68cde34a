"""The starts that a plan compares: encoders with their frozen features of the dataset's cases."""

import dataclasses
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ctssl_jax import data, evaluate
from ctssl_jax.ablation import RANDOM
from ctssl_jax.augment import Intensity
from ctssl_jax.config import EncoderConfig, EvaluateConfig
from ctssl_jax.data import DataConfig, Dataset
from ctssl_jax.dataset.splits import folds_of
from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.files import open_ordinary, whole_file
from ctssl_jax.frozen.features import Features
from ctssl_jax.frozen.nested import NEVER
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import leakage
from ctssl_jax.run.encoder import require_finished
from ctssl_jax.run.restore import from_plain

ACCEPT_LEAKAGE, ACCEPT_UNFINISHED = "--accept_leakage", "--accept_unfinished"
"""What this command calls the flags of a run."""
RANDOM_ENCODERS = 3
"""Of the arm `RANDOM`, which were never trained: for frozen features, no pre-training."""
TEST, LEARNT = "test", ("train", "val")


class Start(NamedTuple):
    """One encoder: its arm, and how its features are made."""

    arm: str
    config: EvaluateConfig
    weights: str
    warning: str = ""
    """What every result of it is marked with: an unfinished run, test cases that it has seen."""

    @property
    def file(self) -> str:
        """The file name of its features."""
        return f"{self.arm}-{self.weights[:12]}.npz"


def starts_of(
    dataset: Dataset,
    runs: Sequence[str],
    size: int = 0,
    accept_leakage: bool = False,
    accept_unfinished: bool = False,
) -> list[Start]:
    """The encoders of some runs, and those of the arm `RANDOM`, like the first of them.

    Args:
      dataset: that is planned for.
      runs: run folders of pre-trainings, or imports.
      size: side of the network's input in pixels; 0: as in each pre-training.
      accept_leakage: take an encoder that has seen test cases.
      accept_unfinished: take an encoder whose run is not done.

    Raises:
      UserError: a run is missing, unfinished, or has seen the test cases.
    """
    splits, found = splits_of(dataset), list[Start]()
    for run in runs:
        stamp = require_finished(run, accept_unfinished, ACCEPT_UNFINISHED)
        assert stamp is not None, "of a run"
        seen = leakage.require_unseen(dataset, tuple(splits), run, accept_leakage, ACCEPT_LEAKAGE)
        config = _config(dataset, run, "+".join(splits), size)
        if any(start.weights == stamp[run_folder.WEIGHTS] for start in found):
            raise ConfigError(f"--encoders: {run} has the weights of another one: name each once")
        marks = [
            *(["an encoder of an unfinished run"] if stamp.get("accepted") else []),
            *(
                ["an encoder has seen test cases"]
                if isinstance(seen, dict) and any(seen.values())
                else []
            ),
        ]
        method, weights = run_folder.method(run), stamp[run_folder.WEIGHTS]
        found.append(Start(method, config, weights, "; ".join(marks)))
    if found:
        like = found[0].config
        for seed in range(RANDOM_ENCODERS):
            config = dataclasses.replace(
                like, encoder_run="", seed=seed, encoder=EncoderConfig(like.encoder.depth)
            )
            known = f"seed{seed}-{like.encoder.depth}-{like.intensity.channels}"
            found.append(Start(RANDOM, config, known))
    return found


def splits_of(dataset: Dataset) -> list[str]:
    """The splits that a plan reads: all folds, or train, val and test as far as there are these.

    Raises:
      DataError: there are no folds and no test split.
    """
    splits = dataset.manifest["splits"]
    if folds := folds_of(splits):
        return folds
    known = [split for split in (*LEARNT, TEST) if split in splits and splits[split]["slices"]]
    if TEST not in known or "train" not in known:
        raise DataError(
            f"{dataset.path} has the splits {', '.join(splits)}: a plan tests on patients that are "
            "held out; prepare it with --folds=5, or with train and test"
        )
    return known


def _config(dataset: Dataset, run: str, split: str, size: int) -> EvaluateConfig:
    """How the features of a run's encoder are made: input as in its pre-training."""
    known = run_folder.read_config(Path(run))["config"]
    intensity = from_plain(Intensity(), known.get("intensity", {}))
    intensity.require_kind(dataset.intensity)
    size = size or int(known.get("data", {}).get("canvas") or 224)
    canvas = min(size, dataset.manifest.get("canvas", size))
    return EvaluateConfig(
        encoder_run=run,
        data=DataConfig(path=str(dataset.path), split=split, canvas=canvas),
        size=size,
        intensity=intensity,
        encoder=from_plain(EncoderConfig(), known.get("encoder", {})),
    )


def case_features(
    start: Start, dataset: Dataset, cache: Path, check: Callable[[], None] = lambda: None
) -> Features:
    """Features of all cases by a start's encoder, remembered in the folder `cache`."""
    path = cache / start.file
    table = data.read_cases(dataset, start.config.data.split)
    how = start.config  # a random encoder's weights do not say how slices are read
    known = f"{dataset.fingerprint} {how.size} {how.data.canvas} {how.intensity} {start.weights}"
    if (x := _remembered(path, known)) is None:
        x = evaluate.embedded(start.config, dataset, check).of_cases(table).x
        cache.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, x=x.astype(np.float32), known=np.array(known))
    return Features(x, table.labels, table.patients, table.records.astype(np.int32))


def _remembered(path: Path, known: str) -> np.ndarray | None:
    """The features of a file, if it is of this dataset, size and encoder."""
    try:
        with open_ordinary(path) as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["x"] if str(arrays["known"]) == known else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def fold_of_cases(dataset: Dataset) -> Int[np.ndarray, " n"]:
    """Which fold tests each case of `splits_of`; without folds the test split is the only one."""
    splits = splits_of(dataset)
    if folds_of(splits):
        counts = [len(data.read_cases(dataset, split)) for split in splits]
        return np.repeat(np.arange(len(splits)), counts)
    numbers = [0 if split == TEST else NEVER for split in splits]
    return np.repeat(numbers, [len(data.read_cases(dataset, split)) for split in splits])
