"""The flags of a run: a config file, changes to it, the run folder, the other processes.

Starts without JAX, so that a mistyped flag is answered at once.
"""

import dataclasses
import difflib
import itertools
import math
import os
import re
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from ctssl_jax import presets
from ctssl_jax.errors import ConfigError, one_line
from ctssl_jax.hosts.cluster import Cluster, find_cluster

NO_CONFIG = "its get_config must return a config, as those of `configs` do"
MISTAKES = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags; the overrides of the config are found in `argv`."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A config by name, or a file of yours, with :PRESET if wanted.",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "The run folder; default: runs/CONFIG-PRESET.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, for a run of several processes; the next port is used too.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "processes", None, "How many processes there are.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "process", None, "The number of this one, from 0.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "start_timeout",
        300.0,
        "Seconds to wait until all processes have started.",
        lower_bound=0.0,
        flag_values=values,
    )


class Command(NamedTuple):
    """What the flags say.

    Attributes:
      config: of a file in `configs`, with its changes.
      workdir: the run folder.
      cluster: the processes of the run; None: this one alone.
      start_timeout: seconds in which they must have met.
    """

    config: object
    workdir: Path
    cluster: Cluster | None
    start_timeout: float


def parse(argv: list[str]) -> Command:
    """Reads the flags, and the environment for what launches several processes.

    Raises:
      ConfigError: an unknown flag or key, a value of the wrong type, no such file or preset.
    """
    file, _, preset = config_argument(argv).partition(":")
    if (times := sum(map(_is_config, argv))) > 1:
        raise ConfigError(f"--config is given {times} times: give it once")
    argv = _with_file(argv)
    try:
        values, rest = _read(argv)
    except ConfigError:
        raise
    except Exception as error:  # a config file is a program
        if told := _told_by_file(error, config_argument(argv).partition(":")[0]):
            raise ConfigError(told) from None
        if not isinstance(error, MISTAKES):
            raise
        _require_known_fields(argv)
        raise ConfigError(_in_words(one_line(error))) from None
    config = values.config
    if len(rest) > 1:
        raise ConfigError(f"unknown argument {rest[1]}: settings are given as --config.FIELD=VALUE")
    if config is None and file:
        raise ConfigError(f"--config={file}: {NO_CONFIG}")
    if config is None:
        raise ConfigError("no --config: --help lists those that there are")
    given = _given(values)
    for name in ("workdir", "coordinator"):
        if not str(values[name].value).strip():
            raise ConfigError(f"--{name} is empty: give a value, or leave the flag out")
    if not math.isfinite(values.start_timeout):
        raise ConfigError(f"--start_timeout={values.start_timeout}: must be a finite number")
    _require_one_of_two(config, given)
    _require_effect(config, given)
    if hasattr(config, "follow_batch"):
        if "optim.lr" in given:
            config.optim.lr_batch = 0  # a rate that is given stays
        config.follow_batch()
    stem = Path(file).stem + (f"-{preset}" if preset else "")
    workdir = Path(values.workdir or Path("runs") / stem)
    try:
        if "\0" in str(workdir) or not str(workdir).encode():
            raise ValueError
    except ValueError:  # what writes checkpoints takes no others
        raise ConfigError("--workdir: give a path in UTF-8") from None
    cluster = find_cluster(values.coordinator, values.processes, values.process, os.environ)
    return Command(config, workdir, cluster, values.start_timeout)


