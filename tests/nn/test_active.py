"""The encoder on visible patches alone: the same function as the masked dense one."""

from functools import partial

import float64
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from ctssl_jax.hosts import sharding
from ctssl_jax.nn.active import ABSENT, SparseForm, encode, rearrange, tile
from ctssl_jax.nn.convolution import Conv
from ctssl_jax.nn.masked import random_mask
from ctssl_jax.nn.normalisation import BatchNorm
from ctssl_jax.nn.resnet import MaxPool, ResNet

BATCH = 2


def masks(grid, keep):
    return random_mask(jax.random.split(jax.random.key(2), BATCH), grid, keep)[0]


def both(depth, size, keep, dtype, train=True, gradient=True, **options):
    """Loss, stage maps and running statistics of the two forms, and gradients where asked for."""
    encoder = ResNet(
        depth=depth, dtype=dtype, param_dtype=dtype, zero_init_residual=False, **options
    )
    image = jax.random.normal(jax.random.key(1), (BATCH, size, size, 1), dtype)
    variables = jax.jit(encoder.init)(jax.random.key(0), image)
    mask = masks(size // 32, keep)
    weights = [
        jax.random.normal(jax.random.key(9), (BATCH, size >> i, size >> i, width), dtype)
        for i, width in enumerate(encoder.widths, start=2)
    ]

    def loss(params, image, form):
        def apply(x):
            return encoder.apply(
                {**variables, "params": params},
                x,
                train,
                mutable=["batch_stats"],
                rngs={"drop_path": jax.random.key(5)},
            )

        stages, updates = encode(apply, image, mask, keep, form)
        weighed = sum((a * b).sum() for a, b in zip(stages, weights, strict=True))
        return weighed, (stages, updates)

    def run(params, image, form):
        if gradient:
            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, image, form)
        return loss(params, image, form), None

    run = jax.jit(run, static_argnums=2)
    return [
        run(variables["params"], image, form) for form in (SparseForm.MASKED, SparseForm.ACTIVE)
    ]


@pytest.mark.parametrize(
    ("depth", "size", "keep", "options"),
    [
        (18, 96, 4, {"drop_path_rate": 0.3}),
        pytest.param(50, 64, 3, {"remat_stages": 2}, marks=pytest.mark.slow),
        pytest.param(50, 96, 5, {"drop_path_rate": 0.3}, marks=pytest.mark.slow),
        pytest.param(34, 160, 10, {}, marks=pytest.mark.slow),
        pytest.param(18, 224, 20, {}, marks=pytest.mark.slow),
    ],
)
def test_it_equals_the_masked_form_in_float64(depth, size, keep, options, monkeypatch):
    """Each array to 1e-10 of its largest number; a gradient of nothing, of the largest of all."""
    monkeypatch.setattr(lax, "conv_general_dilated", float64.convolve)
    with jax.enable_x64(True):
        masked, active = both(depth, size, keep, jnp.float64, **options)
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(masked[1]))

        def compare(ours, reference):
            scale = max(float(np.abs(reference).max()), 1e-3 * largest)
            np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-10 * scale)

        jax.tree.map(compare, active[1], masked[1])  # gradients
        jax.tree.map(
            lambda ours, reference: np.testing.assert_allclose(
                ours, reference, rtol=1e-9, atol=1e-10
            ),
            active[0],
            masked[0],
        )
    _, image_gradient = active[1]
    assert (np.asarray(image_gradient) != 0).any()


