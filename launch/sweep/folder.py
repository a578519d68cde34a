"""What a sweep's folder says of its cells: which are done, how long they took, what they found."""

import contextlib
import csv
import dataclasses
import io
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from ctssl_jax.ablation import Cell
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.config_record import config_record, first_difference, without
from ctssl_jax.data import open_dataset
from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.files import Damaged, no_formula, read_text, write_text
from ctssl_jax.log import read_metrics
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import lock as run_lock
from ctssl_jax.run.encoder import weights_digest

COLUMNS = (
    *("task", "arm", "classifier", "fraction", "train_slices", "train_patients", "seed"),
    *("test_split", "best_epoch", "val_auc", "test_auc", "test_f1", "test_accuracy", "test_slices"),
    *("case", "train_cases", "test_cases"),
    *("best_step", "total_steps", "encoder_run", "config_hash", "run"),
)
TABLE = "results.csv"
OF_SWEEPS = ",".join(COLUMNS[:7]) + ","  # how it begins, of older versions too
CLASSIFIERS = ("finetuned", "knn", "linear")
DONE, DAMAGED, CHANGED = "done", "damaged", "its encoder has changed"
ASIDE = ".replaced"  # folder of the runs of encoders that have changed


def state(cell: Cell, workdir: Path) -> str:
    """`to do`, `begun`, `broken`, `damaged`, `CHANGED` or `DONE`.

    The last of this very config, encoder and data, with results that can be read; `CHANGED` where
    the encoder's run has other weights now.

    Raises:
      UserError: the dataset or the encoder will not do.
    """
    run = workdir / cell.name
    if not (run / "config.json").exists():
        return "to do"
    status = run_folder.read_status(run)
    try:
        if _encoder_changed(cell, run):
            return CHANGED
    except StorageError:
        pass  # of the encoder: its cells will say so; of the run: as below
    if status != DONE:
        return "broken" if status.startswith("failed") else "begun"
    try:
        run_folder.read_results(run)
        return DONE if _same(cell, run) else "done with another config, encoder or data"
    except StorageError:
        return DAMAGED


def require_own_table(workdir: Path) -> None:
    """Raises `ConfigError` for a `results.csv` that is no sweep's, which would be replaced."""
    table = workdir / TABLE
    if not table.exists():
        return
    try:
        text = read_text(table)
    except OSError as error:
        raise StorageError(f"{table} cannot be read: {error.strerror}") from None
    except Damaged:
        text = "no text"
    if text and not text.startswith(OF_SWEEPS):
        raise ConfigError(f"{table} is none of a sweep: move it, or give another --workdir")


def set_aside(cell: Cell, workdir: Path) -> None:
    """Moves the run of a cell whose encoder has changed out of the way, for it to be run anew.

    Raises:
      ConfigError: another process is writing it.
      StorageError: it cannot be moved.
    """
    run, aside = workdir / cell.name, workdir / ASIDE
    run_lock.take(run)
    try:
        aside.mkdir(exist_ok=True)
        number = sum(1 for _ in aside.iterdir())
        run.rename(aside / f"{cell.name.replace('/', '-')}-{number}")
    except OSError as error:
        raise StorageError(f"{run} cannot be moved to {aside}: {error.strerror}") from None
    finally:
        run_lock.release(run)


def rename(cells: Iterable[Cell], workdir: Path) -> list[str]:
    """Gives the runs of an encoder its new name, if it was alone in its arm or is so now.

    Returns:
      A line for each.

    Raises:
      ConfigError: another process is writing one.
      StorageError: one cannot be moved.
    """
    lines = []
    for cell in cells:
        old, new = workdir / cell.otherwise, workdir / cell.name
        if not cell.otherwise or new.exists() or not old.exists():
            continue  # also where both are one name
        if not _is_of_encoder(cell, old):
            continue
        run_lock.take(old)
        try:
            old.rename(new)
        except OSError as error:
            raise StorageError(f"{old} cannot be moved to {new}: {error.strerror}") from None
        finally:
            run_lock.release(old)
        lines.append(f"{cell.otherwise} is {cell.name} now")
    return lines


