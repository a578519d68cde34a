import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.augment import (
    Intensity,
    IntensityMode,
    Interpolation,
    ViewGroup,
    image_keys,
    make_views,
    normalise,
    to_unit,
)
from ctssl_jax.augment.views import (
    BLUR_STREAM,
    CROP_STREAM,
    FLIP_STREAM,
    JITTER_STREAM,
    NOISE_STREAM,
    ROTATE_STREAM,
    RotateInterpolation,
    random_blur,
    random_jitter,
    random_noise,
    random_resized_crop,
    random_rotation,
    resize,
)
from ctssl_jax.errors import ConfigError

FULL = (1.0, 1.0)


def views_of(keys, image, groups):
    return jax.jit(lambda k, x: make_views(k, x, groups))(keys, image)


@jax.jit
def two_groups(keys, image):
    crops = {"scale": (0.2, 0.9), "vflip": 0.5}
    return make_views(
        keys, image, [ViewGroup(count=2, size=32, **crops), ViewGroup(count=1, size=64, **crops)]
    )


EVERYTHING = {
    "scale": (0.3, 0.8),
    "ratio": (0.5, 1.5),
    "interpolation": Interpolation.BILINEAR,
    "hflip": 0.4,
    "vflip": 0.6,
    "rotate": 0.7,
    "degrees": 50.0,
    "rotate_interpolation": RotateInterpolation.NEAREST,
    "jitter": 0.65,
    "brightness": 0.4,
    "contrast": 0.3,
    "blur": 0.55,
    "blur_sigma": (0.5, 1.0),
    "noise": 0.45,
    "noise_variance": (1e-3, 1e-2),
}


@jax.jit
def everything(keys, image):
    return make_views(keys, image, [ViewGroup(count=2, size=32, **EVERYTHING)])[0]


def images(count=4, side=48, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((count, side, side, 1), np.float32))


def keys(count=4, step=0):
    return image_keys(jax.random.key(0), step, jnp.arange(count))


# Views.


def test_full_scale_and_ratio_is_the_whole_image():
    image = images(1)
    (views,) = views_of(keys(1), image, [ViewGroup(size=32, scale=FULL, ratio=FULL, hflip=0.0)])
    np.testing.assert_allclose(views[0], resize(image, 32, Interpolation.BICUBIC), atol=1e-6)


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
    whole = everything(keys(8), x)
    np.testing.assert_array_equal(whole, everything(keys(8), x))
    others = jnp.concatenate([x[:2], 1 - x[2:]])
    np.testing.assert_array_equal(whole[:, :2], everything(keys(8), others)[:, :2])
    assert not np.allclose(whole, everything(keys(8, step=1), x), atol=0.01)


def test_views_do_not_depend_on_the_number_of_devices():
    devices = jax.devices()
    if 8 % len(devices) or len(devices) == 1:
        pytest.skip("needs 2, 4 or 8 devices")
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    one = everything(keys(8), images(8))
    many = everything(*jax.device_put((keys(8), images(8)), split))
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_operations_come_in_their_order_each_from_its_own_stream():
    fold = jax.random.fold_in

    @jax.jit
    @jax.vmap
    def by_hand(key, x):
        key = fold(fold(key, 0), 1)  # of the second view of the first group
        x = random_rotation(fold(key, ROTATE_STREAM), x, 0.7, 50.0, RotateInterpolation.NEAREST)
        hflip, vflip = jax.random.uniform(fold(key, FLIP_STREAM), (2,)) < jnp.array([0.4, 0.6])
        area, ratio, kernel = (0.3, 0.8), (0.5, 1.5), Interpolation.BILINEAR
        x = random_resized_crop(fold(key, CROP_STREAM), x, 32, area, ratio, kernel, hflip, vflip)
        x = random_jitter(fold(key, JITTER_STREAM), x, 0.65, 0.4, 0.3)
        x = random_blur(fold(key, BLUR_STREAM), x, 0.55, (0.5, 1.0))
        return random_noise(fold(key, NOISE_STREAM), x, 0.45, (1e-3, 1e-2))

    views = everything(keys(8), images(8))
    np.testing.assert_allclose(views[1], by_hand(keys(8), images(8)), atol=1e-6)


def test_drawn_numbers_stay_those_of_earlier_runs():
    """One pixel of each view; the first rows are as of the commit before rotation came."""
    crops, _ = two_groups(keys(), images())
    first = [[0.978694, 0.568931, 0.259430, 0.233016], [0.853641, 0.178742, 0.588334, 0.0]]
    np.testing.assert_allclose(crops[:, :, 3, 5, 0], first, atol=2e-6)
    every = everything(keys(8), images(8))
    second = [0.324028, 0.398406, 0.526433, 0.636686, 0.876838, 0.475756, 0.078349, 0.454943]
    np.testing.assert_allclose(every[0, :, 3, 5, 0], second, atol=1e-5)


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


@pytest.mark.parametrize(
    ("operation", "numbers"),
    [
        (
            {"rotate": 0.5},
            {"degrees": 10.0, "rotate_interpolation": RotateInterpolation.NEAREST},
        ),
        ({"jitter": 0.5}, {"brightness": 0.3, "contrast": 0.6}),
        ({"blur": 0.5}, {"blur_sigma": (0.2, 0.9)}),
        ({"noise": 0.5}, {"noise_variance": (1e-4, 1e-3)}),
    ],
)
def test_an_operation_is_compiled_with_its_numbers_only_where_it_may_happen(operation, numbers):
    def program(**fields):
        groups = [ViewGroup(size=32, **fields)]
        return str(jax.make_jaxpr(lambda k, x: make_views(k, x, groups))(keys(), images()))

    plain, switched_on = program(), program(**operation)
    assert program(**numbers) == plain
    assert len(switched_on) > len(plain)
    (probability,) = operation
    assert program(**{probability: 1.0}) != switched_on
    for number, value in numbers.items():
        assert program(**operation, **{number: value}) != switched_on


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
        (ViewGroup(rotate=1.1), "rotate=1.1"),
        (ViewGroup(degrees=-1.0), "degrees=-1.0"),
        (ViewGroup(degrees=181.0), "degrees=181.0"),
        (ViewGroup(jitter=-0.5), "jitter=-0.5"),
        (ViewGroup(brightness=-0.1), "brightness=-0.1"),
        (ViewGroup(brightness=0.2), "jitter=0.0"),  # would do nothing
        (ViewGroup(brightness=math.inf), "brightness=inf"),
        (ViewGroup(contrast=-0.1), "contrast=-0.1"),
        (ViewGroup(contrast=math.nan), "contrast=nan"),
        (ViewGroup(blur=2.0), "blur=2.0"),
        (ViewGroup(blur_sigma=(0.0, 1.0)), "blur_sigma="),
        (ViewGroup(blur_sigma=(2.0, 1.0)), "blur_sigma="),
        (ViewGroup(size=32, blur_sigma=(1.0, 33.0)), "blur_sigma=(1.0, 33.0)"),
        (ViewGroup(noise=math.nan), "noise=nan"),
        (ViewGroup(noise_variance=(0.0, 1.0)), "noise_variance="),
        (ViewGroup(noise_variance=(1e-4, 1e-5)), "noise_variance="),
        (ViewGroup(noise_variance=(1e-4, math.inf)), "noise_variance="),
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
    ViewGroup(size=32, **EVERYTHING).validate()
    Intensity().validate()
    Intensity(channels=3, mean=(0.1, 0.2, 0.3), std=(0.1,)).validate()
