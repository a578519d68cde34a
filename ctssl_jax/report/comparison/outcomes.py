"""What a cell's runs make of the test cases: ROC curves, calibration, confusion matrices.

A class is predicted where its score is the largest, as everywhere in this project. With two classes
the ROC curve is that of class 1, with more the plain mean of one class against the rest, over the
classes present. In a cross-validation curves are of each fold's network and then averaged.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ctssl_jax.report.comparison.compare import Cell
from ctssl_jax.report.runs import Cases
from ctssl_jax.statistics import bins_of, calibration, contrast, resampled, widened

FALSE_POSITIVES = np.linspace(0, 1, 101)
"""Rates of false positives at which ROC curves are read, so that they can be averaged."""


def roc_curves(cell: Cell) -> Float[np.ndarray, "runs 101"]:
    """True positive rate of each run at `FALSE_POSITIVES`."""
    return np.stack([_roc(run.cases) for run in cell.runs if run.cases])


def mean_roc_curve(cell: Cell) -> Float[np.ndarray, "101"]:
    """The mean over pre-trainings of the means over fine-tunings."""
    return cell.weights() @ roc_curves(cell)


def mean_confusion(cell: Cell) -> Float[np.ndarray, "k k"]:
    """Of the runs' matrices, likewise."""
    return np.tensordot(cell.weights(), confusion(cell), axes=1)


def _roc(cases: Cases) -> Float[np.ndarray, "101"]:
    if cases.folds is None:
        return _roc_of(cases.labels, cases.scores)
    curves = np.array(
        [
            _roc_of(cases.labels[own], cases.scores[own])
            for own in (cases.folds == fold for fold in np.unique(cases.folds))
        ]
    )
    return curves[np.isfinite(curves).all(axis=1)].mean(axis=0)


def _roc_of(
    labels: Int[np.ndarray, " n"], scores: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "101"]:
    from sklearn.metrics import roc_curve

    classes = scores.shape[1]
    present = np.unique(labels)
    curves = []
    for label in present if classes > 2 else (1,):
        positive = labels == label
        if not 0 < positive.sum() < len(positive):
            continue
        false, true, _ = roc_curve(positive, scores[:, label], drop_intermediate=False)
        # Where the curve rises at one rate, NumPy takes the upper end: the best at that rate.
        curves.append(np.interp(FALSE_POSITIVES, false, true))
    return np.mean(curves, axis=0) if curves else np.full(len(FALSE_POSITIVES), np.nan)


class Bin(NamedTuple):
    """Cases of about one predicted chance: its mean, and the share that is of class 1.

    With the 95 % interval of that share over patients, NaN where there is none.
    """

    predicted: float
    observed: float
    low: float
    high: float


def calibration_curve(cell: Cell) -> list[Bin]:
    """The bins that have cases, all runs of the cell together; two classes."""
    of = [run.cases for run in cell.runs if run.cases]
    scores, weights = np.stack([cases.scores for cases in of]), cell.weights()
    table = resampled(of[0].labels, scores, of[0].patients, calibration(weights), folds=of[0].folds)
    chances, bins = scores[..., 1], bins_of(scores[..., 1])
    curve = []
    for number, column in enumerate(table.T):
        inside = (bins == number) * weights[:, None]
        if inside.any():
            own = inside.any(axis=0)
            found = contrast([column[:, None]], [1])
            found = widened(found, "accuracy", of[0].labels[own], of[0].patients[own])
            predicted = float((chances * inside).sum() / inside.sum())
            curve.append(Bin(predicted, found.estimate, found.low, found.high))
    return curve


def confusion(cell: Cell) -> Int[np.ndarray, "runs k k"]:
    """Test cases of each run by true class (rows) and predicted class (columns)."""
    from sklearn.metrics import confusion_matrix

    found = []
    for run in cell.runs:
        if run.cases:
            scores = run.cases.scores
            labels = np.arange(scores.shape[1])
            found.append(confusion_matrix(run.cases.labels, scores.argmax(axis=1), labels=labels))
    return np.stack(found)
