"""The gate: no run on data that leaks into its test, unless told to, and then marked.

A dataset carries the verdict of `data_prep.audit`. A run leaves the signatures of the slices that
its encoder has seen: `seen.npy`, in pre-training, its own and that of the encoder it starts from,
and `learnt.npy`, those whose labels a fine-tuning learns or chooses by. What is fine-tuned from its
encoder, or evaluated, is compared with both. Where something leaks a run is refused. With
`config.data.accept_leakage=true` it is done, and every result of it says so.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ctssl_jax.data import Dataset
from ctssl_jax.dataset.leaks import compare, from_texts
from ctssl_jax.dataset.matching import Name
from ctssl_jax.dataset.signatures import Signatures, load_file, load_signatures, save_signatures
from ctssl_jax.dataset.verdict import FORMAT
from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import read_json
from ctssl_jax.hosts import distributed
from ctssl_jax.run import folder as run_folder

SEEN = "seen.npy"
LEARNT = "learnt.npy"
FLAG = "--config.data.accept_leakage=true"
"""What accepts a leak, in a run; a command that calls it otherwise names its own flag."""
UNKNOWN = "unknown"

Stamp = dict[str, Any]


def require_audit(dataset: Dataset, accept: bool, flag: str = FLAG) -> Stamp:
    """What the audit of a dataset says, for `data.json` and `results.json`.

    Args:
      dataset: that a run is to learn from or to be tested on.
      accept: take it although it leaks.
      flag: with which the user accepts that, for the message.

    Returns:
      `verdict`; if that is "fail" also `accepted` and `findings`, each with its `check`, `splits`
      and `count`; if a person called pairs no duplicates also `not_duplicates`, how many.

    Raises:
      DataError: there is no audit of this very dataset, or it found leaks that are not accepted.
    """
    file = dataset.path / "audit.json"
    command = f"run `python -m data_prep.audit --data={dataset.path}`"
    try:
        audit = read_json(file)
        known = audit["format"], audit["fingerprint"]
        passed, findings = audit["verdict"] == "pass", audit["findings"]
        findings = [{key: row[key] for key in ("check", "splits", "count")} for row in findings]
        apart = from_texts(audit.get("not_duplicates", ()))
    except FileNotFoundError:
        raise DataError(f"{dataset.path}: not audited for leaks: {command}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: unreadable: {command}") from error
    if known != (FORMAT, dataset.fingerprint):
        raise DataError(f"{file}: the audit is of other data: {command}")
    excepted = {"not_duplicates": len(apart)} if apart else {}
    if passed:
        return {"verdict": "pass"} | excepted
    if not accept:
        found = "; ".join(
            f"{' and '.join(row['splits'])} share {row['count']} {_noun(row['check'])}"
            for row in findings
        )
        raise DataError(
            f"{dataset.path} leaks between its splits ({found}): `{command[5:-1]} "
            f"--show_pairs=FOLDER` shows them; prepare it anew, split by patient and with "
            f"--join_duplicates, or except what is of different people; {_accept(flag)}"
        )
    return {"verdict": "fail", "accepted": True, "findings": findings} | excepted


def _not_duplicates(dataset: Dataset) -> frozenset[Name]:
    """The pairs that the audit of a dataset says are no duplicates."""
    try:
        audit = read_json(dataset.path / "audit.json")
        return from_texts(audit.get("not_duplicates", ()))
    except (OSError, ValueError, AttributeError, TypeError):
        return frozenset()  # then `require_audit` has said so


def with_earlier(audit: Stamp, encoder_run: str) -> Stamp:
    """The audit of a run's data, or that of the run it starts from if that one leaks."""
    earlier = pretraining_audit(encoder_run)
    return earlier if isinstance(earlier, dict) and earlier["verdict"] == "fail" else audit


def write_seen(
    workdir: Path,
    dataset: Dataset,
    split: str,
    rows: Int[np.ndarray, " m"] | None,
    encoder_run: str = "",
) -> None:
    """Leaves the signatures of the slices that a pre-training run sees: its `rows`, or all.

    And of those that the encoder saw which it starts from. Where that is not known, as of an
    import, none are left: what the run's encoder has seen is then not known either.
    """
    resumed = (workdir / SEEN).exists()  # and the folder is of the same data and filter
    if resumed or not distributed.is_first() or not _is_known(encoder_run):
        return
    signatures = load_signatures(dataset.path, split)
    own = signatures if rows is None else signatures.take(rows)
    save_signatures(workdir / SEEN, [own, *map(_left, _files(encoder_run))])


def pass_on_seen(workdir: Path, encoder_run: str) -> None:
    """Leaves what the encoder has seen that a fine-tuning starts from, where that is known."""
    resumed = (workdir / SEEN).exists()
    earlier = _files(encoder_run)
    if earlier and _is_known(encoder_run) and not resumed and distributed.is_first():
        save_signatures(workdir / SEEN, [_left(file) for file in earlier])


