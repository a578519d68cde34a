"""Training again: the luck of a fine-tuning and of a pre-training, told apart.

An arm that starts from an encoder has two levels of training: the encoder, and the fine-tunings of
it, which differ by their seed. Fine-tunings of one encoder share its luck, so however many there
are, they say nothing of pre-training again. Hence means are taken within a pre-training first, and
Student's t is over the pre-trainings (of scratch: over its seeds). Seeds are usually the same for
every encoder, and what a seed brings for all of them, such as the training subset it draws, is in
no mean of an encoder. So the error of a mean has a part for the encoders and one for the seeds:

    s^2 of the encoders' means / encoders + s^2 of the seeds' means / seeds.

The noise of a single run is in both parts, so the sum is a little too large, never too small (Owen,
Ann. Appl. Stat. 1:386, 2007). Each part has a t distribution of its own, and errors of independent
parts are added as they are drawn (Behrens and Fisher), which holds its level with two or three
pre-trainings, where a common number of degrees of freedom (Welch) does not.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from math import isfinite, nan, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy.stats import t as student_t

FEWEST_RUNS = 3
"""Below so many seeds nothing is claimed about fine-tuning again."""
FEWEST_PRETRAININGS = 2
"""Below so many nothing is claimed about pre-training again: the arm is this one encoder."""
DRAWS = 4_000
"""Of everything but the heaviest tail, in `two_sided_p`."""


class Runs(NamedTuple):
    """Who the runs of an arm at one size are.

    `encoders` names the pre-training that each run started from, None where there was none.
    """

    arm: Hashable
    seeds: tuple[Hashable, ...]
    encoders: tuple[Hashable, ...]

    @property
    def pretrainings(self) -> int:
        """The number of different pre-trainings."""
        return len(set(self.encoders) - {None})

    def weights(self) -> Float[np.ndarray, " runs"]:
        """Of each run in the mean over pre-trainings of the means over fine-tunings."""
        count = len(set(self.encoders))
        return np.array([1 / (count * self.encoders.count(name)) for name in self.encoders])

    def by_encoder(self, values: Num[np.ndarray, " runs"]) -> dict[Hashable, float]:
        """The mean over the fine-tunings of each pre-training."""
        return _means(self.encoders, values)


class Error(NamedTuple):
    """A standard error with the degrees of freedom of its estimate."""

    scale: float
    freedom: int


class Training(NamedTuple):
    """The errors of training again, and the levels that they hold.

    `fine_tunings` is False if a table has too few seeds. `pretrainings` is False if an arm that
    starts from an encoder has too few of them, and then the result is about the one at hand.
    """

    errors: tuple[Error, ...]
    fine_tunings: bool
    pretrainings: bool

    def drawn(self, n: int, seed: int) -> Float[np.ndarray, " n"]:
        """`n` draws of the sum of the errors."""
        rng = np.random.default_rng([seed, 1])  # not the numbers that drew the patients
        total = np.zeros(n)
        for scale, freedom in self.errors:
            total += scale * rng.standard_t(freedom, size=n)
        return total


NOTHING = Training((), False, False)
"""Of networks at hand: neither level."""


def training(
    values: Sequence[Num[np.ndarray, " _"]],
    of: Sequence[Runs],
    coefficients: Sequence[float | int] | Float[np.ndarray, " m"],
) -> Training:
    """The errors of a weighted sum of means over runs.

    Args:
      values: of each table, one number for each of its runs.
      of: who these runs are. Where all tables have the same seeds these are paired, so that what a
        seed brings to all cancels; likewise the encoders of one arm at several sizes.
      coefficients: of the tables' means in the sum.
    """
    tables = list(zip(values, of, coefficients, strict=True))
    fine_tunings = all(len(set(runs.seeds)) >= FEWEST_RUNS for runs in of)
    started = [runs for runs in of if runs.pretrainings]
    errors = _of_encoders(tables)
    if fine_tunings:
        errors += _of_seeds(tables)
    covered = all(runs.pretrainings >= FEWEST_PRETRAININGS for runs in started)
    return Training(tuple(errors), fine_tunings, covered and bool(started))


def two_sided_p(estimate: float, patients: float, again: Training) -> float:
    """The chance of so large an estimate where there is no difference, by all levels together.

    Args:
      estimate: of the difference.
      patients: its standard error over patients, as the bootstrap has it.
      again: the errors of training again.
    """
    if not (isfinite(estimate) and isfinite(patients)):
        return nan
    errors = sorted((error for error in again.errors if error.scale > 0), key=lambda e: e.freedom)
    rng = np.random.default_rng(2)
    rest = patients * rng.standard_normal(DRAWS)
    for scale, freedom in errors[1:]:
        rest += scale * rng.standard_t(freedom, size=DRAWS)
    reach = abs(estimate)
    if not errors:
        from scipy.stats import norm

        return float(2 * norm.sf(reach / patients)) if patients > 0 else float(reach == 0)
    # The heaviest tail is integrated, not drawn, so that small p are as exact as large ones.
    scale, freedom = errors[0]
    upper, lower = (student_t.sf((reach + sign * rest) / scale, freedom) for sign in (-1, 1))
    return float(np.mean(upper + lower))


Placed = tuple[Num[np.ndarray, " _"], Runs, float | int]


def _of_encoders(tables: Sequence[Placed]) -> list[Error]:
    """Of the pre-trainings, arm by arm; none of an arm that has too few."""
    by_arm: dict[Hashable, list[Placed]] = defaultdict(list)
    for table in tables:
        if table[1].pretrainings >= FEWEST_PRETRAININGS:
            by_arm[table[1].arm].append(table)
    errors = []
    for of_arm in by_arm.values():
        sums = [
            {name: factor * mean for name, mean in runs.by_encoder(values).items()}
            for values, runs, factor in of_arm
        ]
        errors += _errors_of_sums(sums)
    return errors


def _of_seeds(tables: Sequence[Placed]) -> list[Error]:
    """Of the seeds: of what each brings beside the encoders' means."""
    sums = []
    for values, runs, factor in tables:
        means = runs.by_encoder(values)
        beside = [value - means[name] for value, name in zip(values, runs.encoders, strict=True)]
        by_seed = _means(runs.seeds, np.array(beside))
        sums.append({seed: factor * mean for seed, mean in by_seed.items()})
    return _errors_of_sums(sums)


def _errors_of_sums(sums: Sequence[dict[Hashable, float]]) -> list[Error]:
    """One error where all have the same names, which are then paired; else one for each."""
    if all(each.keys() == sums[0].keys() for each in sums):
        sums = [{name: sum(each[name] for each in sums) for name in sums[0]}]
    return [
        Error(float(np.std(list(each.values()), ddof=1)) / sqrt(len(each)), len(each) - 1)
        for each in sums
    ]


def _means(names: Sequence[Hashable], values: Num[np.ndarray, " n"]) -> dict[Hashable, float]:
    by_name: dict[Hashable, list[float]] = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        by_name[name].append(float(value))
    return {name: float(np.mean(of_name)) for name, of_name in by_name.items()}
