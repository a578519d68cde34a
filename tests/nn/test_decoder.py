"""SparK's head: sizes and initialisation as the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.nn.decoder import SparKHead

WIDTHS = (256, 512, 1024, 2048)  # ResNet-50


def stages(widths, size):
    return tuple(jnp.zeros((1, size >> (i + 2), size >> (i + 2), w)) for i, w in enumerate(widths))


def test_parameter_counts_are_the_references():
    head = SparKHead(width=768, channels=3)
    mask = jnp.ones((1, 2, 2), bool)
    params = jax.eval_shape(head.init, jax.random.key(0), stages(WIDTHS, 64), mask)["params"]

    def count(prefix):
        return sum(
            leaf.size
            for name in params
            if name.startswith(prefix)
            for leaf in jax.tree.leaves(params[name])
        )

    blocks = [count(f"block{i}") for i in range(5)]
    assert blocks == [17_402_880, 4_351_488, 1_088_256, 272_256, 68_160]
    assert sum(blocks) + count("proj") == 23_183_115
    assert count("densify_conv") == 6_219_168
    assert count("densify_bn") == 7_680
    assert count("mask_token") == 3_840


def test_level_of_the_decoders_width_is_not_projected():
    head = SparKHead(width=512)
    mask = jnp.ones((1, 2, 2), bool)
    widths = (64, 128, 256, 512)
    params = jax.eval_shape(head.init, jax.random.key(0), stages(widths, 64), mask)["params"]
    assert "densify_conv0" not in params
    assert "densify_conv1" in params


def test_initialisation_is_the_references():
    head = SparKHead(width=128)
    widths = (64, 128, 256, 512)
    init = jax.jit(head.init)
    params = init(jax.random.key(0), stages(widths, 64), jnp.ones((1, 2, 2), bool))["params"]
    token = np.asarray(params["mask_token0"])
    assert np.abs(token).max() <= 0.02
    assert 0.009 < token.std() < 0.013  # a normal cut at one sigma has std 0.54 sigma
    conv = np.asarray(params["block0"]["conv1"]["kernel"])
    assert conv.std() == pytest.approx(0.02, rel=0.02)
    assert np.abs(conv).max() > 0.06  # not cut at two sigma
    up = np.asarray(params["block0"]["up"]["kernel"])
    assert up.std() == pytest.approx(np.sqrt(2 / (16 * 128)), rel=0.02)
    densify = params["densify_conv1"]
    bound = 1 / np.sqrt(256 * 9)
    for leaf in (densify["kernel"], densify["bias"]):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
