"""What a step needs of memory beside what there is."""

import jax
import jax.numpy as jnp
import pytest

from ctssl_jax import command
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import memory

SHAPE = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def step(donated=(0,)):
    """Temporaries as large as its two arguments; the result may take the place of the first."""
    return jax.jit(lambda x, y: jnp.sort(x @ y) @ y, donate_argnums=donated)


def program(donated=(0,)):
    return step(donated).lower(SHAPE, SHAPE).compile()


def test_what_lies_in_the_same_memory_counts_once():
    one = 4 * 1024**2
    found = memory.needed(program())
    assert found is not None
    assert 3 * one <= found <= 6 * one
    assert memory.needed(program(donated=())) == found + one


def test_the_machines_memory_is_parted_over_its_devices(monkeypatch, tmp_path):
    whole = memory.there() * jax.local_device_count()
    assert 2**28 < whole < 2**50
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "none").write_text("max\n")
    limits = tuple(str(tmp_path / name) for name in ("memory.max", "none", "missing"))
    monkeypatch.setattr(memory, "LIMITS", limits)
    assert memory.there() == 2**30 // jax.local_device_count()


@pytest.mark.parametrize(("there", "warnings"), [(2**34, 0), (2**20, 1), (None, 0)])
def test_too_much_is_a_warning(monkeypatch, there, warnings):
    monkeypatch.setattr(memory, "there", lambda: there)
    first, *others = memory.in_words(step(), SHAPE, SHAPE)
    own = memory.PROCESS / memory.GIB / jax.local_device_count()
    assert first.startswith(f"memory needed, about: {own:.1f} GiB")
    assert ("16.0 GiB there" in first) == (there == 2**34)
    assert len(others) == warnings
    assert all("set a smaller batch_size" in line for line in others)


def test_of_what_is_not_compiled_nothing_is_told():
    assert memory.in_words(lambda x, y: x @ y, SHAPE, SHAPE) == []


@pytest.mark.parametrize(("backend", "helps"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_what_runs_out_of_memory_names_settings_that_help_on_its_device(
    monkeypatch, backend, helps
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(memory, "there", lambda: 1)
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
    told = command.for_user(error, several=False)
    assert isinstance(told, ConfigError)
    for line in (str(told), memory.in_words(step(), SHAPE, SHAPE)[-1]):
        assert "a smaller batch_size" in line
        assert "for a pre-training also accumulate" in line
        assert ("encoder.remat_stages" in line) == helps
        assert ("shard_state" in line) == helps
    assert "allocating 8 bytes" in str(told)
