"""The data that the runs used, and what is known of leakage, in words. Shows named fields alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctssl_jax.dataset.cases import SLICE, case_word, plural
from ctssl_jax.report.names import arm_name
from ctssl_jax.report.runs import Run, is_number
from ctssl_jax.report.words import OF_SCANS, count, short

INTENSITIES = {
    "hu": "Hounsfield units, lossless",
    "grey8": "8-bit grey; no Hounsfield units",
    "grey16": "16-bit grey; no Hounsfield units",
}
CHECKS = {
    "patients": "patients",
    "series": "series",
    "exact": "equal slices",
    "near": "nearly equal slices",
}
LONGEST = 400
"""Of a text from a run, in characters."""


@dataclass(frozen=True)
class DataCard:
    """One dataset; `splits` are rows of (split, slices, patients, series, labels by class)."""

    name: str
    used_for: str
    splits: list[tuple[str, ...]]
    facts: list[tuple[str, str]]


def data_cards(runs: list[Run]) -> list[DataCard]:
    """A card for each dataset that the runs name, by fingerprint, in the order of the runs."""
    by_print: dict[str, list[Run]] = {}
    for run in runs:
        name = run.data.get("fingerprint")
        if isinstance(name, str) and name:
            by_print.setdefault(name, []).append(run)
    return [_card(fingerprint, users) for fingerprint, users in by_print.items()]


def _card(fingerprint: str, runs: list[Run]) -> DataCard:
    data = {name: value for run in reversed(runs) for name, value in run.data.items()}
    audits = [run.data["audit"] for run in runs if run.data.get("audit")] or [None]
    kinds = dict.fromkeys(run.kind for run in runs)
    facts = {
        "Pixels": INTENSITIES.get(str(data.get("intensity")), ""),
        "Prepared from": text(data.get("source_kind")),
        "Reduced to": _reduced(data.get("canvas")),
        **_origin(data.get("origin")),
        "Labels": _labels(data),
        "Note": text(data.get("note")),
        "Fewer slices": _filters(runs),
        "Leakage between splits": " ".join(dict.fromkeys(map(audit_words, audits))),
        "Seen in pre-training": "; ".join(_overlaps(runs)),
        "Fingerprint": short(fingerprint),
    }
    return DataCard(
        text(data.get("name")) or "unnamed",
        ", ".join(kinds),
        _splits(data),
        [(term, words) for term, words in facts.items() if words],
    )


def _labels(data: Mapping[str, Any]) -> str:
    if case_word(data) != SLICE:
        return f"Each is of one {case_word(data)[:LONGEST]}."
    return OF_SCANS if data.get("labels_of") == "scan" else ""


def _origin(origin: Any) -> dict[str, str]:
    known = origin if isinstance(origin, dict) else {}
    return {"Licence": text(known.get("licence")), "To be cited": text(known.get("citation"))}


def _reduced(canvas: Any) -> str:
    return f"{_whole(canvas)} px a side, when prepared" if is_number(canvas) else ""


def _splits(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    splits, classes, cases = data.get("splits"), data.get("classes"), data.get("cases")
    rows = []
    for name, split in splits.items() if isinstance(splits, dict) else ():
        if isinstance(split, dict):
            known = cases.get(name) if isinstance(cases, dict) else None
            of_cases = known if isinstance(known, dict) else split
            shown = (_whole(split.get(what)) for what in ("slices", "patients", "series"))
            labels = _by_class(of_cases.get("labels"), classes)
            rows.append((text(name), *shown, _with_count(known, case_word(data), labels)))
    return rows


def _with_count(cases: Any, word: str, labels: str) -> str:
    """The labels, after the number of cases where these are no slices."""
    if not isinstance(cases, dict) or not is_number(cases.get("count")):
        return labels
    return f"{_whole(cases['count'])} {plural(word)[:LONGEST]}: {labels}"


def _by_class(labels: Any, classes: Any) -> str:
    if not isinstance(labels, list) or not isinstance(classes, list) or len(labels) != len(classes):
        return ""
    pairs = zip(classes, labels, strict=True)
    return ", ".join(f"{text(name)} {_whole(number)}" for name, number in pairs)


def audit_words(audit: Any) -> str:
    """The verdict of `data_prep.audit` as a run noted it."""
    known = audit if isinstance(audit, dict) else {}
    if known.get("verdict") == "pass":
        return (
            "None found: no patient or series is in two splits, and no slice of one equals or "
            "nearly equals a slice of another."
        )
    if known.get("verdict") == "fail":
        findings = known.get("findings")
        found = [_finding(row) for row in findings] if isinstance(findings, list) else []
        said = "; ".join(filter(None, found)) or "which, is not noted"
        return f"The audit failed: {said}. The runs were done all the same, and are marked."
    return "Not known: the runs note no audit."


def _finding(row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("splits"), list):
        return ""
    splits = " and ".join(text(name) for name in row["splits"])
    return f"{splits} share {_whole(row.get('count'))} {CHECKS.get(str(row.get('check')), 'cases')}"


def _overlaps(runs: list[Run]) -> list[str]:
    """What each arm's encoder had seen of validation and test; each statement once."""
    said = []
    for run in runs:
        if not run.results or run.results.get("encoder_run") is None:
            continue
        arm, overlap = arm_name(run.results["arm"]), run.results.get("pretraining_overlap")
        if not isinstance(overlap, dict):
            said.append(f"{arm}: not known")
            continue
        seen = [
            f"{_whole(overlap[check])} {words}"
            for check, words in CHECKS.items()
            if is_number(overlap.get(check)) and overlap[check] > 0
        ]
        said.append(f"{arm}: {', '.join(seen) if seen else 'nothing of validation or test'}")
    return list(dict.fromkeys(said))


def _filters(runs: list[Run]) -> str:
    filters = [run.data.get("filter") for run in runs]
    used = [kept for kept in filters if isinstance(kept, dict)]
    said = [
        f"{text(kept.get('method'))} keeps {_whole(kept.get('kept'))} of "
        f"{_whole(kept.get('slices'))}"
        for kept in used
    ]
    return "; ".join(dict.fromkeys(said))


def text(value: Any) -> str:
    """Text from a run, cut where it is too long to be what it should be."""
    return value[:LONGEST] if isinstance(value, str) else ""


def _whole(value: Any) -> str:
    return count(value) if is_number(value) else "–"
