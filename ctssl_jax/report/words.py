"""Numbers as they are written on the page, and the words that several of its parts share."""

from collections import defaultdict
from collections.abc import Mapping
from math import isfinite
from typing import Any

from ctssl_jax.dataset.cases import SLICE, plural
from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.comparison.folds import without_auc
from ctssl_jax.report.comparison.pairs import Pair
from ctssl_jax.report.comparison.recipes import tuned
from ctssl_jax.report.comparison.robustness import Claim
from ctssl_jax.report.names import arm_name, listed, stands_on, subject
from ctssl_jax.report.runs import Run, is_number
from ctssl_jax.statistics import Difference, Interval, Training

FEW_REPEATS = "fewer than three repeats"
"""Why nothing is called higher where the luck of fine-tuning is in no number."""
OF_SCANS = (
    "Each label is of a scan and was given to all its slices: the figures count slices, not scans."
)


def tested(task: Task) -> str:
    """What the test counts."""
    return "cases" if task.word == SLICE else plural(task.word)


def slice_labels(task: Task) -> str:
    """Says so where labels of scans were given to slices."""
    parts = (part for run in task.runs() for part in run.parts())
    got = any(part.data.get("labels_of") == "scan" for part in parts)
    return OF_SCANS if got and task.word == SLICE else ""


def annotated(word: str) -> str:
    """The cases that are trained on, by what one is called: "annotated scans"."""
    return "training slices" if word == SLICE else f"annotated {plural(word)}"


def trained_on(cell: Cell) -> str:
    """How many of them: "41 scans"."""
    return f"{sizes(cell.sizes('cases'))} {plural(cell.word)}"


def training_sizes(task: Task) -> str:
    """What the training sizes count."""
    if task.word == SLICE:
        return (
            "Training sizes count slices. Slices of one patient are alike, so the number of "
            "patients is the more honest size."
        )
    return (
        f"Training sizes, AUC and all other figures count {plural(task.word)}, as the labels do; "
        "intervals are over patients."
    )


def verdict(cell: Cell) -> tuple[str, str]:
    """The verdict of a cell against scratch as (kind, words)."""
    if cell.difference is None:
        return "none", "no scratch run"
    found = cell.difference.verdict
    if found == "A higher":
        return "higher", f"{subject(cell.arm, cell.pretrainings)} higher"
    if found == "B higher":
        return "lower", "scratch higher"
    return "unclear", cannot_tell(cell.pair)


def cannot_tell(found: Pair | Claim | None) -> str:
    """The verdict that nobody can tell, and why where it is for want of repeats."""
    repeated = found is None or found.answer.repeated
    return "cannot tell" if repeated else f"cannot tell: {FEW_REPEATS}"


def levels(again: Training) -> str:
    """What luck an interval holds."""
    held = ["patients"]
    held += ["fine-tunings"] if again.fine_tunings else []
    held += ["pre-trainings"] if again.pretrainings else []
    return listed(held) if len(held) > 1 else "patients alone"


def cell_levels(cell: Cell) -> str:
    """What luck the intervals of a cell hold."""
    return levels(cell.again)


def cell_stands_on(cell: Cell) -> str:
    """One encoder, or so many pre-trainings; nothing of scratch."""
    return stands_on(cell.arm, cell.pretrainings)


def legend_name(task: Task, arm: str) -> str:
    """An arm in the legend of a figure, with what it stands on."""
    on = stands_on(arm, task.pretrainings(arm))
    return arm_name(arm) + (f" ({on})" if on else "")


def ahead(cell: Cell) -> str:
    """In how many seeds an arm is above scratch, every encoder of it; nothing of a single one."""
    won, of = cell.ahead
    if of < 2:
        return ""
    return f"ahead in {won} of {of} {'seeds' if cell.pretrainings < 2 else 'pairs of one seed'}"


def tuning(task: Task) -> str:
    """The learning rates that were chosen on validation; nothing where none was."""
    chosen: dict[str, list[str]] = defaultdict(list)
    for cell in task.cells:
        for found in filter(None, (tuned(part) for run in cell.runs for part in run.parts())):
            if is_number(found.get("lr")):
                at = f"{rate(found['lr'])} at {sizes(cell.sizes('cases'))}"
                chosen[arm_name(cell.arm)] += [] if at in chosen[arm_name(cell.arm)] else [at]
    if not chosen:
        return ""
    said = "; ".join(f"{name} {listed(rates)}" for name, rates in chosen.items())
    return f"Learning rates chosen on validation, at numbers of {annotated(task.word)}: {said}."


def leakage(results: Mapping[str, Any]) -> str:
    """What a run's results say of test data seen before the test, and of an unfinished encoder.

    Nothing if they are clean.
    """
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
    told = [f"leakage: {', '.join(found)}"] if found else []
    encoder = results.get("encoder")
    if isinstance(encoder, dict) and encoder.get("accepted"):
        told.append("encoder of an unfinished run")
    return "; ".join(told)


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
        "once, by a network that had not seen that patient in fine-tuning. Scores of different "
        "networks are never ranked together: AUC, its intervals and p are within folds, then "
        f"averaged over them.{_left_out_folds(task)}"
    )


def _left_out_folds(task: Task) -> str:
    """Folds that have no AUC."""
    found = sorted({number for run in task.runs() for number in without_auc(run)})
    if not found:
        return ""
    which = f"fold {found[0]}" if len(found) == 1 else f"folds {listed(map(str, found))}"
    return f" The test cases of {which} are of one class: left out of AUC, for every start alike."


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


def runs_range(cell: Cell, metric: str) -> str:
    """Smallest and largest of several runs, and how many they are."""
    found = cell.spread(metric)
    if found.n == 1:
        return "one seed"
    unit = "seeds" if cell.pretrainings < 2 else "runs"
    return f"{number(found.low)}–{number(found.high)}, {found.n} {unit}"


def count(value: float | int) -> str:
    """A whole number with thousands apart."""
    return f"{value:,.0f}"


def three_digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{float(f'{value:.3g}'):,.10g}"


def rate(value: float) -> str:
    """A learning rate: 0.0003 as 3e-4."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")


def sizes(values: list[int]) -> str:
    """One count, or the range of several."""
    if not values:
        return "–"
    ends = dict.fromkeys((count(values[0]), count(values[-1])))
    return "–".join(ends)


def percent(fraction: float | int) -> str:
    """A fraction as a percentage."""
    return f"{fraction * 100:.3g} %"
