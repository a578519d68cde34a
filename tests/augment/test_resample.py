import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ctssl_jax.augment.resample import (
    Box,
    Interpolation,
    crop_and_resize,
    random_resized_crop,
    resize,
    sample_crop,
)

PILLOW = {
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width), np.float32)


def pillow_crop(image, box, size, interpolation):
    top, left, height, width = box
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size, size), PILLOW[interpolation])).clip(0, 1)


def our_crop(image, box, size, interpolation, **flips):
    box = Box(*map(jnp.int32, box))
    crop = jax.jit(crop_and_resize, static_argnames=("size", "interpolation"))
    return crop(jnp.asarray(image)[..., None], box, size, interpolation, **flips)[..., 0]


def our_resize(images, size, interpolation):
    return jax.jit(resize, static_argnums=(1, 2))(jnp.asarray(images), size, interpolation)


# Resampling: Pillow is the oracle.


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 97, 131),  # whole image, down and not square
        (3, 5, 61, 77),  # odd box, down
        (50, 30, 21, 33),  # odd box, rows up, columns down
        (96, 130, 1, 1),  # one pixel in the corner
        (0, 11, 97, 2),  # far down one way, far up the other
    ],
)
def test_crop_equals_pillow_crop_then_resize(box, interpolation):
    image = noise(97, 131)
    got = our_crop(image, box, 32, interpolation)
    np.testing.assert_allclose(got, pillow_crop(image, box, 32, interpolation), atol=2e-6)


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize(("side", "size"), [(512, 224), (28, 96), (64, 64)])
def test_whole_image_resize_equals_pillow(side, size, interpolation):
    image = noise(side, side)
    want = pillow_crop(image, (0, 0, side, side), size, interpolation)
    got = our_resize(image[None, ..., None], size, interpolation)[0, ..., 0]
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_resize_treats_every_image_and_channel_alike():
    stack = np.stack([noise(40, 40, s) for s in range(4)]).reshape(2, 2, 40, 40)
    got = our_resize(stack.transpose(0, 2, 3, 1), 32, Interpolation.BICUBIC)
    for i in range(2):
        for c in range(2):
            want = pillow_crop(stack[i, c], (0, 0, 40, 40), 32, Interpolation.BICUBIC)
            np.testing.assert_allclose(got[i, ..., c], want, atol=2e-6)


def test_bicubic_overshoot_is_clipped_to_unit_range():
    step = np.zeros((32, 32), np.float32)
    step[:, 16:] = 1
    box = (0, 0, 32, 32)
    raw = Image.fromarray(step).resize((96, 96), Image.Resampling.BICUBIC)
    assert np.asarray(raw).max() > 1.01
    got = our_crop(step, box, 96, Interpolation.BICUBIC)
    assert got.min() == 0
    assert got.max() == 1


def test_flip_in_the_weights_is_a_flip_of_the_view():
    image, box = noise(60, 70), (3, 7, 41, 50)
    plain = our_crop(image, box, 32, Interpolation.BICUBIC)
    left_right = our_crop(image, box, 32, Interpolation.BICUBIC, hflip=True)
    top_bottom = our_crop(image, box, 32, Interpolation.BICUBIC, vflip=True)
    np.testing.assert_allclose(left_right, plain[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(top_bottom, plain[::-1], atol=1e-6)


def test_resampling_asks_for_full_float32_on_accelerators():
    image = noise(8, 8)[None, ..., None]
    program = str(jax.make_jaxpr(lambda x: resize(x, 32, Interpolation.BICUBIC))(image))
    assert program.count("dot_general") == 2
    assert program.count("Precision.HIGHEST") == 4  # of both operands of both


# The crop box: torchvision's sampling.


def reference_box(rng, height, width, scale, ratio):
    """torchvision's rule, one box at a time."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    return None


def draw_boxes(count, height, width, scale, ratio):
    draw = jax.jit(jax.vmap(lambda key: sample_crop(key, (height, width), scale, ratio)))
    return np.stack(draw(jax.random.split(jax.random.key(3), count)), axis=1)


@pytest.mark.parametrize("scale", [(0.67, 1.0), (0.1, 0.33)])
def test_crops_are_distributed_as_torchvisions(scale):
    ratio, count = (3 / 4, 4 / 3), 6000
    got = draw_boxes(count, 90, 100, scale, ratio)
    rng = np.random.default_rng(0)
    want = np.array([reference_box(rng, 90, 100, scale, ratio) for _ in range(count)])
    assert (got[:, :2] >= 0).all()
    assert (got[:, :2] + got[:, 2:] <= (90, 100)).all()
    distance_limit = 1.95 * math.sqrt(2 / count)  # Kolmogorov-Smirnov, p = 0.001
    for name, measure in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "log ratio": lambda b: np.log(b[:, 3] / b[:, 2]),
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "top and left": lambda b: b[:, 0] * b[:, 1],
    }.items():
        a, b = np.sort(measure(got)), np.sort(measure(want))
        at = np.union1d(a, b)
        gap = np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")
        assert np.abs(gap).max() / count < distance_limit, name


@pytest.mark.parametrize(
    ("shape", "box"), [((32, 320), (0, 138, 32, 43)), ((320, 32), (138, 0, 43, 32))]
)
def test_crop_that_never_fits_is_the_central_one(shape, box):
    boxes = draw_boxes(50, *shape, (0.9, 1.0), (3 / 4, 4 / 3))
    assert (boxes == box).all()


def test_random_resized_crop_resizes_the_sampled_box():
    key, image, scale, ratio = jax.random.key(5), noise(50, 60), (0.3, 0.6), (0.5, 2.0)
    box = [int(n) for n in sample_crop(key, image.shape, scale, ratio)]
    crop = jax.jit(random_resized_crop, static_argnums=(2, 3, 4, 5))
    got = crop(key, jnp.asarray(image)[..., None], 32, scale, ratio, Interpolation.BILINEAR)
    want = pillow_crop(image, box, 32, Interpolation.BILINEAR)
    np.testing.assert_allclose(got[..., 0], want, atol=2e-6)
