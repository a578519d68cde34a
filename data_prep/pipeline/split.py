"""Splits by patient: no patient is in two splits."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping

from ctssl_jax.dataset.splits import fold_names
from ctssl_jax.errors import ConfigError
from data_prep.names import to_bytes


def split_by_patient(
    patients: Iterable[str],
    fractions: Mapping[str, float],
    seed: int = 0,
    labels: Mapping[str, Hashable] | None = None,
) -> dict[str, str]:
    """Assigns every patient to a split.

    The result depends on the set of patients and the seed only, neither on the order of the
    patients nor on the key of the pseudonyms. Every split with a fraction above 0 gets a patient
    if there are enough, of each label if that label has enough.

    Args:
        patients: Identifiers of the patients, as in the source (not pseudonyms).
        fractions: Share of the patients of each split, e.g. {"train": .6, "val": .2, "test": .2}.
        seed: Another seed gives another split.
        labels: Stratum of each patient, e.g. the set of its classes.

    Returns:
        The split of each patient.
    """
    fractions = {split: share for split, share in fractions.items() if share > 0}
    strata: dict[Hashable, list[str]] = defaultdict(list)
    for patient in sorted(set(patients), key=lambda p: _rank(p, seed)):
        strata[labels[patient] if labels else None].append(patient)
    small = [stratum for stratum, members in strata.items() if len(members) < len(fractions)]
    rest = [patient for stratum in small for patient in strata.pop(stratum)]
    groups = [*strata.values(), sorted(rest, key=lambda p: _rank(p, seed))]
    result: dict[str, str] = {}
    for members in groups:
        names = [s for s, n in _apportion(len(members), fractions).items() for _ in range(n)]
        result.update(zip(members, names, strict=True))
    return result


def split_fractions(val: float, test: float) -> dict[str, float]:
    """Returns the share of each split; what val and test leave is train.

    Raises:
        ConfigError: If a share is negative or nothing is left for train.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):  # so that NaN is refused, too
        raise ConfigError(
            f"--val_fraction={val} and --test_fraction={test}: both must be 0 or more, "
            "and together below 1"
        )
    return {"train": 1 - val - test, "val": val, "test": test}


def fold_fractions(folds: int) -> dict[str, float]:
    """Returns the equal share of each fold of a cross-validation; raises as `fold_names`."""
    names = fold_names(folds, "--folds")
    return dict.fromkeys(names, 1 / len(names))


def shared_patients(places: Iterable[tuple[str, str]]) -> int:
    """How many patients are in more than one split, given (patient, split) of each item."""
    splits: dict[str, set[str]] = defaultdict(set)
    for patient, split in places:
        splits[patient].add(split)
    return sum(len(of_patient) > 1 for of_patient in splits.values())


def _rank(patient: str, seed: int) -> bytes:
    return hashlib.sha256(to_bytes(f"{seed}:{patient}")).digest()


def _apportion(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Shares out `total` by largest remainder, at least one each if `total` is enough."""
    exact = {split: total * share / sum(fractions.values()) for split, share in fractions.items()}
    counts = {split: int(share + 1e-9) for split, share in exact.items()}
    by_remainder = sorted(counts, key=lambda s: counts[s] - exact[s])
    for split in by_remainder[: total - sum(counts.values())]:
        counts[split] += 1
    for split in counts:
        if counts[split] == 0 and total >= len(counts):
            counts[max(counts, key=lambda s: counts[s])] -= 1
            counts[split] += 1
    return counts
