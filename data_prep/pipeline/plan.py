"""Which patient goes to which split, and which part to which shard."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ctssl_jax.dataset.splits import folds_of
from ctssl_jax.errors import DataError
from data_prep.pipeline.split import split_by_patient
from data_prep.pipeline.work import Group, Part, Shard

SHARD_BYTES = 2**29  # before compression, which halves it
SPLITS = ("train", "val", "test")


@dataclass
class SplitPlan:
    """What one split will hold."""

    shards: list[Shard] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)
    series: set[str] = field(default_factory=set)
    labels: Counter[int] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)
    cases: dict[str, int] = field(default_factory=dict)

    def add(self, part: str, group: Group) -> None:
        """Takes a group of a part into the last shard, or a new one if that is full."""
        if not self.shards or self.shards[-1].size >= SHARD_BYTES:
            self.shards.append(Shard((), 0))
        pieces, size = self.shards[-1]
        piece = (part, group.start, group.stop)
        if pieces and pieces[-1][0] == part and pieces[-1][2] == group.start:
            piece = (part, pieces[-1][1], group.stop)
            pieces = pieces[:-1]
        self.shards[-1] = Shard((*pieces, piece), size + group.size)
        self.patients.add(group.patient)
        self.series.add(group.series)
        self.labels.update({int(label): n for label, n in group.labels.items()})
        self.digests.append(group.digest)
        self.cases.update(group.cases)

    def summary(self, classes: int) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "slices": self.labels.total(),
            "patients": len(self.patients),
            "series": len(self.series),
            "labels": [self.labels[label] for label in range(classes)],
        }

    def cases_summary(self, classes: int) -> dict[str, Any]:
        """What it says of its cases, where these are not the slices."""
        labels = Counter(self.cases.values())
        return {"count": len(self.cases), "labels": [labels[label] for label in range(classes)]}


def assign(
    parts: Iterable[tuple[str, Part]],
    patients: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, str]:
    """The split of each patient that the source leaves open.

    It is over the identifiers of the source, so that another key gives the same one.

    Args:
        parts: What was read.
        patients: Identifier by pseudonym.
        fractions: Share of the patients of each split.
        seed: Another seed gives another split.

    Raises:
        DataError: If a split or fold would get no patient.
    """
    classes: dict[str, set[str]] = defaultdict(set)
    for _, part in parts:
        for group in part.groups:
            if not group.split:
                classes[patients[group.patient]].update(group.labels)
    strata = {patient: tuple(sorted(labels)) for patient, labels in classes.items()}
    if len(folds := folds_of(fractions)) > len(strata):
        raise DataError(
            f"--folds={len(folds)}: there are {len(strata)} patients to be told apart, and each "
            "fold needs one: prepare it with fewer folds, or without"
        )
    assigned = split_by_patient(strata, fractions, seed, strata)
    if assigned:
        _require_all(fractions, set(assigned.values()), len(strata))
    return assigned


def require_whole_cases(found: Iterable[tuple[str, tuple[str, int, str]]]) -> None:
    """Raises DataError if a case, by its name, is of several patients, labels or splits."""
    first: dict[str, tuple[str, int, str]] = {}
    broken: dict[str, set[str]] = {"patients": set(), "labels": set(), "splits": set()}
    for case, now in found:
        for what, one, other in zip(broken, first.setdefault(case, now), now, strict=True):
            if one != other:
                broken[what].add(case)
    for what, cases in broken.items():
        if cases:
            raise DataError(
                f"{len(cases)} cases have slices of several {what}: a case is one thing with one "
                "label; say in --labels or by --case what it is"
            )


def _require_all(fractions: Mapping[str, float], found: set[str], patients: int) -> None:
    """Raises DataError if a split that is to have patients has none."""
    empty = [split for split, share in fractions.items() if share > 0 and split not in found]
    if empty:
        without = " ".join(f"--{split}_fraction=0" for split in empty if split != "train")
        raise DataError(
            f"the split {' and '.join(empty)} would get no patient: there "
            + ("is 1 patient" if patients == 1 else f"are {patients} patients")
            + f" to be told apart. Give more, or say {without or 'a smaller share for the others'}"
        )


def make_plan(
    parts: Iterable[tuple[str, Part]],
    patients: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, SplitPlan]:
    """Assigns patients to splits, as `assign` does, and groups to shards.

    `parts` are gone through more than once, and not kept: they may be many.

    Raises:
        DataError: Also if the slices of a case are not of one patient, label and split.
    """
    require_whole_cases(
        (case, (group.patient, label, group.split))
        for _, part in parts
        for group in part.groups
        for case, label in group.cases.items()
    )
    split_of = assign(parts, patients, fractions, seed)
    plan: dict[str, SplitPlan] = defaultdict(SplitPlan)
    for name, part in parts:
        for group in part.groups:
            split = group.split or split_of[patients[group.patient]]
            plan[split].add(name, group)
    order = [split for split in dict.fromkeys((*SPLITS, *fractions)) if split in plan]
    return {split: plan[split] for split in [*order, *sorted(set(plan) - set(order))]}
