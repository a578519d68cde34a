"""Layer-wise learning rates: ids and what they scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctssl_jax.methods.base import abstract_encoder
from ctssl_jax.nn.resnet import DEPTHS, ResNet
from ctssl_jax.optim.layer_decay import layer_id, scale_by_layer


def ids(depth):
    """By stage, those of its blocks."""
    blocks = DEPTHS[depth].blocks
    return [[layer_id(f"layer{s}_{b}", depth) for b in range(n)] for s, n in enumerate(blocks, 1)]


def test_ids_are_the_sources():
    assert ids(50) == [[1, 1, 1], [2, 2, 3, 3], [4, 4, 4, 5, 5, 5], [6, 6, 6]]
    assert ids(34) == ids(50)
    assert ids(18) == [[1, 1], [2, 3], [4, 5], [6, 6]]
    assert {layer_id(name, 50) for name in ("conv1", "bn1")} == {0}


@pytest.mark.parametrize("depth", DEPTHS)
def test_learning_rates_fall_towards_the_image(depth):
    encoder, _ = abstract_encoder(ResNet(depth=depth), 1)
    params = {"encoder": encoder, "head": {"linear": {"kernel": jnp.zeros((2, 2))}}}
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    ones = jax.tree.map(jnp.ones_like, params)
    tx = optax.chain(optax.sgd(0.5), scale_by_layer(0.7, depth))
    updates, _ = tx.update(ones, tx.init(params), params)
    found = {
        name: {float(np.round(x, 6)) for leaf in jax.tree.leaves(part) for x in np.unique(leaf)}
        for name, part in {**updates["encoder"], "head": updates["head"]}.items()
    }
    expected = {"conv1": 0.7**7, "bn1": 0.7**7, "layer1_0": 0.7**6, "layer2_0": 0.7**5}
    expected |= {"layer2_1" if depth == 18 else "layer2_2": 0.7**4, "layer3_0": 0.7**3}
    expected |= {"layer3_1" if depth == 18 else "layer3_3": 0.7**2, "layer4_0": 0.7, "head": 1.0}
    for name, factor in expected.items():
        assert list(found[name]) == pytest.approx([-0.5 * factor], abs=1e-6), name
