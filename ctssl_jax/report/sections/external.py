"""Tests of runs on other data: what `ctssl_jax.predict` found on labelled scans."""

from dataclasses import dataclass
from typing import Any

from ctssl_jax.dataset.cases import plural
from ctssl_jax.report.figures.picture import Picture
from ctssl_jax.report.names import arm_name
from ctssl_jax.report.runs import Run, drawn_cases, is_number
from ctssl_jax.report.words import count, number, short

LONGEST = 60
MOST_DRAWN = 4
METRICS = {
    "auc": "AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "brier": "Brier score",
}


@dataclass(frozen=True)
class ExternalTest:
    """One row: which network, on what, each metric with its interval in words; cases drawn."""

    task: str
    start: str
    run: str
    data: str
    cases: str
    metrics: dict[str, tuple[str, str]]
    warning: str
    cases_drawn: list[tuple[str, Picture]]


def external_tests(runs: list[Run]) -> list[ExternalTest]:
    """The external tests among runs, in their order."""
    tested = [run for run in runs if run.external and not run.problem]
    return [_row(run.external, _drawn(run, number)) for number, run in enumerate(tested, start=1)]


def _drawn(run: Run, number: int) -> list[tuple[str, Picture]]:
    """Drawn cases, those called wrong first: what is said below each, and its picture."""
    shown = []
    for place, case in enumerate(drawn_cases(run)[:MOST_DRAWN], start=1):
        word = "right" if case.label == case.decision else "wrong"
        said = f"Called {case.decision[:LONGEST]}, labelled {case.label[:LONGEST]}: {word}"
        alt = f"Slices of a test case and where the network looked. {said}."
        shown.append((said, Picture(f"external-{number}-{place}", alt, case.picture)))
    return shown


def _row(found: dict[str, Any], cases_drawn: list[tuple[str, Picture]]) -> ExternalTest:
    test, word = found["test"], plural(str(found["case"])[:LONGEST])
    kind = "another dataset" if found.get("external") else "the run's own dataset"
    return ExternalTest(
        task=str(found["task"])[:LONGEST],
        start=arm_name(str(found["arm"])),
        run=short(found["run"]),
        data=f"{str(found['dataset'])[:LONGEST]} ({kind}, data {short(found['data_fingerprint'])})",
        cases=f"{count(test['n'])} {word} of {count(test['patients'])} patients",
        metrics={title: _ends(found["intervals"].get(name)) for name, title in METRICS.items()},
        warning=_learnt(found.get("learnt_from")),
        cases_drawn=cases_drawn,
    )


def _ends(values: Any) -> tuple[str, str]:
    if not isinstance(values, list) or len(values) != 3 or not is_number(values[0]):
        return "–", ""
    estimate, low, high = values
    known = is_number(low) and is_number(high)
    return number(estimate), f"{number(low)}–{number(high)}" if known else ""


def _learnt(learnt: Any) -> str:
    """What is told of cases that the network has learnt from."""
    if not isinstance(learnt, dict):
        return "not known whether the network has learnt from these"
    known = sum(value for value in learnt.values() if is_number(value))
    return "leakage: the network has learnt from some of these" if known else ""
