"""What the commands that measure share: flags beside a config's, a JSON file."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ctssl_jax import command, flags
from ctssl_jax.config import FinetuneConfig, PretrainConfig
from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.files import require_own_file, write_json
from ctssl_jax.methods import Supervised

CLASSES = 2  # of a fine-tuning whose dataset would say


class Parser(command.Parser):
    """Of a command's own flags, and `--out`."""

    def __init__(self, name: str, doc: str | None):
        super().__init__(prog=f"python -m {name}", description=doc)
        self.add_argument("--out", type=Path, help="a JSON file to write")

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, PretrainConfig]:
        """The command's own flags, and the config that `flags.parse` makes of the others.

        Raises:
          ConfigError: a wrong flag, key or value, or a config whose step cannot be measured.
        """
        own, others = self.parse_known_args(argv[1:])
        if own.out and (own.out.is_dir() or not own.out.parent.is_dir()):
            raise ConfigError(f"--out={own.out}: give a file in a folder that exists")
        if own.out:
            require_own_file(own.out, "--out")
        return own, step_of(flags.parse([argv[0], *others]).config)


def step_of(config: Any) -> PretrainConfig:
    """The config whose step is measured: a pre-training's own, or one with a fine-tuning's step.

    The latter learns slices in all layers, as it does once no layer is frozen any more; how the
    learning rate changes, by step or by layer, takes no time and is left out.

    Raises:
      ConfigError: it is of neither, or its fine-tuning learns cases.
    """
    if isinstance(config, PretrainConfig):
        return config
    if not isinstance(config, FinetuneConfig):
        raise ConfigError(f"config is a {type(config).__name__}: give one that trains")
    if type(config.method) is not Supervised:
        raise ConfigError(
            f"method {type(config.method).__name__}: of fine-tunings the step of one of slices is "
            "measured, as configs/finetune_organsmnist.py"
        )
    return PretrainConfig(
        seed=config.seed,
        batch_size=config.batch_size,
        data=config.data,
        intensity=config.intensity,
        encoder=config.encoder,
        method=dataclasses.replace(config.method, classes=config.method.classes or CLASSES),
        optim=config.optim,
        precision=config.precision,
    )


def write(out: Path | None, record: dict[str, Any]) -> None:
    """Writes the file if one is wanted; raises `StorageError` where that cannot be done."""
    if out is None:
        return
    try:
        write_json(out, record)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
