"""The runs of a cross-validation, put together: one run for all that the report computes.

Each fold of the dataset is tested by one run. Their test cases one after the other are those of one
run that has tested every patient once. Scores of different networks are never ranked together:
`Cases.folds` says which network tested each case, and AUC is the mean over folds (Forman and
Scholz, SIGKDD Explor. 12:49, 2010). A fold whose test cases are of one class has none and is left
out of that mean, of every arm alike. The settings that are a fold's own stand apart, as `folds` of
the pooled config: other seeds must have the same.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from statistics import mean
from typing import Any

import numpy as np

from ctssl_jax.dataset.splits import fold_number, folds_of
from ctssl_jax.report.comparison.recipes import CHOSEN, tuned
from ctssl_jax.report.runs import Cases, Run
from ctssl_jax.scores import Scored
from ctssl_jax.statistics import auc, resampled, within_folds

OWN = ("test_split", "val_split", "data.split", "intensity.mean", "intensity.std")
"""Settings that a fold has of its own; the last two where they are of its training split."""
SHOWN = 10
"""Of the folds that are missing."""


def pool(runs: list[Run]) -> list[Run]:
    """The runs, with those of each whole cross-validation as one, in the place of the first.

    Of one that is not whole each run has a `problem`. All other runs are as they were.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if _is_fold(run):
            groups[_key(run)].append(run)
    pooled: list[Run] = []
    for run in runs:
        if not _is_fold(run):
            pooled.append(run)
        elif group := groups.pop(_key(run), None):
            pooled += _pooled(group)
    return pooled


def unpool(runs: Iterable[Run]) -> list[Run]:
    """The opposite of `pool`; each run has the problem of the one that it was part of."""
    return [
        replace(part, problem=part.problem or run.problem) for run in runs for part in run.parts()
    ]


def fold_of(run: Run) -> int | None:
    """The number of the fold that a run tests, None if it tests no fold of its dataset."""
    split = str(run.config.get("test_split"))
    return fold_number(split) if split in _folds(run) else None


def without_auc(run: Run) -> list[int]:
    """The folds of a pooled run whose test cases are of one class."""
    found = ((fold_of(part), part.cases) for part in run.folds)
    return [
        number
        for number, cases in found
        if cases and number is not None and len(np.unique(cases.labels)) < 2
    ]


def _folds(run: Run) -> list[str]:
    """The folds of the dataset."""
    splits = run.data.get("splits")
    return folds_of(splits) if isinstance(splits, dict) else []


def _is_fold(run: Run) -> bool:
    return run.cases is not None and not run.problem and fold_of(run) is not None


def _key(run: Run) -> str:
    """What the runs of one cross-validation share."""
    shared, _ = _parted(run)
    results = run.results
    names = ("task", "arm", "seed", "encoder_run", "data_fingerprint", "classes")
    # A count is another fraction of a larger fold.
    fraction = None if run.config.get("count") else results["fraction"]
    return json.dumps([shared, fraction, *(results.get(name) for name in names)], sort_keys=True)


def _parted(run: Run) -> tuple[dict[str, Any], list[Any]]:
    """A config without what a fold has of its own, and that.

    A learning rate that was chosen on validation is a fold's own too, and named by `tuning` alone.
    """
    shared = deepcopy(dict(run.config))
    if tuned(run):
        _pop(shared, CHOSEN)
    return shared, [_pop(shared, name) for name in OWN]


def _pop(config: dict[str, Any], name: str) -> Any:
    first, _, last = name.rpartition(".")
    place = config.get(first) if first else config
    return place.pop(last, None) if isinstance(place, dict) else None


def _pooled(runs: list[Run]) -> list[Run]:
    """The one run that they are together, or all of them with what is wrong."""
    folds = _folds(runs[0])
    by_fold = {str(run.config["test_split"]): run for run in runs}
    patients = [run.cases.patients for run in runs if run.cases]
    problem = ""
    if missing := [str(fold_number(fold)) for fold in folds if fold not in by_fold]:
        word = "fold" if len(missing) == 1 else "folds"
        problem = f"cross-validation lacks {word} {', '.join(missing[:SHOWN])}"
    elif len(runs) > len(folds):
        problem = "cross-validation has several runs of one fold"
    elif sum(len(set(own)) for own in patients) > len(set(np.concatenate(patients))):
        problem = "cross-validation has a patient in two folds"
    elif all(len(np.unique(run.cases.labels)) < 2 for run in runs if run.cases):
        problem = "cross-validation has no fold whose test cases are of two classes"
    if problem:
        return [replace(run, problem=problem) for run in runs]
    return [_together([by_fold[fold] for fold in folds])]


def _together(runs: list[Run]) -> Run:
    """One run of all folds, in their order."""
    first, cases = runs[0], _all_cases([run.cases for run in runs if run.cases])
    shared, _ = _parted(first)
    means = {  # exact where all are equal
        name: float(mean(run.results[name] for run in runs))
        for name in ("fraction", "train_cases", "train_slices")
    }
    test = Scored(cases.labels, cases.patients, cases.scores).metrics() | {"auc": _auc(cases)}
    return replace(
        first,
        hash=_digest([run.hash for run in runs]),
        config={**shared, "folds": [_parted(run)[1] for run in runs]},
        metrics=[],
        results={**first.results, **means, "test": test},
        cases=cases,
        folds=tuple(runs),
    )


def _auc(cases: Cases) -> float:
    """The mean over folds."""
    assert cases.folds is not None, "cases of a cross-validation know their folds"
    metric = within_folds(auc, cases.folds)
    return float(resampled(cases.labels, cases.scores, cases.patients, metric, n=0)[0, 0])


def _all_cases(of: list[Cases]) -> Cases:
    return Cases(
        _digest([cases.digest for cases in of]),
        np.concatenate([cases.patients for cases in of]),
        np.concatenate([cases.labels for cases in of]),
        np.concatenate([cases.scores for cases in of]),
        all(cases.patients_known for cases in of),
        np.repeat(np.arange(len(of)), [len(cases.labels) for cases in of]),
        {
            name: np.concatenate([cases.called[name] for cases in of])
            for name in of[0].called
            if all(name in cases.called for cases in of)
        },
        tuple(row for cases in of for row in cases.rows),
    )


def _digest(parts: list[str]) -> str:
    return sha256(" ".join(parts).encode()).hexdigest()
