"""A config as the command line that gives it."""

import dataclasses
import enum
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctssl_jax import flags


def command_line(config: Any, file: str, workdir: Path) -> list[str]:
    """Module and flags of the ordinary command that runs `config` in `workdir`.

    Args:
      config: of a run.
      file: with :PRESET if wanted; its config is the same but for some fields.
      workdir: the run folder.

    Raises:
      ConfigError: there is no such file.
    """
    changes = _changes(config, _load(file))
    flags = [f"--config.{name}={_text(value)}" for name, value in changes]
    return ["ctssl_jax.main", f"--config={file}", *flags, f"--workdir={workdir}"]


@functools.cache
def _load(file: str) -> Any:
    return flags.parse(["main", f"--config={file}"]).config


def _changes(ours: Any, theirs: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of each field of `ours` that differs."""
    for field in dataclasses.fields(ours):
        name = prefix + field.name
        value, other = getattr(ours, field.name), getattr(theirs, field.name)
        if dataclasses.is_dataclass(value):
            yield from _changes(value, other, f"{name}.")
        elif value != other:
            yield name, value


def _text(value: Any) -> str:
    return value.name.lower() if isinstance(value, enum.Enum) else str(value)
