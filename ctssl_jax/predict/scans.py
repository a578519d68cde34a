"""The scans to predict: a dataset, or files that are prepared as the run's own data were."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctssl_jax import data
from ctssl_jax.data import Dataset
from ctssl_jax.dataset.cases import SLICE, case_of, case_word
from ctssl_jax.errors import ConfigError, DataError, UserError
from ctssl_jax.files import open_ordinary
from ctssl_jax.predict import earlier

FOLDER = "dataset"
"""Of what was prepared, in the folder of the results: pseudonyms and pixels, no name."""
BY_COLUMN = "case"
"""What the cases of a dataset are where only its table of labels can say it."""


class Preparation(NamedTuple):
    """How files become slices.

    Attributes:
      source: the folder of files.
      canvas: pixels a side, as the network sees them.
      flags: of `data_prep.folder`, as the user gave them.
      show_paths: print where each case and each rejected file is.
    """

    source: Path
    canvas: int
    flags: Sequence[str]
    show_paths: bool


def prepared(out: Path, preparation: Preparation, known: dict[str, Any]) -> Dataset:
    """The files as a dataset folder below `out`, made by `data_prep.folder`.

    Args:
      out: the folder of the results.
      preparation: what and how.
      known: data.json of the run, whose data were prepared with the same options.

    Raises:
      ConfigError: there is one, which may be of other files.
      UserError: of the command's own exit code, which has said why.
    """
    folder = out / FOLDER
    if folder.exists():
        raise ConfigError(
            f"{folder} is there: give --data={folder} in place of --source to predict it again, or "
            "another --out"
        )
    # Of other scans than those that are prepared here now.
    earlier.take_predictions(out)
    earlier.take_features(out)
    words = [*_flags(folder, preparation, known), *preparation.flags]
    # A process of its own: preparation is built on this package, not the other way.
    made = subprocess.run([sys.executable, "-m", "data_prep.folder", *words])
    if made.returncode:
        raise _failure(made.returncode)
    return data.open_dataset(folder)


def _flags(folder: Path, preparation: Preparation, known: dict[str, Any]) -> list[str]:
    options, of = known.get("options", {}), case_of(known)
    words = [
        f"--source={preparation.source}",
        f"--out={folder}",
        f"--canvas={preparation.canvas}",
        # All of it is one split, and one bad scan does not keep the others.
        *("--val_fraction=0", "--test_fraction=0", "--max_rejected=1"),
    ]
    if of not in (SLICE, BY_COLUMN):
        words += [f"--case={of}", f"--case_name={case_word(known)}"]
    for name, usual in (("irregular", "reject"), ("values", "auto")):
        if options.get(name, usual) != usual:
            words.append(f"--{name}={options[name]}")
    if options.get("hu_offset") is not None:
        words.append(f"--hu_offset={options['hu_offset']}")
    given = {flag.split("=")[0] for flag in preparation.flags}
    if options.get("patient_by") == "study" and not given & {"--patient_by", "--patient_regex"}:
        # Volumes have no studies.
        words += ["--patient_by=study"] * _hold_dicom(preparation.source)
    return words + ["--show_paths", "--show_cases"] * preparation.show_paths


def _hold_dicom(source: Path) -> bool:
    """Whether one of the files says that it is DICOM."""
    for folder, _, names in os.walk(source):
        for name in names:
            with contextlib.suppress(OSError), open_ordinary(Path(folder, name)) as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False


def _failure(code: int) -> UserError:
    """With the exit code of the command that failed."""
    kinds = {kind.exit_code: kind for kind in (ConfigError, DataError)}
    error = kinds.get(code, UserError)("the scans were not prepared: see the line above")
    error.exit_code = code if code > 0 else UserError.exit_code
    return error


def require_canvas(dataset: Dataset, canvas: int) -> None:
    """Raises ConfigError if preparation has left less of the slices than the network takes."""
    stored = dataset.manifest.get("canvas", canvas)
    if stored < canvas:
        raise ConfigError(
            f"--data={dataset.path}: its slices were reduced to {stored} px when they were "
            f"prepared, and the network takes {canvas}: prepare them with --canvas={canvas}, or "
            "give their files by --source"
        )


def require_same_kind(dataset: Dataset, known: dict[str, Any]) -> None:
    """Raises DataError where a network cannot be applied: another intensity, other classes."""
    learnt = known["intensity"]
    if dataset.intensity != learnt:
        raise DataError(
            f"{dataset.path}: its slices are {dataset.intensity}, those that the run learnt from "
            f"{learnt}: values of another kind cannot be classified"
        )
    # Of the run's classes some may be missing: whoever tests has the cases that there are.
    if not set(dataset.classes) <= set(known["classes"]):
        raise DataError(
            f"{dataset.path}: its classes are {', '.join(dataset.classes)}, those of the run "
            f"{', '.join(known['classes'])}: name them alike in --labels, or leave it out"
        )
    ours, theirs = (case_of(said) for said in (dataset.manifest, known))
    if (ours == SLICE) != (theirs == SLICE):
        raise DataError(
            f"{dataset.path}: a label is of a {case_word(dataset.manifest)} there and of a "
            f"{case_word(known)} in the run: prepare it with --case={theirs}"
        )
