"""Studies of known truth, through the report's own comparison: how often its verdicts are false.

    PYTHONPATH=. python tests/statistics/simulated_studies.py

simulates studies without any difference between the arms and prints the table of
docs/statistics.md. 29 patients of four slices; four methods and scratch at three sizes, five seeds.
Patients are hard or easy for every network and a little more so for one arm, a seed moves every
encoder of an arm alike (it draws their training subset), each run has luck of its own, and so has
each pre-training.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from ctssl_jax.report.comparison.pairs import Pair, Sampled, all_pairs
from ctssl_jax.report.runs import Cases, Run
from ctssl_jax.statistics import resampled

PATIENTS, SLICES, SEEDS, SIZES = 29, 4, 5, 3
METHODS = ("spark", "moco", "swav", "byol")
LABELS = np.repeat(np.arange(PATIENTS) % 2, SLICES)
GROUPS = np.repeat(np.arange(PATIENTS), SLICES)
OF_PATIENT, OF_ARM, OF_SLICE = 1.0, 0.3, 0.5
"""Variances of a score: over patients, over patients for one arm, over slices."""
SKILL, OF_RUNS = 1.5, 0.3
"""Of an arm from scratch: mean and standard deviation over seeds, half of it of the seed."""


class Rates(NamedTuple):
    """Shares of `studies`: intervals that hold zero, false verdicts by pair and by family."""

    coverage: float
    false_pair: float
    false_family: float
    studies: int


def rates(
    pretrainings: int,
    ratio: float,
    studies: int,
    seed: int = 0,
    about_the_method: bool = False,
) -> Rates:
    """Of methods against scratch; `ratio` is the spread of pre-trainings over that of runs.

    With one pre-training the truth is that of the encoders at hand, of whom the report then speaks,
    unless `about_the_method`.
    """
    rng = np.random.default_rng([seed, pretrainings, int(10 * ratio)])
    covered, false, families = [], [], []
    for _ in range(studies):
        found = list(_study(rng, pretrainings, ratio))
        if about_the_method:
            found = [(pair, 0.0) for pair, _ in found]
        covered += [pair.difference.low <= truth <= pair.difference.high for pair, truth in found]
        wrong = [_is_wrong(pair, truth) for pair, truth in found]
        false += wrong
        families.append(any(wrong))
    return Rates(*(float(np.mean(values)) for values in (covered, false, families)), studies)


def _is_wrong(pair: Pair, truth: float) -> bool:
    """Whether a verdict names the arm that is not higher."""
    return {"A higher": truth <= 0, "B higher": truth >= 0}.get(pair.difference.verdict, False)


def _study(
    rng: np.random.Generator, pretrainings: int, ratio: float
) -> Iterator[tuple[Pair, float]]:
    """Pairs of a method and scratch with the true difference."""
    patients = rng.normal(0, np.sqrt(OF_PATIENT), PATIENTS)
    sampled, truths = {}, {}
    for size in range(1, SIZES + 1):
        for arm in (*METHODS, "scratch"):
            encoders = 0 if arm == "scratch" else pretrainings
            sampled[size / SIZES, arm], truths[size / SIZES, arm] = _place(
                rng, patients, arm, encoders, ratio
            )
    for pair in all_pairs(sampled, last="scratch"):
        if pair.b == "scratch":
            yield pair, truths[pair.fraction, pair.a] - truths[pair.fraction, "scratch"]


def _place(
    rng: np.random.Generator, patients: np.ndarray, arm: str, encoders: int, ratio: float
) -> tuple[Sampled, float]:
    """The runs of an arm at a size, and its true AUC.

    Luck of encoders lowers a mean AUC a little, so skill is raised by as much.
    """
    spread = np.hypot(OF_RUNS, ratio * OF_RUNS) if encoders else OF_RUNS
    skill = SKILL * _slope(spread) / _slope(OF_RUNS)
    seeds = rng.normal(0, OF_RUNS * np.sqrt(0.5), SEEDS)
    luck = rng.normal(0, ratio * OF_RUNS, max(encoders, 1)) * bool(encoders)
    own = rng.normal(0, np.sqrt(OF_ARM), PATIENTS)
    runs, scores = [], []
    for encoder, of_encoder in enumerate(luck):
        for seed, of_seed in enumerate(seeds):
            skill_of_run = skill + of_encoder + of_seed + rng.normal(0, OF_RUNS * np.sqrt(0.5))
            noise = rng.normal(0, np.sqrt(OF_SLICE), LABELS.shape)
            scores.append((skill_of_run * LABELS + (patients + own)[GROUPS] + noise)[:, None])
            runs.append((seed, f"{arm}-{encoder}" if encoders else None))
    table = resampled(LABELS, np.stack(scores), GROUPS, n=400)
    found = tuple(
        _run(arm, *who, score, value)
        for who, score, value in zip(runs, scores, table[0], strict=True)
    )
    at_hand = (skill + luck[0]) / _slope(OF_RUNS) if encoders == 1 else SKILL / _slope(OF_RUNS)
    return Sampled(found, {"auc": table}), float(norm.cdf(at_hand))


def _slope(spread: float) -> float:
    """By which a skill is divided to give the normal deviate of its AUC."""
    return float(np.sqrt(2 * (OF_PATIENT + OF_ARM + OF_SLICE) + spread**2))


def _run(arm: str, seed: int, encoder: str | None, scores: np.ndarray, value: float) -> Run:
    results = {"arm": arm, "seed": seed, "encoder_run": encoder, "test": {"auc": float(value)}}
    return Run(Path(), results=results, cases=Cases("", GROUPS, LABELS, scores, True))


def main(studies: int) -> None:
    """Prints the table."""
    print(
        "| pre-trainings | their SD ÷ seeds' SD | coverage | false, one pair | false, any of 12 |"
    )
    print("|---|---|---|---|---|")
    for pretrainings in (1, 2, 3, 5):
        for ratio in (0.0, 1.0, 2.0):
            found = rates(pretrainings, ratio, studies)
            print(
                f"| {pretrainings} | {ratio:g} | {found.coverage:.3f} | {found.false_pair:.1%} "
                f"| {found.false_family:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
