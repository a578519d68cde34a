"""Resampling on the device: crops, resizes, rotations and blurs of one image.

Images are canvases in float32, 0..1. A crop is resampled as Pillow resamples a cropped image, by
two small matrices, so that crop, antialiased resize and flip are two matrix products; a blur is
two more. A rotation looks up, for every pixel of the result, where it was before.
"""

import enum
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, Key

CROP_TRIES = 10  # torchvision RandomResizedCrop.get_params


class Interpolation(enum.Enum):
    """Pillow's antialiased filters."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class RotateInterpolation(enum.Enum):
    """How a rotation looks between pixels; the value of NEAREST is the reference's."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"


class Box(NamedTuple):
    """A crop in whole pixels: first row, first column, rows, columns."""

    top: int | Int[Array, ""]
    left: int | Int[Array, ""]
    height: int | Int[Array, ""]
    width: int | Int[Array, ""]


def random_resized_crop(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: Interpolation,
    hflip: bool | Bool[Array, ""] = False,
    vflip: bool | Bool[Array, ""] = False,
) -> Float[Array, "{size} {size} c"]:
    """A random box of the image, resized to `size`, then flipped if asked."""
    box = sample_crop(key, image.shape[:2], scale, ratio)
    return crop_and_resize(image, box, size, interpolation, hflip, vflip)


