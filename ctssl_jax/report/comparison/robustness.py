"""How much an arm loses when annotations are few: its slope, its drop, and the paper's claim.

Wolf et al. call SparK the most robust against small training sets. That is a statement about
drops, not about AUCs: the AUC of SparK falls less between the largest and the smallest size than
that of another arm. Here each difference of two drops gets an interval and a p (`pairs`), corrected
for the number of arms that SparK is compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ctssl_jax.report.comparison.pairs import (
    Answer,
    Pair,
    Place,
    Question,
    Sampled,
    answered,
    interval,
)
from ctssl_jax.statistics import Interval, Training, drop, slope


@dataclass(frozen=True)
class Course:
    """One arm over all sizes: AUC gained per doubling of the training cases, and lost in all."""

    arm: str
    slope: Interval
    drop: Interval
    again: Training
    pretrainings: int


@dataclass(frozen=True)
class Claim:
    """The drop of arm `b` minus that of arm `a`: how much less `a` loses.

    Its verdict is "A higher" where `a` loses less. The same as the gain of `a` over `b` at the
    smallest size minus that at the largest.
    """

    a: str
    b: str
    answer: Answer
    pretrainings: tuple[int, int]


@dataclass(frozen=True)
class Robustness:
    """Arms that have every size of a task; those without one are `left_out`."""

    smallest: float
    largest: float
    courses: tuple[Course, ...]
    claims: tuple[Claim, ...]
    left_out: tuple[str, ...]


def robustness(
    sampled: Mapping[Place, Sampled], pairs: tuple[Pair, ...], claimed: str
) -> Robustness | None:
    """Follows each arm over the sizes and sets arm `claimed` (SparK) against each of the others.

    None where no arm has two sizes or more.
    """
    fractions = sorted({fraction for fraction, _ in sampled})
    arms = list(dict.fromkeys(arm for _, arm in sampled))
    by_arm = {
        arm: [sampled[fraction, arm] for fraction in fractions]
        for arm in arms
        if all((fraction, arm) in sampled for fraction in fractions)
    }
    by_arm = {arm: of for arm, of in by_arm.items() if of[0].size() < of[-1].size()}
    if not by_arm:
        return None
    ends = fractions[0], fractions[-1]
    return Robustness(
        *ends,
        courses=tuple(_course(arm, of) for arm, of in by_arm.items()),
        claims=_claims(by_arm, pairs, claimed, *ends) if claimed in by_arm else (),
        left_out=tuple(arm for arm in arms if arm not in by_arm),
    )


def _course(arm: str, of: list[Sampled]) -> Course:
    sizes = np.array([place.size() for place in of])
    rise, _, again = interval(of, slope(sizes))
    loss, *_ = interval(of, drop(sizes))
    return Course(arm, rise, loss, again, pretrainings(of))


def pretrainings(of: list[Sampled]) -> int:
    """How many pre-trainings an arm stands on: the fewest at any of its sizes."""
    return min(place.who().pretrainings for place in of)


def _claims(
    by_arm: Mapping[str, list[Sampled]],
    pairs: tuple[Pair, ...],
    claimed: str,
    smallest: float,
    largest: float,
) -> tuple[Claim, ...]:
    parts = {(pair.fraction, pair.a, pair.b): pair.parts for pair in pairs}
    # Turned round where the other arm is the one that a pair names first.
    parts |= {(fraction, b, a): -part for (fraction, a, b), part in parts.items()}
    others = [arm for arm in by_arm if arm != claimed]
    own = by_arm[claimed]
    answers = answered(
        [
            Question(
                [own[0], other[0], own[-1], other[-1]],
                [1, -1, -1, 1],
                parts[smallest, claimed, arm] - parts[largest, claimed, arm],
            )
            for arm in others
            for other in [by_arm[arm]]
        ]
    )
    return tuple(
        Claim(claimed, arm, answer, (pretrainings(own), pretrainings(by_arm[arm])))
        for arm, answer in zip(others, answers, strict=True)
    )
