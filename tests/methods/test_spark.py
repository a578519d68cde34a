"""SparK's loss and its pieces against direct sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.augment import ViewGroup
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.spark import SparK, patchify, reconstruction_loss, unpatchify
from ctssl_jax.nn.resnet import ResNet

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((2, 96, 96, 3)).astype(np.float32)
PREDICTION = RNG.standard_normal((2, 96, 96, 3)).astype(np.float32)
MASK = RNG.random((2, 3, 3)) < 0.4


def direct_loss(image, prediction, mask):
    errors = []
    for b in range(image.shape[0]):
        for i in range(mask.shape[1]):
            for j in range(mask.shape[2]):
                if mask[b, i, j]:
                    continue
                box = np.s_[b, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
                patch = image[box].astype(np.float64).ravel()
                variance = ((patch - patch.mean()) ** 2).sum() / (patch.size - 1)
                target = (patch - patch.mean()) / np.sqrt(variance + 1e-6)
                errors.append(((prediction[box].ravel() - target) ** 2).mean())
    return np.mean(errors)


def test_loss_equals_its_definition():
    loss = reconstruction_loss(jnp.asarray(IMAGE), jnp.asarray(PREDICTION), jnp.asarray(MASK))
    assert float(loss) == pytest.approx(direct_loss(IMAGE, PREDICTION, MASK), rel=1e-6)


def test_target_uses_the_unbiased_variance():
    """On a one-channel patch of 1,024 values the biased one would move the loss by 1e-3."""
    image, mask = IMAGE[..., :1], np.zeros_like(MASK)
    loss = reconstruction_loss(jnp.asarray(image), jnp.zeros(image.shape), jnp.asarray(mask))
    # against a zero prediction the loss is (n - 1) / n of the variance, that is 1023 / 1024
    assert float(loss) == pytest.approx(1023 / 1024, abs=1e-5)


def test_visible_patches_do_not_count():
    visible = np.repeat(np.repeat(MASK, 32, 1), 32, 2)[..., None]
    other = np.where(visible, 100.0, PREDICTION).astype(np.float32)
    one, two = (
        float(reconstruction_loss(jnp.asarray(IMAGE), jnp.asarray(p), jnp.asarray(MASK)))
        for p in (PREDICTION, other)
    )
    assert one == two


def test_patches_are_row_major_with_channels_fastest():
    image = jnp.arange(64 * 64 * 2).reshape(1, 64, 64, 2).astype(jnp.float32)
    patches = np.asarray(patchify(image))
    assert patches.shape == (1, 4, 2048)
    np.testing.assert_array_equal(patches[0, 1, :4], np.asarray(image)[0, 0, 32:34].ravel())
    np.testing.assert_array_equal(patches[0, 2, 64:66], np.asarray(image)[0, 33, 0])
    np.testing.assert_array_equal(unpatchify(jnp.asarray(patches), 64), image)


@pytest.mark.parametrize(
    ("size", "ratio", "visible"), [(224, 0.6, 20), (64, 0.6, 2), (96, 0.6, 4), (224, 0.75, 12)]
)
def test_mask_ratio_leaves_the_stated_patches(size, ratio, visible):
    assert SparK(mask_ratio=ratio, view=ViewGroup(size=size)).visible == visible


@pytest.mark.parametrize(
    ("method", "named"),
    [
        (SparK(mask_ratio=1.0), "mask_ratio=1.0"),
        (SparK(mask_ratio=0.0), "mask_ratio=0.0"),
        (SparK(view=ViewGroup(size=32)), "size=32"),
        (SparK(view=ViewGroup(size=100)), "100"),
        (SparK(decoder_width=100), "decoder_width=100"),
        (SparK(view=ViewGroup(count=2)), "count=2"),
    ],
)
def test_values_that_make_no_sense_are_named(method, named):
    with pytest.raises(ConfigError, match=named):
        method.validate()


def test_bfloat16_computes_close_to_float32_and_leaves_fp32_results():
    method = SparK(decoder_width=32, view=ViewGroup(size=64))
    image = jnp.asarray(IMAGE[:, :64, :64, :1])
    mask = jnp.asarray([[[True, False], [False, True]]] * 2)
    initial = jax.jit(lambda key: method.init(ResNet(depth=18), key, 1))(jax.random.key(0))
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        encoder = ResNet(depth=18, dtype=dtype)
        forward = jax.jit(partial(method.forward, encoder, train=True))
        prediction, stages, stats = forward(initial.params, initial.batch_stats, image, mask)
        assert stages[-1].dtype == dtype
        assert prediction.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
        found[dtype] = float(reconstruction_loss(image, prediction, mask))
    assert found[jnp.bfloat16] != found[jnp.float32]
    assert found[jnp.bfloat16] == pytest.approx(found[jnp.float32], rel=2e-2)
