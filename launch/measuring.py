"""What the commands that measure share: flags beside a config's, a JSON file."""

import argparse
from pathlib import Path
from typing import Any

from ctssl_jax import command, flags
from ctssl_jax.config import PretrainConfig
from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.files import write_json


class Parser(command.Parser):
    """Of a command's own flags, and `--out`."""

    def __init__(self, name: str, doc: str | None):
        super().__init__(prog=f"python -m {name}", description=doc)
        self.add_argument("--out", type=Path, help="a JSON file to write")

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, PretrainConfig]:
        """The command's own flags, and the config that `flags.parse` makes of the others.

        Raises:
          ConfigError: a wrong flag, key or value, or a config that is not of a pre-training run.
        """
        own, others = self.parse_known_args(argv[1:])
        if own.out and (own.out.is_dir() or not own.out.parent.is_dir()):
            raise ConfigError(f"--out={own.out}: give a file in a folder that exists")
        config = flags.parse([argv[0], *others]).config
        if not isinstance(config, PretrainConfig):
            kind = type(config).__name__
            raise ConfigError(f"config is a {kind}: give one of a pre-training method")
        return own, config


def write(out: Path | None, record: dict[str, Any]) -> None:
    """Writes the file if one is wanted; raises `StorageError` where that cannot be done."""
    if out is None:
        return
    try:
        write_json(out, record)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
