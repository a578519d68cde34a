"""Run folders as they lie on disk: found, read and checked, never trusted.

Whatever is wrong with a folder becomes its `problem`, one plain phrase, and the run is left out of
the averages. Nothing here raises for the content of a run.
"""

import csv
import errno
import fnmatch
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ctssl_jax import files
from ctssl_jax.dataset.cases import SLICE
from ctssl_jax.errors import DataError
from ctssl_jax.statistics import roc_auc, threshold_at_sensitivity, threshold_at_specificity

KINDS = {
    "PretrainConfig": "pre-training",
    "FinetuneConfig": "fine-tuning",
    "EvaluateConfig": "evaluation",  # listed; compared by `frozen_features`, another question
    "ImportedEncoder": "imported encoder",  # likewise
    "PredictConfig": "external test",  # of a run, on other data
}
FROZEN = "frozen features"
"""The kind of an evaluation that is read by `frozen_features`."""
PICTURE_LIMIT = 1 << 23
"""Largest picture of a run that is shown, in bytes."""
TOLERANCE = 2e-3
"""How far results.json may be from the AUC of its own predictions, which older CSVs round."""


Content = TypeVar("Content")
PREDICTIONS = "predictions.csv"
LONGEST_WORD = 40
"""For a case, as in "scan"."""
OPERATING = 0.9
"""The specificity, and the sensitivity, at which thresholds are chosen on validation."""


class Unusable(Exception):
    """What is wrong with a run, as the phrase that the report shows."""


@dataclass(frozen=True)
class Cases:
    """Test cases of one run in the order of their records; patients are pseudonyms.

    `patients_known` is False when a row names none: such a case is then a patient of its own.
    `folds` numbers the network that tested each case, where they are of a cross-validation.
    `called` says which cases are called positive at the thresholds of validation (`OPERATING`);
    empty of more than two classes, or where validation has not both. `rows` are split and row of
    each in predictions.csv.
    """

    digest: str
    patients: Shaped[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, "n k"]
    patients_known: bool
    folds: Int[np.ndarray, " n"] | None = None
    called: Mapping[str, Bool[np.ndarray, " n"]] = field(default_factory=dict)
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run folder. `folder` is for the screen: it may hold a name and never goes on a page.

    A fine-tuning run without a `problem` has `results` and `cases`; its AUC is NaN where the test
    cases are of one class. A cross-validation is one run
    (`report.folds`), whose `folds` are the runs that it is made of. `external` are the results of
    an external test.
    """

    folder: Path
    kind: str = "unknown"
    hash: str = ""
    status: str = "unknown"
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    cases: Cases | None = None
    problem: str = ""
    folds: tuple["Run", ...] = ()
    external: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> tuple["Run", ...]:
        """The runs on disk: itself, or those of each fold."""
        return self.folds or (self,)

    def series(self, name: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Steps and values of one logged number, where both are finite."""
        rows = [(row.get("step"), row.get(name)) for row in self.metrics]
        pairs = [(step, value) for step, value in rows if is_number(step) and is_number(value)]
        table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]


def find_runs(places: Iterable[str | Path]) -> list[Run]:
    """Reads every run at or below `places`, each once, in an order that repeats.

    Raises:
      DataError: a place does not exist, or none of them holds a run.
    """
    folders: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.is_dir():
            raise DataError(f"RUNS: {place} is not a folder; name run folders or folders of them.")
        folders.update((folder.resolve(), None) for folder in _run_folders(place))
    if not folders:
        raise DataError("RUNS: no run found; a run folder holds config.json. Train first.")
    return sorted((read_run(folder) for folder in folders), key=_order)


def read_run(folder: Path) -> Run:
    """Reads one run folder; what cannot be read is said in `problem`."""
    run = Run(folder)
    try:
        for read in (_with_config, _with_log, _with_outcome):
            run = read(run)
    except Unusable as error:
        return replace(run, problem=str(error))
    return run


