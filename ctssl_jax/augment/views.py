"""Augmentation on the device: pure functions `(key, image, numbers) -> image`, mapped over a batch.

The way of a slice: stored int16 → `to_unit` (0..1) → `make_views` (0..1) → `normalise` (network
input). Evaluation goes the same way with `resize` in place of `make_views`, and no key
(`whole_slices`).

All randomness of an image comes from its own key (`image_keys`), which knows the seed, the step
and the image's place in the run, but nothing of devices, hosts or the batch around it. Each
operation draws from its own stream of that key, so a new one leaves the draws of the others alone.

A view is made in this order: rotation, crop with resize and flips (all three in `resample.py`),
brightness and contrast, blur, noise. The reference flips after the blur, which is the same in law:
jitter, blur and noise know neither left from right nor top from bottom. Hue, saturation and
greyscale mean nothing on CT and do not exist. Probability 0 compiles nothing.

Sources of the laws: torchvision v0.14 transforms; Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627
moco_data_module.py (MoCo, and BYOL alike) and multicropdataset.py (SwAV).
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int16, Key

from ctssl_jax.augment.resample import (
    Interpolation,
    RotateInterpolation,
    gaussian_blur,
    random_resized_crop,
    random_rotation,
)
from ctssl_jax.augment.resample import resize as resize
from ctssl_jax.config_values import require
from ctssl_jax.dataset.windows import GREY_RANGE, WINDOWS, Window
from ctssl_jax.errors import ConfigError

IntensityKind = Literal["hu", "grey8", "grey16"]
"""What the stored int16 are: Hounsfield units, grey 0..255, or 16-bit grey minus 32768."""

AIR_HU = -1024.0  # the lowest value of 12-bit CT; less is padding outside the field of view
# Never renumber: every run would draw other views.
CROP_STREAM, FLIP_STREAM, ROTATE_STREAM, JITTER_STREAM, BLUR_STREAM, NOISE_STREAM = range(6)
BLUR_TRUNCATE = 4.0  # standard deviations; beyond lie 6e-5 of a Gaussian


class IntensityMode(enum.Enum):
    """How stored values become 0..1: a fixed window, or each slice by itself (the paper's way)."""

    WINDOW = "window"
    SLICE_MIN_MAX = "slice_min_max"


class Standardise(enum.Enum):
    """Where `Intensity.mean` and `std` come from."""

    FIXED = "fixed"  # the config
    DATASET = "dataset"  # the statistics of the split that the run trains on, see `standardise`


@dataclasses.dataclass
class ViewGroup:
    """How `count` views of one resolution are made of an image. Defaults: SparK's recipe.

    Attributes:
      count: how many.
      size: side in pixels, a multiple of the encoder's stride 32.
      scale: area of the crop as a fraction of the image; with ratio (1.0, 1.0) too: the whole.
      ratio: width / height of the crop.
      interpolation: of the crop.
      hflip, vflip: probability of a left-right or top-bottom flip.
      rotate: probability of a rotation, before the crop, what is outside being 0.
      degrees: its angle is uniform in ±degrees.
      rotate_interpolation: of the rotation.
      jitter: probability of a change of brightness and contrast, in random order.
      brightness: factor uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: likewise; about the view's mean.
      blur: probability of a Gaussian blur.
      blur_sigma: uniform, in pixels of the view.
      noise: probability of white Gaussian noise.
      noise_variance: log-uniform, of values in 0..1.
    """

    count: int = 1
    size: int = 224
    scale: tuple[float, float] = (0.67, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = Interpolation.BICUBIC
    hflip: float = 0.5
    vflip: float = 0.0
    rotate: float = 0.0
    degrees: float = 180.0
    rotate_interpolation: RotateInterpolation = RotateInterpolation.BILINEAR
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.0
    noise_variance: tuple[float, float] = (1e-5, 1e-4)

    def validate(self) -> None:
        """Raises ConfigError that names the field and its value."""
        probability = "a probability, 0 to 1"
        require(
            self,
            "views",
            count=(self.count >= 1, "at least 1"),
            size=(self.size >= 32 and self.size % 32 == 0, "a multiple of 32, at least 32"),
            scale=(0 < self.scale[0] <= self.scale[1] <= 1, "(low, high), 0 < low <= high <= 1"),
            ratio=(0 < self.ratio[0] <= self.ratio[1] < math.inf, "(low, high), 0 < low <= high"),
            hflip=(0 <= self.hflip <= 1, probability),
            vflip=(0 <= self.vflip <= 1, probability),
            rotate=(0 <= self.rotate <= 1, probability),
            degrees=(0 <= self.degrees <= 180, "an angle, 0 to 180"),
            brightness=(0 <= self.brightness < math.inf, "at least 0"),
            contrast=(0 <= self.contrast < math.inf, "at least 0"),
            jitter=(
                0 < self.jitter <= 1 or self.jitter == self.brightness == self.contrast == 0,
                "a probability, above 0 where brightness or contrast is",
            ),
            blur=(0 <= self.blur <= 1, probability),
            blur_sigma=(
                0 < self.blur_sigma[0] <= self.blur_sigma[1] <= self.size,
                f"(low, high) in pixels, 0 < low <= high <= {self.size} (size)",
            ),
            noise=(0 <= self.noise <= 1, probability),
            noise_variance=(
                0 < self.noise_variance[0] <= self.noise_variance[1] < math.inf,
                "(low, high), 0 < low <= high",
            ),
        )


@dataclasses.dataclass
class Intensity:
    """How stored int16 become network input.

    Attributes:
      mode: WINDOW: two fixed values become 0 and 1. SLICE_MIN_MAX: each slice's
        smallest and largest.
      window: the HU that become 0 and 1 in WINDOW mode, by name.
      window_hu: the same in numbers, (low, high), for CUSTOM alone.
      standardise: FIXED: by `mean` and `std`. DATASET: by those of the split that is trained on.
      mean, std: what values in 0..1 are standardised with; one number, or one for each channel.
      channels: 3: three equal channels, as the paper's and ImageNet's weights expect.
    """

    mode: IntensityMode = IntensityMode.WINDOW
    window: Window = Window.CUSTOM
    window_hu: tuple[float, float] = WINDOWS["wide"]
    standardise: Standardise = Standardise.FIXED
    mean: tuple[float, ...] = (0.3,)
    std: tuple[float, ...] = (0.3,)
    channels: int = 1

    def bounds(self, kind: IntensityKind) -> tuple[float, float]:
        """The stored values that become 0 and 1 in WINDOW mode."""
        if kind != "hu":
            return GREY_RANGE[kind]
        return self.window_hu if self.window is Window.CUSTOM else WINDOWS[self.window.value]

    def require_kind(self, kind: IntensityKind) -> None:
        """Raises ConfigError if a window in HU was chosen for a dataset that holds grey values."""
        if kind == "hu":
            return
        for name, value, default in (
            ("window", self.window.value, Window.CUSTOM.value),
            ("window_hu", self.window_hu, WINDOWS["wide"]),
        ):
            if value != default:
                raise ConfigError(
                    f"intensity.{name}={value} but the dataset holds {kind}, of which the full "
                    f"range is used: leave it at {default}"
                )

    def validate(self) -> None:
        """Raises ConfigError that names the field and its value."""
        low, high = self.window_hu
        entries, per_channel = (1, self.channels), f"1 or {self.channels} (channels) numbers"
        require(
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
        if self.window is Window.CUSTOM:
            return
        if self.mode is not IntensityMode.WINDOW:
            raise ConfigError(
                f"intensity.window={self.window.value} but intensity.mode={self.mode.value} uses "
                "no window: set mode=window, or window=custom"
            )
        if self.window_hu != WINDOWS["wide"]:
            raise ConfigError(
                f"intensity.window={self.window.value} but intensity.window_hu={self.window_hu}: "
                f"set window=custom, or window_hu to its default {WINDOWS['wide']}"
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
    lower, upper = intensity.bounds(kind)
    return jnp.clip((x - lower) / (upper - lower), 0.0, 1.0)


def normalise(x: Float[Array, "*n h w 1"], intensity: Intensity) -> Float[Array, "*n h w c"]:
    """0..1 → `(x - mean) / std` in `intensity.channels` channels of the same values."""
    mean, std = jnp.asarray(intensity.mean), jnp.asarray(intensity.std)
    return (jnp.repeat(x, intensity.channels, axis=-1) - mean) / std


def whole_slices(
    image: Int16[Array, "b h w"],
    intensity: Intensity,
    kind: IntensityKind,
    size: int,
    interpolation: Interpolation,
) -> Float[Array, "b {size} {size} c"]:
    """Stored values → network input without augmentation: what evaluation sees."""
    return normalise(resize(to_unit(image, intensity, kind), size, interpolation), intensity)


def image_keys(
    seed_key: Key[Array, ""], step: int | Int[Array, ""], global_index: Int[Array, " b"]
) -> Key[Array, " b"]:
    """One key per image, from (seed, step, place in the run): the same on any number of devices."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.fold_in(seed_key, step), global_index
    )


def make_views(
    keys: Key[Array, " b"], image: Float[Array, "b h w c"], groups: Sequence[ViewGroup]
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
    stream = functools.partial(jax.random.fold_in, key)
    if group.rotate:
        image = random_rotation(
            stream(ROTATE_STREAM), image, group.rotate, group.degrees, group.rotate_interpolation
        )
    hflip, vflip = jax.random.uniform(stream(FLIP_STREAM), (2,)) < jnp.array(
        [group.hflip, group.vflip]
    )
    view = random_resized_crop(
        stream(CROP_STREAM),
        image,
        group.size,
        group.scale,
        group.ratio,
        group.interpolation,
        hflip,
        vflip,
    )
    if group.jitter:
        view = random_jitter(
            stream(JITTER_STREAM), view, group.jitter, group.brightness, group.contrast
        )
    if group.blur:
        view = random_blur(stream(BLUR_STREAM), view, group.blur, group.blur_sigma)
    if group.noise:
        view = random_noise(stream(NOISE_STREAM), view, group.noise, group.noise_variance)
    return view


def random_jitter(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    probability: float,
    brightness: float,
    contrast: float,
) -> Float[Array, "h w c"]:
    """With `probability`, a change of brightness and one of contrast, either first.

    Each factor is uniform in [max(0, 1 - x), 1 + x] and each result clipped to 0..1. Source:
    torchvision transforms.ColorJitter, without saturation and hue.
    """
    draw = jax.random.uniform(key, (4,))
    applied, brightness_first = draw[0] < probability, draw[1] < 0.5

    def factor(x: float, uniform: Float[Array, ""]) -> Float[Array, ""]:
        low = max(0.0, 1.0 - x)
        return jnp.where(applied, low + (1.0 + x - low) * uniform, 1.0)

    # A factor of 1 leaves every bit as it is, so that one of the two changes of brightness, or
    # everything, can be left out without choosing between images.
    by = factor(brightness, draw[2])
    image = adjust_brightness(image, jnp.where(brightness_first, by, 1.0))
    image = adjust_contrast(image, factor(contrast, draw[3]))
    return adjust_brightness(image, jnp.where(brightness_first, 1.0, by))


def adjust_brightness(
    image: Float[Array, "h w c"], factor: float | Float[Array, ""]
) -> Float[Array, "h w c"]:
    """The 0..1 image times `factor`, clipped to 0..1. Source: torchvision adjust_brightness."""
    return jnp.clip(factor * image, 0.0, 1.0)


def adjust_contrast(
    image: Float[Array, "h w c"], factor: float | Float[Array, ""]
) -> Float[Array, "h w c"]:
    """The distance of a 0..1 image from its mean times `factor`, clipped to 0..1.

    Source: torchvision adjust_contrast of a grey image; Pillow rounds the mean to 8 bits, this not.
    """
    return jnp.clip(factor * image + (1.0 - factor) * image.mean(), 0.0, 1.0)


def random_blur(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    probability: float,
    sigma: tuple[float, float],
) -> Float[Array, "h w c"]:
    """With `probability`, a Gaussian blur of standard deviation uniform in `sigma`, in pixels.

    The reference calls PIL.ImageFilter.GaussianBlur, which approximates it by three box blurs.
    """
    draw = jax.random.uniform(key, (2,))
    radius = math.ceil(BLUR_TRUNCATE * sigma[1])
    blurred = gaussian_blur(image, sigma[0] + (sigma[1] - sigma[0]) * draw[1], radius)
    return jnp.where(draw[0] < probability, blurred, image)


def random_noise(
    key: Key[Array, ""],
    image: Float[Array, "h w c"],
    probability: float,
    variance: tuple[float, float],
) -> Float[Array, "h w c"]:
    """With `probability`, white Gaussian noise of variance log-uniform in `variance`, then a clip.

    The reference draws it for each of three equal channels; here there is one until `normalise`.
    """
    number_key, pixel_key = jax.random.split(key)
    draw = jax.random.uniform(number_key, (2,))
    low, high = math.log(variance[0]), math.log(variance[1])
    deviation = jnp.exp(0.5 * (low + (high - low) * draw[1]))
    # Drawn flat, as in `sample_crop`: the CPU compiler is slow at more dimensions.
    noise = deviation * jax.random.normal(pixel_key, (image.size,)).reshape(image.shape)
    return jnp.where(draw[0] < probability, jnp.clip(image + noise, 0.0, 1.0), image)
