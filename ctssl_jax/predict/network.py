"""What a network says of every case of a dataset, and of the slices that it says it by."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctssl_jax import data
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.data import Dataset
from ctssl_jax.dataset.cases import CaseTable
from ctssl_jax.hosts import distributed, sharding
from ctssl_jax.log import duration
from ctssl_jax.methods.base import PyTree, TrainState
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.run.prediction import head_here, make_predictor, pool_cases, slice_features


@dataclasses.dataclass(frozen=True)
class SplitCases:
    """The cases of one split of a dataset, with the features of their slices.

    Attributes:
      split: its name.
      cases: in their order.
      rows: of the slices, ascending.
      features: of these rows.
    """

    split: str
    cases: CaseTable
    rows: Int[np.ndarray, " n"]
    features: Float[np.ndarray, "n d"]

    def of(self, place: int) -> Float[np.ndarray, "n d"]:
        """The features of a case's slices, in their order."""
        return self.features[np.searchsorted(self.rows, self.cases.rows[place])]

    def means(self) -> Float[np.ndarray, "c d"]:
        """The mean feature vector of each case."""
        return self.cases.means(self.features, self.rows)


class Said(NamedTuple):
    """What a network says of one case.

    Attributes:
      probabilities: of each class.
      shares: of each slice in the case's features; they sum to 1.
      scores: log-odds that each slice would have by itself, of `target` against the rest of two
        classes, or against the first of more.
      target: the class that the scores are of: the last of two, or the likeliest.
    """

    probabilities: Float[np.ndarray, " k"]
    shares: Float[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    target: int

    @property
    def drives(self) -> Float[np.ndarray, " n"]:
        """What each slice adds to the case's log-odds; of mean and attention they sum to them."""
        return self.shares * self.scores

    def top(self, count: int) -> list[int]:
        """The places of the slices that add most, the most first."""
        return np.argsort(-self.drives, kind="stable")[:count].tolist()


def as_state(params: PyTree, batch_stats: PyTree) -> TrainState:
    """Weights on every device, as evaluation takes them."""
    mesh = sharding.make_mesh()
    params, batch_stats = sharding.replicate((params, batch_stats), mesh)
    return TrainState(np.int32(0), params, batch_stats, (), ())


def embed_splits(
    config: FinetuneConfig, encoder: ResNet, dataset: Dataset, state: TrainState
) -> list[SplitCases]:
    """The cases of all splits of a dataset, each slice seen once; tells how long it took."""
    mesh = sharding.make_mesh()
    kind = dataset.intensity
    predict = make_predictor(config.method, config.intensity, kind, encoder, mesh)
    found, began = [], time.monotonic()
    for split in dataset.manifest["splits"]:
        cases = data.read_cases(dataset, split)
        rows = cases.slice_rows()
        features = slice_features(predict, state, dataset, config, split, mesh, rows)
        found.append(SplitCases(split, cases, rows, features))
    slices, took = sum(len(one.rows) for one in found), max(time.monotonic() - began, 1e-9)
    distributed.say(f"{slices:,} slices in {duration(took)}, {slices / took:,.1f} slices/s")
    return found


def say(
    config: FinetuneConfig, encoder: ResNet, dataset: Dataset, state: TrainState, seen: SplitCases
) -> list[Said]:
    """What the network says of each case of a split."""
    mesh, kind = sharding.make_mesh(), dataset.intensity
    predict = make_predictor(config.method, config.intensity, kind, encoder, mesh)
    found = pool_cases(predict, state, seen.features, seen.rows, seen.cases)
    head = head_here(state)
    logits = np.asarray(config.method.slice_logits(head, jnp.asarray(seen.features)))
    said = []
    for place, (own, shares) in enumerate(zip(found.probabilities, found.shares, strict=True)):
        target = len(own) - 1 if len(own) == 2 else int(own.argmax())
        of_case = logits[np.searchsorted(seen.rows, seen.cases.rows[place])]
        scores = of_case[:, target] - of_case[:, 0 if target else -1]
        said.append(Said(own, shares, scores, target))
    return said


def slopes(
    method: Supervised, head: PyTree, features: Float[np.ndarray, "n d"], target: int
) -> Float[np.ndarray, "n d"]:
    """How fast a case's log-odds of a class grow with the features of each of its slices."""

    def odds(features: Float[Array, "n d"]) -> Float[Array, ""]:
        valid = jnp.ones((1, len(features)), bool)
        logits = method.case_logits(head, features[None], valid)[0][0]
        return logits[target] - logits[0 if target else -1]

    return np.asarray(jax.grad(odds)(jnp.asarray(features)))


def case_names(seen: Sequence[SplitCases]) -> list[list[str]]:
    """What each case is called in tables: its pseudonym, or split and row of the slice it is."""
    return [
        [
            str(name) or f"{one.split}-{record}"
            for name, record in zip(one.cases.names, one.cases.records, strict=True)
        ]
        for one in seen
    ]
