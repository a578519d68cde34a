"""Classifiers of frozen features: k nearest neighbours and a linear probe, and their settings."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ctssl_jax.config import Metric
from ctssl_jax.frozen.features import Features
from ctssl_jax.scores import Scored


class Fitted(NamedTuple):
    """A classifier, `predict(features) -> class probabilities`; whether its solver converged."""

    predict: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n k"]]
    converged: bool = True


class Choice(NamedTuple):
    """The setting with the best validation score, and the score of every setting tried."""

    setting: int | float
    fitted: Fitted
    val: Scored
    tried: dict[int | float, float]


def fit_knn(train: Features, classes: int, k: int) -> Fitted:
    """k nearest neighbours by cosine distance, weighted by its inverse; k is at most n."""
    from sklearn.neighbors import KNeighborsClassifier

    # All that decides is written out, since defaults of a library change.
    model = KNeighborsClassifier(k, metric="cosine", weights="distance", algorithm="brute")
    model.fit(train.x.astype(np.float64), train.labels)
    return Fitted(partial(_class_scores, model, classes))


def fit_linear(train: Features, classes: int, iterations: int, c: float) -> Fitted:
    """Logistic regression on standardised features, of at most `iterations` of its solver."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=c, solver="lbfgs", tol=1e-4, max_iter=iterations)
    model = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train.x.astype(np.float64), train.labels)
    converged = not any(issubclass(item.category, ConvergenceWarning) for item in caught)
    return Fitted(partial(_class_scores, model, classes), converged)


def _class_scores(
    model: Any, classes: int, x: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n k"]:
    """Class probabilities; 0 for a class of which there was nothing to learn from."""
    scores = np.zeros((len(x), classes))
    scores[:, model.classes_] = model.predict_proba(x.astype(np.float64))
    return scores


def choose(
    fit: Callable[[Any], Fitted], settings: Sequence[int | float], val: Features, select_by: Metric
) -> Choice:
    """Fits every setting and keeps the best on validation, the first listed of equals."""
    tried: dict[int | float, float] = {}
    best: Choice | None = None
    for setting in settings:
        fitted = fit(setting)
        scored = Scored(val.labels, val.patients, fitted.predict(val.x))
        tried[setting] = scored.metrics()[select_by.value]
        if best is None or tried[setting] > tried[best.setting]:
            best = Choice(setting, fitted, scored, tried)
    assert best is not None, "there is at least one setting"
    return best
