import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ctssl_jax.augment import (
    Box,
    Intensity,
    IntensityMode,
    Interpolation,
    ViewGroup,
    crop_and_resize,
    image_keys,
    make_views,
    normalise,
    random_resized_crop,
    resize,
    sample_crop,
    to_unit,
)
from ctssl_jax.errors import ConfigError

PILLOW = {
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
}
FULL = (1.0, 1.0)


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


def views_of(keys, image, groups):
    return jax.jit(lambda k, x: make_views(k, x, groups))(keys, image)


@jax.jit
def two_groups(keys, image):
    crops = {"scale": (0.2, 0.9), "vflip": 0.5}
    return make_views(
        keys, image, [ViewGroup(count=2, size=32, **crops), ViewGroup(count=1, size=64, **crops)]
    )


def images(count=4, side=48, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((count, side, side, 1), np.float32))


def keys(count=4, step=0):
    return image_keys(jax.random.key(0), step, jnp.arange(count))


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
    program = str(jax.make_jaxpr(lambda x: resize(x, 32, Interpolation.BICUBIC))(images()))
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


def test_full_scale_and_ratio_is_the_whole_image():
    image = images(1)
    (views,) = views_of(keys(1), image, [ViewGroup(size=32, scale=FULL, ratio=FULL, hflip=0.0)])
    np.testing.assert_allclose(views[0], our_resize(image, 32, Interpolation.BICUBIC), atol=1e-6)


def test_random_resized_crop_resizes_the_sampled_box():
    key, image, scale, ratio = jax.random.key(5), noise(50, 60), (0.3, 0.6), (0.5, 2.0)
    box = [int(n) for n in sample_crop(key, image.shape, scale, ratio)]
    crop = jax.jit(random_resized_crop, static_argnums=(2, 3, 4, 5))
    got = crop(key, jnp.asarray(image)[..., None], 32, scale, ratio, Interpolation.BILINEAR)
    want = pillow_crop(image, box, 32, Interpolation.BILINEAR)
    np.testing.assert_allclose(got[..., 0], want, atol=2e-6)


# Views.


def test_flip_probabilities_are_those_stated_and_independent():
    ramp = jnp.arange(32) / 31
    columns_and_rows = jnp.stack(jnp.meshgrid(ramp, ramp), axis=-1)[None]
    group = ViewGroup(count=2000, size=32, scale=(0.2, 1.0), hflip=0.3, vflip=0.8)
    (views,) = views_of(keys(1), columns_and_rows, [group])
    views = np.asarray(views[:, 0])
    across = views[:, 16, -1, 0] - views[:, 16, 0, 0]
    down = views[:, -1, 16, 1] - views[:, 0, 16, 1]
    hflip, vflip, area = across < 0, down < 0, np.abs(across * down)
    assert abs(hflip.mean() - 0.3) < 0.035
    assert abs(vflip.mean() - 0.8) < 0.035
    assert np.abs(np.corrcoef([hflip, vflip, area]) - np.eye(3)).max() < 0.07


def test_views_of_each_group_have_its_count_and_size():
    views = two_groups(keys(), images())
    assert [v.shape for v in views] == [(2, 4, 32, 32, 1), (1, 4, 64, 64, 1)]
    assert all(v.dtype == jnp.float32 for v in views)


def test_no_two_views_share_their_randomness():
    smooth = images(1, side=6).repeat(8, axis=1).repeat(8, axis=2)
    small, large = two_groups(keys(), jnp.broadcast_to(smooth, (4, 48, 48, 1)))
    large = large.reshape(4, 32, 2, 32, 2).mean(axis=(2, 4))
    every = np.concatenate([small.reshape(8, 32, 32), large])
    for n, view in enumerate(every):
        assert (np.abs(every[n + 1 :] - view).mean(axis=(1, 2)) > 0.05).all()


def test_views_depend_on_key_alone_not_on_the_batch_around():
    x = images(8)
    whole, _ = two_groups(keys(8), x)
    np.testing.assert_array_equal(whole, two_groups(keys(8), x)[0])
    halves = [two_groups(keys(8)[h], x[h])[0] for h in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(whole, jnp.concatenate(halves, axis=1), atol=1e-6)
    assert not np.allclose(whole, two_groups(keys(8, step=1), x)[0], atol=0.01)


def test_views_do_not_depend_on_the_number_of_devices():
    devices = jax.devices()
    if 8 % len(devices) or len(devices) == 1:
        pytest.skip("needs 2, 4 or 8 devices")
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for one, many in zip(
        two_groups(keys(8), images(8)),
        two_groups(*jax.device_put((keys(8), images(8)), split)),
        strict=True,
    ):
        np.testing.assert_allclose(one, many, atol=1e-6)


def test_image_keys_know_seed_step_and_index_only():
    def data(seed, step, index):
        return jax.random.key_data(image_keys(jax.random.key(seed), step, jnp.asarray(index)))

    base = data(0, 3, [5, 9])
    np.testing.assert_array_equal(base[1], data(0, 3, [9])[0])
    np.testing.assert_array_equal(base, data(0, jnp.int32(3), [5, 9]))
    others = [base, data(1, 3, [5, 9]), data(0, 4, [5, 9])]
    assert len(np.unique(np.concatenate(others), axis=0)) == 6


@pytest.fixture(scope="module")
def plain_views():
    return views_of(keys(), images(), [ViewGroup(size=32, hflip=0.0)])[0]


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.1, 0.2)},
        {"ratio": (0.4, 0.5)},
        {"interpolation": Interpolation.BILINEAR},
        {"hflip": 1.0},
        {"vflip": 1.0},
    ],
)
def test_every_knob_of_a_view_changes_it(plain_views, change):
    changed = ViewGroup(**{"size": 32, "hflip": 0.0} | change)
    (views,) = views_of(keys(), images(), [changed])
    assert not np.allclose(plain_views, views, atol=1e-3)


