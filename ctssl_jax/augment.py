"""Augmentation on the device: pure functions `(key, image, numbers) -> image`, mapped over a batch.

The way of a slice: stored int16 → `to_unit` (0..1) → `make_views` (0..1) → `normalise` (network
input). Evaluation goes the same way with `resize` in place of `make_views`, and no key.

All randomness of an image comes from its own key (`image_keys`), which knows the seed, the step
and the image's place in the run, but nothing of devices, hosts or the batch around it. Each
operation draws from its own stream of that key, so a new one leaves the draws of the others alone.

Images are square canvases in float32. A crop is resampled as Pillow resamples a cropped image, by
two small matrices, so that crop, antialiased resize and flip are two matrix products.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int16, Key

from ctssl_jax.errors import ConfigError

IntensityKind = Literal["hu", "grey8", "grey16"]
"""What the stored int16 are: Hounsfield units, grey 0..255, or 16-bit grey minus 32768."""

GREY_RANGE = {"grey8": (0.0, 255.0), "grey16": (-32768.0, 32767.0)}
AIR_HU = -1024.0  # the lowest value of 12-bit CT; less is padding outside the field of view
CROP_STREAM, FLIP_STREAM = 0, 1  # never renumber: every run would draw other views
CROP_TRIES = 10  # torchvision RandomResizedCrop.get_params


class Interpolation(enum.Enum):
    """Pillow's antialiased filters."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class IntensityMode(enum.Enum):
    """How stored values become 0..1: a fixed window, or each slice by itself (the paper's way)."""

    WINDOW = "window"
    SLICE_MIN_MAX = "slice_min_max"


class Box(NamedTuple):
    """A crop in whole pixels: first row, first column, rows, columns."""

    top: int | Int[Array, ""]
    left: int | Int[Array, ""]
    height: int | Int[Array, ""]
    width: int | Int[Array, ""]


