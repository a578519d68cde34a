"""Whether test data was seen before: `python -m data_prep.audit --data=DATASET`.

Checks that no patient, series or picture is in two splits of a dataset, and with --pretrain that
none of its validation and test splits, or folds, is in the training split of another. Pictures are
compared bit for bit and as near duplicates (`matching`). Exit code 0: pass; 3: fail.

The verdict on the dataset itself is written into it, as DATASET/audit.json. Training refuses a
dataset without that file, or with a verdict of fail, unless it is told to accept the leakage.
--show_pairs lets you look at the pairs; those that are of different people can be excepted with
--not_duplicates, which the file records.
Every dataset is audited when it is prepared. Patients and series of two datasets can be told to be
the same only if both were prepared with the same key.
"""

import dataclasses
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax import command
from ctssl_jax.dataset.leaks import findings_of, label_conflicts, shared, to_text
from ctssl_jax.dataset.manifest import read_manifest
from ctssl_jax.dataset.matching import Name, Pairs, names
from ctssl_jax.dataset.signatures import Signatures, load_signatures
from ctssl_jax.dataset.splits import folds_of
from ctssl_jax.dataset.verdict import Finding, Verdict
from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import require_own_file, sealed, write_json
from data_prep.not_duplicates import read_not_duplicates
from data_prep.show_pairs import Shown, require_own_folder, write_pairs

TRAIN, HELD_OUT = "train", ("val", "test")  # what is compared with a pre-training set
KEYS = ("format", "fingerprint", "verdict", "findings")  # of a verdict, among others


def audit(
    dataset: Path,
    pretraining: Sequence[Path] = (),
    apart: Collection[Name] = (),
    show: Path | None = None,
) -> Verdict:
    """Audits a dataset folder and writes its `audit.json`.

    That file leaves out what overlaps with pre-training sets: it is true of the dataset alone.

    Args:
        dataset: The folder.
        pretraining: Folders whose training split an encoder has seen, or may see.
        apart: Pairs that are no duplicates; see `not_duplicates`.
        show: A folder for a picture and a table of the pairs that were found.

    Raises:
        DataError: If a dataset cannot be read, or no pair of `apart` is of this one.
        StorageError: If a file cannot be written.
    """
    manifest = read_manifest(dataset)
    folders = [dataset, *pretraining]
    if show:
        require_own_folder(show, folders)
    splits = {
        name: load_signatures(dataset, name)
        for name, split in manifest["splits"].items()
        if split["slices"]
    }
    of_this = _known(apart, splits)
    findings, shown, compared = list[Finding](), list[Shown](), 0
    for (first, left), (second, right) in combinations(splits.items(), 2):
        found = shared(left, right, apart)
        findings += findings_of((first, second), found)
        shown += _shown(((dataset, first), (dataset, second)), left, right, found)
        compared += sum(pairs.compared for pairs in found.values())
    verdict = Verdict(
        manifest["fingerprint"],
        tuple(findings),
        (),
        tuple(label_conflicts(splits)),
        {name: _counts(rows, len(manifest["classes"])) for name, rows in splits.items()},
        tuple(manifest["classes"]),
        compared,
        of_this,
    )
    _write(dataset / "audit.json", verdict.to_json())
    overlap = list[Finding]()
    for place in pretraining:
        other = read_manifest(place)
        if TRAIN not in other["splits"]:
            raise DataError(f"--pretrain: {other['name']} has no split {TRAIN!r}")
        seen = load_signatures(place, TRAIN)
        for name in (*HELD_OUT, *folds_of(splits)):  # each fold is tested once
            if name in splits:
                found = shared(seen, splits[name], apart)
                overlap += findings_of((f"{other['name']} {TRAIN}", name), found)
                shown += _shown(((place, TRAIN), (dataset, name)), seen, splits[name], found)
    if show:
        write_pairs(show, shown)
    return dataclasses.replace(verdict, overlap=tuple(overlap))


def _known(apart: Collection[Name], splits: dict[str, Signatures]) -> tuple[str, ...]:
    """Those of the pairs of which a slice is in the dataset, as text.

    Raises:
        DataError: If there are pairs, but none such.
    """
    digests = {int(digest) for rows in splits.values() for digest in rows.digest}
    of_this = tuple(to_text(name) for name in sorted(apart) if digests & set(name))
    if apart and not of_this:
        raise DataError("--not_duplicates: none of its pairs is of this dataset")
    return of_this


def _shown(
    places: tuple[tuple[Path, str], tuple[Path, str]],
    left: Signatures,
    right: Signatures,
    found: dict[str, Pairs],
) -> Iterator[Shown]:
    for check in ("exact", "near"):
        pairs = found[check]
        rows = zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
        for name, both in zip(names(left, right, pairs), rows, strict=True):
            yield Shown(name, check, places, both)


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
        write_json(path, sealed(content))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Audits one dataset; returns the exit code."""
    parser = command.Parser(
        prog="python -m data_prep.audit",
        description=__doc__,
        epilog="example: python -m data_prep.audit --data=data/task --pretrain=data/scans",
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
    parser.add_argument(
        "--show_pairs",
        type=Path,
        metavar="FOLDER",
        help="write the equal and nearly equal slices that were found there, as pairs.png to look "
        "at and pairs.csv; a folder of your own, in no dataset: it shows patients",
    )
    parser.add_argument(
        "--not_duplicates",
        type=Path,
        metavar="FILE",
        help="pairs.csv with `no` in the column `duplicate`: nearly equal slices of different "
        "people, which then do not count",
    )

    def work() -> int:
        args = parser.parse_args(argv)
        if args.json:
            require_own_file(args.json, "--json", *KEYS)
        apart = read_not_duplicates(args.not_duplicates) if args.not_duplicates else frozenset()
        verdict = audit(args.data, args.pretrain, apart, args.show_pairs)
        if args.json:
            _write(args.json, verdict.to_json())
        print(verdict.table())
        print(verdict.advice(args.data))
        return 0 if verdict.passed else DataError.exit_code

    return command.run("data_prep.audit", work)


if __name__ == "__main__":
    sys.exit(main())
