"""What is taken for Hounsfield units: made-up bodies, and all that exporters make of them."""

import numpy as np
import pytest

from data_prep.readers import hounsfield
from data_prep.readers.hounsfield import Evidence, Values, sample
from data_prep.source import Unusable

N, SLICES = 96, 6


def disc(radius: float, x: float = 0.0, y: float = 0.0, flat: float = 1.0) -> np.ndarray:
    rows, columns = np.mgrid[:N, :N] / (N - 1) * 2 - 1
    return ((columns - x) / radius) ** 2 + ((rows - y) / radius / flat) ** 2 < 1


def scan(*parts: tuple[np.ndarray, float], noise: float = 12.0) -> list[np.ndarray]:
    """Slices of air and what is put into it, in HU."""
    rng = np.random.default_rng(0)
    image = np.full((N, N), -1000.0)
    for where, hu in parts:
        image[where] = hu
    return [np.rint(image + rng.normal(0, noise, image.shape)) for _ in range(SLICES)]


BODY = [(disc(0.9, flat=0.7), -100), (disc(0.82, flat=0.68), 45), (disc(0.12, y=0.4), 700)]
CHEST = [*BODY, (disc(0.28, x=-0.4), -850), (disc(0.28, x=0.4), -850)]
HEAD = [(disc(0.8), 40), (disc(0.75), 1100), (disc(0.68), 35), (disc(0.1, y=-0.7), -1000)]
SCANS = {
    "chest": scan(*CHEST),
    "abdomen": scan(*BODY, (disc(0.05, x=0.3), -950)),
    "head": scan(*HEAD),
    "sharp kernel": scan(*CHEST, noise=80),
    "water": scan((disc(0.7), 0.0), noise=5),
    "finger": scan((disc(0.06), 60), (disc(0.03), 600)),
    "metal": scan(*CHEST, (disc(0.2, x=0.1), 9000)),
}


def judge(slices, values=Values.AUTO, **rescale) -> str:
    seen = Evidence()
    for one in slices:
        seen.add(one, **rescale)
    return seen.reason(values)


def clipped(hu):
    return np.clip(hu, -1024, 3071)


@pytest.mark.parametrize("name", SCANS)
def test_values_with_how_often_each_was_seen_are_judged_as_the_slices(name):
    for offset in (0, 1024, -2000):  # HU, and what is none
        whole, counted = Evidence(), Evidence()
        for one in SCANS[name]:
            stored = np.rint(np.kron(one, np.ones((5, 5)))).astype(int) + offset
            stored[:9] = -3000
            rescale = {"slope": 0.5, "intercept": -20.0, "padding": (-3100, -3000)}
            whole.add(stored, **rescale)
            times = np.bincount(sample(stored).ravel() + 4000)
            counted.add(np.arange(len(times)) - 4000, times=times, **rescale)
        np.testing.assert_array_equal(counted._counts, whole._counts)
        assert counted.reason() == whole.reason()


@pytest.mark.parametrize("name", SCANS)
def test_real_ct_of_every_sort_is_hu(name):
    slices = SCANS[name]
    zoomed = [one[8:-8, 8:-8] for one in slices]
    corners = ~disc(1.0)
    padded = [np.where(corners, -2000, one) for one in slices]
    lossy = [np.where(corners, one - 1000, one) for one in slices]  # padding, and noise on it
    missing = [np.where(corners, np.nan, one) for one in slices]
    for kind in (slices, zoomed, padded, missing, [np.maximum(s, -1000) for s in slices]):
        assert judge(kind) == judge(kind, Values.HU) == ""
    assert judge([clipped(one) for one in slices]) == ""
    assert judge(lossy) == ""
    stored = [clipped(one) + 1024 for one in slices]
    assert judge(stored, intercept=-1024.0) == ""
    assert judge([2 * one for one in stored], slope=0.5, intercept=-1024.0) == ""
    bright = [np.where(corners, 4095, one) for one in stored]
    assert judge(bright, intercept=-1024.0, padding=(4095, 4095)) == ""


