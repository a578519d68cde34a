"""Class probabilities of a labelled run's network, batch by batch or of a whole split."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ctssl_jax import data
from ctssl_jax.augment import views as augment
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import PyTree, TrainState
from ctssl_jax.nn.resnet import ResNet

Predictor = Callable[[PyTree, PyTree, dict[str, jax.Array]], tuple[jax.Array, jax.Array]]


def make_predictor(
    config: FinetuneConfig, encoder: ResNet, dataset: data.Dataset, mesh: Mesh
) -> Predictor:
    """Class probabilities and losses of a batch: whole slices, BatchNorm in evaluation mode.

    They are whole on every device and host.
    """

    def predict(
        params: PyTree, batch_stats: PyTree, batch: dict[str, jax.Array]
    ) -> tuple[Float[jax.Array, "b k"], Float[jax.Array, " b"]]:
        view = config.method.view
        image = augment.whole_slices(
            batch["image"], config.intensity, dataset.intensity, view.size, view.interpolation
        )
        logits, _ = config.method.logits(encoder, params, batch_stats, image, train=False)
        label = jnp.maximum(batch["label"], 0)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
        return jax.nn.softmax(logits), loss

    return jax.jit(predict, out_shardings=sharding.replicated(mesh))


def evaluate(
    predict: Predictor,
    state: TrainState,
    dataset: data.Dataset,
    config: FinetuneConfig,
    split: str,
    mesh: Mesh,
    rows: Int[np.ndarray, " n"] | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n k"], float]:
    """Labels, class probabilities in the order of the records, and the mean loss of a split.

    `check` is called at every batch and may raise; `rows` are the records looked at, None: all.
    """
    labels, _ = data.read_labels(dataset, split)
    if rows is not None:
        labels = labels[rows]
    scores, losses = [], []
    for batch in data.evaluation_batches(
        dataset,
        config.data,
        split=split,
        batch_size=sharding.round_up(data.EVALUATION_BATCH),
        indices=rows,
        **sharding.process_share(),
    ):
        check()
        probability, loss = predict(
            state.params, state.batch_stats, sharding.put_batch(batch, mesh)
        )
        scores.append(np.asarray(probability))
        losses.append(np.asarray(loss))
    n = len(labels)  # the rest is padding of the last batch
    return labels, np.concatenate(scores)[:n], float(np.concatenate(losses)[:n].mean())
