"""Grad-CAM against its definition, and slopes against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.methods import Cases
from ctssl_jax.methods.cases import Pooling
from ctssl_jax.nn.resnet import pool
from ctssl_jax.predict.network import slopes
from ctssl_jax.predict.pictures import cam

SLICES, SIZE, WIDTH = 3, 4, 6


def head_of(method):
    from ctssl_jax.nn.resnet import ResNet

    class Narrow(ResNet):
        @property
        def widths(self):
            return (1, 1, 1, WIDTH)

    narrow = Narrow()
    return method._head(narrow.param_dtype).init(
        jax.random.key(0), jnp.zeros((1, 1, WIDTH)), jnp.ones((1, 1), bool)
    )["params"]


@pytest.mark.parametrize("pooling", Pooling)
def test_the_map_is_that_of_its_paper(pooling):
    """Weights are the slopes of the score, averaged over the places (equation 1), the map the
    positive part of the weighted sum of the channels (equation 2), up to the number of places.
    """
    method = Cases(classes=2, pooling=pooling, hidden=4)
    head = head_of(method)
    rng = np.random.default_rng(0)
    stage = rng.uniform(0, 1, (SLICES, SIZE, SIZE, WIDTH)).astype(np.float32)

    def score(stage):
        features = pool(stage)[None]
        logits, _ = method.case_logits(head, features, jnp.ones((1, SLICES), bool))
        return logits[0, 1] - logits[0, 0]

    weights = np.asarray(jax.grad(score)(jnp.asarray(stage))).mean(axis=(1, 2))
    expected = np.maximum(np.einsum("khwc,kc->khw", stage, weights), 0)
    found = cam(stage, slopes(method, head, np.asarray(pool(jnp.asarray(stage))), 1))
    np.testing.assert_allclose(found, expected * SIZE * SIZE, rtol=1e-4, atol=1e-6)


def test_a_channel_that_speaks_against_the_class_is_not_shown():
    stage = np.zeros((1, 2, 2, 2), np.float32)
    stage[0, 0, 0, 0] = stage[0, 1, 1, 1] = 1.0
    found = cam(stage, np.array([[2.0, -1.0]], np.float32))
    np.testing.assert_array_equal(found[0], [[2.0, 0.0], [0.0, 0.0]])