def frozen_features(run: Run, classifier: str) -> Run:
    """An evaluation as the run of one of its classifiers, `linear` or `knn`, of a task of its own.

    It has results and cases as a fine-tuning has, or a `problem`.
    """
    try:
        if run.problem or run.kind != "evaluation":
            raise Unusable(run.problem or "no evaluation of frozen features")
        found = _json(run.folder / "results.json")
        own = found.get(classifier)
        if not isinstance(own, dict):
            raise Unusable(f"results.json has no {classifier}")
        results = _checked(found | own)
        results["task"] += f", {classifier}"
        predictions = run.folder / f"predictions_{classifier}.csv"
        split, held_out = (str(run.config.get(f"{name}_split", name)) for name in ("test", "val"))
        cases = _cases(predictions, results, split, held_out)
    except Unusable as error:
        return replace(run, kind=FROZEN, problem=str(error))
    return replace(run, kind=FROZEN, results=results, cases=cases)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold, and no bool."""
    return type(value) in (int, float) and -1e300 < value < 1e300


def last_was_best(run: Run) -> bool:
    """Whether a fine-tuning was at its best when it ended: it had not finished learning."""
    results = run.results
    for best, last in (("best_step", "total_steps"), ("best_epoch", "epochs")):
        if is_number(results.get(best)) and is_number(results.get(last)):
            return bool(results[best] >= results[last])
    return False


def reconstructions(run: Run) -> list[tuple[int, bytes]]:
    """Steps and PNGs of the pictures that a pre-training run drew of itself, in order of steps."""
    found = []
    for path in (run.folder / "figures").glob("reconstruction_*.png"):
        step = path.stem.removeprefix("reconstruction_")
        if step.isdecimal() and (content := _picture(path)):
            found.append((int(step), content))
    return sorted(found)


def neighbours(run: Run) -> tuple[bytes, list[list[int]]] | None:
    """The picture of slices and their nearest that an evaluation drew, and the labels of its rows.

    In each row the first label is that of the query. None where there is no such picture.
    """
    picture = _picture(run.folder / "figures" / "neighbours.png")
    rows: dict[int, list[int]] = defaultdict(list)
    try:
        table = csv.DictReader(_text(run.folder / "figures" / "neighbours.csv").splitlines())
        for row in table:
            rows[int(row["query"])].append(int(row["label"]))
    except (Unusable, KeyError, TypeError, ValueError, csv.Error):
        return None
    return (picture, list(rows.values())) if picture and rows else None


class Drawn(NamedTuple):
    """A case that `ctssl_jax.predict` drew: the PNG, its label, and what it was called."""

    picture: bytes
    label: str
    decision: str


def drawn_cases(run: Run) -> list[Drawn]:
    """Drawn cases of an external test with their labels, those called wrong first."""
    found = []
    try:
        for row in csv.DictReader(_text(run.folder / "cases.csv").splitlines()):
            picture = _picture(run.folder / "pictures" / f"{Path(row['case']).name}.png")
            if picture and row["label"]:
                found.append(Drawn(picture, row["label"], row["decision"]))
    except (Unusable, KeyError, TypeError, csv.Error):
        return []
    return sorted(found, key=lambda case: case.label == case.decision)


def _picture(path: Path) -> bytes:
    """A PNG that is not too large to show; nothing where there is none."""
    try:
        content = files.read_bytes(path, PICTURE_LIMIT)
    except OSError:
        return b""
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 24 else b""


def _run_folders(place: Path) -> Iterator[Path]:
    """Folders of runs, also of those that have lost config.json; no checkpoints, nothing hidden."""
    for folder, below, names in os.walk(place):
        below[:] = sorted(name for name in below if name != "checkpoints" and name[0] != ".")
        if "config.json" in names or {"data.json", "STATUS"} <= set(names):
            yield Path(folder)


def _with_config(run: Run) -> Run:
    record = _json(run.folder / "config.json")
    kind, config = str(record.get("type")), record.get("config")
    if kind not in KINDS:
        raise Unusable(f"a configuration of type {kind[:40]} is not for this report")
    if not isinstance(config, dict):
        raise Unusable("config.json has no config")
    return replace(run, kind=KINDS[kind], hash=str(record.get("hash") or ""), config=config)


def _with_log(run: Run) -> Run:
    return replace(
        run,
        status=_status(run.folder / "STATUS"),
        metrics=_metrics(run.folder / "metrics.jsonl"),
        env=_json(run.folder / "env.json", missing_is_empty=True),
        data=_json(run.folder / "data.json", missing_is_empty=True),
    )


def _with_outcome(run: Run) -> Run:
    if run.status != "done":
        raise Unusable(f"not finished (status {run.status})")
    if run.kind == "external test":
        return replace(run, external=_external(run.folder / "results.json"))
    if run.kind == "evaluation":
        _require_whole(run.folder)
    if run.kind != "fine-tuning":
        return run
    if run.config.get("read_test") is False:
        raise Unusable("it was for choosing a learning rate, and has read no test")
    results = _results(run.folder / "results.json")
    split = run.config.get("test_split", "test")
    held_out = str(run.config.get("val_split", "val"))
    cases = _cases(run.folder / PREDICTIONS, results, split, held_out)
    return replace(run, results=results, cases=cases)


def _order(run: Run) -> tuple[Any, ...]:
    results = run.results
    number = [
        results.get(key) if is_number(results.get(key)) else -1 for key in ("fraction", "seed")
    ]
    return (
        run.kind != "pre-training",
        str(results.get("task")),
        number[0],
        str(results.get("arm")),
        number[1],
        run.hash,
        str(run.folder),
    )


def _text(path: Path) -> str:
    return _read(path, files.read_text)


def _json(path: Path, *, missing_is_empty: bool = False) -> dict[str, Any]:
    if missing_is_empty and not path.exists():
        return {}
    return _read(path, files.read_json)


def _read(path: Path, read: Callable[[Path], Content]) -> Content:
    """What `read` makes of a file of a run; raises as the run's `problem` what is wrong with it."""
    try:
        return read(path)
    except FileNotFoundError:
        raise Unusable(f"{path.name} is missing") from None
    except files.Damaged as error:
        raise Unusable(f"{path.name} {error}") from None
    except OSError as error:
        too_large = error.errno == errno.EFBIG
        why = error.strerror if too_large else "cannot be read"
        raise Unusable(f"{path.name} {why}") from None


