"""Linear probes of frozen features on nested subsets of the patients: a learning curve, measured.

Each order of the patients gives subsets of which the larger hold the smaller (`run.subset`: in each
the classes are in proportion). A probe learns from the cases of a subset and is tested on patients
that none of the order's subsets can hold: of another fold, or of the test split.

The strength of the penalty is fixed. Chosen by cross-validation within a subset of ten patients it
would be mostly luck, and would make a curve five to ten times dearer.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from ctssl_jax.config import SubsetBy
from ctssl_jax.errors import DataError
from ctssl_jax.frozen.classifiers import fit_linear
from ctssl_jax.frozen.features import Features
from ctssl_jax.run.subset import subset
from ctssl_jax.statistics.learning_curve import Curve, measured
from ctssl_jax.statistics.planning import FEWEST_OF_A_CLASS, FEWEST_PATIENTS

PENALTY = 0.01
"""C of every probe."""
ITERATIONS = 500
ORDERS = 8
SHARES = (0.2, 0.3, 0.45, 0.65, 1.0)
"""Sizes, in parts of the smallest pool that subsets are drawn from."""
NEVER = -1
"""The fold of cases that are never tested."""


def require_enough(features: Features, classes: Sequence[str]) -> None:
    """Raises `DataError`, with what would be needed, where there is too little to foretell from."""
    count = len(np.unique(features.patients))
    if count < FEWEST_PATIENTS:
        raise DataError(
            f"{count} annotated patients are too few to foretell what more would bring: it wants "
            f"{FEWEST_PATIENTS} or more; annotate {FEWEST_PATIENTS - count} more"
        )
    for label, name in enumerate(classes):
        have = len(np.unique(features.patients[features.labels == label]))
        if have < FEWEST_OF_A_CLASS:
            raise DataError(
                f"class {name!r} has {have} annotated patients, too few to foretell what more "
                f"would bring: it wants {FEWEST_OF_A_CLASS} or more of each class; annotate "
                f"{FEWEST_OF_A_CLASS - have} more of them"
            )


def pools(features: Features, folds: Int[np.ndarray, " n"]) -> list[int]:
    """How many patients a probe can learn from, for each fold that is tested."""
    tested = np.unique(folds[folds != NEVER])
    return [len(np.unique(features.patients[folds != fold])) for fold in tested]


def sizes_of(features: Features, folds: Int[np.ndarray, " n"]) -> list[int]:
    """Numbers of training patients at which probes are fitted, small to large."""
    pool = min(pools(features, folds))
    least = max(4, 2 * len(np.unique(features.labels)))
    return sorted({max(round(share * pool), min(least, pool)) for share in SHARES})


def probe_scores(
    features: Features,
    folds: Int[np.ndarray, " n"],
    sizes: Sequence[int],
    classes: int,
    orders: int = ORDERS,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "orders sizes n classes"]:
    """Class probabilities of every case by the probes of each order and size.

    Args:
      features: of cases.
      folds: that test each case, by a probe of the others'; `NEVER` of those only trained on.
      sizes: training patients.
      classes: how many.
      orders: how many orders of the patients.
      seed: of the orders; two encoders with one seed learn from the same subsets.
      check: called before each probe; may raise.

    Returns:
      NaN for cases that are never tested.
    """
    scores = np.full((orders, len(sizes), len(features.labels), classes), np.nan)
    for fold in np.unique(folds[folds != NEVER]):
        tested, pool = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        for order in range(orders):
            draw = int(np.random.SeedSequence([seed, order, int(fold)]).generate_state(1)[0])
            for place, size in enumerate(sizes):
                check()
                rows = subset(
                    *(features.labels[pool], features.patients[pool], 1.0, draw),
                    SubsetBy.PATIENT,
                    count=size,
                )
                found = _probe(features.take(pool[rows]), classes, features.x[tested])
                scores[order, place, tested] = found
    return scores


def _probe(
    train: Features, classes: int, x: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n classes"]:
    """Probabilities by a probe; of one class alone nothing is learnt, and all are called alike."""
    if len(np.unique(train.labels)) < 2:
        return np.full((len(x), classes), 1 / classes)
    return fit_linear(train, classes, ITERATIONS, PENALTY).predict(x)


def probe_curve(
    features: Features,
    folds: Int[np.ndarray, " n"],
    sizes: Sequence[int],
    classes: int,
    orders: int = ORDERS,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Curve:
    """The learning curve of probes; arguments as of `probe_scores`."""
    scores = probe_scores(features, folds, sizes, classes, orders, seed, check)
    tested = folds != NEVER
    can = pools(features, folds)
    at_hand = len(np.unique(features.patients)) if tested.all() else can[0]
    return measured(
        features.labels[tested],
        scores[:, :, tested],
        features.patients[tested],
        folds[tested],
        np.array(sizes),
        float(np.mean(can)),
        at_hand,
    )