def _read(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags, and the arguments that are none; raises one of `MISTAKES`."""
    values = flags.FlagValues()
    define_flags(values, argv)
    rest = values(argv)
    if values.config is not None:
        dataclasses.fields(values.config)  # where loading failed, this raises what went wrong
    return values, rest


def _given(values: flags.FlagValues) -> set[str]:
    """The fields of the config that are given; raises `ConfigError` for a flag given twice.

    A field may be given again, as behind the flags of a script: the last one counts.
    """
    for name in values:
        if values[name].present > 1 and not name.startswith("config."):
            raise ConfigError(f"--{name} is given {values[name].present} times: give it once")
    names = (name for name in values if values[name].present)
    return {name.removeprefix("config.") for name in names if name.startswith("config.")}


def _told_by_file(error: Exception, file: str) -> str:
    """What is wrong in a config file that raised an error, with its line; "" where it did not."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, SyntaxError) and inner.filename == file:
            return f"{file}, line {inner.lineno}: {inner.msg}"
        lines = [
            number
            for frame, number in traceback.walk_tb(inner.__traceback__)
            if frame.f_code.co_filename == file
        ]
        if lines and isinstance(inner, ConfigError):
            return str(inner)
        if lines:
            return f"{file}, line {lines[-1]}: {type(inner).__name__}: {one_line(inner)}"
        if isinstance(inner, TypeError) and str(inner).startswith("get_config() "):
            return f"--config={file}: {one_line(inner)}: it takes the preset, as in PRESET=''"
        if isinstance(inner, TypeError) and "with a dataclass" in str(inner):
            return f"--config={file}: {NO_CONFIG}"
        inner = inner.__cause__ or inner.__context__
    return ""


def _with_file(argv: list[str]) -> list[str]:
    """The command line with the file of what `--config` names; raises `ConfigError` for none."""
    config, colon, preset = config_argument(argv).partition(":")
    if not config:
        return argv
    place = next(place for place, word in enumerate(argv) if _is_config(word))
    rest = argv[place + (1 if "=" in argv[place] else 2) :]
    return [*argv[:place], f"--config={presets.file_of(config)}{colon}{preset}", *rest]


def _is_config(word: str) -> bool:
    return word.startswith("-") and word.lstrip("-").partition("=")[0] == "config"


def config_argument(argv: list[str]) -> str:
    """What `--config` was given, or nothing."""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        if _is_config(argument):
            _, equals, value = argument.partition("=")
            return value if equals else following
    return ""


def _in_words(problem: str) -> str:
    """What flags say of a value, clearer where it is a text with spaces for a list of texts."""
    found = re.match(r"flag (--[\w.]+)=(.*): Error while parsing string: .* as tuple", problem)
    if found is None:
        return problem
    name, value = found.groups()
    return (
        f"{name}={value}: a value with spaces needs quotes of its own, as in "
        f"{name}=\"'{value}'\"; several values are several flags"
    )


class Leaf(NamedTuple):
    """A field of a config, or of a dataclass in it, that is a flag.

    Attributes:
      name: as in `--config.NAME`, such as `optim.lr`.
      owner: the dataclass whose field it is.
      field: its name there.
      value: what it is.
    """

    name: str
    owner: type
    field: str
    value: Any


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every field that is a flag, in the order of the dataclasses."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield Leaf(prefix + field.name, type(config), field.name, value)


def _require_known_fields(argv: list[str]) -> None:
    """Raises `ConfigError` that names the closest field for a field that is not there."""
    try:
        values, _ = _read([word for word in argv if not word.startswith("--config.")])
    except (ConfigError, *MISTAKES):
        return  # the mistake is another one
    if values.config is None:
        return
    known = [leaf.name for leaf in leaves(values.config)]
    for word in argv[1:]:
        field = word.removeprefix("--config.").partition("=")[0]
        if word.startswith("--config.") and field not in known:
            close = closest(field, known)
            mend = f"did you mean --config.{close}?" if close else "--help lists them"
            raise ConfigError(f"--config.{field}: there is no such field; {mend}")


def _require_one_of_two(config: Any, given: Collection[str]) -> None:
    """Raises `ConfigError` where a field is given whose place another one takes.

    Where both are given, and the former has its default, as in a sweep's commands, it asks for
    nothing.
    """
    values = {leaf.name: leaf.value for leaf in leaves(config)}
    for leaf in leaves(config):
        fields = {field.name: field for field in dataclasses.fields(leaf.owner)}
        other = fields[leaf.field].metadata.get("replaces")
        name = f"{leaf.name.removesuffix(leaf.field)}{other}"
        if not other or not leaf.value or name not in given:
            continue
        if leaf.name not in given:
            raise ConfigError(
                f"--config.{name} has no effect: {leaf.name}={leaf.value} of the config takes its "
                f"place; change that, or give --config.{leaf.name}={fields[leaf.field].default} too"
            )
        if values[name] != fields[other].default:
            raise ConfigError(
                f"--config.{leaf.name} takes the place of --config.{name}: give one of the two"
            )


def _require_effect(config: Any, given: Collection[str]) -> None:
    """Raises `ConfigError` for a field that is given and does nothing as the others are."""
    for name, why in _without_effect(config):
        if name in given:
            raise ConfigError(f"--config.{name} has no effect: {why}; leave it out")


def _without_effect(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Fields of a config and of the dataclasses in it, each with the reason."""
    if hasattr(config, "without_effect"):
        yield from ((prefix + name, why) for name, why in config.without_effect().items())
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _without_effect(value, f"{prefix}{field.name}.")


def closest(field: str, known: list[str]) -> str:
    """The known field that a mistyped one is most like, by its whole name or its last part.

    >>> closest("batchsize", ["batch_size", "optim.lr"])
    'batch_size'
    >>> closest("lr", ["batch_size", "optim.lr"])
    'optim.lr'
    >>> closest("colour", ["batch_size", "optim.lr"])
    ''
    """
    if found := difflib.get_close_matches(field, known, 1):
        return found[0]
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    found = difflib.get_close_matches(field.rpartition(".")[2], by_last, 1)
    return by_last[found[0]] if found else ""