NO_HU = {
    "stored as HU + 1024": lambda hu, z: clipped(hu) + 1024,
    "stored as HU + 1000": lambda hu, z: clipped(hu) + 1000,
    "that with a low background": lambda hu, z: np.where(disc(1.0), clipped(hu) + 1024, -3024),
    "that with a background like air": lambda hu, z: np.where(disc(1), clipped(hu) + 1024, -1024),
    "intercept applied twice": lambda hu, z: np.maximum(hu, -1200) - 1024,
    "12 bits, unsigned": lambda hu, z: np.where(hu < 0, clipped(hu) + 4096, hu),
    "13 bits, unsigned": lambda hu, z: np.where(hu < 0, clipped(hu) + 8192, hu),
    "16 bits, unsigned": lambda hu, z: np.where(hu < 0, clipped(hu) + 65536, hu),
    "times four": lambda hu, z: 4 * (clipped(hu) + 1024) - 1024,
    "times two": lambda hu, z: 2 * clipped(hu),
    "without its slope of two": lambda hu, z: clipped(hu) / 2,
    "divided by ten": lambda hu, z: clipped(hu) / 10,
    "in thousands": lambda hu, z: clipped(hu) / 1000,
    "inverted": lambda hu, z: -clipped(hu),
    "from 0 to 1": lambda hu, z: (clipped(hu) + 1024) / 4095,
    "from -1 to 1": lambda hu, z: (clipped(hu) + 1024) / 4095 * 2 - 1,
    "8 bits": lambda hu, z: np.rint((clipped(hu) + 1024) / 4095 * 255),
    "8 bits minus 1024": lambda hu, z: np.rint((clipped(hu) + 1024) / 4095 * 255) - 1024,
    "8 bits of a lung window": lambda hu, z: np.rint((np.clip(hu, -1350, 150) + 1350) * 0.17),
    "z-scores": lambda hu, z: (clipped(hu) + 600) / 500,
    "cut to a window": lambda hu, z: np.clip(hu, -160, 240),
    "half of it + 1024": lambda hu, z: clipped(hu) + 1024 * (z % 2),
    "one slice + 1024": lambda hu, z: clipped(hu) + 1024 * (z == 3),
    "one slice unsigned": lambda hu, z: np.where((hu < 0) & (z == 3), hu + 4096, hu),
    "one slice - 1024": lambda hu, z: np.maximum(hu, -1200) - 1024 * (z == 3),
    "one slice inverted": lambda hu, z: -clipped(hu) if z == 3 else hu,
    "one slice halved": lambda hu, z: hu / 2 if z == 3 else hu,
}


@pytest.mark.parametrize("name", ["chest", "abdomen", "head", "metal"])
@pytest.mark.parametrize("how", NO_HU)
def test_what_was_made_of_hu_is_none(how, name):
    slices = [NO_HU[how](hu, z) for z, hu in enumerate(SCANS[name])]
    assert judge(slices).startswith("not in HU")


@pytest.mark.parametrize(
    "how",
    [
        *("stored as HU + 1024", "intercept applied twice", "12 bits, unsigned", "times four"),
        *("times two", "inverted", "one slice + 1024", "16 bits, unsigned"),
    ],
)
def test_the_users_word_does_not_make_hu_of_what_no_ct_can_hold(how):
    slices = [NO_HU[how](hu, z) for z, hu in enumerate(SCANS["chest"])]
    assert judge(slices, Values.HU).startswith("not in HU")


def test_the_users_word_stands_for_air_and_tissue():
    rng = np.random.default_rng(1)
    stripped = [np.where(disc(0.7), rng.normal(35, 8, (N, N)), 0) for _ in range(SLICES)]
    assert judge(stripped) == hounsfield.NO_AIR
    assert judge(stripped, Values.HU) == ""
    window = [np.clip(hu, -160, 240) for hu in SCANS["chest"]]
    assert judge(window, Values.HU) == ""


def test_reasons():
    reasons = {
        "stored as HU + 1024": hounsfield.OFFSET,
        "intercept applied twice": hounsfield.BELOW_AIR,
        "12 bits, unsigned": hounsfield.BEYOND,
        "inverted": hounsfield.INVERTED,
        "8 bits minus 1024": hounsfield.NO_TISSUE,
        "from 0 to 1": hounsfield.NO_AIR,
        "one slice + 1024": hounsfield.MIXED,
    }
    for how, reason in reasons.items():
        assert judge([NO_HU[how](hu, z) for z, hu in enumerate(SCANS["chest"])]) == reason, how
    empty = np.full((N, N), np.nan)
    assert judge([empty]) == judge([np.full((N, N), -32768)]) == hounsfield.NO_VALUES
    assert judge([]) == hounsfield.NO_VALUES
    with pytest.raises(Unusable, match=r"^nothing but padding$"):
        Evidence().require()


def test_many_values_far_below_are_no_padding():
    rng = np.random.default_rng(0)
    far = [np.where(disc(0.9), hu, rng.integers(-30000, -5000, (N, N))) for hu in SCANS["chest"]]
    assert judge(far) == hounsfield.BELOW_AIR


def test_large_slices_are_sampled():
    large = [np.repeat(np.repeat(hu, 8, 0), 8, 1) for hu in SCANS["head"]]
    seen = Evidence()
    for one in large:
        seen.add(one)
    assert seen.reason() == ""
    assert seen._counts.sum() == SLICES * 256 * 256
