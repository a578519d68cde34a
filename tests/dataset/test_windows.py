import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.augment import Intensity, IntensityMode, to_unit
from ctssl_jax.dataset.windows import WINDOWS, Window
from ctssl_jax.errors import ConfigError
from ctssl_jax.flags import parse

# Level and width in HU: Radiopaedia, "Windowing (CT)"; soft_tissue: OHIF.
LEVEL_WIDTH = {
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (40, 400),
    "abdomen": (50, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
}


def test_windows_are_those_of_the_sources():
    for name, (level, width) in LEVEL_WIDTH.items():
        assert WINDOWS[name] == (level - width / 2, level + width / 2)
    assert WINDOWS["full"] == (-1024, 3071)
    assert WINDOWS["wide"] == (-1000, 1000)
    assert {window.value for window in Window} == {"custom", *WINDOWS}
    assert all(type(bound) is float for window in WINDOWS.values() for bound in window)


@pytest.mark.parametrize("window", [window for window in Window if window is not Window.CUSTOM])
def test_a_named_window_maps_its_ends_to_0_and_1(window):
    low, high = WINDOWS[window.value]
    hu = jnp.asarray([[[low - 50, low, (low + high) // 2, high, high + 50]]], jnp.int16)
    unit = np.asarray(to_unit(hu, Intensity(window=window), "hu"))[0, 0, :, 0]
    np.testing.assert_allclose(unit, [0, 0, 0.5, 1, 1], atol=2e-4)


def test_a_named_window_leaves_grey_as_it_is():
    grey = jnp.asarray([[[0, 51, 255]]], jnp.int16)
    unit = np.asarray(to_unit(grey, Intensity(window=Window.BRAIN), "grey8"))[0, 0, :, 0]
    np.testing.assert_allclose(unit, [0, 0.2, 1], atol=1e-6)


@pytest.mark.parametrize("kind", ["grey8", "grey16"])
def test_a_window_on_grey_data_is_refused(kind):
    for chosen in (Intensity(window=Window.WIDE), Intensity(window_hu=(-1000.0, 400.0))):
        chosen.require_kind("hu")
        with pytest.raises(ConfigError, match=rf"intensity\.window\S*=\S.* holds {kind}"):
            chosen.require_kind(kind)
    Intensity().require_kind(kind)
    Intensity(mode=IntensityMode.SLICE_MIN_MAX).require_kind(kind)


def test_the_default_is_the_wide_window():
    assert Intensity().bounds("hu") == WINDOWS["wide"]
    assert Intensity(window_hu=(-5.0, 5.0)).bounds("hu") == (-5, 5)


@pytest.mark.parametrize(
    ("intensity", "named"),
    [
        (
            Intensity(window=Window.LUNG, window_hu=(-900.0, 100.0)),
            r"window=lung but intensity.window_hu=\(-900.0, 100.0\): set window=custom",
        ),
        (
            Intensity(window=Window.LUNG, mode=IntensityMode.SLICE_MIN_MAX),
            "window=lung but intensity.mode=slice_min_max uses no window",
        ),
    ],
)
def test_a_named_window_that_would_not_count_is_an_error(intensity, named):
    with pytest.raises(ConfigError, match=named):
        intensity.validate()
    intensity.window = Window.CUSTOM
    intensity.validate()


def test_flags_name_a_window():
    command = ["main", "--config=configs/spark.py"]
    flags = ["--config.intensity.window=lung", "--config.intensity.standardise=dataset"]
    config = parse([*command, *flags]).config
    config.validate()
    assert config.intensity.window is Window.LUNG
    assert config.intensity.bounds("hu") == (-1350, 150)
    assert config.intensity.standardise.value == "dataset"
    with pytest.raises(ConfigError, match="window"):
        parse([*command, "--config.intensity.window=liver_and_lights"])


def test_windows_need_no_jax():
    modules = "ctssl_jax.dataset.windows, ctssl_jax.dataset.histogram"
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
