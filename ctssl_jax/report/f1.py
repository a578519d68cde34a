"""F1 as a function of the weights of patients, for the intervals of `ctssl_jax.statistics`."""

import numpy as np
from jaxtyping import Float, Integer, Num, Shaped

from ctssl_jax.statistics import Statistic


def f1(
    labels: Integer[np.ndarray, " n"],
    scores: Num[np.ndarray, "runs n k"],
    patients: Integer[np.ndarray, " n"],
) -> Statistic:
    """Prepares the F1, averaged over runs, as a function of the weights of patients 0..g-1.

    Of class 1 where there are two; of more, the plain mean over the classes that are present or
    predicted. NaN where there is none.
    """
    classes = scores.shape[-1]
    counted = np.arange(classes) if classes > 2 else np.array([1])
    truth = labels[:, None] == counted
    predicted = scores.argmax(axis=-1)[..., None] == counted
    hits = _by_patient(truth & predicted, patients)
    # F1 = 2 hits / (cases of the class + cases called so)
    cases = _by_patient(truth.astype(int) + predicted, patients)

    def statistic(weights: Float[np.ndarray, "r g"]) -> Float[np.ndarray, " r"]:
        total = weights @ cases  # [runs, r, counted]
        with np.errstate(invalid="ignore"):
            each = 2 * (weights @ hits) / total
        present = total > 0
        some = present.any(axis=-1)
        mean = np.where(present, each, 0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
        return np.where(some, mean, np.nan).mean(axis=0)

    return statistic


def _by_patient(
    cases: Shaped[np.ndarray, "runs n k"], patients: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "runs g k"]:
    total = np.zeros((cases.shape[0], patients.max() + 1, cases.shape[2]))
    for run, counts in zip(total, cases, strict=True):
        np.add.at(run, patients, counts)
    return total
