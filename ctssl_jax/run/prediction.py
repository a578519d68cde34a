"""Class probabilities of a labelled run's network, of the cases of a split.

The slices go through the encoder in batches, all of a case however many; what becomes of their
features is a small program on one device. Memory is bounded by the batch and by one feature vector
a slice. A case of one slice is no special case.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int16

from ctssl_jax import data
from ctssl_jax.augment import Intensity, IntensityKind
from ctssl_jax.augment import views as augment
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.dataset.cases import CaseTable
from ctssl_jax.hosts import sharding
from ctssl_jax.hosts.progress import Progress
from ctssl_jax.methods.base import PyTree, TrainState
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.nn.resnet import ResNet

TOGETHER = 4096  # slices at most, with their padding, whose cases are pooled at once


class Predictor(NamedTuple):
    """The two compiled halves of a network; see `make_predictor`.

    Attributes:
      embed: parameters, batch statistics and image to features.
      pool: parameters of the head, features and which are valid to log-probabilities and shares.
    """

    embed: Callable[[PyTree, PyTree, jax.Array], jax.Array]
    pool: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Predicted(NamedTuple):
    """What a network says of some cases.

    Attributes:
      log_probabilities: of each class.
      shares: of each slice in its case's features, a vector for each case.
    """

    log_probabilities: Float[np.ndarray, "c k"]
    shares: list[Float[np.ndarray, " _"]]

    @property
    def probabilities(self) -> Float[np.ndarray, "c k"]:
        """Of each class."""
        return np.exp(self.log_probabilities)


def make_predictor(
    method: Supervised, intensity: Intensity, kind: IntensityKind, encoder: ResNet, mesh: Mesh
) -> Predictor:
    """Compiles the network's evaluation: whole slices, BatchNorm in evaluation mode.

    The features are whole on every device and host.
    """

    def embed(
        params: PyTree, batch_stats: PyTree, stored: Int16[Array, "b h w"]
    ) -> Float[Array, "b d"]:
        view = method.view
        image = augment.whole_slices(stored, intensity, kind, view.size, view.interpolation)
        return method.features(encoder, params, batch_stats, image, train=False)[0]

    def pool(
        head: PyTree, features: Float[Array, "c n d"], valid: Bool[Array, "c n"]
    ) -> tuple[Float[Array, "c k"], Float[Array, "c n"]]:
        logits, shares = method.case_logits(head, features, valid)
        return jax.nn.log_softmax(logits), shares

    return Predictor(jax.jit(embed, out_shardings=sharding.replicated(mesh)), jax.jit(pool))


def slice_features(
    predict: Predictor,
    state: TrainState,
    dataset: data.Dataset,
    config: FinetuneConfig,
    split: str,
    mesh: Mesh,
    rows: Int[np.ndarray, " n"],
    check: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "n d"]:
    """Feature vectors of rows of a split; `check` is called at every batch and may raise."""
    found, size = [], sharding.round_up(data.EVALUATION_BATCH)
    progress = Progress(split, len(rows))
    for batch in data.evaluation_batches(
        dataset,
        config.data,
        split=split,
        batch_size=size,
        indices=rows,
        **sharding.process_share(),
    ):
        check()
        progress.batch(size)
        image = sharding.put_batch({"image": batch["image"]}, mesh)["image"]
        found.append(np.asarray(predict.embed(state.params, state.batch_stats, image)))
    return np.concatenate(found)[: len(rows)]  # the rest is padding of the last batch


def head_here(state: TrainState) -> PyTree:
    """The parameters of the head, on one device of this host."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state.params["head"])


def pool_cases(
    predict: Predictor,
    state: TrainState,
    features: Float[np.ndarray, "n d"],
    rows: Int[np.ndarray, " n"],
    cases: CaseTable,
) -> Predicted:
    """What the network says of cases, given the features of `rows`, ascending, of their split."""
    head = head_here(state)
    device = jax.tree.leaves(head)[0].device
    scores: dict[int, Float[np.ndarray, " k"]] = {}
    shares: dict[int, Float[np.ndarray, " _"]] = {}
    for places, padded in _bags(cases):
        bags = np.zeros((*padded, features.shape[1]), np.float32)
        valid = np.zeros(padded, bool)
        for position, place in enumerate(places):
            own = np.searchsorted(rows, cases.rows[place])
            bags[position, : len(own)], valid[position, : len(own)] = features[own], True
        found = predict.pool(head, *jax.device_put((bags, valid), device))
        logs, weights = map(np.asarray, found)
        for position, place in enumerate(places):
            scores[place] = logs[position]
            shares[place] = weights[position, : len(cases.rows[place])]
    order = range(len(cases))
    return Predicted(np.stack([scores[n] for n in order]), [shares[n] for n in order])


def _bags(cases: CaseTable) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Cases of about one length, and the shape that they are padded to: few programs do for all."""
    lengths = np.array([len(rows) for rows in cases.rows])
    padded = 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    for length in np.unique(padded).tolist():
        places, together = np.flatnonzero(padded == length).tolist(), max(1, TOGETHER // length)
        # A split of few cases does not pay for many.
        count = min(together, 2 ** int(np.ceil(np.log2(len(places)))))
        for start in range(0, len(places), count):
            yield places[start : start + count], (count, length)


def evaluate(
    predict: Predictor,
    state: TrainState,
    dataset: data.Dataset,
    config: FinetuneConfig,
    split: str,
    mesh: Mesh,
    cases: CaseTable,
    check: Callable[[], None] = lambda: None,
    features: Float[np.ndarray, "n d"] | None = None,
) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, "c k"], float]:
    """Labels, class probabilities in the order of the cases, and the mean loss of a split.

    Args:
      predict: of the run.
      state: with the weights to evaluate.
      dataset: of the run, as `config` and `mesh`.
      config: of the run.
      split: that the cases are of.
      mesh: where the state lies.
      cases: those looked at.
      check: called at every batch; may raise.
      features: of the cases' slices, by ascending row, where they are known.
    """
    rows = cases.slice_rows()
    if features is None:
        features = slice_features(predict, state, dataset, config, split, mesh, rows, check)
    found = pool_cases(predict, state, features, rows, cases)
    losses = -np.take_along_axis(found.log_probabilities, cases.labels[:, None], axis=1)
    return cases.labels, found.probabilities, float(losses.mean())
