"""The PyTorch steps that ours are measured against: SparK computes what ours does, all train."""

import dataclasses
import importlib
import sys
from functools import partial

import float64
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from oracles import torch
from torch_parity import assert_close, filled, gradients, load, optimizers, trained

from ctssl_jax.augment import ViewGroup
from ctssl_jax.config import EncoderConfig, Precision
from ctssl_jax.errors import ConfigError
from ctssl_jax.interop import names
from ctssl_jax.methods import Cases, SparK
from ctssl_jax.methods.spark import reconstruction_loss
from ctssl_jax.optim import OptimConfig, OptimizerName
from launch import measuring
from launch.benchmark.torch import methods as torch_methods
from launch.benchmark.torch import spark as torch_spark
from launch.benchmark.torch import steps as torch_steps

METHODS = ["spark", "moco", "swav", "byol", "simclr", "finetune_organsmnist"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads wait for each other, on busy cores for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def smoke(name, **fields):
    """The smoke preset of a method, at the precision of PyTorch's steps."""
    config = measuring.step_of(importlib.import_module(f"configs.{name}").get_config("smoke"))
    return dataclasses.replace(config, **{"precision": Precision.FLOAT32, **fields})


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "channels"), [(18, 1), (50, 3)])
def test_spark_equals_ours(depth, channels, monkeypatch):
    """Loss, gradients and a step of clipped LAMB, in float64."""
    monkeypatch.setattr(lax, "conv_general_dilated", float64.convolve)
    batch, size, width, clip = 4, 64, 64, 0.5
    name = partial(names.spark_name, prefix="encoder.")
    method = SparK(decoder_width=width, view=ViewGroup(size=size))
    encoder = EncoderConfig(depth=depth)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((batch, size, size, channels))
    mask = rng.random((batch, 4)).argsort(axis=1).reshape(batch, 2, 2) < method.visible
    network = torch_spark.SparKNetwork(encoder, channels=channels, width=width).double()
    tx, optimizer = optimizers(OptimizerName.LAMB, network, clip_norm=clip)

    with jax.enable_x64(True):
        resnet = encoder.build(Precision.FLOAT32).clone(dtype=jnp.float64, param_dtype=jnp.float64)
        params, stats, _ = filled(method, resnet, channels)
        params["head"]["block1"]["bn1"]["scale"] *= 4  # so that ReLU6 has something to cut

        @jax.jit
        def step(params):
            def loss_fn(params):
                given = jnp.asarray(image), jnp.asarray(mask)
                prediction, _, _ = method.forward(resnet, params, stats, *given, train=True)
                return reconstruction_loss(given[0], prediction, given[1])

            loss, grads = jax.value_and_grad(loss_fn)(params)
            updates, _ = tx.update(grads, tx.init(params), params)
            return loss, grads, optax.apply_updates(params, updates)

        loss, grads, after = jax.device_get(step(params))

    load(network, names.to_torch(params, name))
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    shown = torch.from_numpy(mask)
    found = torch_spark.reconstruction_loss(pixels, network(pixels, shown), shown)
    found.backward()
    assert found.dtype == torch.float64
    assert loss.dtype == np.float64
    assert found.item() == pytest.approx(loss.item(), rel=1e-8)
    assert_close(names.to_torch(grads, name), gradients(network), 1e-6)
    assert torch.nn.utils.clip_grad_norm_(network.parameters(), clip) > clip
    optimizer.step()
    assert_close(names.to_torch(after, name), trained(network), 1e-6)


def test_hidden_pixels_do_not_matter():
    network = torch_spark.SparKNetwork(EncoderConfig(depth=18), channels=1, width=32)
    mask = torch_spark.random_mask(3, grid=2, visible=1)
    image, other = torch.randn(2, 3, 1, 64, 64)
    shown = torch.nn.functional.interpolate(mask[:, None].float(), size=64).bool()
    first, second = (network(x, mask) for x in (image, torch.where(shown, image, other)))
    torch.testing.assert_close(first, second)


