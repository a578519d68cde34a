"""How often the planner's intervals hold what came of it: held-out curves of tasks at hand.

    python -m launch.benchmark_planner --data=NAME=DATASET[@PIXELS] ... --encoders=RUN,...
        --cache=FOLDER [--sizes=20,40,80,120] [--splits=8] [--seed=0] [--out=FILE.json]
    python -m launch.benchmark_planner --sweeps=NAME=AT_HAND:LATER ... [--out=FILE.json]

Again and again N patients are taken for those at hand, three times as many for those who are
annotated later, and all others for the test. The planner sees the N alone, with folds of their own.
What it foretells for 2 N and 4 N is set against one probe that learnt from the N and their next N
or 3 N patients (`theirs`), or from as many others (`others`), tested on the rest; so the foretold
is for a test on as many patients. Beside it stand the last value carried on and a plain
least-squares power law. With --sweeps it is fine-tunings: those of a folder AT_HAND, at three sizes
or more, foretell those of LATER, which learnt from the same patients and further ones, and were
tested on others. It measures only.
"""

if __name__ == "__main__":
    from ctssl_jax.hosts import signals

    signals.end_at_signals()

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ctssl_jax import command, data
from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.files import require_own_file
from ctssl_jax.frozen import nested
from ctssl_jax.frozen.classifiers import fit_linear
from ctssl_jax.frozen.features import Features
from ctssl_jax.hosts import distributed, platform
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.comparison.learning_curves import learning_curves
from ctssl_jax.report.runs import find_runs
from ctssl_jax.statistics import learning_curve as law
from ctssl_jax.statistics import roc_auc
from ctssl_jax.statistics.planning import refusal, refusal_of_shape
from ctssl_jax.statistics.power_law import least_squares
from launch.measuring import write
from launch.plan.starts import case_features, starts_of

NAME = "launch.benchmark_planner"
TIMES = (2, 4)
LEVELS = (0.8, 0.95)
COLUMNS = (
    *("task", "N", "at", "rows", "in 80 %", "in 95 %", "width of 95 %"),
    *("error", "no change", "least squares"),
)
FOLDS, FEW_FOLDS, FEW = 5, 3, 40
"""Folds of the patients at hand; of fewer than `FEW` patients the second."""
LEAST_TEST = 12
"""Patients that must be left for the test."""


class Parted(NamedTuple):
    """Patients by number, in the order in which they are annotated, and those of the test."""

    order: Int[np.ndarray, " p"]
    test: Int[np.ndarray, " t"]


class HeldOut(NamedTuple):
    """The curve of the patients at hand; what came of 2 N and 4 N on `tested` other patients.

    `came` has the AUC with the patients at hand among the learnt ones, and without them.
    """

    curve: law.Curve
    tested: int
    came: dict[int, tuple[float, float]]


