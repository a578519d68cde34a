"""The configs that come with the package, by name: `spark`, or `spark:demo` with a preset.

They are the files of `configs/` in a checkout; where the package is installed, they lie in its own
folder `configs`, so that they take no name that others may have. Starts without JAX.
"""

import difflib
import importlib.util
from pathlib import Path
from typing import Any

from ctssl_jax.errors import ConfigError

INSTALLED = Path(__file__).with_name("configs")
FOLDER = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"

# Where `:demo` and `:smoke` expect the embedded phantoms, with the flags that make them.
PHANTOM, SCANS, NODULES = "data/phantom", "data/phantom_scans", "data/phantom_nodules"
CHEST = ("--nodules=8", "--slices=2", "--size=96")
PHANTOMS = {
    PHANTOM: (),
    SCANS: ("--patients=40", "--size=64", "--lesion_slices=2"),
    # Seed 2: other anatomies than those of the two above. Many are tested, so that little is luck.
    NODULES: (*CHEST, "--patients=400", "--val_fraction=0.1", "--test_fraction=0.3", "--seed=2"),
}


def names() -> list[str]:
    """Of all, in the order of the alphabet."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def file_of(config: str) -> Path:
    """The file of a config, which is named, or given as the path of a `.py` file.

    Raises:
      ConfigError: there is none.
    """
    path = Path(config)
    if path.suffix != ".py" and len(path.parts) == 1:
        if config not in names():
            close = difflib.get_close_matches(config, names(), 1)
            mend = f"did you mean {close[0]}?" if close else f"there are {', '.join(names())};"
            raise ConfigError(f"no config {config}: {mend} a file of yours is given by its path")
        return FOLDER / f"{config}.py"
    if not path.is_file():
        mend = (
            f"--config={path.stem} names the shipped one"
            if path.stem in names()
            else ("run from the project's folder, or give its path")
        )
        raise ConfigError(f"no config file {config}: {mend}")
    return path


def load(name: str, preset: str = "") -> Any:
    """The config of a name, for a config that is made of others; raises as `file_of`."""
    path = file_of(name)
    spec = importlib.util.spec_from_file_location(f"ctssl_jax.configs.{path.stem}", path)
    assert spec is not None, "of a .py file"
    assert spec.loader is not None, "of a .py file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset)
