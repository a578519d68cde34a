"""What a sweep's folder says of its cells: which are done, how long they took, what they found."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from ctssl_jax.ablation import Cell
from ctssl_jax.config import FinetuneConfig, config_record
from ctssl_jax.data import open_dataset
from ctssl_jax.errors import StorageError
from ctssl_jax.metrics import read_metrics
from ctssl_jax.run import folder as run_folder

COLUMNS = (
    *("task", "arm", "classifier", "fraction", "train_slices", "train_patients", "seed"),
    *("test_split", "best_epoch", "val_auc", "test_auc", "test_f1", "test_accuracy", "test_slices"),
    *("case", "train_cases", "test_cases"),
    *("best_step", "total_steps", "encoder_run", "config_hash", "run"),
)
CLASSIFIERS = ("finetuned", "knn", "linear")
DONE = "done"


def state(cell: Cell, workdir: Path) -> str:
    """`to do`, `begun`, `broken` or `DONE`; the latter of this very config, encoder and data.

    Raises:
      UserError: the dataset or the encoder will not do.
    """
    run = workdir / cell.name
    if not (run / "config.json").exists():
        return "to do"
    status = (run / "STATUS").read_text().strip()
    if status != DONE:
        return "broken" if status.startswith("failed") else "begun"
    return DONE if _same(cell, run) else "done with another config, encoder or data"


def with_lr(cell: Cell, done: Collection[str], workdir: Path) -> Cell | None:
    """The cell with the learning rate that its tuning cells chose; None until all are `done`.

    The best mean validation score over their seeds, by `select_by`; the first listed of equals.

    Raises:
      StorageError: the results of one cannot be read.
    """
    if not cell.tuning or not isinstance(cell.config, FinetuneConfig):
        return cell
    metric, means = cell.config.select_by.value, dict[float, float]()
    for lr, names in cell.tuning.items():
        if not set(names) <= set(done):
            return None
        found = [run_folder.read_json(workdir / name / "results.json") for name in names]
        means[lr] = mean(results["val"][metric] for results in found)
    best = max(means, key=lambda lr: means[lr])
    optim = dataclasses.replace(cell.config.optim, lr=best)
    return cell._replace(config=dataclasses.replace(cell.config, optim=optim))


def unfinished(cells: Iterable[Cell], workdir: Path) -> list[str]:
    """Names of the fine-tunings whose best step is their last."""
    names = []
    for cell in cells:
        path = workdir / cell.name / "results.json"
        results = run_folder.read_json(path) if path.exists() else {}
        if "best_step" in results and results["best_step"] == results["total_steps"]:
            names.append(cell.name)
    return names


def _same(cell: Cell, run: Path) -> bool:
    from ctssl_jax.run.opening import resolved

    config, dataset = cell.config, open_dataset(cell.config.data.path)
    ours = resolved(config, dataset)
    encoder = run_folder.read_json(run / "results.json")["encoder_run"]
    return (
        run_folder.read_json(run / "config.json")["hash"] == config_record(ours)["hash"]
        and run_folder.read_json(run / "data.json")["fingerprint"] == dataset.fingerprint
        and encoder == run_folder.run_hash(config.encoder_run)
    )


class Taken(NamedTuple):
    """What a finished run took: `training` grows with the training set, `rest` does not."""

    rest: float
    training: float


def expected_seconds(cells: Sequence[Cell], workdir: Path) -> dict[str, float | None]:
    """How long each cell takes from start to end, by those that are done.

    The median of cells of its kind and size, or of the nearest size, whose training time is scaled.
    None where none of its kind is done.
    """
    done: dict[type, dict[float, list[Taken]]] = {}
    for cell in cells:
        if taken := _taken(workdir / cell.name):
            done.setdefault(type(cell.config), {}).setdefault(cell.size, []).append(taken)

    def expected(cell: Cell) -> float | None:
        sizes = done.get(type(cell.config))
        if not sizes:
            return None
        near = min(sizes, key=lambda size: max(size / cell.size, cell.size / size))
        return median(taken.rest + taken.training * cell.size / near for taken in sizes[near])

    return {cell.name: expected(cell) for cell in cells}


def _taken(run: Path) -> Taken | None:
    """Of a finished run, since it was last resumed; None of another."""
    try:
        results = json.loads((run / "results.json").read_text())
        total = (run / "results.json").stat().st_mtime - (run / "env.json").stat().st_mtime
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    speeds = [row["images_per_second"] for row in read_metrics(run) if "images_per_second" in row]
    images = results.get("train_slices", 0) * results.get("epochs_trained", 0)
    training = min(total, images / median(speeds)) if speeds else 0.0
    return Taken(total - training, training)


def write_table(workdir: Path) -> None:
    """Writes `results.csv`, whole or not at all: every finished run of the folder, in one order.

    No time and no path is in it: the same runs give the same bytes. Several sweeps may share a
    folder; the last to write has them all.

    Raises:
      StorageError: it cannot be written, or a run not be read.
    """
    found = [row for folder in sorted(workdir.iterdir()) for row in _rows(folder)]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(found, key=_order))
    temporary = workdir / f".results.csv.{os.getpid()}"
    try:
        temporary.write_text(text.getvalue())
        temporary.replace(workdir / "results.csv")
    except OSError as error:
        raise StorageError(f"{workdir}/results.csv cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    classifier = CLASSIFIERS.index(row["classifier"])
    return row["task"], classifier, row["fraction"], row["arm"], row["seed"], row["run"]


def _rows(run: Path) -> Iterator[dict[str, Any]]:
    """One row for each classifier of a finished run; none of anything else."""
    status = run / "STATUS"
    if not (run / "results.json").exists() or status.read_text().strip() != DONE:
        return
    results = run_folder.read_json(run / "results.json")
    common = {name: results.get(name) for name in COLUMNS} | {"run": run.name}
    parts: Iterable[tuple[str, Any]] = [("finetuned", results)]
    if "test" not in results:  # of frozen features, or of one that only validated
        parts = [(name, results[name]) for name in CLASSIFIERS if name in results]
    for classifier, part in parts:
        if "val" not in part:  # an external test, of `ctssl_jax.predict`
            return
        test = part["test"]
        yield common | {
            "classifier": classifier,
            "val_auc": part["val"]["auc"],
            "test_auc": test["auc"],
            "test_f1": test["f1"],
            "test_accuracy": test["accuracy"],
            "test_cases": test["n"],
            "test_slices": test.get("slices", test["n"]),
        }