def _files(encoder_run: str) -> list[Path]:
    """Where the signatures are of what an encoder has seen, as far as that is known."""
    if not encoder_run:
        return []
    return [file for name in (SEEN, LEARNT) if (file := Path(encoder_run) / name).exists()]


def _left(file: Path) -> Signatures:
    """The signatures that a run left.

    Raises:
      StorageError: they cannot be read.
    """
    try:
        return load_file(file)
    except DataError as error:
        raise StorageError(
            f"{file} cannot be read, or is damaged: restore it, or repeat its run in another "
            "--workdir"
        ) from error


def _is_known(encoder_run: str) -> bool:
    """Whether `_files` are of all that an encoder has seen; of none there is nothing to know."""
    if not encoder_run or (Path(encoder_run) / SEEN).exists():
        return True
    # A fine-tuning from scratch has learnt, and its encoder had seen nothing before.
    data = run_folder.read_data(Path(encoder_run)) if _files(encoder_run) else None
    return data is not None and data.get("encoder_run", UNKNOWN) is None


def write_learnt(
    workdir: Path, dataset: Dataset, rows: Mapping[str, Int[np.ndarray, " m"]]
) -> None:
    """Leaves the signatures of the labelled slices that a run learns from and is chosen by."""
    if distributed.is_first():
        of = [load_signatures(dataset.path, split).take(own) for split, own in rows.items()]
        save_signatures(workdir / LEARNT, of)


def learnt_of(run: Path, dataset: Dataset) -> dict[str, int] | str:
    """What of a dataset a fine-tuned run has learnt from, as `require_unseen` counts it.

    "unknown" if the run left no signatures, as older versions did not.
    """
    if not (run / LEARNT).exists():
        return UNKNOWN
    splits = dataset.manifest["splits"]
    new = Signatures.concatenate(load_signatures(dataset.path, split) for split in splits)
    return _counts(_left(run / LEARNT), new, "all", _not_duplicates(dataset))


def _counts(
    seen: Signatures, held_out: Signatures, name: str, apart: frozenset[Name]
) -> dict[str, int]:
    """Patients, series, equal and nearly equal slices that both have."""
    counts = Counter(dict.fromkeys(("patients", "series", "exact", "near"), 0))
    for finding in compare(("pre-training", seen), (name, held_out), apart):
        counts[finding.check] = finding.count
    return dict(counts)


def require_unseen(
    dataset: Dataset,
    splits: tuple[str, ...],
    encoder_run: str,
    accept: bool,
    flag: str = FLAG,
) -> Stamp | str | None:
    """What of the given splits the encoder has seen or learnt before, for `results.json`.

    Args:
      dataset: that the encoder is to be tested on.
      splits: of it, that are held out.
      encoder_run: where the encoder comes from; empty: none.
      accept: take it although some were seen.
      flag: with which the user accepts that, for the message.

    Returns:
      None without an encoder run; "unknown" if it left no signatures of all, as older versions did
      not, and those that it left are of other slices; else the number of patients, series, equal
      and nearly equal slices that were seen, as `patients`, `series`, `exact` and `near`, and
      whether that was `accepted`.

    Raises:
      DataError: some were seen, and that is not accepted.
    """
    if not encoder_run:
        return None
    files = _files(encoder_run)
    if not files:
        return UNKNOWN
    changed = tuple((file, file.stat().st_mtime_ns) for file in files)
    counts = dict(_seen_counts(changed, dataset, splits, _not_duplicates(dataset)))
    if not sum(counts.values()):
        return counts if _is_known(encoder_run) else UNKNOWN
    if not accept:
        found = ", ".join(f"{count} {_noun(check)}" for check, count in counts.items() if count)
        raise DataError(
            f"{dataset.path}: the encoder of {encoder_run} has seen {found} of the splits "
            f"{' and '.join(splits)}: pre-train without them; {_accept(flag)}"
        )
    return {**counts, "accepted": True}


@functools.lru_cache(maxsize=256)
def _seen_counts(
    files: tuple[tuple[Path, int], ...],
    dataset: Dataset,
    splits: tuple[str, ...],
    apart: frozenset[Name],
) -> dict[str, int]:
    """`_counts` of files and when they were written: the cells of a sweep ask the same again."""
    held_out = Signatures.concatenate(load_signatures(dataset.path, split) for split in splits)
    seen = Signatures.concatenate(_left(file) for file, _ in files)
    return _counts(seen, held_out, " and ".join(splits), apart)


def pretraining_audit(encoder_run: str) -> Stamp | str | None:
    """What the gate said of the data that an encoder was pre-trained on, for `results.json`.

    None without an encoder run; "unknown" if it does not say, as older versions did not.
    """
    if not encoder_run:
        return None
    return (run_folder.read_data(Path(encoder_run)) or {}).get("audit", UNKNOWN)


def _accept(flag: str) -> str:
    return f"to run all the same, with every result marked, set {flag}"


def _noun(check: str) -> str:
    return {"exact": "equal slices", "near": "nearly equal slices"}.get(check, check)
