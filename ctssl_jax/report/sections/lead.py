"""The first screen of a task, in words: its numbers, its verdicts, and how far to trust them.

Every number here is one of `Task`, which the tables and their CSV show as well; nothing is computed
a second time.
"""

from typing import NamedTuple

from ctssl_jax.dataset.cases import SLICE
from ctssl_jax.report.comparison.compare import Cell, Comparison, Task
from ctssl_jax.report.names import SCRATCH, arm_name, listed, stands_on, subject
from ctssl_jax.report.runs import OPERATING, last_was_best
from ctssl_jax.report.sections import findings
from ctssl_jax.report.words import (
    FEW_REPEATS,
    annotated,
    count,
    leakage,
    number,
    patients,
    percent,
    section_titles,
    sizes,
    slice_labels,
    tested,
    verdict,
)

STARTS = 2
"""Pre-trained starts whose AUC the first sentence gives, in the order of the page. Each start has a
verdict."""
CLASSES = 4
"""Most classes whose test cases are counted one by one."""


class Lead(NamedTuple):
    """The first screen of a task.

    Attributes:
      title: name of the task.
      numbers: who was tested, and the AUC of the first starts at the largest and smallest size.
      verdicts: of each start (kind, sentence), then of the paper's claim; kind is the colour:
        "higher", "lower", "unclear", "claim".
      decisions: sensitivity at the specificity that was asked for; empty where there is none.
      trust: what limits all of this, sentence by sentence.
    """

    title: str
    numbers: str
    verdicts: list[tuple[str, str]]
    decisions: str
    trust: list[str]


def leads(comparison: Comparison) -> list[Lead]:
    """The first screen of every task, in the order of the tasks."""
    return [
        Lead(
            title,
            " ".join([_tested(task), *_aucs(task)]),
            [*_verdicts(task), *(("claim", said) for said in findings.lead(task))],
            _decisions(task),
            _trust(task),
        )
        for task, title in zip(comparison.tasks, section_titles(comparison.tasks), strict=True)
    ]


def _tested(task: Task) -> str:
    """Who was tested: "61 annotated scans from 61 patients, 26 positive (hemorrhage)"."""
    kind = "annotated" if task.folds and task.word != SLICE else "test"
    said = f"{count(task.test_cases)} {kind} {tested(task)} from {patients(task)}"
    if len(task.classes) == 2:
        said += f", {count(task.test_labels[1])} positive ({task.classes[1]})"
    elif len(task.classes) <= CLASSES:
        of = zip(task.test_labels, task.classes, strict=True)
        said += f": {listed(f'{count(n)} {name}' for n, name in of)}"
    return f"{said}; each was tested once, in {task.folds} folds." if task.folds else f"{said}."


def _aucs(task: Task) -> list[str]:
    """AUC with its interval at the largest and the smallest size, a sentence each."""
    fractions = sorted({cell.fraction for cell in task.cells})
    ends = dict.fromkeys((fractions[-1], fractions[0]))
    return [_auc_sentence(_shown(task, fraction), at == 0) for at, fraction in enumerate(ends)]


def _shown(task: Task, fraction: float) -> list[Cell]:
    """The cells of a size whose numbers the first screen gives: pre-trained, then scratch."""
    starts = [arm for arm in task.arms() if arm != SCRATCH][:STARTS]
    cells = {cell.arm: cell for cell in task.cells if cell.fraction == fraction}
    return [cells[arm] for arm in (*starts, SCRATCH) if arm in cells]


def _auc_sentence(cells: list[Cell], first: bool) -> str:
    """One size: "Learnt from 12 annotated scans: …". The first names what the numbers are."""
    if not cells:
        return ""
    of = f"{sizes(cells[0].sizes('cases'))} {annotated(cells[0].word)}"
    said = []
    for place, cell in enumerate(cells):
        on = stands_on(cell.arm, cell.pretrainings)
        start = "from scratch" if cell.arm == SCRATCH else f"pre-trained by {arm_name(cell.arm)}"
        start += f" ({on})" if on and first else ""
        auc = "AUC " if first and place == 0 else ""
        said.append(f"{start} {auc}{_with_ends(cell, 'auc')}")
    return f"{'Learnt from' if first else 'From'} {of}: {', '.join(said)}."


def _with_ends(cell: Cell, metric: str) -> str:
    """A mean with the ends of its 95 % interval: "0.843 (0.752 to 0.921)"."""
    found = cell.interval(metric)
    ends = f" ({number(found.low)} to {number(found.high)})" if found.low == found.low else ""
    return f"{number(found.estimate)}{ends}"


