"""What `--help` prints: usage, configs with their presets, and every field with its meaning.

The meanings are those of the dataclasses' docstrings, the presets those that `get_config` names.
"""

import ast
import dataclasses
import enum
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags

from ctssl_jax import presets
from ctssl_jax.flags import config_argument, define_flags, leaves, parse

WIDTH = 100


class Field(NamedTuple):
    """One field: its name as a flag, its default as it would be typed, and what it means."""

    name: str
    default: str
    meaning: str


def asked(argv: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return any(word in ("--help", "-h", "--helpfull", "--helpshort") for word in argv[1:])


def help_text(argv: Sequence[str], doc: str, defaults: Sequence[Any]) -> str:
    """All that a command understands.

    Args:
      argv: with `--config` the fields are those of that config, with its values.
      doc: of the command.
      defaults: configs, one of each kind that the command takes; shown where none is named.
    """
    file = config_argument(list(argv))
    configs = [parse([argv[0], f"--config={file}"]).config] if file else defaults
    parts = [doc.strip(), "Flags:\n" + _flags(), "Configs, and their presets:\n" + _files(defaults)]
    for config in configs:
        of = file or f"a {type(config).__name__}"
        lines = [
            _line(f"--config.{name}={default}", meaning)
            for name, default, meaning in fields(config)
        ]
        parts.append(f"Fields of {of}, with what each is without its flag:\n" + "\n".join(lines))
    return "\n\n".join(parts)


def fields(config: Any) -> Iterator[Field]:
    """Every field of a config that is a flag, in the order of the dataclass."""
    for name, owner, field, value in leaves(config):
        told: dict[str, str] = {}
        for kind in reversed(owner.__mro__):  # what a class adds to another
            told |= meanings(kind) if dataclasses.is_dataclass(kind) else {}
        meaning = told.get(field, "")
        if isinstance(value, enum.Enum):
            choices = " | ".join(choice.name.lower() for choice in type(value))
            meaning = f"{meaning} ({choices})".strip()
        yield Field(name, _typed(value), meaning)


def meanings(kind: type) -> dict[str, str]:
    """What a dataclass's docstring says of its attributes, under `Attributes:`."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(listed).splitlines():
        head = re.match(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line)
        if head:
            names = head[1].split(", ")
            found |= dict.fromkeys(names, head[2])
        elif line.startswith(" ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def _typed(value: Any) -> str:
    return value.name.lower() if isinstance(value, enum.Enum) else str(value)


def _line(flag: str, meaning: str) -> str:
    """A flag with its meaning, beside it or below."""
    indent = " " * 44
    text = textwrap.fill(
        meaning, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    head = f"  {flag}"
    if not meaning:
        return head
    return f"{head:<43} {text.lstrip()}" if len(head) < len(indent) else f"{head}\n{text}"


def _flags() -> str:
    values = flags.FlagValues()
    define_flags(values, [""])
    return "\n".join(
        _line(f"--{name}" + (f"={flag.default}" if flag.default is not None else ""), flag.help)
        for name, flag in sorted(values._flags().items())
        if name != "config"
    )


def _files(defaults: Sequence[Any]) -> str:
    """The configs that come with the package and are of one of these kinds."""
    kinds = {type(config).__name__ for config in defaults}
    lines = []
    for name in presets.names():
        tree = ast.parse(presets.file_of(name).read_text())
        for function in tree.body:
            if not isinstance(function, ast.FunctionDef) or function.name != "get_config":
                continue
            if function.returns is None or ast.unparse(function.returns) not in kinds:
                continue
            told = ast.get_docstring(function) or ""
            known = re.search(r"[Pp]resets: ([^.]*)", told)
            title = (ast.get_docstring(tree) or "").partition("\n")[0]
            extra = f" Presets: {' '.join(known[1].split())}." if known else ""
            lines.append(_line(f"--config={name}", title + extra))
    return "\n".join(lines)
