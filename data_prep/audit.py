"""Whether test data was seen before: `python -m data_prep.audit --data=DATASET`.

Checks that no patient, series or picture is in two splits of a dataset, and with --pretrain that
none of its validation and test splits, or folds, is in the training split of another. Pictures are
compared bit for bit and as near duplicates (`matching`). Exit code 0: pass; 3: fail.

The verdict on the dataset itself is written into it, as DATASET/audit.json. Training refuses a
dataset without that file, or with a verdict of fail, unless it is told to accept the leakage.
Every dataset is audited when it is prepared. Patients and series of two datasets can be told to be
the same only if both were prepared with the same key.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax.dataset.matching import CONTENT, NEAR, OFF, Pairs, exact_pairs, is_blank, near_pairs
from ctssl_jax.dataset.signatures import Signatures, load_signatures, read_manifest
from ctssl_jax.dataset.splits import folds_of
from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import whole_file

FORMAT = 1
EXAMPLES = 10
TRAIN, HELD_OUT = "train", ("val", "test")  # what is compared with a pre-training set
WORDS = {
    "patients": "patients in both",
    "series": "series in both",
    "exact": "slices of the second that are equal to one of the first",
    "near": "slices of the second that are near duplicates of one of the first",
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
    """

    fingerprint: str
    findings: tuple[Finding, ...]
    overlap: tuple[Finding, ...]
    label_conflicts: tuple[Finding, ...]
    splits: dict[str, dict[str, Any]]
    classes: tuple[str, ...]
    compared: int

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
            "thresholds": {"cosine": NEAR, "content": CONTENT, "grey_levels": OFF},
            "compared": self.compared,
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
        lines.append(f"verdict: {'pass' if self.passed else 'fail'}")
        return "\n".join(lines)


def audit(dataset: Path, pretraining: Sequence[Path] = ()) -> Verdict:
    """Audits a dataset folder and writes its `audit.json`.

    That file leaves out what overlaps with pre-training sets: it is true of the dataset alone.

    Args:
        dataset: The folder.
        pretraining: Folders whose training split an encoder has seen, or may see.

    Raises:
        DataError: If a dataset cannot be read.
        StorageError: If `audit.json` cannot be written.
    """
    manifest = read_manifest(dataset)
    names = [name for name, split in manifest["splits"].items() if split["slices"]]
    splits = {name: load_signatures(dataset, name) for name in names}
    findings, compared = [], 0
    for (first, left), (second, right) in combinations(splits.items(), 2):
        more, pairs = compare((first, left), (second, right))
        findings += more
        compared += pairs
    verdict = Verdict(
        manifest["fingerprint"],
        tuple(findings),
        (),
        tuple(_label_conflicts(splits)),
        {name: _counts(rows, len(manifest["classes"])) for name, rows in splits.items()},
        tuple(manifest["classes"]),
        compared,
    )
    _write(dataset / "audit.json", verdict.to_json())
    overlap = []
    for place in pretraining:
        other = read_manifest(place)
        if TRAIN not in other["splits"]:
            raise DataError(f"--pretrain: {other['name']} has no split {TRAIN!r}")
        seen = (f"{other['name']} {TRAIN}", load_signatures(place, TRAIN))
        for name in (*HELD_OUT, *folds_of(splits)):  # each fold is tested once
            if name in splits:
                overlap += compare(seen, (name, splits[name]))[0]
    return dataclasses.replace(verdict, overlap=tuple(overlap))


def compare(
    first: tuple[str, Signatures], second: tuple[str, Signatures]
) -> tuple[list[Finding], int]:
    """What two lots of slices, each with its name, have in common; how many pairs were compared.

    The near duplicates are those without an exact one. Returns nothing for what is not found.
    """
    names, (left, right) = (first[0], second[0]), (first[1], second[1])
    exact, near = exact_pairs(left, right), near_pairs(left, right)
    near = near.take(~np.isin(near.right, exact.right))
    found = {
        "patients": _shared(left.patient, right.patient),
        "series": _shared(left.series, right.series),
        "exact": exact,
        "near": near,
    }
    findings = [_finding(check, names, pairs) for check, pairs in found.items() if len(pairs.left)]
    return findings, exact.compared + near.compared


def _shared(left: np.ndarray, right: np.ndarray) -> Pairs:
    """The first rows of each value that is in both."""
    _, rows_left, rows_right = np.intersect1d(left, right, return_indices=True)
    return Pairs(rows_left, rows_right)


def _finding(check: str, names: tuple[str, str], pairs: Pairs) -> Finding:
    # Evenly spread, so that the examples are not all of one patient.
    some = np.unique(np.linspace(0, len(pairs.left) - 1, EXAMPLES).astype(int))
    examples = tuple(
        ((names[0], int(pairs.left[i])), (names[1], int(pairs.right[i]))) for i in some
    )
    return Finding(check, names, len(pairs.left), examples)


def _label_conflicts(splits: dict[str, Signatures]) -> Iterator[Finding]:
    """Equal slices with different labels, wherever they are."""
    names = list(splits)
    rows = Signatures.concatenate(splits.values())
    split = np.repeat(np.arange(len(names)), [len(part) for part in splits.values()])
    row = np.concatenate([np.arange(len(part)) for part in splits.values()])
    usable = np.flatnonzero(~is_blank(rows) & (rows.label >= 0))
    order = usable[np.lexsort((rows.label[usable], rows.digest[usable]))]
    here, after = order[:-1], order[1:]
    differ = (rows.digest[here] == rows.digest[after]) & (rows.label[here] != rows.label[after])
    here, after = here[differ], after[differ]
    for pair in sorted(set(zip(split[here].tolist(), split[after].tolist(), strict=True))):
        mine = (split[here] == pair[0]) & (split[after] == pair[1])
        pairs = Pairs(row[here[mine]], row[after[mine]])
        yield _finding("exact", (names[pair[0]], names[pair[1]]), pairs)


def _counts(rows: Signatures, classes: int) -> dict[str, Any]:
    _, slices = np.unique(rows.patient, return_counts=True)
    return {
        "slices": len(rows),
        "patients": len(slices),
        "labels": np.bincount(rows.label[rows.label >= 0], minlength=classes).tolist(),
        "slices_per_patient": [int(slices.min()), float(np.median(slices)), int(slices.max())],
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Audits one dataset; returns the exit code."""
    from data_prep.command import run  # which itself audits

    parser = argparse.ArgumentParser(
        prog="python -m data_prep.audit",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python -m data_prep.audit --data=data/task --pretrain=data/scans",
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument(
        "--pretrain",
        type=Path,
        nargs="+",
        default=[],
        metavar="DATASET",
        help="datasets whose training split was or will be pre-trained on",
    )
    parser.add_argument("--json", type=Path, help="file to write the verdict to as well")
    passed = True

    def task(args: argparse.Namespace) -> None:
        nonlocal passed
        verdict = audit(args.data, args.pretrain)
        if args.json:
            _write(args.json, verdict.to_json())
        print(verdict.table())
        passed = verdict.passed

    return run(task, parser, argv) or (0 if passed else DataError.exit_code)


if __name__ == "__main__":
    sys.exit(main())