@dataclasses.dataclass
class ViewGroup:
    """How `count` views of one resolution are made of an image. Defaults: SparK's recipe."""

    count: int = 1
    size: int = 224  # side in pixels, a multiple of the encoder's stride 32
    # Area of the crop as a fraction of the image; with ratio (1.0, 1.0) too: the whole image.
    scale: tuple[float, float] = (0.67, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    interpolation: Interpolation = Interpolation.BICUBIC
    hflip: float = 0.5  # probability of a left-right flip
    vflip: float = 0.0  # probability of a top-bottom flip

    def validate(self) -> None:
        """Raises ConfigError that names the field and its value."""
        probability = "a probability, 0 to 1"
        _check(
            self,
            "views",
            count=(self.count >= 1, "at least 1"),
            size=(self.size >= 32 and self.size % 32 == 0, "a multiple of 32, at least 32"),
            scale=(0 < self.scale[0] <= self.scale[1] <= 1, "(low, high), 0 < low <= high <= 1"),
            ratio=(0 < self.ratio[0] <= self.ratio[1] < math.inf, "(low, high), 0 < low <= high"),
            hflip=(0 <= self.hflip <= 1, probability),
            vflip=(0 <= self.vflip <= 1, probability),
        )


@dataclasses.dataclass
class Intensity:
    """How stored int16 become network input; `mean` and `std` apply after the mapping to 0..1."""

    mode: IntensityMode = IntensityMode.WINDOW
    # The HU that become 0 and 1 in WINDOW mode; grey records use their full range instead.
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    mean: tuple[float, ...] = (0.3,)  # one number, or one per channel
    std: tuple[float, ...] = (0.3,)
    channels: int = 1  # 3: three equal channels, as the authors' and ImageNet weights expect

    def validate(self) -> None:
        """Raises ConfigError that names the field and its value."""
        low, high = self.window_hu
        entries, per_channel = (1, self.channels), f"1 or {self.channels} (channels) numbers"
        _check(
            self,
            "intensity",
            window_hu=(-math.inf < low < high < math.inf, "(low, high) in HU, low < high"),
            channels=(self.channels >= 1, "at least 1"),
            mean=(len(self.mean) in entries and all(map(math.isfinite, self.mean)), per_channel),
            std=(
                len(self.std) in entries and all(0 < s < math.inf for s in self.std),
                f"{per_channel} above 0",
            ),
        )


def to_unit(
    image: Int16[Array, "b h w"], intensity: Intensity, kind: IntensityKind
) -> Float[Array, "b h w 1"]:
    """Stored values → 0..1, clipped.

    SLICE_MIN_MAX sends each slice's minimum to 0 and its maximum to 1, a constant slice to 0; HU
    below -1024 count as air first, as padding does in the authors' preparation (which then rounds
    to 8 bits; this does not).
    """
    x = image.astype(jnp.float32)[..., None]
    if intensity.mode is IntensityMode.SLICE_MIN_MAX:
        if kind == "hu":
            x = jnp.maximum(x, AIR_HU)
        low = x.min(axis=(1, 2, 3), keepdims=True)
        # The values are whole numbers: a range below 1 is a constant slice, and x - low is 0.
        extent = jnp.maximum(x.max(axis=(1, 2, 3), keepdims=True) - low, 1.0)
        return (x - low) / extent
    lower, upper = intensity.window_hu if kind == "hu" else GREY_RANGE[kind]
    return jnp.clip((x - lower) / (upper - lower), 0.0, 1.0)


def normalise(x: Float[Array, "*n h w 1"], intensity: Intensity) -> Float[Array, "*n h w c"]:
    """0..1 → `(x - mean) / std` in `intensity.channels` channels of the same values."""
    mean, std = jnp.asarray(intensity.mean), jnp.asarray(intensity.std)
    return (jnp.repeat(x, intensity.channels, axis=-1) - mean) / std


def image_keys(
    seed_key: Key[Array, ""], step: int | Int[Array, ""], global_index: Int[Array, "b"]
) -> Key[Array, "b"]:
    """One key per image, from (seed, step, place in the run): the same on any number of devices."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.fold_in(seed_key, step), global_index
    )


def make_views(
    keys: Key[Array, "b"], image: Float[Array, "b h w c"], groups: Sequence[ViewGroup]
) -> tuple[Float[Array, "_ b _ _ c"], ...]:
    """The random views of a batch, in 0..1: per group an array [count, b, size, size, c].

    Under `jit`, close over `groups`: their numbers are static.
    """
    fold_all = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    views = []
    for number, group in enumerate(groups):
        # [count, b] keys: each view of each image has its own.
        view_keys = jax.vmap(fold_all, in_axes=(None, 0))(
            fold_all(keys, number), jnp.arange(group.count)
        )
        over_images = jax.vmap(functools.partial(_view, group=group))
        views.append(jax.vmap(over_images, in_axes=(0, None))(view_keys, image))
    return tuple(views)


def _view(
    key: Key[Array, ""], image: Float[Array, "h w c"], group: ViewGroup
) -> Float[Array, "size size c"]:
    """One view of one image: the operations of `group` in their order."""
    draw = jax.random.uniform(jax.random.fold_in(key, FLIP_STREAM), (2,))
    hflip, vflip = draw < jnp.array([group.hflip, group.vflip])
    key, kernel = jax.random.fold_in(key, CROP_STREAM), group.interpolation
    return random_resized_crop(
        key, image, group.size, group.scale, group.ratio, kernel, hflip, vflip
    )


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
    return _resample(image, rows, columns)


def resize(
    image: Float[Array, "b h w c"], size: int, interpolation: Interpolation
) -> Float[Array, "b {size} {size} c"]:
    """The whole 0..1 image at `size`: the evaluation view, by the same kernel as the crops."""
    _, h, w, _ = image.shape
    rows = resize_weights(h, 0, h, size, interpolation)
    columns = resize_weights(w, 0, w, size, interpolation)
    return jax.vmap(_resample, in_axes=(0, None, None))(image, rows, columns)


def _resample(
    image: Float[Array, "h w c"], rows: Float[Array, "s h"], columns: Float[Array, "t w"]
) -> Float[Array, "s t c"]:
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


def _check(config: object, name: str, **rules: tuple[bool, str]) -> None:
    """Raises ConfigError for the first field whose rule (holds, wording) does not hold."""
    for field, (holds, wording) in rules.items():
        if not holds:
            raise ConfigError(f"{name}.{field}={getattr(config, field)}: must be {wording}")