# Intensity.


def stored(*values):
    return jnp.asarray(np.array(values, np.int16).reshape(1, 1, -1))


def test_window_maps_known_hu():
    hu = stored(-2000, -1000, -500, 0, 250, 1000, 3071)
    unit = to_unit(hu, Intensity(window_hu=(-1000.0, 1000.0)), "hu")
    np.testing.assert_allclose(unit.ravel(), [0, 0, 0.25, 0.5, 0.625, 1, 1], atol=1e-7)
    soft_tissue = to_unit(hu, Intensity(window_hu=(-160.0, 240.0)), "hu")
    np.testing.assert_allclose(soft_tissue.ravel(), [0, 0, 0, 0.4, 1, 1, 1], atol=1e-7)


def test_grey_records_use_their_whole_range_whatever_the_window():
    narrow = Intensity(window_hu=(0.0, 1.0))
    grey8 = to_unit(stored(0, 51, 255), narrow, "grey8")
    np.testing.assert_allclose(grey8.ravel(), [0, 0.2, 1], atol=1e-7)
    grey16 = to_unit(stored(-32768, -19661, 32767), narrow, "grey16")
    np.testing.assert_allclose(grey16.ravel(), [0, 13107 / 65535, 1], atol=1e-7)


def test_slice_min_max_is_per_slice_and_a_constant_slice_is_zero():
    slices = jnp.asarray(
        np.array([[[-100, 0], [100, 300]], [[7, 7], [7, 7]], [[0, 0], [0, 1]]], np.int16)
    )
    unit = to_unit(slices, Intensity(mode=IntensityMode.SLICE_MIN_MAX), "hu")[..., 0]
    want = [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]
    np.testing.assert_allclose(unit, want, atol=1e-7)


def test_slice_min_max_counts_padding_as_air_in_hu_only():
    mode = Intensity(mode=IntensityMode.SLICE_MIN_MAX)
    padded = to_unit(stored(-3024, -1024, 0, 1024), mode, "hu")
    np.testing.assert_allclose(padded.ravel(), [0, 0, 0.5, 1], atol=1e-7)
    grey = to_unit(stored(-3024, -1024, 0, 976), mode, "grey16")
    np.testing.assert_allclose(grey.ravel(), [0, 0.5, 0.756, 1], atol=1e-7)


def test_slice_min_max_does_not_wrap_at_the_ends_of_int16():
    unit = to_unit(stored(-32768, 32767), Intensity(mode=IntensityMode.SLICE_MIN_MAX), "grey16")
    np.testing.assert_array_equal(unit.ravel(), [0, 1])


def test_normalise_subtracts_mean_and_divides_by_std():
    x = images()
    one = normalise(x, Intensity(mean=(0.2,), std=(0.5,)))
    np.testing.assert_allclose(one, (x - 0.2) / 0.5, rtol=1e-6)


def test_three_channels_are_equal_unless_their_numbers_differ():
    x = images()[None]  # views have a leading dimension
    equal = normalise(x, Intensity(channels=3))
    assert equal.shape == (1, 4, 48, 48, 3)
    np.testing.assert_array_equal(equal[..., :1], equal[..., 1:2])
    np.testing.assert_array_equal(equal[..., :1], equal[..., 2:])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    imagenet = normalise(x, Intensity(mean=mean, std=std, channels=3))
    for c in range(3):
        np.testing.assert_allclose(imagenet[..., c], (x[..., 0] - mean[c]) / std[c], rtol=1e-5)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (ViewGroup(count=0), "count=0"),
        (ViewGroup(size=0), "size=0"),
        (ViewGroup(size=100), "size=100"),
        (ViewGroup(scale=(0.0, 1.0)), "scale="),
        (ViewGroup(scale=(0.9, 0.1)), "scale="),
        (ViewGroup(scale=(0.5, 1.1)), "scale="),
        (ViewGroup(scale=(math.nan, 1.0)), "scale="),
        (ViewGroup(ratio=(0.0, 1.0)), "ratio="),
        (ViewGroup(ratio=(2.0, 1.0)), "ratio="),
        (ViewGroup(ratio=(1.0, math.inf)), "ratio="),
        (ViewGroup(hflip=1.5), "hflip=1.5"),
        (ViewGroup(vflip=-0.1), "vflip=-0.1"),
        (Intensity(window_hu=(100.0, 100.0)), "window_hu="),
        (Intensity(window_hu=(-math.inf, 100.0)), "window_hu="),
        (Intensity(channels=0), "channels=0"),
        (Intensity(mean=(0.1, 0.2)), "mean="),
        (Intensity(mean=(0.1, 0.2), channels=3), "mean="),
        (Intensity(mean=(math.nan,)), "mean="),
        (Intensity(std=()), "std="),
        (Intensity(std=(0.0,)), "std="),
    ],
)
def test_a_wrong_number_is_refused_by_name(made, words):
    with pytest.raises(ConfigError) as refused:
        made.validate()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_defaults_are_valid():
    ViewGroup().validate()
    Intensity().validate()
    Intensity(channels=3, mean=(0.1, 0.2, 0.3), std=(0.1,)).validate()
