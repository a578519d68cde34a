"""Values that a config's fields can hold at all: their types, and numbers of a size that exists.

`validate` of a config says what a field means; this says, for every field alike and before that,
that it is of its type: a tuple as long as its type, a number that is finite and no larger than what
a machine can count. Names become folders and words of a shell, and are names.
"""

import dataclasses
import difflib
import enum
import functools
import math
import re
import types
import typing
from typing import Any

from ctssl_jax.errors import ConfigError, printable

MOST_INTEGER = 2**31 - 1  # JAX's integers have 32 bits
MOST_FLOAT = 1e12
MOST_ITEMS = 1000
MOST_TEXT = 4096  # bytes: the longest path
NAME = re.compile(r"[^\W_][\w.+-]{0,99}")
NAMES = ("task", "arm")
SEEDS = ("seed", "seeds")


def require(config: object, name: str = "", **rules: tuple[bool, str]) -> None:
    """Raises `ConfigError` for the first field whose rule, (holds, what it must be), does not hold.

    `name` is that of the part, as in `optim`.
    """
    for field, (holds, wording) in rules.items():
        if not holds:
            full = f"{name}.{field}" if name else field
            raise ConfigError(f"{full}={getattr(config, field)}: must be {wording}")


def require_usable(config: Any, prefix: str = "") -> None:
    """Raises `ConfigError` naming the first field, of all parts, whose value is of no use.

    And the first attribute that is no field, as a config file may set by mistake: it has no effect.
    """
    fields = [field.name for field in dataclasses.fields(config)]
    own = {name for name in vars(config) if name.startswith("_")}  # what a config notes itself
    for name in sorted(vars(config).keys() - own - set(fields)):
        close = difflib.get_close_matches(name, fields, n=1)
        meant = f": did you mean {prefix}{close[0]}?" if close else ": leave it out"
        raise ConfigError(f"{prefix}{name} is no field of {type(config).__name__}{meant}")
    kinds = _kinds(type(config))  # type: ignore[arg-type]
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            require_usable(value, f"{name}.")
        elif wrong := _wrong(value, kinds[field.name]):
            raise ConfigError(f"{name}={_shown(value)}: must be {wrong}")
        elif (
            field.name.endswith(SEEDS)
            and min(value if isinstance(value, tuple | list) else [value], default=0) < 0
        ):
            raise ConfigError(f"{name}={_shown(value)}: must be 0 or more")
        elif field.name in NAMES and value and not NAME.fullmatch(value):
            raise ConfigError(
                f"{name}={_shown(value)}: is a name: up to 100 letters, digits, _ . + and -, the "
                "first a letter or digit"
            )


@functools.cache
def _kinds(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _wrong(value: Any, kind: Any) -> str:
    """What a value of a kind must be, if it is not; else nothing."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _wrong_tuple(value, arguments)
    if origin in (typing.Union, types.UnionType):
        wrongs = [_wrong(value, each) for each in arguments]
        return "" if "" in wrongs else wrongs[0]
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole and abs(value) <= MOST_INTEGER
        return "" if fits else f"a whole number up to {MOST_INTEGER}"
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        small = number and math.isfinite(value) and abs(value) <= MOST_FLOAT
        return "" if small else f"a finite number up to {MOST_FLOAT:g}"
    if kind is str:
        return _wrong_text(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "" if isinstance(value, kind) else f"one of {', '.join(k.value for k in kind)}"
    return ""


def _wrong_tuple(value: Any, arguments: tuple[Any, ...]) -> str:
    if not isinstance(value, tuple | list):
        return "several values, as in (1, 2)"
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        if len(value) > MOST_ITEMS:
            return f"at most {MOST_ITEMS} values"
        return next(filter(None, (_wrong(item, arguments[0]) for item in value)), "")
    if len(value) != len(arguments):
        return f"{len(arguments)} values, as in ({', '.join(map(str, range(len(arguments))))})"
    pairs = zip(value, arguments, strict=True)
    return next(filter(None, (_wrong(item, kind) for item, kind in pairs)), "")


def _wrong_text(value: Any) -> str:
    if not isinstance(value, str):
        return "text"
    if len(value.encode(errors="surrogatepass")) > MOST_TEXT:
        return f"at most {MOST_TEXT} bytes"
    control = any(ord(character) < 32 or ord(character) == 127 for character in value)
    return "text without control characters" if control else ""


def _shown(value: Any) -> str:
    """A value for a message of one line, cut where it is long."""
    text = printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
