"""What more annotations would bring: learning curves of every start, carried on, and in words.

The curves are of probes of frozen features (`launch.plan`) or of the fine-tunings of a study with
three training sizes or more. What is computed is in `statistics.learning_curve` and `.planning`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from typing import Any

import numpy as np
from jaxtyping import Float

from ctssl_jax.dataset.cases import SLICE, plural
from ctssl_jax.report.comparison.compare import Task
from ctssl_jax.report.comparison.learning_curves import learning_curves
from ctssl_jax.report.figures import annotations as figure
from ctssl_jax.report.figures import tables
from ctssl_jax.report.figures.picture import Picture, drawn
from ctssl_jax.report.names import RANDOM, SCRATCH, arm_name, stands_on, subject
from ctssl_jax.report.words import cell_leakage, count, number, signed
from ctssl_jax.statistics.learning_curve import REACH, Curve, Law, fit
from ctssl_jax.statistics.planning import (
    Brings,
    Estimate,
    Needed,
    brings,
    needed,
    refusal,
    refusal_of_shape,
    saved,
)

MORE = (25, 50, 100)
REFERENCES = (SCRATCH, RANDOM)
"""What a start is set against: no pre-training, of fine-tunings and of frozen features."""


@dataclass(frozen=True)
class Start:
    """One start: its curves, one for each pre-training, and what follows from them.

    `law` is None where `refused` says why nothing is foretold. `saves` are patients, against the
    start without pre-training; None where there is none.
    """

    arm: str
    curves: tuple[Curve, ...]
    law: Law | None
    refused: str
    brings: tuple[Brings, ...] = ()
    needed: tuple[Needed, ...] = ()
    saves: Estimate | None = None

    @property
    def encoders(self) -> int:
        """How many pre-trainings, or random encoders, it stands on."""
        return sum(curve.pretrainings for curve in self.curves)

    @property
    def name(self) -> str:
        """As the page says it, with what it stands on."""
        count = self.encoders
        if self.arm == RANDOM:
            return f"No pre-training ({count} random {'encoder' if count == 1 else 'encoders'})"
        on = stands_on(self.arm, count)
        return arm_name(self.arm) + (f" ({on})" if on else "")

    @property
    def means(self) -> Float[np.ndarray, " k"]:
        """The measured AUC at each size, mean over pre-trainings of the means over orders."""
        return np.mean([curve.values.mean(axis=0) for curve in self.curves], axis=0)


@dataclass(frozen=True)
class Annotations:
    """Of one task: `unit` is what is counted, "scans" or "patients"; `each` says what those are.

    `warning` is what all of it is marked with, as that data leak.
    """

    title: str
    unit: str
    each: str
    patients: int
    reference: str
    starts: tuple[Start, ...]
    picture: Picture
    warning: str = ""

    @property
    def reach(self) -> int:
        """How many nothing is said beyond."""
        return int(REACH * self.patients)

    def sentences(self) -> list[str]:
        """What every start saves, or that nobody can tell."""
        return [said for start in self.starts if (said := saves_sentence(self, start))]


def planned(
    title: str,
    unit: str,
    each: str,
    arms: Mapping[str, Sequence[Curve]],
    targets: Sequence[float] = (),
    name: str = "annotations",
) -> Annotations:
    """Answers for arms whose curves are of the same sizes, test patients and orders.

    Args:
      title: of the task.
      unit: what a patient is called.
      each: how many cases a patient has, in words; empty where it is one.
      arms: the curves of each arm, one for each of its pre-trainings.
      targets: AUC that somebody wants to reach.
      name: of the picture's files.
    """
    laws: dict[str, Law] = {}
    refused: dict[str, str] = {}
    for place, (arm, curves) in enumerate(arms.items()):
        if why := refusal(curves):
            refused[arm] = why
            continue
        law = fit(curves, arm=place, others=[of for name, of in arms.items() if name != arm])
        if why := refusal_of_shape(curves, law):
            refused[arm] = why
        else:
            laws[arm] = law
    reference = next((arm for arm in REFERENCES if arm in arms), "")
    starts = []
    for arm, curves in arms.items():
        if arm in refused:
            starts.append(Start(arm, tuple(curves), None, refused[arm]))
            continue
        law, against = laws[arm], laws.get(reference) if arm != reference else None
        starts.append(
            Start(
                arm,
                tuple(curves),
                law,
                "",
                tuple(found for more in MORE if (found := brings(law, more))),
                tuple(needed(law, target) for target in targets),
                saved(law, against) if against else None,
            )
        )
    at_hand = next(iter(arms.values()))[0].patients
    courses = [_course(start, _grid(starts)) for start in starts]
    alt = f"{title}: AUC by number of annotated {unit}. {'; '.join(map(_told, starts))}."
    draw = partial(figure.foretold, courses, at_hand, unit)
    picture = drawn(name, alt, draw, table(starts))
    return Annotations(title, unit, each, at_hand, reference, tuple(starts), picture)


def of_task(
    task: Task, title: str, place: int, targets: Sequence[float] = ()
) -> Annotations | None:
    """Of the fine-tunings of a study; None where no start has three training sizes.

    `place` numbers the picture's files; `targets` as of `planned`.
    """
    if not (arms := learning_curves(task)):
        return None
    alone = task.word != SLICE and task.test_cases == task.test_patients
    unit = plural(task.word) if alone else "patients"
    each = "" if alone else _each(task.test_cases / task.test_patients, task.word)
    found = planned(title, unit, each, arms, targets, f"annotations-{place}")
    marks = dict.fromkeys(filter(None, map(cell_leakage, task.cells)))
    return replace(found, warning="; ".join(marks))


def _each(cases: float, word: str) -> str:
    return f"{cases:.1f} {plural(word)} each, on average" if cases > 1.05 else ""


def _subject(start: Start) -> str:
    """A start within a sentence."""
    return "a random encoder" if start.arm == RANDOM else subject(start.arm, start.encoders)


def of_reference(arm: str) -> str:
    """What a start is set against, within a sentence."""
    return "a random encoder" if arm == RANDOM else "training from scratch"


def saves_sentence(found: Annotations, start: Start) -> str:
    """What a start saves against no pre-training; empty where it cannot be asked."""
    if start.saves is None:
        return ""
    name = _subject(start)
    of, most = f"against {of_reference(found.reference)}", found.reach - found.patients
    middle, low, high = start.saves
    size = f"at {count(found.patients)} {found.unit}"
    if low == inf:
        return f"Starting from {name} saves more than {count(most)} {found.unit} {of}, {size}."
    if low > 0:
        about = f"about {count(middle)}" if isfinite(middle) else f"more than {count(most)}"
        ends = f"{_bounded(low, most)} to {_bounded(high, most)}"
        return f"Starting from {name} saves {about} ({ends}) {found.unit} {of}, {size}."
    if high < 0:
        return (
            f"Starting from {name} costs about {count(-middle)} ({count(-high)} to {count(-low)}) "
            f"{found.unit} {of}, {size}."
        )
    lost = f"a loss of {count(-low)}" if low < 0 else "nothing"
    return (
        f"Cannot tell whether starting from {name} saves {found.unit} {of}, {size}: anything "
        f"from {lost} to {_bounded(high, most)} saved fits."
    )


def lead_sentence(found: Annotations) -> str:
    """For the top of a page: what the next annotations bring the best start."""
    told = [start for start in found.starts if start.brings]
    if not told:
        return f"More annotations: nothing is foretold, for {found.starts[0].refused}."
    best = max(told, key=lambda start: start.brings[-1].auc.middle)
    step = next((each for each in best.brings if each.more == 50), best.brings[-1])
    marked = f" Marked: {found.warning}." if found.warning else ""
    return (
        f"{step.more} more annotated {found.unit} would bring "
        f"{_subject(best)} to an AUC of about {ends(step.auc)}: "
        f"{signed(step.gain.middle)} ({signed(step.gain.low)} to {signed(step.gain.high)})."
        + marked
    )


def ends(estimate: Estimate) -> str:
    """An AUC with its interval: "0.843 (0.752 to 0.921)"."""
    return f"{number(estimate.middle)} ({number(estimate.low)} to {number(estimate.high)})"


def needed_words(found: Annotations, answer: Needed) -> str:
    """How many patients an AUC wants, or that it cannot be told."""
    middle, low, high = answer.patients
    if middle == inf:
        return (
            f"cannot tell: more than {count(found.reach)} {found.unit}, of which nothing is said "
            f"(chance that these suffice: {answer.chance:.0%})"
        )
    if middle <= found.patients and high <= found.patients:
        return f"reached with the {count(found.patients)} at hand"
    return f"about {count(middle)} ({count(low)} to {_bounded(high, found.reach)}) {found.unit}"


def _bounded(value: float, most: int) -> str:
    return count(value) if isfinite(value) else f"more than {count(most)}"


def _told(start: Start) -> str:
    """A start's curve for those who do not see it."""
    said = f"{start.name}: {number(start.means[-1])} with {start.curves[0].sizes[-1]:.0f}"
    return said + "".join(f", {ends(of.auc)} with {of.more} more" for of in start.brings[-1:])