def _decisions(task: Task) -> str:
    """What is found and missed at the specificity that was asked for, at the largest size."""
    asked, reached = "sensitivity at specificity", "specificity at specificity"
    if not task.has(asked):
        return ""
    cells = _shown(task, max(cell.fraction for cell in task.cells))
    if not cells:
        return ""
    said = listed(
        f"{'from scratch' if cell.arm == SCRATCH else arm_name(cell.arm)} {_with_ends(cell, asked)}"
        f" at {number(cell.mean(reached))}"
        for cell in cells
    )
    of = f"{sizes(cells[0].sizes('cases'))} {annotated(task.word)}"
    return (
        f"Asked for {percent(OPERATING)} specificity on validation, learnt from {of}: sensitivity "
        f"for {task.classes[1]}, and the specificity that was reached on the test: {said}."
    )


def _trust(task: Task) -> list[str]:
    """What limits the numbers, the weightiest first."""
    repeats = sizes(sorted({len(set(cell.seeds())) for cell in task.cells}))
    marked = any(leakage(part.results) for run in task.runs() for part in run.parts())
    said = [
        "Test data was seen in training: results below are marked." if marked else "",
        slice_labels(task),
        f"{repeats} {'repeat (seed)' if repeats == '1' else 'repeats (seeds)'} at each size.",
        _few_repeats(task),
        _single_encoders(task),
        _unfinished(task),
    ]
    return list(filter(None, said))


def _few_repeats(task: Task) -> str:
    """Says so where a verdict is withheld since the luck of fine-tuning is in no number."""
    if all(pair.answer.repeated for pair in task.pairs):
        return ""
    return (
        "With fewer than three repeats of a start the luck of fine-tuning is in no number, so that "
        "it is called neither higher nor lower."
    )


def _single_encoders(task: Task) -> str:
    """Which starts are one encoder, so that nothing is said of their method."""
    arms = [arm_name(arm) for arm in task.arms() if task.pretrainings(arm) == 1]
    if not arms:
        return ""
    stand = "stands on one pre-training" if len(arms) == 1 else "stand on one pre-training each"
    return (
        f"{listed(arms)} {stand}: what is said is of this encoder, not of the method, for the luck "
        "of its pre-training is in no number."
    )


def _unfinished(task: Task) -> str:
    """Says so where the best step of runs is their last one, start by start."""
    by_arm = {
        arm: [last_was_best(part) for run in task.runs(arm) for part in run.parts()]
        for arm in task.arms()
    }
    late = [
        f"{sum(found)} of {len(found)} runs "
        + ("from scratch" if arm == SCRATCH else f"of {arm_name(arm)}")
        for arm, found in by_arm.items()
        if any(found)
    ]
    if not late:
        return ""
    return (
        f"Not finished learning: the last validation was the best in {listed(late)}. With more "
        "steps these numbers may change."
    )


def _verdicts(task: Task) -> list[tuple[str, str]]:
    """Of each pre-trained start against scratch, in words."""
    arms = [arm for arm in task.arms() if arm != SCRATCH]
    return [_verdict_of(task, arm) for arm in arms] or [
        ("unclear", "Every run started from scratch, so there is nothing to compare.")
    ]


def _verdict_of(task: Task, arm: str) -> tuple[str, str]:
    cells = [cell for cell in task.comparisons() if cell.arm == arm]
    name = subject(arm, task.pretrainings(arm))
    capital = name[:1].upper() + name[1:]
    if not cells:
        return "unclear", (
            f"{capital} has no run from scratch of the same size to be compared with."
        )
    higher, lower, unclear = (
        [cell for cell in cells if verdict(cell)[0] == kind]
        for kind in ("higher", "lower", "unclear")
    )
    if not higher and not lower:
        where = f"with {_sizes_of(cells)}" if len(cells) < 3 else f"at any of {len(cells)} sizes"
        return "unclear", (
            f"Cannot tell: {name} and training from scratch cannot be told apart {where}"
            f"{_for_want_of_repeats(cells)}."
        )
    parts = [
        f"{word} than from scratch with {_sizes_of(won)} (by {listed(map(_gap, won))})"
        for word, won in (("higher", higher), ("lower", lower))
        if won
    ]
    rest = f"; with {_sizes_of(unclear)} the two cannot be told apart" if unclear else ""
    rest += _for_want_of_repeats(unclear)
    kind = "unclear" if higher and lower else "higher" if higher else "lower"
    return kind, f"The AUC of {name} is {' and '.join(parts)}{rest}."


def _for_want_of_repeats(cells: list[Cell]) -> str:
    """Why nobody can tell of some cells, where it is that."""
    want = any(cell.pair and not cell.pair.answer.repeated for cell in cells)
    return f" ({FEW_REPEATS})" if want else ""


def _gap(cell: Cell) -> str:
    """How far a start is from scratch, with the ends of the interval of that."""
    found = cell.difference
    assert found is not None, "a cell of a verdict has a difference"
    low, high = sorted((abs(found.low), abs(found.high)))
    return f"{number(abs(found.estimate))}, {number(low)} to {number(high)}"


def _sizes_of(cells: list[Cell]) -> str:
    return f"{listed(sizes(cell.sizes('cases')) for cell in cells)} {annotated(cells[0].word)}"
