"""Every two arms of a training size set against each other, and what may be said of them.

One arm is called higher only if two things agree: the interval of the difference, which covers the
choice of test patients and, as far as there are runs for it, training again; and p after Holm's
correction for the pairs and sizes of its family. p is the larger of two: one from swapping the two
arms' scores of whole patients, one of the levels that the interval covers. Where the luck of
fine-tuning is in neither, since a start has fewer than three repeats, nothing is called higher. The
questions of a study are those against scratch, which are one family; methods among each other are
another.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import nan

import numpy as np
from jaxtyping import Float

from ctssl_jax.report.runs import FROZEN, Cases, Run
from ctssl_jax.statistics import (
    Difference,
    Interval,
    Runs,
    Training,
    contrast,
    flip_p_values,
    holm,
    spread_over_patients,
    swap_contributions,
    trained_again,
    two_sided_p,
    verdict,
)
from ctssl_jax.statistics.levels import FEWEST_RUNS

PERMUTATIONS = 10_000
Place = tuple[float, str]
"""A training size as a fraction, and an arm."""
Coefficients = Sequence[float | int] | Float[np.ndarray, " m"]


@dataclass(frozen=True)
class Sampled:
    """Runs of one place in the order of their seeds; `tables` are of `statistics.resampled`."""

    runs: tuple[Run, ...]
    tables: Mapping[str, Float[np.ndarray, "r runs"]]

    @property
    def auc(self) -> Float[np.ndarray, "r runs"]:
        """The table of AUC."""
        return self.tables["auc"]

    def who(self) -> Runs:
        """Seed and pre-training of each run."""
        results = [run.results for run in self.runs]
        return Runs(
            results[0]["arm"],
            tuple(each["seed"] for each in results),
            tuple(each.get("encoder_run") for each in results),
        )

    def cases(self) -> Cases:
        """The test cases, which all runs share but for the scores."""
        cases = self.runs[0].cases
        assert cases is not None, "a run that counts has its test cases"
        return cases

    def scores(self) -> Float[np.ndarray, "runs n k"]:
        """Of the test cases, in one order for all runs."""
        return np.stack([run.cases.scores for run in self.runs if run.cases is not None])

    def repeated(self) -> bool:
        """Whether the luck of fine-tuning is in the numbers: three seeds or more, or no such luck.

        A classifier of frozen features that learns from the whole split is the same every time,
        unless the encoder is a random one, which a seed draws.
        """
        return len(set(self.who().seeds)) >= FEWEST_RUNS or not any(map(_left_to_luck, self.runs))

    def size(self) -> float:
        """Training cases, mean over the runs."""
        return float(np.mean([run.results["train_cases"] for run in self.runs]))


@dataclass(frozen=True)
class Question:
    """A difference to be told from zero: places, their coefficients, what each patient adds."""

    of: Sequence[Sampled]
    coefficients: Coefficients
    parts: Float[np.ndarray, " g"]


@dataclass(frozen=True)
class Answer:
    """What was found of a question.

    `difference` covers the levels of `again` beside the patients, and has the verdict;
    `over_patients` is about the networks at hand. `adjusted` is p after Holm. `repeated` is False
    where the luck of fine-tuning is in no number; the verdict is then "cannot tell".
    """

    difference: Difference
    over_patients: Interval
    again: Training
    p: float
    adjusted: float
    repeated: bool


@dataclass(frozen=True)
class Pair:
    """The AUC of arm `a` minus that of arm `b` at one training size.

    `pretrainings` are how many each of the two stands on, 0 where it has none. `ahead` counts pairs
    of runs of one seed: those in which `a` is higher, and all. `parts` are what each patient adds
    (`statistics.swap_contributions`).
    """

    fraction: float
    a: str
    b: str
    answer: Answer
    pretrainings: tuple[int, int]
    ahead: tuple[int, int]
    parts: Float[np.ndarray, " g"] = field(repr=False, compare=False)

    @property
    def difference(self) -> Difference:
        """Over all levels that there are runs for."""
        return self.answer.difference

    @property
    def adjusted(self) -> float:
        """p after Holm's correction."""
        return self.answer.adjusted


