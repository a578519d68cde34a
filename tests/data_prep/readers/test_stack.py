"""Geometry of made-up series, of which the irregularity is known exactly."""

import numpy as np
import pytest

from data_prep.readers.stack import Stack

RNG = np.random.default_rng(0)


def stack(z, tilt=0.0, along_normal=False, **changes) -> Stack:
    """Slices at heights `z`, tilted about x by `tilt` degrees, stacked along z or their normal."""
    z = np.asarray(z, float)
    n, angle = len(z), np.deg2rad(tilt)
    normal = np.array([0.0, np.sin(angle), np.cos(angle)])
    step = normal if along_normal else np.array([0.0, 0.0, 1.0])
    fields = {
        "normals": np.tile(normal, (n, 1)),
        "origins": np.array([-100.0, -120.0, 0.0]) + z[:, None] * step,
        "thickness_mm": np.full(n, 2.5),
        "sizes": np.full((n, 2), 512),
        "pixel_mm": np.full((n, 2), 0.7),
    }
    return Stack(**(fields | {k: np.asarray(v) for k, v in changes.items()}))


def found(series: Stack) -> dict[str, str]:
    return dict(series.irregularities())


def test_a_regular_series_in_any_order_is_regular():
    z = RNG.permutation(np.arange(20) * 2.5 - 300)
    series = stack(z)
    assert found(series) == {}
    assert series.distance() == 2.5
    np.testing.assert_allclose(series.positions(), z)


@pytest.mark.parametrize(
    "z",
    [
        [7.0],
        [0, 0.6],
        np.round(np.arange(50) * 0.625, 1),  # positions with one decimal
        np.arange(100) * 1.25 + RNG.uniform(-0.049, 0.049, 100),  # helical jitter
    ],
)
def test_what_real_scanners_do_is_regular(z):
    series = stack(z)
    assert found(series) == {}
    rough = series.origins + np.c_[RNG.uniform(-0.05, 0.05, (len(z), 2)), np.zeros(len(z))]
    assert found(stack(z, origins=rough)) == {}


def test_a_single_slice_has_no_distance():
    assert np.isnan(stack([3]).distance())


def test_unknown_thickness_and_spacing_are_no_finding():
    nothing = np.full(5, np.nan)
    series = stack(np.arange(5), thickness_mm=nothing, pixel_mm=np.full((5, 2), np.nan))
    assert found(series) == {}


def test_positions_grow_to_the_head_whatever_way_the_normal_points():
    series = stack([0, 5, 10])
    turned = stack([0, 5, 10], normals=-series.normals)
    np.testing.assert_array_equal(turned.positions(), series.positions())
    assert found(turned) == {}


@pytest.mark.parametrize("tilt", [18.5, -18.5, 0.5])
def test_gantry_tilt_by_orientation_and_by_shear(tilt):
    detail = found(stack(np.arange(20) * 5.0, tilt))["gantry tilt"]
    assert detail == f"{abs(tilt):.1f} degrees, sheared by {abs(tilt):.1f} degrees"
    straight = stack(np.arange(20) * 5.0, tilt, along_normal=True)
    assert found(straight) == {"gantry tilt": f"{abs(tilt):.1f} degrees"}


def test_shear_alone_is_tilt():
    series = stack(np.arange(10) * 4.0)
    shifted = series.origins + np.arange(10)[:, None] * [0.0, 3.0, 0.0]
    sheared = found(stack(np.arange(10) * 4.0, origins=shifted))
    assert sheared == {"gantry tilt": "0.0 degrees, sheared by 36.9 degrees"}  # a 3-4-5 triangle


@pytest.mark.parametrize(
    ("lost", "detail"),
    [
        ([4], "1 missing, widest gap 4 mm"),
        ([4, 5, 6], "3 missing, widest gap 8 mm"),
        ([4, 9, 10], "3 missing, widest gap 6 mm"),
    ],
)
def test_missing_slices_are_counted(lost, detail):
    series = stack(np.delete(np.arange(20) * 2.0, lost))
    assert found(series) == {"missing slices": detail}
    assert series.distance() == 2.0


def test_what_is_missing_at_the_ends_cannot_be_known():
    assert found(stack(np.arange(3, 12))) == {}


def test_duplicate_positions():
    z = np.r_[np.arange(10), 3, 3, 7]
    assert found(stack(z)) == {"duplicate positions": "3 of 13 slices"}
    assert stack(z).distance() == 1.0
    assert found(stack([0, 1, 2, 2.03, 3])) == {"duplicate positions": "1 of 5 slices"}
    assert found(stack(np.zeros(4))) == {"duplicate positions": "3 of 4 slices"}


def test_a_changed_slice_distance_is_not_lost_slices():
    z = np.cumsum(np.r_[0, np.full(20, 2.5), np.full(8, 5.0)])
    assert found(stack(z)) == {"changing slice distance": "2.5 to 5 mm"}
    thick = np.r_[np.full(21, 2.5), np.full(8, 5.0)]
    both = found(stack(z, thickness_mm=thick))
    assert both["changing slice thickness"] == "2.5 to 5 mm"
    assert len(both) == 2


def test_mixed_slices():
    sizes = np.full((5, 2), 512)
    sizes[2] = 256
    assert found(stack(np.arange(5), sizes=sizes)) == {"mixed sizes": "2 sizes"}
    pixels = np.full((5, 2), 0.7)
    pixels[4] = 0.8
    mixed = found(stack(np.arange(5), pixel_mm=pixels))
    assert mixed == {"mixed pixel spacing": "0.7 to 0.8 mm"}
    normals = stack(np.arange(5)).normals
    normals[1] = [0, np.sin(0.2), np.cos(0.2)]
    mixed = found(stack(np.arange(5), normals=normals))
    assert mixed == {"mixed orientations": "11.5 degrees apart"}


def test_anisotropic_pixels_are_not_mixed():
    assert found(stack(np.arange(3), pixel_mm=np.tile([0.5, 0.75], (3, 1)))) == {}
