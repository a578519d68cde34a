"""What an audit found, as text, as a file, and with what to do about it."""

import dataclasses
from pathlib import Path
from typing import Any

from ctssl_jax.dataset.alignment import FAINT, LIKENESS, NEAR
from ctssl_jax.dataset.matching import CONTENT, OFF
from ctssl_jax.errors import DataError
from ctssl_jax.files import read_json

FORMAT = 1
WORDS = {
    "patients": "patients in both",
    "series": "series in both",
    "exact": "slices of the second that are equal to one of the first",
    "near": "slices that are near duplicates of one of the other",
}
ADVICE = {
    "patients": "one patient is in two splits: leave the splits of the source, or split by patient",
    "series": "one series is in two splits: give both of its patients one identifier",
    "exact": "equal slices: prepare it again with --join_duplicates, which splits such patients as "
    "one",
    "near": "nearly equal slices: look at them with `python -m data_prep.audit --data={data} "
    "--show_pairs=FOLDER`. Copies: prepare it again with --join_duplicates. Different people: "
    "write `no` beside them in FOLDER/pairs.csv, and `python -m data_prep.audit --data={data} "
    "--not_duplicates=FOLDER/pairs.csv`",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A leak, or duplicates whose labels differ.

    Attributes:
        check: "patients", "series", "exact" or "near".
        splits: The two splits; of a pre-training set with its name before.
        count: How many patients, series, or slices of the second split.
        examples: A few of them as pairs of (split, row of the record).
    """

    check: str
    splits: tuple[str, str]
    count: int
    examples: tuple[tuple[tuple[str, int], tuple[str, int]], ...]

    def __str__(self) -> str:
        return f"{' and '.join(self.splits)}: {self.count:,} {WORDS[self.check]}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an audit found.

    Attributes:
        fingerprint: Of the dataset.
        findings: What leaks between its splits.
        overlap: What of its validation and test splits, or folds, is in the pre-training sets.
        label_conflicts: Duplicates with different labels; no leak.
        splits: Of each split the slices, patients, labels and slices per patient.
        classes: Names of the classes.
        compared: How many pairs of slices were compared.
        not_duplicates: Pairs that a person called no duplicates; they do not count.
    """

    fingerprint: str
    findings: tuple[Finding, ...]
    overlap: tuple[Finding, ...]
    label_conflicts: tuple[Finding, ...]
    splits: dict[str, dict[str, Any]]
    classes: tuple[str, ...]
    compared: int
    not_duplicates: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing leaks."""
        return not self.findings and not self.overlap

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "verdict": "pass" if self.passed else "fail",
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "overlap": [dataclasses.asdict(finding) for finding in self.overlap],
            "label_conflicts": [dataclasses.asdict(finding) for finding in self.label_conflicts],
            "splits": self.splits,
            "classes": list(self.classes),
            "thresholds": {
                "likeness": LIKENESS,
                "cosine_of_faint": NEAR,
                "faint": FAINT,
                "content": CONTENT,
                "grey_levels": OFF,
            },
            "compared": self.compared,
            "not_duplicates": list(self.not_duplicates),
        }

    def table(self) -> str:
        """The verdict as text."""
        lines = [f"{'split':8}{'slices':>10}{'patients':>10}  slices per patient  classes"]
        for name, split in self.splits.items():
            least, median, most = split["slices_per_patient"]
            total = max(1, sum(split["labels"]))
            shares = [
                f"{label} {count / total:.1%}"
                for label, count in zip(self.classes, split["labels"], strict=True)
            ]
            lines.append(
                f"{name:8}{split['slices']:>10,}{split['patients']:>10,}  "
                f"{f'{least:,} to {most:,}, median {median:g}':18}  {', '.join(shares)}"
            )
        for title, found in (
            ("leaks", self.findings),
            ("overlap with pre-training", self.overlap),
            ("duplicates with different labels (no leak)", self.label_conflicts),
        ):
            if found:
                lines += [f"{title}:", *(f"  {finding}" for finding in found)]
        return "\n".join(lines)

    def advice(self, dataset: Path) -> str:
        """The verdict and, where it fails, what to do; the verdict is the last line."""
        lines = []
        if self.not_duplicates:
            count = len(self.not_duplicates)
            lines.append(f"not counted: {count:,} pairs that --not_duplicates calls none")
        lines += [f"equal slices with different labels: {found}" for found in self.label_conflicts]
        if self.passed:
            return "\n".join([*lines, "verdict: pass"])
        checks = dict.fromkeys(finding.check for finding in (*self.findings, *self.overlap))
        lines += ["what to do:", *(f"  {ADVICE[check]}".format(data=dataset) for check in checks)]
        if self.overlap:
            lines.append("  or pre-train again with --exclude_patients_of=" + str(dataset))
        said = "; ".join(map(str, (*self.findings, *self.overlap)))
        lines.append(f"verdict: fail, and training will refuse it ({said})")
        return "\n".join(lines)


def read_verdict(dataset: Path) -> Verdict:
    """The verdict that is written in a dataset folder, without examples.

    Raises:
        DataError: If there is none.
    """
    try:
        plain = read_json(dataset / "audit.json")
        findings, conflicts = (
            tuple(Finding(row["check"], tuple(row["splits"]), row["count"], ()) for row in rows)
            for rows in (plain["findings"], plain.get("label_conflicts", ()))
        )
        return Verdict(
            plain["fingerprint"],
            findings,
            (),
            conflicts,
            plain["splits"],
            tuple(plain["classes"]),
            plain["compared"],
            tuple(plain.get("not_duplicates", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{dataset}: no audit.json that can be read") from error
