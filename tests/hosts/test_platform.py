"""A program starts anew once for huge pages, or not at all; a GPU that it does not use is told."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from ctssl_jax.errors import DeviceError
from ctssl_jax.hosts import distributed, platform

SCRIPT = """
import os, pathlib, sys
from ctssl_jax.hosts import platform
platform.HUGE_PAGES = pathlib.Path(sys.argv[1])
platform.use_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.argv[2:], os.getpid(), sys.flags.utf8_mode)
"""


@pytest.fixture
def enabled(tmp_path):
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    return file


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_program_starts_anew_as_it_was_called(enabled):
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}
    command = [sys.executable, "-X", "utf8", "-c", SCRIPT, str(enabled), "a b", "--c=d"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        printed, _ = process.communicate(timeout=60)
    tunables = f"glibc.malloc.arena_max=4:{platform.MALLOC_HUGE_PAGES}"
    assert printed.strip() == f"{tunables} ['a b', '--c=d'] {process.pid} 1"


@pytest.mark.parametrize(
    ("content", "tunables"),
    [
        ("[always] madvise never", ""),  # malloc's pages are huge already
        ("always madvise [never]", ""),
        ("always [madvise] never", "glibc.malloc.hugetlb=0"),  # the user's own wish
        (None, ""),
    ],
)
def test_program_goes_on_where_there_is_nothing_to_gain(monkeypatch, enabled, content, tunables):
    if content is None:
        enabled.unlink()
    else:
        enabled.write_text(content)
    monkeypatch.setattr(platform, "HUGE_PAGES", enabled)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
    platform.use_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == tunables


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Sets how many GPUs are here, which plugins JAX has for them and what is asked for."""
    import jax

    def there_are(count, plugins=(), platforms=""):
        for number in range(count):
            (tmp_path / f"nvidia{number}").touch()
        known = [EntryPoint(name, f"jax_plugins.{name}", "jax_plugins") for name in plugins]
        monkeypatch.setattr(platform.importlib.metadata, "entry_points", lambda group: known)
        monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=platforms))

    (tmp_path / "nvidiactl").touch()  # a driver without a GPU
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(platform, "DEVICE_FILES", tmp_path)
    return there_are


@pytest.mark.parametrize(
    ("count", "plugins", "line"),
    [
        (1, [], "1 NVIDIA GPUs are here and JAX uses none of them: pip install"),
        (2, ["xla_cuda12"], "(xla_cuda12) and reaches none: 2 are here, whose driver"),
        (0, ["xla_cuda12"], "(xla_cuda12) and reaches none: hand one in (docker run --gpus=all"),
        (0, ["xla_rocm7", "other"], "(xla_rocm7) and reaches none: hand one in"),
    ],
)
def test_a_gpu_that_is_not_used_is_an_error(gpus, count, plugins, line):
    gpus(count, plugins)
    with pytest.raises(DeviceError) as refused:
        distributed.require_devices()
    assert line in str(refused.value)
    assert str(refused.value).endswith("or set JAX_PLATFORMS=cpu in the environment to go without")


@pytest.mark.parametrize(
    ("count", "plugins", "platforms", "visible"),
    [
        (0, [], "", None),
        (0, ["libtpu"], "", None),
        (1, [], "cpu", None),
        (1, ["xla_cuda12"], "cuda,cpu", None),
        (0, ["xla_cuda12"], "cpu", None),
        (1, ["xla_cuda12"], "", ""),
    ],
)
def test_without_a_gpu_or_where_the_cpu_is_asked_for_it_goes_on(
    monkeypatch, gpus, count, plugins, platforms, visible
):
    gpus(count, plugins, platforms)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    distributed.require_devices()
