"""Rotation, jitter, blur and noise against Pillow, SciPy and NumPy, and their laws.

What an operation drew is read off its result on an image made for it, then held against the stated
distribution (Kolmogorov-Smirnov at p = 0.001, fixed keys).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance

from ctssl_jax.augment.resample import RotateInterpolation, gaussian_blur, random_rotation, rotate
from ctssl_jax.augment.views import (
    adjust_brightness,
    adjust_contrast,
    random_blur,
    random_jitter,
    random_noise,
)

COUNT = 2000
KEYS = jax.random.split(jax.random.key(0), COUNT)
NEAREST, BILINEAR = RotateInterpolation
ANGLES = [-137.0, -20.0, 3.5, 45.0, 100.0, 179.0]
SHAPES = [(48, 48), (33, 48)]


def noise(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def on_image(op, image, *numbers):
    return np.asarray(op(jnp.asarray(image)[..., None], *numbers))[..., 0]


def draws(op, image, *numbers):
    """The results [COUNT, h, w] of a random operation on one image, by as many keys."""
    every = jax.jit(jax.vmap(lambda key, x: op(key, x, *numbers), in_axes=(0, None)))
    return np.asarray(every(KEYS, jnp.asarray(image, jnp.float32)[..., None]))[..., 0]


def is_uniform(values, low, high):
    return scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.001


def applied_to(results, image, probability):
    """Which results differ from the image; the share of them must be `probability`."""
    applied = (results != np.asarray(image, np.float32)).any(axis=(1, 2))
    assert abs(applied.mean() - probability) < 0.035
    return applied


# Rotation.

turn = jax.jit(rotate, static_argnums=2)


@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_rotation_is_pillows(shape):
    image = noise(*shape)
    for angle in ANGLES:
        want = Image.fromarray(image).rotate(angle, Image.Resampling.NEAREST)
        got = on_image(turn, image, angle, NEAREST)
        # Pillow counts in 1/65536 pixel here: a place between two pixels may fall to the other.
        assert (got != np.asarray(want)).mean() < 0.003, angle


@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_rotation_is_scipys_and_inside_pillows(shape):
    image = noise(*shape)
    centre = (np.array(shape) - 1) / 2
    inside = np.asarray(scipy.ndimage.binary_erosion(np.ones(shape)), np.float32)
    for angle in ANGLES:
        sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        matrix = np.array([[cosine, sine], [-sine, cosine]])  # result's (row, column) to image's
        offset = centre - matrix @ centre
        got = on_image(turn, image, angle, BILINEAR)
        want = scipy.ndimage.affine_transform(
            image.astype(np.float64), matrix, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(got, want, atol=2e-5)
        # Pillow fades to 0 in another way within a pixel of the image's edge.
        pillow = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))
        mask = Image.fromarray(inside).rotate(angle, Image.Resampling.BILINEAR)
        same = np.asarray(mask) == 1
        assert same.mean() > 0.5
        np.testing.assert_allclose(got[same], pillow[same], atol=2e-5)


@pytest.mark.parametrize("interpolation", RotateInterpolation)
def test_rotation_by_nothing_keeps_every_bit(interpolation):
    image = noise(48, 48)
    np.testing.assert_array_equal(on_image(turn, image, 0.0, interpolation), image)


@pytest.mark.parametrize(("degrees", "probability"), [(60.0, 0.7), (180.0, 0.3)])
def test_angles_are_uniform_and_as_frequent_as_stated(degrees, probability):
    ramp = np.tile(0.5 + 0.05 * np.arange(-8, 9, dtype=np.float32), (17, 1))
    got = draws(random_rotation, ramp, probability, degrees, BILINEAR)
    applied = applied_to(got, ramp, probability)
    right, below = got[applied, 8, 12] - 0.5, got[applied, 12, 8] - 0.5
    angles = np.degrees(np.arctan2(-below, right))
    assert is_uniform(angles, -degrees, degrees)
    np.testing.assert_allclose(right, 0.2 * np.cos(np.radians(angles)), atol=1e-5)


# Brightness and contrast.


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [(adjust_brightness, ImageEnhance.Brightness), (adjust_contrast, ImageEnhance.Contrast)],
)
def test_brightness_and_contrast_are_pillows(adjust, enhance, factor):
    grey8 = np.round(255 * noise(32, 48) ** 2).astype(np.uint8)
    want = np.asarray(enhance(Image.fromarray(grey8)).enhance(factor)) / 255
    got = on_image(adjust, grey8.astype(np.float32) / 255, factor)
    # Pillow rounds the mean, by half a grey value at most, and cuts the result to whole ones.
    np.testing.assert_allclose(got, want, atol=(1 + 0.5 * abs(1 - factor)) / 255)
    assert got.min() >= 0
    assert got.max() <= 1


def brighter(x, factor):
    return np.clip(x * factor, 0, 1)


def contrasted(x, factor):
    mean = np.sum(x, axis=(1, 2), keepdims=True) / x[0].size
    return np.clip(mean + factor * (x - mean), 0, 1)


def test_jitter_draws_both_factors_and_both_orders():
    probability, brightness, contrast = 0.8, 0.4, 0.6
    jitter = functools.partial(draws, random_jitter)
    numbers = (probability, brightness, contrast)
    # In the middle nothing is clipped, order does not matter and the factors can be read off.
    middle = 0.45 + 0.1 * noise(8, 8)
    got = jitter(middle, *numbers)
    applied = applied_to(got, middle, probability)
    got = got[applied].astype(np.float64)
    b = got.mean(axis=(1, 2)) / middle.mean()
    c = got.std(axis=(1, 2)) / middle.std() / b
    assert is_uniform(b, 0.6, 1.4)
    assert is_uniform(c, 0.4, 1.6)

    whole = noise(8, 8)
    got = jitter(whole, *numbers)[applied]
    b, c = b[:, None, None], c[:, None, None]
    errors = {
        "brightness first": np.abs(got - contrasted(brighter(whole[None], b), c)),
        "contrast first": np.abs(got - brighter(contrasted(whole[None], c), b)),
    }
    fits = np.array([error.max(axis=(1, 2)) < 1e-4 for error in errors.values()])
    assert fits.any(axis=0).all()
    clear = fits.sum(axis=0) == 1
    assert clear.mean() > 0.6
    first = fits[0, clear]
    assert abs(first.mean() - 0.5) < 0.05
    b, c = b.ravel(), c.ravel()
    assert abs(np.corrcoef(b, c)[0, 1]) < 0.1
    for factor in (b, c):
        assert abs(np.corrcoef(first, factor[clear])[0, 1]) < 0.1


def test_a_factor_never_falls_below_nothing():
    middle = np.full((8, 8), 0.2, np.float32)
    factors = draws(random_jitter, middle, 1.0, 1.5, 0.0)[:, 0, 0] / 0.2
    assert is_uniform(factors, 0.0, 2.5)


# Blur.

blur = jax.jit(gaussian_blur, static_argnums=2)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_blur_is_scipys(shape, sigma):
    image, radius = noise(*shape), 5
    want = scipy.ndimage.gaussian_filter(image, sigma, mode="nearest", radius=radius)
    np.testing.assert_allclose(on_image(blur, image, sigma, radius), want, atol=1e-5)


def test_blur_reaches_four_of_the_largest_sigma():
    image = noise(33, 48)
    want = scipy.ndimage.gaussian_filter(image, 2.0, mode="nearest", truncate=4.0)
    got = draws(random_blur, image, 1.0, (2.0, 2.0))
    np.testing.assert_allclose(got[:8], np.stack([want] * 8), atol=1e-5)


def test_sigmas_are_uniform_and_as_frequent_as_stated():
    low, high, probability = 0.5, 1.5, 0.3
    impulse = np.zeros((17, 17), np.float32)
    impulse[8, 8] = 1
    got = draws(random_blur, impulse, probability, (low, high))
    peaks = got[applied_to(got, impulse, probability), 8, 8]
    sigmas = np.linspace(low, high, 200)
    by_sigma = [scipy.ndimage.gaussian_filter(impulse, s, radius=6)[8, 8] for s in sigmas]
    found = np.interp(-peaks, -np.array(by_sigma), sigmas)
    assert is_uniform(found, low, high)


# Noise.


def test_variances_are_log_uniform_and_as_frequent_as_stated():
    grey, probability = np.full((32, 32), 0.5, np.float32), 0.6
    got = draws(random_noise, grey, probability, (1e-5, 1e-4))
    added = got[applied_to(got, grey, probability)].astype(np.float64) - 0.5
    assert is_uniform(np.log10((added**2).mean(axis=(1, 2))), -5, -4)
    white = added / added.std(axis=(1, 2), keepdims=True)
    assert scipy.stats.kstest(white[:, ::8, ::8].ravel(), "norm").pvalue > 0.001
    for neighbour in (np.roll(white, 1, 0), np.roll(white, 1, 1), np.roll(white, 1, 2)):
        assert abs((white * neighbour).mean()) < 0.005


def test_noise_is_clipped_after_it_is_added_and_only_there():
    image = np.zeros((8, 8), np.float32)
    image[4:] = 1.0
    got = draws(random_noise, image, 1.0, (1e-2, 1e-2))
    assert got.min() == 0
    assert got.max() == 1
    assert abs((got == image).mean() - 0.5) < 0.01  # the half that would leave 0..1
    outside = np.full((8, 8), 1.5, np.float32)
    got = draws(random_noise, outside, 0.5, (1e-2, 1e-2))
    applied_to(got, outside, 0.5)
    assert ((got == 1.5) | (got <= 1)).all()