def part(features: Features, at_hand: int, rng: np.random.Generator) -> Parted | None:
    """Patients at random: 4 N to be annotated, classes in proportion, the rest for the test.

    With too few patients for 4 N it is 2 N; None with too few for that.
    """
    names, own = np.unique(features.patients, return_inverse=True)
    majority = _majority(features.labels, own)
    draw = rng.random(len(names))
    rank = np.empty(len(names))
    for label in np.unique(majority):
        of = np.flatnonzero(majority == label)
        rank[of[np.argsort(draw[of])]] = (np.arange(len(of)) + rng.random()) / len(of)
    order = np.argsort(rank)
    for times in reversed(TIMES):
        if len(order) >= times * at_hand + max(LEAST_TEST, len(order) // 5):
            return Parted(order[: times * at_hand], order[times * at_hand :])
    return None


def _majority(labels: Int[np.ndarray, " n"], own: Int[np.ndarray, " n"]) -> Int[np.ndarray, " p"]:
    """The commonest class of each patient's cases."""
    votes = np.zeros((own.max() + 1, labels.max() + 1), np.int64)
    np.add.at(votes, (own, labels), 1)
    return votes.argmax(axis=1)


def own_folds(
    labels: Int[np.ndarray, " n"], patients: np.ndarray, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """A fold for each case, by patient, classes in proportion."""
    names, own = np.unique(patients, return_inverse=True)
    majority = _majority(labels, own)
    along = np.lexsort((rng.random(len(names)), majority))
    fold = np.empty(len(names), np.int64)
    fold[along] = np.arange(len(names)) % (FOLDS if len(names) >= FEW else FEW_FOLDS)
    return fold[own]


def measure(
    features: Features, classes: int, at_hand: int, seed: Sequence[int], orders: int
) -> HeldOut | None:
    """Takes N patients for those at hand and trains on what comes after; None if too few."""
    rng = np.random.default_rng(seed)
    if (parted := part(features, at_hand, rng)) is None:
        return None
    _, own = np.unique(features.patients, return_inverse=True)

    def of(patients: Int[np.ndarray, " p"]) -> Features:
        return features.take(np.flatnonzero(np.isin(own, patients)))

    known, test = of(parted.order[:at_hand]), of(parted.test)
    folds = own_folds(known.labels, known.patients, rng)
    sizes = nested.sizes_of(known, folds)
    draw = int(rng.integers(2**31))
    curve = nested.probe_curve(known, folds, sizes, classes, orders, draw)
    later, came = parted.order[at_hand:], dict[int, tuple[float, float]]()
    for times in TIMES:
        n = times * at_hand
        if n <= len(parted.order):
            theirs = _auc(of(parted.order[:n]), test, classes)
            others = _auc(of(later[:n]), test, classes) if n <= len(later) else nan
            came[times] = theirs, others
    return HeldOut(curve, len(parted.test), came)


def rows(held: HeldOut) -> Iterator[dict[str, Any]]:
    """What is foretold from a curve and what came of it, for 2 N and for 4 N."""
    curve = held.curve
    if (found := law_of([curve])) is None:
        yield {"patients": curve.patients, "refused": True}
        return
    for times, (theirs, others) in held.came.items():
        told = foretold([curve], found, times * curve.patients, held.tested)
        yield {**told, "times": times, "theirs": theirs, "others": others}


def law_of(
    curves: Sequence[law.Curve], others: Sequence[Sequence[law.Curve]] = ()
) -> law.Law | None:
    """What the planner fits to the curves of an arm; None where it refuses to."""
    if refusal(curves):
        return None
    found = law.fit(curves, others=others)
    return None if refusal_of_shape(curves, found) else found


def foretold(
    curves: Sequence[law.Curve], found: law.Law, n: float | int, tested: int
) -> dict[str, Any]:
    """What is foretold of one network of n patients that is tested on `tested` others."""
    sizes, drawn = curves[0].sizes, found.network(n, tested)
    means = np.mean([curve.values.mean(axis=0) for curve in curves], axis=0)
    a, b, c = least_squares(sizes, means)
    return {
        "patients": found.patients,
        "refused": False,
        "tested": tested,
        "foretold": float(np.median(drawn)),
        **{f"{level:g}": law.quantiles(drawn, level) for level in LEVELS},
        "no change": float(means[-1]),
        "least squares": float(a - b * n**-c),
        "misfit": found.misfit,
    }


def rows_of_sweeps(text: str) -> Iterator[dict[str, Any]]:
    """All rows of fine-tunings, `NAME=AT_HAND:LATER`: each later one is a row."""
    name, _, places = text.partition("=")
    at_hand, _, later = places.partition(":")
    if not at_hand or not later:
        raise ConfigError(f"--sweeps={text}: give NAME=AT_HAND:LATER, two folders of runs")
    before, after = find_runs([at_hand]), find_runs([later])
    if unfit := [f"{run.folder}: {run.problem}" for run in (*before, *after) if run.problem]:
        raise DataError(f"--sweeps={text}: {unfit[0]}")
    if len(tasks := compare(before).tasks) != 1:
        raise DataError(f"--sweeps={text}: {len(tasks)} tasks or recipes are at hand: give one")
    arms = learning_curves(tasks[0])
    for arm, curves in arms.items():
        found = law_of(curves, [own for other, own in arms.items() if other != arm])
        if found is None:
            yield {"task": name, "patients": curves[0].patients, "refused": True}
            continue
        for run in after:
            if run.results["arm"] == arm:
                n, test = run.results["train_patients"], run.results["test"]
                told = foretold(curves, found, n, test["patients"])
                times = min(TIMES, key=lambda times: abs(times - n / found.patients))
                start = {"start": arm, "seed": run.results["seed"], "n": n}
                yield {"task": name, **start, **told, "times": times, "theirs": test["auc"]}


def _auc(train: Features, test: Features, classes: int) -> float:
    fitted = fit_linear(train, classes, nested.ITERATIONS, nested.PENALTY)
    return roc_auc(test.labels, fitted.predict(test.x))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Coverage of both intervals, their mean width, and mean absolute errors."""
    truth = np.array([row["theirs"] for row in rows])
    found: dict[str, float] = {"curves": len(rows)}
    for level in LEVELS:
        low, high = np.array([row[f"{level:g}"] for row in rows]).T
        found[f"within {level:.0%}"] = float(np.mean((low <= truth) & (truth <= high)))
        found[f"width {level:.0%}"] = float(np.mean(high - low))
    for name in ("foretold", "no change", "least squares"):
        error = np.array([row[name] for row in rows]) - truth
        found[f"error {name}"] = float(np.mean(np.abs(error)))
        found[f"bias {name}"] = float(np.mean(error))
    return found


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table: by task, patients and times, and of all."""
    told = [row for row in found if not row["refused"]]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    keys = sorted({(row["task"], row["patients"], row["times"]) for row in told})
    groups: list[tuple[str, list[dict[str, Any]]]] = [
        (f"{task} | {n} | {t} N", [row for row in told if _key(row) == (task, n, t)])
        for task, n, t in keys
    ]
    tasks = sorted({row["task"] for row in told})
    groups += [(f"{task} | all | both", [r for r in told if r["task"] == task]) for task in tasks]
    groups += [(f"all | all | {t} N", [row for row in told if row["times"] == t]) for t in TIMES]
    groups.append(("**all** | all | both", told))
    for name, own in groups:
        if own:
            lines.append(f"| {name} | {_cells(summary(own))} |")
    return lines


def _key(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["task"], row["patients"], row["times"]


def _cells(s: dict[str, float]) -> str:
    words = [f"{s['curves']:.0f}"]
    words += [f"{s[f'within {level:.0%}']:.3f}" for level in LEVELS]
    words.append(f"{s['width 95%']:.3f}")
    words += [f"{s[f'error {name}']:.4f}" for name in ("foretold", "no change", "least squares")]
    return " | ".join(words)


def curves_of(flags: argparse.Namespace, text: str) -> Iterator[dict[str, Any]]:
    """All rows of one task, `NAME=DATASET[@PIXELS]`."""
    name, _, place = text.partition("=")
    path, _, pixels = place.partition("@")
    if not path or not (pixels or "0").isdecimal():
        raise ConfigError(f"--data={text}: give NAME=DATASET or NAME=DATASET@PIXELS")
    dataset = data.open_dataset(path)
    starts = starts_of(dataset, flags.encoders.split(","), int(pixels or 0), accept_leakage=False)
    for number, start in enumerate(starts):
        features = case_features(start, dataset, flags.cache / name)
        for at_hand, split in product(map(int, flags.sizes.split(",")), range(flags.splits)):
            seed = [flags.seed, number, split, at_hand]
            held = measure(features, len(dataset.classes), at_hand, seed, nested.ORDERS)
            for row in rows(held) if held else ():
                yield {"task": name, "start": start.arm, "encoder": number, "split": split, **row}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.Parser(prog=f"python -m {NAME}", description=__doc__)
    parser.add_argument("--data", action="append", default=[], help="NAME=DATASET[@PIXELS]")
    parser.add_argument("--sweeps", action="append", default=[], help="NAME=AT_HAND:LATER")
    parser.add_argument(
        "--encoders", action=command.List, default="", metavar="RUN,...", help="pre-training runs"
    )
    parser.add_argument("--cache", type=Path, help="a folder for the features")
    parser.add_argument(
        "--sizes", action=command.List, default="20,40,80,120", help="patients at hand"
    )
    parser.add_argument("--splits", type=int, default=8, help="of the patients, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the splits and orders")
    parser.add_argument("--out", type=Path, help="a JSON file to write")

    def work() -> None:
        flags, found = parser.parse_args(argv), list[dict[str, Any]]()
        if flags.out:
            require_own_file(flags.out, "--out")
        if not flags.data and not flags.sweeps:
            raise ConfigError("nothing to measure: give --data or --sweeps")
        if flags.data and not (flags.encoders and flags.cache):
            raise ConfigError("--data: give --encoders and --cache too")
        platform.set_cpu_flags()
        platform.quiet_libraries()
        distributed.require_devices()
        platform.enable_compilation_cache()
        for text in flags.data:
            found += curves_of(flags, text)
            print("\n".join(table([row for row in found if row["task"] == text.split("=")[0]])))
        for text in flags.sweeps:
            found += rows_of_sweeps(text)
        print("\n".join(["", *table(found)]))
        refused = Counter(row["task"] for row in found if row["refused"])
        print("refused:", ", ".join(f"{n} of {task}" for task, n in refused.items()) or "none")
        write(flags.out, {"seed": flags.seed, "rows": found})

    return command.run(NAME, work)


if __name__ == "__main__":
    sys.exit(main())
