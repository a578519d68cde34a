"""Which part of a labelled training split a run sees: the small-data axis of the study.

What is drawn are cases, or patients with all their cases: scans where a label is of a scan, never
some of its slices.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from ctssl_jax import data
from ctssl_jax.config import EvaluateConfig, FinetuneConfig, SubsetBy
from ctssl_jax.dataset.cases import SLICE, CaseTable, case_word, plural
from ctssl_jax.errors import ConfigError, DataError

NO_CASES = CaseTable(np.zeros(0, np.int32), np.zeros(0, str), np.zeros(0, str), ())


class Subset(NamedTuple):
    """The part of the training split that a run sees.

    Attributes:
      rows: row numbers of its slices in the split, ascending.
      of: slices in the split.
      patients: of the part.
      fraction: that was asked for, of the cases or patients.
      cases: of the part.
      of_cases: cases in the split.
    """

    rows: Int[np.ndarray, " m"]
    of: int
    patients: int
    fraction: float
    cases: CaseTable = NO_CASES
    of_cases: int = 0

    def counted(self, word: str, split: str) -> str:
        """In words: "41 of 60 training scans (1,230 slices, 41 patients)"."""
        slices = "" if word == SLICE else f"{len(self.rows):,} slices, "
        return (
            f"{len(self.cases)} of {self.of_cases} {split} {plural(word)} "
            f"({slices}{self.patients} patients)"
        )

    def record(
        self, config: FinetuneConfig | EvaluateConfig, val: "Subset | None" = None
    ) -> dict[str, Any]:
        """What `subset.json` holds: row numbers, which name nobody.

        Of a validation split only where it was cut.
        """
        cut = {}
        if val is not None and len(val.rows) < val.of:
            cut = {"val": {"split": config.val_split, "rows": val.rows.tolist()}}
        return cut | {
            "split": config.data.split,
            "by": config.subset_by.value,
            "seed": config.subset_seed,
            "of": self.of,
            "rows": self.rows.tolist(),
            **({"cases": len(self.cases)} if self.cases.named else {}),
        }


def training_subset(config: FinetuneConfig | EvaluateConfig, dataset: data.Dataset) -> Subset:
    """The subset that a run's config asks for.

    Raises:
      ConfigError: it cannot be drawn, or holds a single class.
      DataError: a record has no label.
    """
    table, by = data.read_cases(dataset, config.data.split), config.subset_by
    chosen = subset(
        *(table.labels, table.patients, config.fraction, config.subset_seed, by),
        count=config.count,
        word=_drawn(dataset),
    )
    if len(set(table.labels[chosen].tolist())) < 2:
        asked = f"count={config.count}" if config.count else f"fraction={config.fraction:g}"
        raise ConfigError(
            f"{asked}: what is drawn of split {config.data.split!r} holds a single class; give "
            "more, or another subset_by"
        )
    items = len(set(table.patients)) if by is SubsetBy.PATIENT else len(table)
    return _subset(table, chosen, config.count / items if config.count else config.fraction)


def validation_subset(config: FinetuneConfig | EvaluateConfig, dataset: data.Dataset) -> Subset:
    """The part of the validation split that a run uses; all of it without `val_count`.

    Raises:
      ConfigError: it cannot be drawn, or holds a single class.
    """
    table, by = data.read_cases(dataset, config.val_split), config.subset_by
    if not config.val_count:
        return _subset(table, np.arange(len(table)), 1.0)
    chosen = subset(
        *(table.labels, table.patients, 1.0, config.subset_seed, by),
        count=config.val_count,
        name="val_count",
        word=_drawn(dataset),
    )
    if len(set(table.labels[chosen].tolist())) < 2:
        raise ConfigError(
            f"val_count={config.val_count}: what is drawn of split {config.val_split!r} holds a "
            "single class; give more, or another subset_by"
        )
    items = len(set(table.patients)) if by is SubsetBy.PATIENT else len(table)
    return _subset(table, chosen, config.val_count / items)


def _drawn(dataset: data.Dataset) -> str:
    """What is drawn, in words."""
    word = case_word(dataset.manifest)
    return "image" if word == SLICE else word


def _subset(table: CaseTable, chosen: Int[np.ndarray, " m"], fraction: float) -> Subset:
    cases = table.take(chosen)
    patients = len(set(cases.patients))
    return Subset(cases.slice_rows(), table.slices, patients, fraction, cases, len(table))


def subset(
    labels: Int[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"],
    fraction: float,
    seed: int,
    by: SubsetBy = SubsetBy.IMAGE,
    count: int = 0,
    name: str = "count",
    word: str = "image",
) -> Int[np.ndarray, " m"]:
    """The places, ascending, of a part of the cases.

    It has `fraction * n` of n cases or patients, rounded down, or `count` where that is not 0.
    IMAGE and PATIENT take at least one of each class. Depends on nothing but the arguments; of one
    seed, smaller subsets are contained in larger ones. `name` is that of `count` in errors, `word`
    that of a case.

    Raises:
      ConfigError: `fraction` is not in (0, 1], or there are not `count` to take, or fewer than
        there are classes.
      DataError: a record has no label.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction}: must be above 0 and at most 1")
    if len(labels) == 0 or labels.min() < 0:
        raise DataError(
            f"a labelled subset needs labels: {np.count_nonzero(labels < 0)} of {len(labels)} "
            "records have none"
        )
    if by is not SubsetBy.PATIENT:
        order, least = _image_order(labels, seed, by)
        return np.sort(order[: _size(len(order), least, fraction, count, plural(word), name)])
    _, owner = np.unique(patients, return_inverse=True)
    votes = np.zeros((owner.max() + 1, labels.max() + 1), np.int64)
    np.add.at(votes, (owner, labels), 1)
    order, least = _stratified_order(votes.argmax(axis=1), seed)
    order, holders = _every_class_first(order, votes > 0)
    least = max(least, holders)
    drawn = order[: _size(len(order), least, fraction, count, "patients", name)]
    return np.flatnonzero(np.isin(owner, drawn))


