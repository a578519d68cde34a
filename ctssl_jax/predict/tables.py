"""What a network says, as CSV: of each case, and of each slice.

Pseudonyms and numbers alone. `record` is the row number in the split of `dataset`, `slice` the
place of a slice in its case, from 0.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctssl_jax import data
from ctssl_jax.data import Dataset
from ctssl_jax.files import whole_file
from ctssl_jax.predict.network import Said, SplitCases
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run.likeness import distances, limit
from ctssl_jax.run.restore import FineTuned
from ctssl_jax.scores import exact, read_predictions
from ctssl_jax.statistics import threshold_at_sensitivity, threshold_at_specificity

TOP = 5  # slices that are named of a case


class Threshold(NamedTuple):
    """From which probability of the last of two classes a case is called that.

    Attributes:
      value: NaN of more classes, or where validation gives none.
      chosen: how, in words.
    """

    value: float
    chosen: str


def choose_threshold(model: FineTuned, by: str, target: float) -> Threshold:
    """The threshold that validation gives; of more than two classes there is none.

    Args:
      model: whose predictions of validation are read.
      by: "sensitivity" or "specificity".
      target: that it is to reach on validation.

    Raises:
      StorageError: predictions.csv of the run cannot be read, or is not what the run wrote.
    """
    if len(model.classes) != 2:
        return Threshold(float("nan"), "the likeliest class")
    run_folder.read_results(model.run)  # raises where a file of them was changed
    val = read_predictions(model.run / "predictions.csv", model.config.val_split)
    choose = threshold_at_sensitivity if by == "sensitivity" else threshold_at_specificity
    value = float(choose(val.labels == 1, val.scores[:, 1], target))
    if np.isnan(value):
        missing = model.classes[1 if by == "sensitivity" else 0]
        return Threshold(value, f"the likeliest class, as no case of validation is {missing}")
    return Threshold(value, f"{by} of at least {target:g} on validation")


def called(probability: Any, threshold: Threshold) -> Any:
    """Whether probabilities of the last of two classes reach the threshold.

    Compared as doubles, as the tables hold both: a single would round the threshold.
    """
    return np.asarray(probability, np.float64) >= threshold.value


def decide(said: Said, threshold: Threshold) -> int:
    """The class that a case is called."""
    if np.isnan(threshold.value):
        return int(said.probabilities.argmax())
    return int(called(said.probabilities[1], threshold))


def write_cases(
    path: Path,
    model: FineTuned,
    found: Sequence[tuple[SplitCases, list[Said], list[str]]],
    threshold: Threshold,
    reference: Any,
    classes: Sequence[str] = (),
) -> int:
    """Writes one row for each case; returns how many are unlike what the network was chosen on.

    Probabilities and threshold are exact, so that the decision follows from them.

    Args:
      path: the file.
      model: that says it.
      found: of each split its cases, what is said of them, and their names.
      threshold: by which they are called.
      reference: as `likeness.read_reference` has it.
      classes: of the labels that the cases came with, for the column `label`.
    """
    probabilities = [f"probability_{name}" for name in model.classes]
    header = ["case", "patient", "slices", *probabilities, "threshold", "decision"]
    header += ["label", "top_slices"]
    rows, unlike = [], 0
    farthest = np.inf if reference is None else limit(reference)
    for seen, said, names in found:
        apart = np.full(len(said), np.nan)
        if reference is not None:
            apart = distances(reference, seen.means())
        for place, (own, name) in enumerate(zip(said, names, strict=True)):
            far = apart[place] > farthest
            unlike += int(far)
            rows.append(
                [
                    *(name, seen.cases.patients[place], len(own.shares)),
                    *map(exact, own.probabilities),
                    "" if np.isnan(threshold.value) else exact(threshold.value),
                    model.classes[decide(own, threshold)],
                    classes[label] if (label := int(seen.cases.labels[place])) >= 0 else "",
                    " ".join(map(str, own.top(TOP))),
                    _number(apart[place]),
                    "" if reference is None else "yes" if far else "no",
                ]
            )
    write_csv(path, [*header, "distance", "unlike"], rows)
    return unlike


def write_slices(
    path: Path, dataset: Dataset, found: Sequence[tuple[SplitCases, list[Said], list[str]]]
) -> None:
    """Writes one row for each slice: what it shares in its case, and what it says by itself."""
    header = ["case", "slice", "split", "record", "position_mm", "share", "score", "drives"]
    rows = []
    for seen, said, names in found:
        positions = data.read_fields(dataset, seen.split).positions
        for place, (own, name) in enumerate(zip(said, names, strict=True)):
            values = zip(seen.cases.rows[place], own.shares, own.scores, own.drives, strict=True)
            for number, (row, *numbers) in enumerate(values):
                where = _number(positions[row])
                rows.append([name, number, seen.split, row, where, *map(_number, numbers)])
    write_csv(path, header, rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _number(value: Any) -> str:
    return "" if np.isnan(value) else f"{float(value):.6g}"
