"""A study to be given away: of every run that counts, what the numbers of the page come from.

A published run is a run folder without weights, events, logs for people and pictures of slices. So
`python -m ctssl_jax.report FOLDER` reads it like any other and finds the same numbers. It holds
the score of every case and the pseudonym of its patient, and no name of a folder or of a machine.
"""

import csv
import json
import os
import shutil
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import read_json, read_text
from ctssl_jax.report.runs import Run

OF_THE_MACHINE = (
    *("device", "device_count", "precision", "process_count", "commit"),
    *(
        "python",
        "ctssl_jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
    ),
)
"""What of env.json is published."""
OF_THE_DATA = (
    *("name", "fingerprint", "classes", "splits", "intensity", "source_kind", "canvas", "origin"),
    *("note", "audit", "filter", "labels_of"),
)
"""What of data.json is published."""
OF_AN_EXTERNAL_TEST = (
    *("task", "arm", "run", "dataset", "data_fingerprint", "case", "external", "learnt_from"),
    *("test", "intervals"),
)
"""What of the results.json of an external test is published: what the page says of it."""
OF_A_CASE = ("split", "record", "patient", "label")
"""Columns of predictions.csv that are published, and those of the scores."""


def publish(runs: list[Run], folder: Path) -> int:
    """Writes the runs that count into `folder`, whole or not at all; returns how many.

    Raises:
      DataError: no run counts.
      StorageError: the folder holds something already, or cannot be written.
    """
    folder = folder.absolute()  # "." has no name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"--publish: {folder} is not empty; name a new folder.")
    counted = [run for run in runs if not run.problem]
    if not counted:
        raise DataError("--publish: no run counts, so there is nothing to publish; finish one.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for number, run in enumerate(counted, start=1):
            _write_run(run, temporary / f"run-{number:04}")
        temporary.replace(folder)
    except OSError as error:
        raise StorageError(
            f"--publish: {folder} cannot be written ({error.strerror}); name another folder."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(counted)


def _write_run(run: Run, folder: Path) -> None:
    """Under a number: the name of a folder may say more than it should."""
    folder.mkdir(parents=True)
    record = read_json(run.folder / "config.json")
    kept: dict[str, Any] = {
        name: record[name] for name in ("type", "config", "hash") if name in record
    }
    _write_json(folder / "config.json", kept)
    _write_json(folder / "env.json", _chosen(run.env, OF_THE_MACHINE))
    _write_json(folder / "data.json", _chosen(run.data, OF_THE_DATA))
    (folder / "STATUS").write_text(f"{run.status}\n", encoding="utf-8")
    rows = "".join(json.dumps(row) + "\n" for row in run.metrics)
    (folder / "metrics.jsonl").write_text(rows, encoding="utf-8")
    if run.external:
        _write_json(folder / "results.json", _chosen(run.external, OF_AN_EXTERNAL_TEST))
    if run.kind in ("fine-tuning", "evaluation"):
        found = read_json(run.folder / "results.json")
        found.pop("files", None)  # the sums of files with more columns
        _write_json(folder / "results.json", run.results or found)
        for path in sorted(run.folder.glob("predictions*.csv")):
            (folder / path.name).write_text(_predictions(read_text(path)), encoding="utf-8")


def _predictions(text: str) -> str:
    """The columns that the report reads."""
    rows = csv.DictReader(text.splitlines())
    scores = (name for name in rows.fieldnames or () if name.startswith("score_"))
    out = StringIO()
    names = [*OF_A_CASE, *scores]
    table = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()


def _chosen(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
