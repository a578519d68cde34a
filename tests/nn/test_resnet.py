"""The encoder's parameter tree, shapes and options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.interop.names import encoder_name, to_torch
from ctssl_jax.nn.resnet import DropPath, ResNet


def abstract(depth, channels=1, size=64, **options):
    network = ResNet(depth=depth, **options)
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, channels)))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# torchvision's resnet18/34/50 without their classifiers
@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)]
)
def test_parameter_count_is_torchvisions(depth, parameters):
    assert count(abstract(depth, channels=3)["params"]) == parameters


def test_names_are_torchvisions():
    names = to_torch(
        jax.tree.map(lambda leaf: np.empty(leaf.shape, bool), abstract(18)["params"]),
        encoder_name,
    )
    assert names["conv1.weight"].shape == (64, 1, 7, 7)
    assert names["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert {"bn1.weight", "layer4.1.bn2.bias", "layer3.0.downsample.1.weight"} <= names.keys()
    assert len(names) == 60


@pytest.mark.parametrize("depth", [18, 50])
def test_stage_maps_have_the_declared_widths_and_strides(depth):
    network = ResNet(depth=depth)
    variables = abstract(depth, size=96)
    stages = jax.eval_shape(lambda v: network.apply(v, jnp.zeros((2, 96, 96, 1))), variables)
    assert [stage.shape[-1] for stage in stages] == list(network.widths)
    assert [stage.shape[1] for stage in stages] == [24, 12, 6, 3]


def test_last_scale_of_a_block_starts_at_zero_when_asked():
    for zero in (True, False):
        network = ResNet(depth=18, zero_init_residual=zero)
        params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
        assert float(params["layer3_1"]["bn2"]["scale"].max()) == (0.0 if zero else 1.0)
        assert float(params["layer3_1"]["bn1"]["scale"].min()) == 1.0


def test_convolutions_start_kaiming_fan_out():
    network = ResNet(depth=18)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    kernel = np.asarray(params["layer4_1"]["conv1"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (512 * 9)), rel=0.01)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 1, 1, 1))
    y = DropPath(0.25).apply({}, x, True, rngs={"drop_path": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert float(y.mean()) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x, False), x)


def test_remat_changes_nothing():
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    plain, remat = ResNet(depth=18), ResNet(depth=18, remat_stages=4)
    variables = jax.jit(plain.init)(jax.random.key(0), x)
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(remat.init, jax.random.key(0), x)
    )
    outputs = [
        jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))(variables, x)[0][-1]
        for network in (plain, remat)
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)
