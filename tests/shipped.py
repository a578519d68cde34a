"""The configs of `configs/`, by what they make: a new file is tested without being listed."""

import importlib
import re
from pathlib import Path

from ctssl_jax.config import FinetuneConfig, PretrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def load(file: str, *preset: str):
    """A config as a command gets it; without a preset its default one."""
    return importlib.import_module(f"configs.{file}").get_config(*preset)


def files(kind: type) -> tuple[str, ...]:
    """Names of the files that make this kind of config."""
    names = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")
    return tuple(name for name in names if isinstance(load(name), kind))


def presets(file: str) -> tuple[str, ...]:
    """Those that `get_config` names, and the default."""
    told = importlib.import_module(f"configs.{file}").get_config.__doc__
    named = re.search(r"presets: ([^.]*)", told or "")
    assert named, f"configs/{file}.py: the docstring of get_config says no `presets: one, two.`"
    return "", *named[1].split(", ")


PRETRAINING = files(PretrainConfig)
FINETUNING = files(FinetuneConfig)
SHIPPED = [(file, preset) for file in (*PRETRAINING, *FINETUNING) for preset in presets(file)]
