"""Every two arms of a training size set against each other, and what may be said of them.

One arm is called higher only if two things agree: the interval of the difference, which covers the
choice of test patients and, from three runs on, training again; and the permutation p over
patients after Holm's correction for all pairs and sizes of the task. The first guards against a
lucky seed, the second against having looked at many pairs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite

import numpy as np
from jaxtyping import Float

from ctssl_jax.report.runs import Run
from ctssl_jax.statistics import (
    Difference,
    Interval,
    contrast,
    flip_p_values,
    holm,
    swap_contributions,
    verdict,
)

PERMUTATIONS = 10_000
Place = tuple[float, str]
"""A training size as a fraction, and an arm."""


@dataclass(frozen=True)
class Sampled:
    """Runs of one place in the order of their seeds, with the tables of `statistics.resampled`."""

    runs: tuple[Run, ...]
    auc: Float[np.ndarray, "r runs"]
    f1: Float[np.ndarray, "r runs"]
    accuracy: Float[np.ndarray, "r runs"]

    def seeds(self) -> list[float | int]:
        """The seed of each run."""
        return [run.results["seed"] for run in self.runs]

    def scores(self) -> Float[np.ndarray, "runs n k"]:
        """Of the test cases, in one order for all runs."""
        return np.stack([run.cases.scores for run in self.runs if run.cases is not None])

    def slices(self) -> float:
        """Training slices, mean over the runs."""
        return float(np.mean([run.results["train_slices"] for run in self.runs]))


@dataclass(frozen=True)
class Pair:
    """The AUC of arm `a` minus that of arm `b` at one training size.

    `difference` is over patients and runs, or over patients where not `over_runs`, and has the
    verdict; `over_patients` is about the networks at hand. `adjusted` is p after Holm. `parts` are
    what each patient adds (`statistics.swap_contributions`).
    """

    fraction: float
    a: str
    b: str
    difference: Difference
    over_patients: Interval
    over_runs: bool
    seeds_ahead: tuple[int, int]
    p: float
    adjusted: float
    parts: Float[np.ndarray, " g"] = field(repr=False, compare=False)


def all_pairs(sampled: Mapping[Place, Sampled], last: str) -> tuple[Pair, ...]:
    """All pairs of arms of a task, size by size; arm `last` (scratch) is the one subtracted."""
    arms: dict[float, list[str]] = defaultdict(list)
    for fraction, arm in sorted(sampled, key=lambda place: place[1] == last):
        arms[fraction].append(arm)
    names = [
        (fraction, a, b) for fraction in sorted(arms) for a, b in combinations(arms[fraction], 2)
    ]
    parts = [_parts(sampled[fraction, a], sampled[fraction, b]) for fraction, a, b in names]
    pairs = []
    for (fraction, a, b), own, p, adjusted in zip(names, parts, *p_values(parts), strict=True):
        of_a, of_b = sampled[fraction, a], sampled[fraction, b]
        found = difference([of_a, of_b], [1, -1], adjusted)
        pairs.append(Pair(fraction, a, b, *found, _seeds_ahead(of_a, of_b), p, adjusted, own))
    return tuple(pairs)


def intervals(
    of: Sequence[Sampled], coefficients: Sequence[float | int] | Float[np.ndarray, " m"]
) -> tuple[Interval, Interval, bool]:
    """The interval to go by, that over patients, and whether the first covers runs as well.

    Runs are paired by seed where all places have the same seeds. Runs of several encoders count as
    independent of each other.
    """
    tables = [place.auc for place in of]
    paired = all(place.seeds() == of[0].seeds() for place in of)
    over_patients = contrast(tables, coefficients)
    both = contrast(tables, coefficients, over_runs=True, paired=paired)
    covered = isfinite(both.low)
    return both if covered else over_patients, over_patients, covered


def p_values(parts: Sequence[Float[np.ndarray, " g"]]) -> tuple[list[float], list[float]]:
    """Two-sided permutation p of each difference, and the same corrected for their number."""
    if not parts:
        return [], []
    p = flip_p_values(np.stack(parts, axis=1), n=PERMUTATIONS)
    return p.tolist(), holm(p).tolist()


def difference(
    of: Sequence[Sampled], coefficients: Sequence[int], adjusted: float
) -> tuple[Difference, Interval, bool]:
    """As `intervals`, with the verdict."""
    found, over_patients, over_runs = intervals(of, coefficients)
    said = verdict(found, over_patients, p=adjusted)
    return Difference(*found, verdict=said), over_patients, over_runs


def _parts(of_a: Sampled, of_b: Sampled) -> Float[np.ndarray, " g"]:
    cases = of_a.runs[0].cases
    assert cases is not None, "a run that counts has its test cases"
    return swap_contributions(cases.labels, of_a.scores(), of_b.scores(), cases.patients)


def _seeds_ahead(of_a: Sampled, of_b: Sampled) -> tuple[int, int]:
    """Seeds in which `a` is above `b`, and seeds that both have."""
    own, other = (
        {run.results["seed"]: run.results["test"]["auc"] for run in of.runs} for of in (of_a, of_b)
    )
    shared = own.keys() & other.keys()
    return sum(own[seed] > other[seed] for seed in shared), len(shared)
