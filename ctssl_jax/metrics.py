"""What a run writes down while it goes on, and the scores of a classifier."""

import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from ctssl_jax.dataset.cases import CaseTable
from ctssl_jax.errors import StorageError


class MetricWriter:
    """Scalars to `metrics.jsonl` and TensorBoard events, and lines to stdout and `log.txt`.

    Args:
      run: the run folder.
      step: the step that the run starts from; later rows of an interrupted run are dropped, since
        they will be written again.
    """

    def __init__(self, run: Path, step: int = 0):
        # Imported here: processes that do not write, and evaluation, do without it.
        from tensorboardX import SummaryWriter

        self._path = run / "metrics.jsonl"
        self._log = run / "log.txt"
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._events = SummaryWriter(str(run / "events"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """One row, flushed, so that a killed run keeps it."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def line(self, text: str) -> None:
        """A line for people."""
        print(text, flush=True)
        with self._log.open("a") as file:
            file.write(text + "\n")

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


class SilentWriter:
    """A `MetricWriter` that writes nothing: of a process that does not speak for the run."""

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


Writer = MetricWriter | SilentWriter


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, without a last one cut short by a kill."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def duration(seconds: float | int) -> str:
    """Seconds as people read them.

    >>> [duration(seconds) for seconds in (45.2, 720, 9660)]
    ['45s', '12m', '2h41m']
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f}s"
    return f"{minutes}m" if minutes < 90 else f"{minutes // 60}h{minutes % 60:02}m"


class Throughput:
    """Images per second, the share of time spent waiting for input, and the time left."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forgets the past: after compilation, evaluation or saving."""
        self._since, self._steps, self._waited = time.monotonic(), 0, 0.0

    def step(self, waited: float) -> None:
        """Counts one step and the seconds that it waited for its batch."""
        self._steps += 1
        self._waited += waited

    def read(self, steps_left: int) -> dict[str, float]:
        """Images per second, input wait (fraction) and seconds left, since the last restart."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        seconds_per_step = elapsed / max(self._steps, 1)
        return {
            "images_per_second": self._steps * self._batch_size / elapsed,
            "input_wait": self._waited / elapsed,
            "seconds_left": steps_left * seconds_per_step,
        }


def classification_metrics(labels: Int[np.ndarray, " n"], scores: Float[np.ndarray, "n k"]) -> dict:
    """AUC, F1 and accuracy of class probabilities.

    Two classes: AUC and F1 of class 1. More: macro one-vs-rest AUC over the classes present, macro
    F1. (The paper's notebooks report micro F1 for several classes, which is the accuracy.) AUC is
    NaN where only one class is present.
    """
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    predicted, classes = scores.argmax(axis=1), scores.shape[1]
    if classes == 2:
        auc = roc_auc_score(labels, scores[:, 1]) if len(set(labels.tolist())) == 2 else np.nan
        f1 = f1_score(labels, predicted, pos_label=1, zero_division=0.0)
    else:
        present = [k for k in range(classes) if 0 < (labels == k).sum() < len(labels)]
        aucs = [roc_auc_score(labels == k, scores[:, k]) for k in present]
        auc = np.mean(aucs) if aucs else np.nan
        f1 = f1_score(labels, predicted, average="macro", zero_division=0.0)
    return {
        "auc": float(auc),
        "f1": float(f1),
        "accuracy": float(accuracy_score(labels, predicted)),
    }


class Scored(NamedTuple):
    """Labels, patient pseudonyms and class probabilities of a split's cases, in their order."""

    labels: Int[np.ndarray, " n"]
    patients: Shaped[np.ndarray, " n"]
    scores: Float[np.ndarray, "n k"]

    def metrics(self) -> dict[str, Any]:
        """AUC, F1 and accuracy, with the number of cases `n` and of `patients`."""
        found = classification_metrics(self.labels, self.scores)
        return {**found, "n": len(self.labels), "patients": len(set(self.patients))}


def write_predictions(
    path: Path,
    scored: Mapping[str, Scored],
    cases: Mapping[str, CaseTable] | None = None,
) -> None:
    """Writes every prediction of some splits as CSV, one row for each case.

    `record` is the row number of the slice that is the case, or of the first in the split of the
    case's; `cases` says which. Where cases are not slices, `case` is the pseudonym and `slices`
    counts them.
    """
    known = cases or {}
    named = any(np.any(table.names != "") for table in known.values())
    columns = [f"score_{k}" for k in range(next(iter(scored.values())).scores.shape[1])]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        of_case = ["case", "slices"] if named else []
        writer.writerow(["split", "record", *of_case, "patient", "label", *columns])
        for split, (labels, patients, scores) in scored.items():
            table = known.get(split)
            records = np.arange(len(labels)) if table is None else table.records
            for place, record in enumerate(records.tolist()):
                case = [table.names[place], len(table.rows[place])] if named and table else []
                row = [f"{score:.6g}" for score in scores[place]]
                writer.writerow([split, record, *case, patients[place], labels[place], *row])
    temporary.rename(path)


def read_predictions(path: Path, split: str) -> Scored:
    """What `write_predictions` wrote of one split.

    Raises:
      StorageError: that cannot be read.
    """
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        columns = [name for name in rows[0] if name.startswith("score_")]
        return Scored(
            np.array([int(row["label"]) for row in rows]),
            np.array([row["patient"] for row in rows]),
            np.array([[float(row[name]) for name in columns] for row in rows]),
        )
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise StorageError(f"{path} cannot be read: repeat the run that made it") from error
