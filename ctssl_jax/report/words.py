"""Numbers as they are written on the page, and the sentences made of them."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from ctssl_jax.report.comparison.compare import SCRATCH, Cell, Comparison, Task, arm_name
from ctssl_jax.report.runs import Run, is_number
from ctssl_jax.statistics import Difference, Interval, Spread


def summary(comparison: Comparison) -> list[tuple[str, str, list[str]]]:
    """The lead of the page: per task its title, its size, and a sentence for every arm."""
    titles = section_titles(comparison.tasks)
    return [
        (title, _size_sentence(task), _arm_sentences(task))
        for task, title in zip(comparison.tasks, titles, strict=True)
    ]


def _size_sentence(task: Task) -> str:
    seeds = sizes(sorted({len(cell.runs) for cell in task.cells}))
    marked = [part for run in task.runs() for part in run.parts() if leakage(part.results)]
    folds = f"cross-validated in {task.folds} folds, " if task.folds else ""
    return (
        f"{count(task.test_cases)} test cases from {patients(task)}, {folds}"
        f"{seeds} {'seed' if seeds == '1' else 'seeds'} at each size."
        + (" Test data was seen in training: results below are marked." if marked else "")
    )


def _arm_sentences(task: Task) -> list[str]:
    arms = [arm for arm in task.arms() if arm != SCRATCH]
    return [_arm_sentence(task, arm) for arm in arms] or [
        "Every run started from scratch, so there is nothing to compare."
    ]


def _arm_sentence(task: Task, arm: str) -> str:
    cells = [cell for cell in task.comparisons() if cell.arm == arm]
    if not cells:
        return f"{arm_name(arm)} has no run from scratch of the same size to be compared with."
    higher, lower, unclear = (
        [cell for cell in cells if verdict(cell)[0] == kind]
        for kind in ("higher", "lower", "unclear")
    )
    if not higher and not lower:
        where = f"with {_slices(cells)}" if len(cells) < 3 else f"at any of the {len(cells)} sizes"
        return f"{arm_name(arm)} and training from scratch cannot be told apart {where}."
    parts = [
        f"{word} than from scratch with {_slices(won)} (by {listed(_gap(cell) for cell in won)})"
        for word, won in (("higher", higher), ("lower", lower))
        if won
    ]
    rest = f"; with {_slices(unclear)} the two cannot be told apart" if unclear else ""
    return f"The AUC of {arm_name(arm)} is {' and '.join(parts)}{rest}."


def _gap(cell: Cell) -> str:
    return number(abs(cell.difference.estimate)) if cell.difference else "–"


def _slices(cells: list[Cell]) -> str:
    return f"{listed(sizes(cell.sizes('slices')) for cell in cells)} training slices"


def listed(words: Iterable[str]) -> str:
    """Words as a list in a sentence: one, two and three."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def verdict(cell: Cell) -> tuple[str, str]:
    """The verdict of a cell against scratch as (kind, words)."""
    if cell.difference is None:
        return "none", "no scratch run"
    found = cell.difference.verdict
    if found == "A higher":
        return "higher", f"{arm_name(cell.arm)} higher"
    if found == "B higher":
        return "lower", "scratch higher"
    return "unclear", found


def leakage(results: Mapping[str, Any]) -> str:
    """What a run's results say of test data seen before the test; nothing if they are clean."""
    overlap = results.get("pretraining_overlap")
    found = []
    for what, words in (
        ("audit", "splits leak"),
        ("pretraining_audit", "pre-trained on data that fails its audit"),
    ):
        audit = results.get(what)
        if isinstance(audit, dict) and audit.get("verdict") == "fail":
            found.append(words)
    if isinstance(overlap, dict) and any(
        is_number(overlap.get(what)) and overlap[what] > 0
        for what in ("patients", "series", "exact", "near")
    ):
        found.append("test data seen in pre-training")
    return f"leakage: {', '.join(found)}" if found else ""


def run_leakage(run: Run) -> str:
    """The same of any run, by its data where it has no results; and where nobody knows."""
    known = leakage(run.results or run.data)
    unknown = run.results.get("pretraining_overlap") == "unknown"
    return known or ("overlap with pre-training unknown" if unknown else "")


def cell_leakage(cell: Cell) -> str:
    """What the runs of a cell say, each once."""
    found = (leakage(part.results) for run in cell.runs for part in run.parts())
    return "; ".join(dict.fromkeys(filter(None, found)))


def cross_validation(task: Task) -> str:
    """How the test cases of a cross-validated task were tested; nothing of another task."""
    if not task.folds:
        return ""
    return (
        f"The task was cross-validated in {task.folds} folds: in each run every patient was tested "
        "once, by a network that had not seen that patient in fine-tuning, and the scores of the "
        f"{task.folds} networks are ranked together."
    )


def section_titles(tasks: list[Task]) -> list[str]:
    """Names of the tasks; tasks that share a name are told apart by data, or else numbered."""
    titles = []
    for task in tasks:
        same = [other for other in tasks if other.name == task.name]
        extra = f" (data {short(task.fingerprint)})"
        if len({other.fingerprint for other in same}) < len(same):
            extra = f" (test set {same.index(task) + 1})"
        titles.append(task.name[:80] + (extra if len(same) > 1 else ""))
    return titles


def patients(task: Task) -> str:
    """How many patients the test cases come from, as far as the records name them."""
    whose = "patients" if task.patients_known else "patients or unattributed cases"
    return f"{count(task.test_patients)} {whose}"


def short(text: str) -> str:
    """The beginning of a hash."""
    return str(text)[:12]


def number(value: float) -> str:
    """Three decimals, as AUC and accuracy are given."""
    return f"{value:.3f}" if isfinite(value) else "–"


def signed(value: float) -> str:
    """Three decimals with a sign, which is kept even where it is all that is left of the value."""
    if not isfinite(value):
        return "–"
    return f"{value:+.3f}".replace("-", "−") if value else "0.000"


def interval(value: Interval | Difference) -> str:
    """The ends of an interval; differences carry signs."""
    if isinstance(value, Difference):
        return signed_interval(value)
    return f"{number(value.low)}–{number(value.high)}" if isfinite(value.low) else "–"


def signed_interval(value: Interval | Difference) -> str:
    """The ends of an interval with their signs."""
    return f"{signed(value.low)} to {signed(value.high)}" if isfinite(value.low) else "–"


def spread_range(value: Spread) -> str:
    """Smallest and largest of several seeds."""
    if value.n == 1:
        return "one seed"
    return f"{number(value.low)}–{number(value.high)}, {value.n} seeds"


def count(value: float | int) -> str:
    """A whole number with thousands apart."""
    return f"{value:,.0f}"


def three_digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{float(f'{value:.3g}'):,.10g}"


def sizes(values: list[int]) -> str:
    """One count, or the range of several."""
    if not values:
        return "–"
    ends = dict.fromkeys((count(values[0]), count(values[-1])))
    return "–".join(ends)


def percent(fraction: float | int) -> str:
    """A fraction as a percentage."""
    return f"{fraction * 100:.3g} %"