GRID = 25
COLUMNS = ("start", "encoders", "kind", "patients", "auc", "low", "high", "gain", "gain_low")


def _grid(starts: Sequence[Start]) -> Float[np.ndarray, " m"]:
    """Numbers of patients at which a law is drawn and written."""
    least = min(float(start.curves[0].sizes[0]) for start in starts)
    return np.geomspace(least, REACH * starts[0].curves[0].patients, GRID)


def _course(start: Start, n: Float[np.ndarray, " m"]) -> figure.Course:
    """What is drawn of a start."""
    nothing = np.zeros(0)
    ends = (nothing, nothing, nothing, nothing)
    if start.law:
        each = [np.quantile(start.law.network(float(at)), [0.5, 0.025, 0.975]) for at in n]
        ends = (n, *np.transpose(each))
    look = SCRATCH if start.arm == RANDOM else start.arm
    return figure.Course(look, start.name, start.curves[0].sizes, start.means, *ends)


def table(starts: Sequence[Start]) -> str:
    """All curves as CSV: what was measured, and the AUC of one network that is foretold."""
    rows: list[tuple[Any, ...]] = []
    for start in starts:
        of = (start.arm, start.encoders)
        for size, mean in zip(start.curves[0].sizes, start.means, strict=True):
            rows.append((*of, "measured", float(size), float(mean), "", "", "", "", ""))
        for n in _grid(starts) if start.law else ():
            assert start.law is not None, "just asked"
            auc = np.quantile(start.law.network(n), [0.5, 0.025, 0.975])
            gain = np.quantile(start.law.mean(n) - start.law.level, [0.5, 0.025, 0.975])
            rows.append((*of, "foretold", float(n), *map(float, auc), *map(float, gain)))
    return tables.as_csv((*COLUMNS, "gain_high"), rows)