def _is_of_encoder(cell: Cell, run: Path) -> bool:
    """Whether a folder holds a run of the cell's encoder: a fine-tuning, or features scored."""
    wanted = run_folder.run_hash(cell.config.encoder_run)
    for name in ("data.json", "results.json"):  # of features the latter alone says
        with contextlib.suppress(StorageError):  # where there is none
            if run_folder.read_json(run / name).get("encoder_run") == wanted:
                return True
    return False


def _encoder_changed(cell: Cell, run: Path) -> bool:
    """Whether a run was made from, or started from, other weights than the encoder's run has."""
    noted = run_folder.weights_of(run_folder.read_json(run / "data.json"))
    return noted not in (None, weights_digest(cell.config.encoder_run))


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
        try:
            results = run_folder.read_json(path) if path.exists() else {}
        except StorageError:
            continue  # named as broken already
        if "best_step" in results and results["best_step"] == results.get("total_steps"):
            names.append(cell.name)
    return names


def _same(cell: Cell, run: Path) -> bool:
    """Whether a finished run is of the config, data and encoder that its cell asks for."""
    return not difference(cell, run)


def difference(cell: Cell, run: Path, but_lr: bool = False) -> str:
    """In what a run is not what its cell asks for, of config, data and encoder; "" if in nothing.

    Args:
      cell: of the grid.
      run: its folder, with a `config.json`.
      but_lr: the cell's learning rate is still to be chosen: any will do.

    Raises:
      StorageError: the run cannot be read.
      UserError: the dataset or the encoder will not do.
    """
    from ctssl_jax.run.opening import resolved

    config, dataset = cell.config, open_dataset(cell.config.data.path)
    record, theirs = config_record(resolved(config, dataset)), run_folder.read_config(run)
    ours, before = (without(r["config"], record["elastic"]) for r in (record, theirs))
    if but_lr:
        ours, before = (without(values, {"optim": {"lr": None}}) for values in (ours, before))
    if ours != before:
        return first_difference(ours, before)
    data = run_folder.read_json(run / "data.json")
    if data.get("fingerprint") != dataset.fingerprint:
        return "it is of other data"
    if data.get("encoder_run") != run_folder.run_hash(config.encoder_run):
        return "it started from another encoder_run"
    return ""


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
    """Of a finished run, since it was last resumed; None of another, or if its files' times lie."""
    try:
        results = run_folder.read_json(run / "results.json")
        total = (run / "results.json").stat().st_mtime - (run / "env.json").stat().st_mtime
        rows = read_metrics(run)
        images = float(results.get("train_slices", 0) * results.get("epochs_trained", 0))
    except (OSError, StorageError, TypeError, ValueError):
        return None  # not done, or damaged
    if total < 0:  # copied, or a clock was set
        return None
    speeds = [row["images_per_second"] for row in rows if row.get("images_per_second", 0) > 0]
    training = min(total, images / median(speeds)) if speeds else 0.0
    return Taken(total - training, training)


def write_table(workdir: Path) -> None:
    """Writes `results.csv`, whole or not at all: every finished run of the folder, in one order.

    A damaged run is left out, and named on stderr.

    No time and no path is in it: the same runs give the same bytes. Several sweeps may share a
    folder; the last to write has them all.

    Raises:
      StorageError: it cannot be written.
    """
    found = [row for folder in sorted(workdir.iterdir()) for row in _rows_if_whole(folder)]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in sorted(found, key=_order):
        writer.writerow({name: no_formula(value) for name, value in row.items()})
    try:
        write_text(workdir / TABLE, text.getvalue())
    except OSError as error:
        raise StorageError(f"{workdir}/{TABLE} cannot be written: {error.strerror}") from None


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    classifier = CLASSIFIERS.index(row["classifier"])
    return row["task"], classifier, row["fraction"], row["arm"], row["seed"], row["run"]


def _rows_if_whole(run: Path) -> list[dict[str, Any]]:
    try:
        return list(_rows(run))
    except StorageError as error:
        print(f"left out of results.csv: {error}", file=sys.stderr, flush=True)
    except (KeyError, TypeError):
        told = f"left out of results.csv: {run}/results.json is not as documented"
        print(told, file=sys.stderr, flush=True)
    return []


def _rows(run: Path) -> Iterator[dict[str, Any]]:
    """One row for each classifier of a finished run; none of anything else."""
    if not (run / "results.json").exists() or run_folder.read_status(run) != DONE:
        return
    results = run_folder.read_results(run)
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
