"""What a labelled run learns from: single slices, bags of slices, or features that are known.

`Supervised` learns slices, each with the label of its case; `Cases` learns cases, from images or,
where its encoder is frozen, from features that are computed once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ctssl_jax import data
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import TrainState
from ctssl_jax.methods.cases import Cases, Learn
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.run.bags import bag_batches
from ctssl_jax.run.prediction import Predictor, slice_features
from ctssl_jax.run.subset import Subset


class Known(NamedTuple):
    """Features that are computed once; None where images are read.

    Attributes:
      train: by row of the training split; zeros where a slice is not of the subset.
      val: of the validation cases' slices, by ascending row.
    """

    train: Float[np.ndarray, "r d"] | None
    val: Float[np.ndarray, "n d"] | None


NONE = Known(None, None)


class Position:
    """Takes the place of batches until these can be made: it keeps where they go on."""

    def __init__(self) -> None:
        self._state: Any = None

    def set_state(self, state: Any) -> None:
        """As of an iterator."""
        self._state = state

    def seek(self, batches: Any) -> None:
        """Sets an iterator to it."""
        if self._state is not None:
            batches.set_state(self._state)


def is_frozen(method: Supervised) -> bool:
    """Whether the encoder learns nothing."""
    return isinstance(method, Cases) and method.frozen


def items(method: Supervised, subset: Subset) -> int:
    """How many things of a subset are learnt in an epoch."""
    return len(subset.cases) if isinstance(method, Cases) else len(subset.rows)


def slices_of_one(method: Supervised) -> int:
    """How many slices a step sees of each, at most."""
    return method.slices if isinstance(method, Cases) else 1


def labels(
    method: Supervised, dataset: data.Dataset, split: str, subset: Subset
) -> Int[np.ndarray, " n"]:
    """The labels that the loss sees in an epoch."""
    if isinstance(method, Cases) and method.learn is Learn.CASES:
        return subset.cases.labels
    fields = data.read_fields(dataset, split)
    of_case, own = fields.labels[subset.rows], fields.slice_labels[subset.rows]
    return np.where(own < 0, of_case, own) if isinstance(method, Cases) else of_case


def known_features(
    predict: Predictor,
    state: TrainState,
    dataset: data.Dataset,
    config: FinetuneConfig,
    drawn: tuple[Subset, Subset],
    mesh: Mesh,
    check: Callable[[], None],
) -> Known:
    """The features of a frozen encoder, of the training subset and of validation."""
    train, val = (
        slice_features(predict, state, dataset, config, split, mesh, subset.rows, check)
        for split, subset in zip((config.data.split, config.val_split), drawn, strict=True)
    )
    by_row = np.zeros((drawn[0].of, train.shape[1]), np.float32)
    by_row[drawn[0].rows] = train
    return Known(by_row, val)


def batches(
    config: FinetuneConfig,
    dataset: data.Dataset,
    subset: Subset,
    batch_size: int,
    features: Float[np.ndarray, "r d"] | None,
) -> grain.IterDataset:
    """The endless batches of a run, this process's share of each."""
    method, split = config.method, config.data.split
    common: dict[str, Any] = {"split": split, "batch_size": batch_size, "seed": config.seed}
    common |= sharding.process_share()
    if not isinstance(method, Cases):
        return data.labelled_batches(dataset, config.data, indices=subset.rows, **common)
    common |= {"cases": subset.cases, "slices": method.slices, "draw": method.draw}
    return bag_batches(dataset, config.data, features=features, **common)
