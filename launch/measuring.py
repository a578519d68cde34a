"""What the commands that measure share: flags beside a config's, a JSON file, exit codes."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ctssl_jax import main
from ctssl_jax.config import PretrainConfig
from ctssl_jax.errors import ConfigError, Interrupted, StorageError, UserError
from ctssl_jax.run import folder as run_folder


class Parser(argparse.ArgumentParser):
    """Of a command's own flags, and `--out`; what is wrong is a `ConfigError`."""

    def __init__(self, name: str, description: str | None):
        super().__init__(
            prog=name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--out", type=Path, help="a JSON file to write")

    def error(self, message: str) -> NoReturn:
        """As argparse calls it."""
        raise ConfigError(message)

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, PretrainConfig]:
        """The command's own flags, and the config that `main.parse` makes of the others.

        Raises:
          ConfigError: a wrong flag, key or value, or a config that is not of a pre-training run.
        """
        own, others = self.parse_known_args(argv[1:])
        if own.out and (own.out.is_dir() or not own.out.parent.is_dir()):
            raise ConfigError(f"--out={own.out}: give a file in a folder that exists")
        config = main.parse([argv[0], *others]).config
        if not isinstance(config, PretrainConfig):
            kind = type(config).__name__
            raise ConfigError(f"config is a {kind}: give one of a pre-training method")
        return own, config


def write(out: Path | None, record: dict[str, Any]) -> None:
    """Writes the file if one is wanted; raises `StorageError` where that cannot be done."""
    if out is None:
        return
    try:
        run_folder.write_json(out, record)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None


def exit_code(name: str, work: Callable[[], None]) -> int:
    """Runs a command; its exit code, with the line of what went wrong on stderr."""
    try:
        work()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    return 0