def test_the_fastest_form_is_one_of_the_two(monkeypatch):
    for backend, form in (("cpu", SparseForm.ACTIVE), ("gpu", SparseForm.MASKED)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert SparseForm.FASTEST.resolve() is form
    assert [form.resolve() for form in (SparseForm.MASKED, SparseForm.ACTIVE)] == [
        SparseForm.MASKED,
        SparseForm.ACTIVE,
    ]


@pytest.mark.slow
def test_half_precision_and_evaluation_mode_agree():
    masked, active = both(18, 64, 2, jnp.float32, train=False, gradient=False)
    for ours, reference in zip(active[0][1][0], masked[0][1][0], strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4 * np.abs(reference).max())
    masked, active = both(18, 64, 2, jnp.bfloat16, train=False, gradient=False)
    for ours, reference in zip(active[0][1][0], masked[0][1][0], strict=True):
        assert ours.dtype == reference.dtype == jnp.bfloat16
        difference = np.float32(ours) - np.float32(reference)
        assert np.abs(difference).mean() < 0.05 * np.abs(np.float32(reference)).mean()


def test_tiles_come_back_and_take_their_neighbours_along():
    """Against NumPy: a rim is what lies around a tile in the masked map."""
    mask, s = masks(3, 4), 4
    tiling = tile(mask, 4)
    x = np.random.default_rng(0).standard_normal((BATCH, 12, 12, 5)).astype(np.float32)
    visible = np.asarray(mask).repeat(s, axis=1).repeat(s, axis=2)[..., None]
    np.testing.assert_array_equal(tiling.put(tiling.cut(jnp.asarray(x))), np.where(visible, x, 0))
    before, after = 3, 2
    rimmed = np.asarray(tiling.with_rim(tiling.cut(jnp.asarray(x)), before, after))
    padded = np.pad(np.where(visible, x, 0), ((0, 0), (before, after), (before, after), (0, 0)))
    number = 0
    for b in range(BATCH):
        for row, column in np.argwhere(np.asarray(mask)[b]):
            window = slice(row * s, row * s + before + s + after)
            across = slice(column * s, column * s + before + s + after)
            np.testing.assert_array_equal(rimmed[number], padded[b, window, across])
            number += 1
    assert number == len(rimmed)


def test_the_gradient_of_rearranging_is_rearranging_back():
    there, back = jnp.array([[2, ABSENT, 0, 1]]), jnp.array([[2, 3, 0]])
    x, g = jnp.arange(6.0).reshape(1, 3, 2), jnp.arange(8.0).reshape(1, 4, 2)
    y, pull = jax.vjp(lambda x: rearrange(x, there, back), x)
    np.testing.assert_array_equal(y[0], [[4, 5], [0, 0], [0, 1], [2, 3]])
    matrix = np.zeros((4, 3))
    matrix[[0, 2, 3], [2, 0, 1]] = 1
    np.testing.assert_array_equal(pull(g)[0][0], matrix.T @ np.asarray(g[0]))


def test_what_is_hidden_is_never_looked_at():
    mask = masks(2, 2)
    image = jax.random.normal(jax.random.key(1), (BATCH, 64, 64, 1))
    other = jnp.where(jnp.repeat(jnp.repeat(mask, 32, 1), 32, 2)[..., None], image, jnp.nan)
    cut = [tile(mask, 2).cut(x) for x in (image, other)]
    np.testing.assert_array_equal(*cut)


class Small(nn.Module):
    """What the encoder is made of, once each."""

    @nn.compact
    def __call__(self, x):
        conv = partial(Conv, use_bias=False)
        x = nn.relu(conv(8, (7, 7), (2, 2), padding=((3, 3), (3, 3)), name="stem")(x))
        x = MaxPool(name="pool")(x)
        x = BatchNorm(use_running_average=False, name="bn")(x)
        return (conv(8, (3, 3), (2, 2), padding=((1, 1), (1, 1)), name="conv")(nn.relu(x)),)


def test_four_devices_share_the_work_and_agree_with_one():
    """And no device gathers the tiles of others."""
    network, keep = Small(), 3
    image = jax.random.normal(jax.random.key(1), (8, 64, 64, 1))
    mask = random_mask(jax.random.split(jax.random.key(2), 8), 2, keep)[0]
    variables = network.init(jax.random.key(0), image)

    def loss(params, image, mask):
        apply = partial(network.apply, {**variables, "params": params}, mutable=["batch_stats"])
        (stage,), updates = encode(apply, image, mask, keep, SparseForm.ACTIVE)
        return jnp.square(stage + 1).mean(), updates

    found, flops = [], []
    for devices in (1, 4):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        same, split = sharding.replicated(mesh), sharding.split(mesh)
        step = jax.jit(
            jax.value_and_grad(loss, has_aux=True),
            in_shardings=(same, split, split),
            out_shardings=same,
        )
        compiled = step.lower(variables["params"], image, mask).compile()
        flops.append(compiled.cost_analysis()["flops"])
        found.append(step(variables["params"], image, mask))
        assert "all-gather" not in compiled.as_text()
    assert flops[1] < 0.27 * flops[0]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *found)