def _status(path: Path) -> str:
    try:
        return _text(path).strip()[:40] or "unknown"
    except Unusable:
        return "unknown"


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Logged rows by step: what was logged of a step at several times, together.

    A resumed run logs some steps again: the last word counts.
    """
    rows: dict[tuple[Any, bool], dict[str, Any]] = {}
    lines = _text(path).splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a killed run is often half a line
        if isinstance(row, dict) and is_number(row.get("step")):
            known = rows.setdefault((row["step"], "val_loss" in row), {})
            known.update(row)
    return [rows[key] for key in sorted(rows)]


def _require_whole(folder: Path) -> None:
    """Raises where the results of an evaluation, or predictions beside them, cannot be read.

    Nothing is computed of them here, but they are published. Embeddings are not, and may be gone.
    """
    results, pattern = _json(folder / "results.json"), "predictions_*.csv"
    sums = results.get("files")
    noted = [str(name) for name in sums] if isinstance(sums, dict) else []
    there = [path.name for path in folder.glob(pattern)]
    for name in sorted({*fnmatch.filter(noted, pattern), *there}):
        _text(folder / name)
        _require_sum(folder / name, dict(results))


def _results(path: Path) -> dict[str, Any]:
    return _checked(_json(path))


def _checked(results: dict[str, Any]) -> dict[str, Any]:
    """What results.json holds; raises where it is not as documented."""
    for name in ("task", "arm", "data_fingerprint"):
        if not isinstance(results.get(name), str) or not results[name]:
            raise Unusable(f"results.json has no {name}")
    if not isinstance(results.get("encoder_run"), str | None):
        raise Unusable("results.json has an encoder_run that is no hash")
    for name in ("fraction", "train_slices", "seed"):
        if not is_number(results.get(name)):
            raise Unusable(f"results.json has no number {name}")
    if not (0 < results["fraction"] <= 1 and 1 <= results["train_slices"] < 1e12):
        raise Unusable("results.json has a fraction or train_slices out of range")
    found = results.get("test")
    test: dict[str, Any] = found if isinstance(found, dict) else {}
    missing = [n for n in ("auc", "accuracy", "f1", "n") if not is_number(test.get(n))]
    if missing and not (missing == ["auc"] and isinstance(test.get("auc"), float)):
        raise Unusable(f"results.json has no test {missing[0]}")
    if not isinstance(results.get("classes"), list) or len(results["classes"]) < 2:
        raise Unusable("results.json has no list of two or more classes")
    return results | _of_cases(results)


def _external(path: Path) -> dict[str, Any]:
    """The results of an external test."""
    found = _json(path)
    for name in ("task", "arm", "run", "dataset", "data_fingerprint", "case"):
        if not isinstance(found.get(name), str):
            raise Unusable(f"results.json has no {name}")
    test = found.get("test")
    if not isinstance(test, dict) or not all(is_number(test.get(n)) for n in ("n", "patients")):
        raise Unusable("results.json has no numbers of test cases and patients")
    if not isinstance(found.get("intervals"), dict):
        raise Unusable("results.json has no intervals")
    return found


def _of_cases(results: dict[str, Any]) -> dict[str, Any]:
    """What a case is called and how many were trained on: slices, of runs that do not say."""
    word, cases = results.get("case"), results.get("train_cases")
    if not isinstance(word, str) or not 0 < len(word) <= LONGEST_WORD:
        word, cases = SLICE, None
    return {"case": word, "train_cases": cases if is_number(cases) else results["train_slices"]}


def _cases(path: Path, results: dict[str, Any], split: Any, held_out: str) -> Cases:
    """Rows of the test split in predictions.csv, checked against results.json."""
    _require_sum(path, results)
    names = [f"score_{index}" for index in range(len(results["classes"]))]
    try:
        table = list(csv.DictReader(_text(path).splitlines()))
        rows = [row for row in table if row["split"] == split]
        rows.sort(key=lambda row: row["record"])
        records = [row["record"] for row in rows]
        labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
        scores = np.array([[float(row[name]) for name in names] for row in rows], dtype=np.float64)
        named = [row["patient"] for row in rows]
        validation = [row for row in table if row["split"] == held_out]
        val_labels = np.array([int(row["label"]) for row in validation], dtype=np.int64)
        val_scores = np.array([float(row[names[1]]) for row in validation], dtype=np.float64)
    except (KeyError, TypeError, ValueError, csv.Error):
        raise Unusable("predictions.csv is not as documented") from None
    if len(rows) != results["test"]["n"] or len(set(records)) != len(rows):
        raise Unusable("predictions.csv and results.json disagree on the test cases")
    if not np.isfinite(scores).all() or not np.isin(labels, np.arange(len(names))).all():
        raise Unusable("predictions.csv holds a score or label that is not possible")
    own = roc_auc(labels, scores)
    if isfinite(own) and not is_number(results["test"]["auc"]):
        raise Unusable("results.json has no test auc")
    if isfinite(own) and abs(own - results["test"]["auc"]) > TOLERANCE:
        raise Unusable(
            f"results.json says AUC {results['test']['auc']:.3f}, its predictions give {own:.3f}"
        )
    patients = [
        name or f"{split} record {record}" for name, record in zip(named, records, strict=True)
    ]
    content = json.dumps([records, patients, labels.tolist()])
    digest = sha256(content.encode()).hexdigest()
    called = _called(val_labels, val_scores, scores) if len(names) == 2 else {}
    at = tuple(f"{split} {record}" for record in records)
    return Cases(digest, np.array(patients), labels, scores, all(named), called=called, rows=at)


def _require_sum(path: Path, results: dict[str, Any]) -> None:
    """Compares a file with the sum that results.json has of it; one of an older run has none."""
    sums = results.pop("files", {})
    known = isinstance(sums, dict) and path.name in sums
    if known and _read(path, files.sha256) != sums[path.name]:
        raise Unusable(f"{path.name} is damaged, or was changed after it was written")


def _called(
    labels: Int[np.ndarray, " v"], scores: Float[np.ndarray, " v"], test: Float[np.ndarray, "n 2"]
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Test cases that are called positive at the thresholds which validation gives."""
    positive = labels == 1
    if not positive.any() or positive.all() or not np.isfinite(scores).all():
        return {}
    return {
        "specificity": test[:, 1] >= threshold_at_specificity(positive, scores, OPERATING),
        "sensitivity": test[:, 1] >= threshold_at_sensitivity(positive, scores, OPERATING),
    }
