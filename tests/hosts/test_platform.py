"""Huge pages: the program starts anew once, with the same words, or not at all."""

import os
import subprocess
import sys

import pytest

from ctssl_jax.hosts import platform

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


@pytest.mark.parametrize(
    ("platforms", "visible", "refused"),
    [("", None, True), ("cpu", None, False), ("cuda,cpu", None, False), ("", "", False)],
)
def test_a_gpu_that_is_not_used_is_an_error(monkeypatch, tmp_path, platforms, visible, refused):
    from types import SimpleNamespace

    import jax

    from ctssl_jax.errors import DeviceError
    from ctssl_jax.hosts import distributed

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(platform, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=platforms))
    (tmp_path / "nvidiactl").touch()
    distributed.require_devices()  # a driver without a GPU
    (tmp_path / "nvidia0").touch()
    if not refused:
        distributed.require_devices()
        return
    with pytest.raises(DeviceError, match=r"1 NVIDIA GPUs are here and JAX uses none of them"):
        distributed.require_devices()