def test_masks_are_new_each_time_and_show_as_many_patches_of_every_image():
    masks = torch.stack([torch_spark.random_mask(200, grid=3, visible=4) for _ in range(2)])
    assert (masks.sum(dim=(2, 3)) == 4).all()
    assert (masks[0] != masks[1]).any()
    assert (masks.float().mean(dim=(0, 1)) - 4 / 9).abs().max() < 0.15  # six deviations


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("spark", "moco") else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
    ],
)
def test_steps_train_as_many_parameters_as_ours_and_lower_the_loss(name, monkeypatch):
    config = smoke(name)
    config.optim.lr = {"spark": 0.05, "moco": 0.01}.get(name, config.optim.lr)
    encoder = config.encoder.build(config.precision)
    init = partial(config.method.init, encoder, channels=config.intensity.channels)
    ours = jax.eval_shape(init, jax.random.key(0)).params
    random_views = torch_methods.random_views
    ramp = 3 * torch.linspace(-1, 1, 32)  # in every patch: of noise alone SparK can predict nothing

    def views(*given):
        return tuple(view + ramp.repeat(view.shape[-1] // 32) for view in random_views(*given))

    monkeypatch.setattr(torch_methods, "random_views", views)
    step = torch_steps.make_step(config)
    assert step.parameters == sum(leaf.size for leaf in jax.tree.leaves(ours))
    losses = [step.run() for _ in range(8)]
    assert np.isfinite(losses).all()
    # In MoCo's first step a key that is its query's view is found among random ones.
    assert np.mean(losses[-3:]) < 0.99 * np.mean(losses[1:4])


@pytest.mark.parametrize("name", ["spark", "swav"])
def test_channels_last_is_another_layout_of_the_same_step(name):
    first, second = (
        torch_steps.make_step(smoke(name), channels_last=last).run() for last in (False, True)
    )
    assert first == pytest.approx(second, rel=1e-4)
    model = torch_methods.build(smoke(name)).to(memory_format=torch.channels_last)
    views = torch_methods.random_views(smoke(name), torch.channels_last)
    images = [*views, *(p for p in model.parameters() if p.ndim == 4)]
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in images)


@pytest.fixture
def built(monkeypatch):
    """The models of the steps that a test makes."""
    models, build = [], torch_methods.build
    monkeypatch.setattr(
        torch_methods, "build", lambda config: models.append(build(config)) or models[-1]
    )
    return models


def test_the_gradient_is_clipped(built):
    config = smoke("simclr")
    config.optim = OptimConfig(name=OptimizerName.SGD, lr=1.0, weight_decay=0.0, clip_norm=0.1)
    step = torch_steps.make_step(config)
    before = {name: value.copy() for name, value in trained(built[0]).items()}
    step.run()
    moved = [np.linalg.norm(value - before[name]) for name, value in trained(built[0]).items()]
    assert np.linalg.norm(moved) == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_a_step_moves_the_teacher(name, built):
    step = torch_steps.make_step(smoke(name))
    stem = built[0].teacher[0].conv1.weight
    before = stem.clone()
    step.run()
    momentum = {"moco": 0.99, "byol": 0.97}[name]
    expected = momentum * before + (1 - momentum) * built[0].student[0].conv1.weight
    torch.testing.assert_close(stem, expected.detach())
    assert not torch.equal(stem, before)


def test_a_seed_is_a_run():
    first, again, other = (torch_steps.make_step(smoke("spark"), seed=s).run() for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": Precision.BFLOAT16}, "precision=bfloat16"),
        ({"accumulate": 2}, "accumulate=2"),
        ({"encoder": EncoderConfig(depth=18, remat_stages=1)}, "encoder.remat_stages=1"),
        ({"method": Cases(classes=2)}, "Cases"),
    ],
)
def test_what_pytorchs_steps_do_not_have_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        torch_steps.make_step(smoke("spark", **change))


@pytest.mark.parametrize("missing", torch_steps.LIBRARIES)
def test_a_missing_library_is_named_with_its_cure(missing, monkeypatch):
    config = smoke("spark")
    monkeypatch.setitem(sys.modules, missing, None)
    anew = torch_steps.import_torchvision.__wrapped__
    monkeypatch.setattr(torch_steps, "import_torchvision", anew)
    with pytest.raises(ConfigError, match=f"{missing} is missing: pip install -r requirements"):
        torch_steps.make_step(config)