def all_pairs(sampled: Mapping[Place, Sampled], last: str) -> tuple[Pair, ...]:
    """All pairs of arms of a task, size by size; arm `last` (scratch) is the one subtracted."""
    arms: dict[float, list[str]] = defaultdict(list)
    for fraction, arm in sorted(sampled, key=lambda place: place[1] == last):
        arms[fraction].append(arm)
    names = [
        (fraction, a, b) for fraction in sorted(arms) for a, b in combinations(arms[fraction], 2)
    ]
    questions = {
        (fraction, a, b): _question(sampled[fraction, a], sampled[fraction, b])
        for fraction, a, b in names
    }
    answers: dict[tuple[float, str, str], Answer] = {}
    for against_last in (True, False):
        family = [name for name in names if (name[2] == last) == against_last]
        found = answered([questions[name] for name in family])
        answers |= dict(zip(family, found, strict=True))
    return tuple(
        Pair(
            *name,
            answers[name],
            (of_a.who().pretrainings, of_b.who().pretrainings),
            _ahead(of_a, of_b),
            questions[name].parts,
        )
        for name in names
        for of_a, of_b in [questions[name].of]
    )


def answered(family: Sequence[Question]) -> list[Answer]:
    """Interval, p and verdict of each question, p corrected for the number of them."""
    if not family:
        return []
    swapped = flip_p_values(np.stack([each.parts for each in family], axis=1), n=PERMUTATIONS)
    found = [interval(each.of, each.coefficients) for each in family]
    levels = [
        two_sided_p(estimate.estimate, _spread(each), again)
        for each, (estimate, _, again) in zip(family, found, strict=True)
    ]
    p = np.maximum(swapped, levels)  # NaN where either is not known
    repeated = [all(place.repeated() for place in each.of) for each in family]
    return [
        Answer(
            Difference(*both, verdict=verdict(both, over_patients, p=adjusted if told else nan)),
            over_patients,
            again,
            float(own),
            float(adjusted),
            told,
        )
        for (both, over_patients, again), own, adjusted, told in zip(
            found, p, holm(p), repeated, strict=True
        )
    ]


def interval(
    of: Sequence[Sampled], coefficients: Coefficients, metric: str = "auc"
) -> tuple[Interval, Interval, Training]:
    """The interval to go by, that over patients alone, and what the first holds beside them."""
    tables = [place.tables[metric] for place in of]
    who = [place.who() for place in of]
    again = trained_again(tables, coefficients, who)
    over_patients = contrast(tables, coefficients, of=who)
    return contrast(tables, coefficients, of=who, again=again), over_patients, again


def _left_to_luck(run: Run) -> bool:
    """Whether the same training again, of the same encoder, may end otherwise."""
    known = run.results.get("encoder_run") or run.config.get("features") == "radiomics"
    return not (run.kind == FROZEN and run.results["fraction"] == 1 and known)


def _spread(question: Question) -> float:
    tables = [place.auc for place in question.of]
    who = [place.who() for place in question.of]
    return spread_over_patients(tables, question.coefficients, who)


def _question(of_a: Sampled, of_b: Sampled) -> Question:
    cases = of_a.cases()
    parts = swap_contributions(
        cases.labels,
        of_a.scores(),
        of_b.scores(),
        cases.patients,
        folds=cases.folds,
        weights=(of_a.who().weights(), of_b.who().weights()),
    )
    return Question((of_a, of_b), (1, -1), parts)


def _ahead(of_a: Sampled, of_b: Sampled) -> tuple[int, int]:
    """Pairs of runs of one seed, every encoder of it: those in which `a` is above `b`, and all."""
    gaps = [
        own.results["test"]["auc"] - other.results["test"]["auc"]
        for own in of_a.runs
        for other in of_b.runs
        if own.results["seed"] == other.results["seed"]
    ]
    return sum(gap > 0 for gap in gaps), len(gaps)
