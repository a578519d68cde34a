"""The scores that a classifier gives: AUC, F1 and accuracy of them, and the file of them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from ctssl_jax.dataset.cases import CaseTable
from ctssl_jax.errors import StorageError
from ctssl_jax.files import read_text, whole_file


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

    def metrics(self, cases: CaseTable | None = None) -> dict[str, Any]:
        """AUC, F1 and accuracy, with the number of cases `n` and of `patients`.

        Where it is given the `cases` and these are not slices, with the number of `slices`, too.
        """
        found = classification_metrics(self.labels, self.scores)
        counts = {"n": len(self.labels), "patients": len(set(self.patients))}
        return found | counts | ({"slices": cases.slices} if cases and cases.named else {})


def exact(score: float | np.floating) -> str:
    """The shortest text that reads back to the same double.

    >>> exact(np.float32(0.1)), exact(0.1), exact(1.0)
    ('0.10000000149011612', '0.1', '1.0')
    """
    return repr(float(score))


def write_predictions(
    path: Path,
    scored: Mapping[str, Scored],
    cases: Mapping[str, CaseTable] | None = None,
) -> None:
    """Writes every prediction of some splits as CSV, one row for each case.

    `record` is the row number of the slice that is the case, or of the first in the split of the
    case's; `cases` says which. Where cases are not slices, `case` is the pseudonym and `slices`
    counts them. A score reads back as it was: what is decided by it is decided alike by the file.
    """
    known = cases or {}
    named = any(table.named for table in known.values())
    columns = [f"score_{k}" for k in range(next(iter(scored.values())).scores.shape[1])]
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        of_case = ["case", "slices"] if named else []
        writer.writerow(["split", "record", *of_case, "patient", "label", *columns])
        for split, (labels, patients, scores) in scored.items():
            table = known.get(split)
            records = np.arange(len(labels)) if table is None else table.records
            for place, record in enumerate(records.tolist()):
                case = [table.names[place], len(table.rows[place])] if named and table else []
                row = map(exact, scores[place])
                writer.writerow([split, record, *case, patients[place], labels[place], *row])


def read_predictions(path: Path, split: str) -> Scored:
    """What `write_predictions` wrote of one split.

    Raises:
      StorageError: that cannot be read.
    """
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [row for row in table if row["split"] == split]
        columns = [name for name in rows[0] if name.startswith("score_")]
        return Scored(
            np.array([int(row["label"]) for row in rows]),
            np.array([row["patient"] for row in rows]),
            np.array([[float(row[name]) for name in columns] for row in rows]),
        )
    except (OSError, KeyError, ValueError, IndexError, TypeError, csv.Error) as error:
        raise StorageError(f"{path} cannot be read: repeat the run that made it") from error
