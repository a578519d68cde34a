"""Four fake CPU devices and one compilation cache for the whole suite, before JAX starts."""

import gc
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import compiler_options
import pytest
import type_checks

type_checks.check_shapes_of_arrays_alone()

from ctssl_jax.hosts import platform  # noqa: E402

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["XLA_FLAGS"] = compiler_options.flags(devices=4)
platform.set_cpu_flags()
platform.enable_compilation_cache()

STARTS: dict[ModuleType, dict] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file goes first: left for the end, one worker would wait for the other."""
    items.sort(key=lambda item: item.path.name != "test_golden.py")
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        if hasattr(module, "RNG"):
            STARTS[module] = module.RNG.bit_generator.state


def pytest_collection_finish() -> None:
    """Garbage is seldom looked for among all objects, and not among imports: it took a quarter."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test draws the same numbers from its module's RNG, whichever test ran before."""
    if isinstance(item, pytest.Function) and item.module in STARTS:
        item.module.RNG.bit_generator.state = STARTS[item.module]


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Programs of one file serve no other; kept, those of all files would take six gigabytes."""
    if (nextitem is None or nextitem.path != item.path) and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def phantom_path(tmp_path_factory) -> Path:
    """A small phantom: 6 patients of 8 slices at 64 px, 4 for training."""
    from data_prep.phantom import source as phantom

    path = tmp_path_factory.mktemp("data") / "phantom"
    phantom.prepare(path, patients=6, slices=8, size=64, val=0.17, test=0.17)
    return path


@pytest.fixture
def no_nohup():
    """A test and its processes hear SIGHUP, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def one_device():
    """Runs of a module on one of the four devices: what is fake costs three times the time."""
    import jax

    from ctssl_jax.hosts import sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "all_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="module")
def tiny_encoder():
    """Runs of a module have four convolutions in place of a ResNet, which takes long to compile."""
    import tiny

    with pytest.MonkeyPatch.context() as patch:
        tiny.patch_runs(patch)
        yield
