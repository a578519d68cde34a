"""Shuffled labels: what the study's measurement finds where there is nothing to find.

    python docs/results/shuffled.py NAME=DATASET@PIXELS ... [--permutations=100] [--seed=0]
        --out=FILE.csv

Frozen features of an encoder that was never trained (ResNet-18), and of radiomics, teach a probe
(C = 0.01) which is tested on each fold in turn, or on the test split. Then the labels are permuted,
and it is done again. They are permuted within each fold: permuted among all, a class that training
has more of is one that the test has less of, and the AUC is below 0.5 for that reason alone.

Of each task it prints the AUC with the true labels, the mean and the middle 95 % of those with
permuted ones, and the standard error of that mean.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctssl_jax import data, evaluate
from ctssl_jax.augment import Intensity
from ctssl_jax.config import EncoderConfig, EvaluateConfig
from ctssl_jax.data import DataConfig, Dataset
from ctssl_jax.evaluate import FeatureKind
from ctssl_jax.frozen.classifiers import fit_linear
from ctssl_jax.frozen.features import Features
from ctssl_jax.frozen.nested import ITERATIONS, NEVER, PENALTY
from ctssl_jax.scores import Scored
from launch.plan.starts import fold_of_cases, splits_of

COLUMNS = (
    *("task", "features", "seed", "permutations"),
    *("auc", "mean", "standard_error", "low", "high"),
)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", metavar="NAME=DATASET@PIXELS")
    parser.add_argument("--permutations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the permutations")
    parser.add_argument("--out", required=True, metavar="FILE.csv")
    asked = parser.parse_args()
    rows = []
    for task in asked.tasks:
        name, _, place = task.partition("=")
        path, _, pixels = place.rpartition("@")
        for row in control(data.open_dataset(path), int(pixels), asked.permutations, asked.seed):
            rows.append({"task": name, **row})
            print("|", " | ".join(rows[-1][column] for column in COLUMNS), "|", flush=True)
    with Path(asked.out).open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def control(dataset: Dataset, size: int, permutations: int, seed: int) -> Iterator[dict[str, str]]:
    """A row for each kind of features."""
    splits, folds = "+".join(splits_of(dataset)), fold_of_cases(dataset)
    classes = len(dataset.manifest["classes"])
    table = data.read_cases(dataset, splits)
    for kind in FeatureKind:
        config = EvaluateConfig(
            features=kind,
            data=DataConfig(path=str(dataset.path), split=splits, canvas=size),
            size=size,
            intensity=Intensity(mean=(0.35,), std=(0.25,)),
            encoder=EncoderConfig(18),
        )
        features = evaluate.embedded(config, dataset).of_cases(table)
        rng = np.random.default_rng(seed)
        found = [
            auc(features._replace(labels=permuted(features.labels, folds, rng)), folds, classes)
            for _ in range(permutations)
        ]
        low, high = np.percentile(found, (2.5, 97.5))
        numbers = {
            "auc": auc(features, folds, classes),
            "mean": np.mean(found),
            "standard_error": np.std(found, ddof=1) / np.sqrt(permutations),
            "low": low,
            "high": high,
        }
        told = {name: f"{number:.4f}" for name, number in numbers.items()}
        drawn = {"seed": str(seed), "permutations": str(permutations)}
        yield {"features": kind.value, **drawn, **told}


def permuted(labels: np.ndarray, folds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The labels, in another order within each fold."""
    order = np.arange(len(labels))
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        order[rows] = rng.permutation(rows)
    return labels[order]


def auc(features: Features, folds: np.ndarray, classes: int) -> float:
    """The mean over the folds that are tested of the AUC of a probe of the others."""
    found = []
    for fold in np.unique(folds[folds != NEVER]):
        train = features.take(np.flatnonzero(folds != fold))
        test = features.take(np.flatnonzero(folds == fold))
        scores = fit_linear(train, classes, ITERATIONS, PENALTY).predict(test.x)
        found.append(Scored(test.labels, test.patients, scores).metrics()["auc"])
    return float(np.mean(found))


if __name__ == "__main__":
    main()