def sample_crop(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """A random crop box: area uniform in `scale`, width / height log-uniform in `ratio`.

    Of ten draws the first that fits the image is taken; if none does, the largest central box
    whose ratio is allowed. Source: torchvision v0.13 transforms.RandomResizedCrop.get_params.
    """
    height, width = shape
    # Drawn flat: the CPU compiler takes several times longer over a two-dimensional draw.
    draw = jax.random.uniform(key, (4 * CROP_TRIES,)).reshape(4, CROP_TRIES)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[0])
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draw[1]
    h = jnp.round(jnp.sqrt(area / jnp.exp(log_ratio))).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio))).astype(jnp.int32)
    # A draw is below 1, so a box that fits lies inside; one that does not fit is not taken.
    top = jnp.floor((height - h + 1) * draw[2]).astype(jnp.int32)
    left = jnp.floor((width - w + 1) * draw[3]).astype(jnp.int32)

    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = jnp.argmax(fits)
    drawn = Box(top[first], left[first], h[first], w[first])
    h0, w0 = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    central = Box((height - h0) // 2, (width - w0) // 2, h0, w0)
    return jax.tree.map(lambda a, b: jnp.where(fits.any(), a, b), drawn, central)


def crop_and_resize(
    image: Float[Array, "h w c"],
    box: Box,
    size: int,
    interpolation: Interpolation,
    hflip: bool | Bool[Array, ""] = False,
    vflip: bool | Bool[Array, ""] = False,
) -> Float[Array, "{size} {size} c"]:
    """The box of a 0..1 image, resized with antialiasing, flipped, clipped to 0..1.

    Bicubic weights overshoot at edges; the clip is what an 8-bit pipeline does by saturation.
    Oracle: Pillow `image.crop(box).resize((size, size), filter)` in mode "F".
    """
    h, w, _ = image.shape
    rows = resize_weights(h, box.top, box.height, size, interpolation, vflip)
    columns = resize_weights(w, box.left, box.width, size, interpolation, hflip)
    return resample(image, rows, columns)


def resize(
    image: Float[Array, "b h w c"], size: int, interpolation: Interpolation
) -> Float[Array, "b {size} {size} c"]:
    """The whole 0..1 image at `size`: the evaluation view, by the same kernel as the crops."""
    _, h, w, _ = image.shape
    rows = resize_weights(h, 0, h, size, interpolation)
    columns = resize_weights(w, 0, w, size, interpolation)
    return jax.vmap(resample, in_axes=(0, None, None))(image, rows, columns)


def resample(
    image: Float[Array, "h w c"], rows: Float[Array, "s h"], columns: Float[Array, "t w"]
) -> Float[Array, "s t c"]:
    """Rows and columns as weighted sums of the image's, clipped to 0..1."""
    # Accelerators would multiply in TF32 or bfloat16 and so quantise the HU.
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("sh,hwc->swc", rows, image, precision=highest)
    return jnp.clip(jnp.einsum("tw,swc->stc", columns, x, precision=highest), 0.0, 1.0)


def resize_weights(
    pixels: int,
    start: int | Int[Array, ""],
    length: int | Int[Array, ""],
    size: int,
    interpolation: Interpolation,
    flip: bool | Bool[Array, ""] = False,
) -> Float[Array, "{size} {pixels}"]:
    """The matrix that takes pixels `start .. start + length` of an axis to `size` samples.

    The filter widens with the factor of reduction (antialiasing). Taps outside the box are dropped
    and the rest renormalised, as when the box is cut out first. Source: Pillow Resample.c.
    """
    sample = jnp.arange(size)
    sample = jnp.where(flip, size - 1 - sample, sample)[:, None]
    pixel = jnp.arange(pixels) - start
    # From the sample's centre to the pixel's, in filter widths; whole numbers keep it exact.
    numerator = (2 * pixel + 1) * size - (2 * sample + 1) * length
    distance = numerator / (2 * jnp.maximum(length, size))
    weights = _FILTERS[interpolation](jnp.abs(distance))
    weights = jnp.where((pixel >= 0) & (pixel < length), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.maximum(1.0 - x, 0.0)


def _cubic(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Keys' cubic convolution with a = -0.5, for x >= 0."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


_FILTERS = {Interpolation.BILINEAR: _triangle, Interpolation.BICUBIC: _cubic}


def random_rotation(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    probability: float,
    degrees: float,
    interpolation: RotateInterpolation,
) -> Float[Array, "h w c"]:
    """With `probability`, a rotation by an angle uniform in ±`degrees`.

    Source: torchvision v0.14 transforms.RandomRotation, as used in
    Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627 moco_data_module.py (±180°, probability 0.5).
    """
    draw = jax.random.uniform(key, (2,))
    angle = degrees * (2.0 * draw[1] - 1.0)
    # By 0° it is the image itself, to the bit: cheaper than to choose between two images.
    return rotate(image, jnp.where(draw[0] < probability, angle, 0.0), interpolation)


def rotate(
    image: Float[Array, "h w c"],
    angle: float | Float[Array, ""],
    interpolation: RotateInterpolation,
) -> Float[Array, "h w c"]:
    """The image turned by `angle` degrees, counter-clockwise, about its centre.

    The canvas keeps its size; what comes from outside of it is 0 (air, after any window). Oracle:
    Pillow `image.rotate(angle, filter)`, whose BILINEAR blends with 0 only beyond the outermost
    pixels' edges, this beyond their centres.
    """
    height, width, _ = image.shape
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    sine, cosine = jnp.sin(jnp.deg2rad(angle)), jnp.cos(jnp.deg2rad(angle))
    rows = cosine * y + sine * x + (height - 1) / 2
    columns = cosine * x - sine * y + (width - 1) / 2
    order = 0 if interpolation is RotateInterpolation.NEAREST else 1

    def turn(plane: Float[Array, "h w"]) -> Float[Array, "h w"]:
        return map_coordinates(plane, [rows, columns], order, mode="constant", cval=0.0)

    return jax.vmap(turn, in_axes=-1, out_axes=-1)(image)


def gaussian_blur(
    image: Float[Array, "h w c"], sigma: float | Float[Array, ""], radius: int
) -> Float[Array, "h w c"]:
    """A Gaussian of `sigma` pixels, cut off beyond `radius` pixels; the image's edge goes on.

    Oracle: scipy.ndimage.gaussian_filter(mode="nearest").
    """
    height, width, _ = image.shape
    padded = jnp.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    rows, columns = (_gaussian_weights(n, sigma, radius) for n in (height, width))
    return resample(padded, rows, columns)


def _gaussian_weights(
    pixels: int, sigma: float | Float[Array, ""], radius: int
) -> Float[Array, "{pixels} {pixels}+2*{radius}"]:
    """The banded matrix that smooths an axis of `pixels`, padded by `radius` at both ends."""
    distance = jnp.arange(pixels + 2 * radius) - radius - jnp.arange(pixels)[:, None]
    weights = jnp.exp(-0.5 * (distance / sigma) ** 2)
    weights = jnp.where(jnp.abs(distance) <= radius, weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