def _size(n: int, least: int, fraction: float, count: int, what: str, name: str) -> int:
    if not count:
        # 0.29 * 100 is 28.999999999999996: what a float's last bits lack is no item less.
        return max(int(fraction * n * (1 + 1e-15)), least)
    if not least <= count <= n:
        split = "training" if name == "count" else "validation"
        raise ConfigError(
            f"{name}={count}: the {split} split has {n} {what}, and {least} are the fewest to take"
        )
    return count


def _every_class_first(
    order: Int[np.ndarray, " g"], has: Bool[np.ndarray, "g k"]
) -> tuple[Int[np.ndarray, " g"], int]:
    """The order with the first patient of each class before all others, and how many these are.

    A patient counts in one stratum and may hold further classes, so beginnings of the order may
    lack a class. One that lacks none holds these patients already and stays the same set.
    """
    first = np.unique(has[order].argmax(axis=0)[has.any(axis=0)])
    return np.concatenate([order[first], np.delete(order, first)]), len(first)


def _image_order(
    labels: Int[np.ndarray, " n"], seed: int, by: SubsetBy
) -> tuple[Int[np.ndarray, " n"], int]:
    """The cases in the order in which they are taken, and how many must be."""
    if by is SubsetBy.FIRST:
        return np.arange(len(labels)), 1
    if by is SubsetBy.IMAGE_UNSTRATIFIED:
        return random_order(len(labels), seed), 1
    return _stratified_order(labels, seed)


def random_order(n: int, seed: int) -> Int[np.ndarray, " n"]:
    """The numbers 0 to n - 1 in a random order that is the same everywhere."""
    return np.argsort(_draw(n, seed), kind="stable")


def _draw(n: int, seed: int) -> Shaped[np.ndarray, " n"]:
    # Raw bits: NumPy keeps these, not what `Generator` makes of them, the same across versions.
    return np.random.PCG64(seed).random_raw(n)


def _stratified_order(
    strata: Int[np.ndarray, " n"], seed: int
) -> tuple[Int[np.ndarray, " n"], int]:
    """One fixed random order of which every beginning keeps the strata in proportion; their number.

    Item number r (from 0) of a stratum of N is due at (r + 1/2) / N of the order: Sainte-Laguë's
    apportionment, which unlike the largest remainder never takes a place back as the total grows.
    The first of each stratum comes before all others.
    """
    draw = _draw(len(strata), seed)
    order = np.lexsort((draw, strata))
    _, start, count = np.unique(strata[order], return_index=True, return_counts=True)
    rank = np.arange(len(strata)) - np.repeat(start, count)
    due = np.where(rank == 0, 0.0, (rank + 0.5) / np.repeat(count, count))
    return order[np.lexsort((draw[order], due))], len(count)
