"""What an earlier call wrote into the folder of the results: taken away before anything new.

Else results of two datasets would stand side by side, also where a call is killed between. Files
go by the names that the command gives them; nothing else is touched.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.files import open_ordinary
from ctssl_jax.run import folder as run_folder

KIND = "PredictConfig"
"""The type in config.json of an external test."""
CASES, SLICES, PICTURES = "cases.csv", "slices.csv", "pictures"
FEATURES, ARRAYS, NEIGHBOURS = "features.csv", "features.npz", "neighbours"
OF_A_TEST = ("config.json", "results.json", run_folder.STATUS, "data.json")


def require_own(out: Path) -> None:
    """Raises ConfigError where a folder holds a run, which an external test would overwrite."""
    there = [name for name in OF_A_TEST if (out / name).exists()]
    if not there or (there[0] == OF_A_TEST[0] and run_folder.read_config(out)["type"] == KIND):
        return
    raise ConfigError(
        f"--out={out} holds {there[0]}, which no prediction wrote: give another --out"
    )


def take_predictions(out: Path) -> None:
    """Takes away the tables, the pictures and the external test of an earlier call.

    Raises:
      ConfigError: they are none of this command's.
      StorageError: they cannot be read or taken away.
    """
    require_own(out)
    drawn = [out / PICTURES / f"{name}.png" for name in _cases(out / CASES)]
    config, *rest = (out / name for name in OF_A_TEST)
    # The names of the pictures are in the one, and whose the results are in the other.
    _take([*rest, *drawn, out / SLICES, out / CASES, config])


def take_features(out: Path) -> None:
    """Takes away the features and the neighbours of an earlier call; raises likewise."""
    names = [f"{name}.{kind}" for name in _cases(out / FEATURES) for kind in ("png", "csv")]
    _take([*(out / NEIGHBOURS / name for name in names), out / ARRAYS, out / FEATURES])


def _cases(table: Path) -> list[str]:
    """The cases that a table of an earlier call names; none where there is no table."""
    try:
        # By lines: features of many cases are more than is read whole.
        with io.TextIOWrapper(open_ordinary(table), encoding="utf-8", newline="") as file:
            return [Path(row["case"]).name for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        raise ConfigError(f"{table} is no table of this command's: give another --out") from None


def _take(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            continue  # what lies where its folder would be is none of ours
        except OSError as error:
            raise StorageError(
                f"{path} of an earlier call cannot be taken away ({error.strerror}): give another "
                "--out"
            ) from None
