"""BatchNorm's statistics for evaluation: what they are, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax import data
from ctssl_jax.augment import Intensity, Interpolation
from ctssl_jax.augment.views import whole_slices
from ctssl_jax.data import DataConfig
from ctssl_jax.errors import DivergedError
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import init_encoder
from ctssl_jax.nn.resnet import STRIDE, ResNet
from ctssl_jax.run import batch_statistics

SIZE = 32
ENCODER = ResNet(depth=18)


@pytest.fixture(scope="module")
def weights():
    init = jax.jit(lambda key: init_encoder(ENCODER, key, STRIDE, 1))
    return jax.device_get(init(jax.random.key(3)))


def measured(phantom_path, weights, rows, devices=1):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    dataset = data.open_dataset(phantom_path)
    reading = DataConfig(path=str(phantom_path), canvas=SIZE)
    measure = batch_statistics.make_measure(
        ENCODER, Intensity(), dataset.intensity, SIZE, Interpolation.BICUBIC
    )
    params, stats = sharding.replicate(weights, mesh)
    return jax.device_get(
        batch_statistics.settled(measure, dataset, reading, rows, mesh, params, stats)
    )


@pytest.mark.parametrize("n", [1, 64, 65, 105, 128, 129, 1000])
def test_every_image_is_in_one_batch_and_batches_are_of_one_size(n):
    rows = np.arange(n) * 7
    batches = [batch[batch >= 0] for batch in batch_statistics.arranged(rows)]
    np.testing.assert_array_equal(np.concatenate(batches), rows)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_statistics.BATCH
    assert max(sizes) - min(sizes) <= 1


def test_the_images_are_those_of_the_seed_and_as_many_as_asked():
    rows = np.arange(0, 200, 2)
    chosen = batch_statistics.chosen_rows(rows, 30, 5)
    assert len(set(chosen)) == 30
    assert set(chosen) <= set(rows)
    np.testing.assert_array_equal(chosen, np.sort(chosen))
    np.testing.assert_array_equal(chosen, batch_statistics.chosen_rows(rows, 30, 5))
    assert set(chosen) != set(batch_statistics.chosen_rows(rows, 30, 6))
    np.testing.assert_array_equal(batch_statistics.chosen_rows(rows, 100, 5), rows)


def test_pooled_statistics_are_those_of_all_values():
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, 2, (n, 3)) for mean, n in ((0, 5), (4, 9), (100, 2))]
    stats = [{"bn1": {"mean": part.mean(0), "var": part.var(0)}} for part in parts]
    found = batch_statistics.pooled(stats, [5, 9, 2])["bn1"]
    whole = np.concatenate(parts)
    np.testing.assert_allclose(found["mean"], whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["var"], whole.var(0), rtol=1e-12)


def test_the_first_layers_statistics_are_those_of_its_input(phantom_path, weights, monkeypatch):
    """Over batches, of which the last is smaller, whatever was remembered before."""
    monkeypatch.setattr(batch_statistics, "BATCH", 8)
    rows = np.arange(3, 22)  # batches of 7, 6, 6
    params, stats = weights
    stale = jax.tree.map(lambda leaf: leaf + 5, stats)
    found = measured(phantom_path, (params, stale), rows)
    dataset = data.open_dataset(phantom_path)
    (batch,) = data.evaluation_batches(
        dataset, DataConfig(canvas=SIZE), split="train", batch_size=len(rows), indices=rows
    )
    view = whole_slices(
        jnp.asarray(batch["image"]), Intensity(), dataset.intensity, SIZE, Interpolation.BICUBIC
    )
    kernel = np.asarray(params["conv1"]["kernel"])
    maps = jax.lax.conv_general_dilated(
        view, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found["bn1"]["mean"], maps.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["bn1"]["var"], maps.var((0, 1, 2)), rtol=1e-4)
    deepest = found["layer4_1"]["bn2"]
    assert np.all(deepest["var"] != 1)


def test_statistics_are_the_same_bits_on_any_number_of_devices(phantom_path, weights, monkeypatch):
    monkeypatch.setattr(batch_statistics, "BATCH", 4)
    rows = np.arange(19)
    one, other = (measured(phantom_path, weights, rows, devices) for devices in (1, 4))
    assert jax.tree.structure(one) == jax.tree.structure(weights[1])
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_network_that_has_diverged_is_told(phantom_path, weights):
    params, stats = weights
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    with pytest.raises(DivergedError, match="statistics of the training images are not finite"):
        measured(phantom_path, (broken, stats), np.arange(4))
