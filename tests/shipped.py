"""The configs of `configs/`, by what they make: a new file is tested without being listed."""

import ast
import importlib
import re
from pathlib import Path

from ctssl_jax.config import FinetuneConfig, PretrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def files(kind: type) -> tuple[str, ...]:
    """Names of the files whose `get_config` returns this kind of config."""
    return tuple(
        path.stem
        for path in sorted(CONFIGS.glob("*.py"))
        for part in ast.parse(path.read_text()).body
        if isinstance(part, ast.FunctionDef) and part.name == "get_config"
        if part.returns is not None and ast.unparse(part.returns) == kind.__name__
    )


def load(file: str, preset: str = ""):
    """A config as a command gets it."""
    return importlib.import_module(f"configs.{file}").get_config(preset)


def presets(file: str) -> tuple[str, ...]:
    """Those that `get_config` names, and the default."""
    told = importlib.import_module(f"configs.{file}").get_config.__doc__
    return "", *re.search(r"presets: ([^.]*)", told)[1].split(", ")


PRETRAINING = files(PretrainConfig)
FINETUNING = files(FinetuneConfig)
SHIPPED = [(file, preset) for file in (*PRETRAINING, *FINETUNING) for preset in presets(file)]
