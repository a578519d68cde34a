"""The supervised loss against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.methods import Supervised
from ctssl_jax.methods.base import Progress, TrainState
from ctssl_jax.nn.resnet import ResNet

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0], [1.0, 1.5, -2.0], [-1.0, 0.2, 0.1]])
LABELS = np.array([0, 1, 1, 2])


class Fixed(Supervised):
    """The same logits for any image."""

    def logits(self, *arguments, **options):
        return jnp.asarray(LOGITS), {}


def loss(**fields):
    batch = {"views": (jnp.zeros((1, 4, 1, 1, 1)),), "label": jnp.asarray(LABELS)}
    state = TrainState(jnp.int32(0), {}, {}, (), ())
    found, out = Fixed(**fields).loss(
        ResNet(depth=18), {}, state, batch, jax.random.key(0), Progress(jnp.int32(0), 1, 1, 1)
    )
    assert float(out.metrics["accuracy"]) == 0.5
    return float(found)


def test_loss_is_the_mean_over_the_weights_of_the_batch():
    each = [
        np.log(np.exp(row).sum()) - row[label] for row, label in zip(LOGITS, LABELS, strict=True)
    ]
    assert loss() == pytest.approx(np.mean(each), rel=1e-6)
    weights = np.array([1.0, 2.5, 0.25])
    expected = np.dot(weights[LABELS], each) / weights[LABELS].sum()
    assert loss(class_weights=tuple(weights)) == pytest.approx(expected, rel=1e-6)
    assert loss(class_weights=(3.0, 3.0, 3.0)) == pytest.approx(loss(), rel=1e-6)
