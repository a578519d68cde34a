"""The external test: what a network was worth on labelled scans of another dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from ctssl_jax.data import Dataset
from ctssl_jax.dataset.cases import case_word
from ctssl_jax.predict.network import Said, SplitCases
from ctssl_jax.predict.tables import Threshold, called
from ctssl_jax.run.restore import FineTuned
from ctssl_jax.scores import Scored
from ctssl_jax.statistics import (
    Metric,
    accuracy,
    auc,
    bootstrap_interval,
    brier,
    f1,
    sensitivity,
    specificity,
    widened,
)

METRICS = {"auc": auc, "f1": f1, "accuracy": accuracy, "brier": brier}


def scored(
    model: FineTuned, dataset: Dataset, found: Sequence[tuple[SplitCases, list[Said]]]
) -> Scored:
    """Labels, patients and probabilities of the labelled cases, in the classes of the run."""
    numbers = np.array([model.classes.index(name) for name in dataset.classes])
    labels: list[Int[np.ndarray, " c"]] = []
    patients: list[Shaped[np.ndarray, " c"]] = []
    scores: list[Float[np.ndarray, "c k"]] = []
    for seen, said in found:
        known = seen.cases.labels >= 0
        labels.append(numbers[seen.cases.labels[known]])
        patients.append(seen.cases.patients[known])
        scores.append(np.stack([own.probabilities for own in said])[known])
    return Scored(np.concatenate(labels), np.concatenate(patients), np.concatenate(scores))


def results(
    model: FineTuned, dataset: Dataset, of: Scored, threshold: Threshold, learnt: Any
) -> dict[str, Any]:
    """The content of `results.json`: each metric with its 95 % interval over patients.

    Args:
      model: that was tested.
      dataset: that it was tested on.
      of: the labelled cases.
      threshold: of the run's own validation.
      learnt: what of the dataset the run has learnt from, as `leakage.learnt_of` has it.
    """
    tested: dict[str, tuple[Metric, np.ndarray]] = {
        name: (metric, of.scores) for name, metric in METRICS.items()
    }
    if not np.isnan(threshold.value):
        calls = called(of.scores[:, 1], threshold)[None, :, None].astype(float)
        tested |= {"sensitivity": (sensitivity, calls), "specificity": (specificity, calls)}
    intervals = {}
    for name, (metric, scores) in tested.items():
        found = bootstrap_interval(of.labels, scores, of.patients, metric)
        found = widened(found, name, of.labels, of.patients)
        intervals[name] = [found.estimate, found.low, found.high]
    config = model.config
    return {
        "task": config.task,
        "arm": config.arm,
        "run": model.record["hash"],
        "external": dataset.fingerprint != model.data["fingerprint"],
        "dataset": dataset.name,
        "data_fingerprint": dataset.fingerprint,
        "case": case_word(dataset.manifest),
        "classes": list(model.classes),
        "threshold": {"value": _finite(threshold.value), "chosen": threshold.chosen},
        "learnt_from": learnt,
        "test": of.metrics(),
        "intervals": {name: [*map(_finite, ends)] for name, ends in intervals.items()},
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
