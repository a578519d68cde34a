"""The packed form of the decoder's last block: the same function, parameters and statistics."""

from types import SimpleNamespace

import float64
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ctssl_jax.hosts import sharding
from ctssl_jax.methods import SparK
from ctssl_jax.nn.decoder import SparKHead
from ctssl_jax.nn.packing import PackedConv, unpack, worthwhile
from ctssl_jax.nn.resnet import ResNet

BATCH, SIZE, CHANNELS = 2, 64, 2
WIDTHS = (8, 16, 24, 32)


def heads(dtype=jnp.float32):
    """The head in the plain and in the packed form, and what it is called with."""
    forms = [SparKHead(32, CHANNELS, dtype, dtype, packed=packed) for packed in (False, True)]
    stages = tuple(
        jax.random.normal(
            jax.random.key(level), (BATCH, SIZE >> level, SIZE >> level, width), dtype
        )
        for level, width in enumerate(WIDTHS, start=2)
    )
    mask = jnp.asarray([[[True, False], [False, True]], [[True, True], [False, False]]])
    return forms, stages, mask


def test_parameters_and_statistics_start_the_same():
    forms, stages, mask = heads()
    plain, packed = (jax.jit(form.init)(jax.random.key(0), stages, mask) for form in forms)
    jax.tree.map(np.testing.assert_array_equal, packed, plain)


@pytest.mark.parametrize("train", [True, False])
def test_it_equals_the_plain_form_in_float64(train, monkeypatch):
    """Each array to 1e-10 of its largest number; a gradient of nothing, of the largest of all."""
    monkeypatch.setattr(lax, "conv_general_dilated", float64.convolve)
    with jax.enable_x64(True):
        forms, stages, mask = heads(jnp.float64)
        variables = jax.jit(forms[0].init)(jax.random.key(0), stages, mask)
        # Away from the start, where biases are 0, scales 1 and statistics those of nothing.
        moved = [
            leaf + 0.1 * jax.random.uniform(jax.random.key(i), leaf.shape, leaf.dtype)
            for i, leaf in enumerate(jax.tree.leaves(variables))
        ]
        variables = jax.tree.unflatten(jax.tree.structure(variables), moved)
        weights = jax.random.normal(jax.random.key(9), (BATCH, SIZE, SIZE, CHANNELS), jnp.float64)

        def run(form):
            def loss(params, stages):
                y, updates = form.apply(
                    {**variables, "params": params}, stages, mask, train, mutable=["batch_stats"]
                )
                return (weights * jnp.sin(y)).sum(), (y, updates)

            both = jax.value_and_grad(loss, (0, 1), has_aux=True)
            return jax.jit(both)(variables["params"], stages)

        ((_, plain), gradients), ((_, packed), found) = (run(form) for form in forms)
        assert packed[0].shape == weights.shape
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))

        def compare(ours, reference, least=0.0):
            scale = max(float(np.abs(reference).max()), least)
            np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-10 * scale)

        jax.tree.map(compare, packed, plain)
        jax.tree.map(lambda a, b: compare(a, b, 1e-3 * largest), found, gradients)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolutions_of_odd_kernels(size):
    """Against XLA's own, on the map of which the squares were made."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 10, 3))
    squares = x.reshape(2, 3, 2, 5, 2, 3).swapaxes(2, 3).reshape(2, 3, 5, 4, 3)
    np.testing.assert_array_equal(unpack(squares), x)
    module = PackedConv(7, (size, size), ((size // 2, size // 2),) * 2)
    y, variables = module.init_with_output(jax.random.key(1), squares)
    kernel = variables["params"]["kernel"]
    names = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)
    np.testing.assert_allclose(unpack(y), expected, atol=1e-5)


def test_only_programs_for_a_tpu_are_packed(monkeypatch):
    def packs():
        assert SparK().head(ResNet(18), 1).packed is worthwhile()
        return worthwhile()

    def step(state, batch, key):
        seen.append(packs())
        return state, batch

    seen, zero = [], jnp.zeros(1)
    sharding.jit_step(step, sharding.make_mesh(jax.devices()[:1]))(zero, zero + 1, zero)
    assert [*seen, packs()] == [False, False]
    for backend in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert packs() is (backend == "tpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for kind in ("NVIDIA H200", "TPU v5 lite", "TPU v6 lite", "TPU v5"):
        mesh = SimpleNamespace(empty=False, abstract_device=SimpleNamespace(device_kind=kind))
        monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda mesh=mesh: mesh)
        assert packs() is kind.startswith("TPU")
