"""What the page says of pairs of arms and of robustness. The template calls these by name."""

from ctssl_jax.dataset.cases import plural
from ctssl_jax.report.comparison.compare import Task
from ctssl_jax.report.comparison.pairs import PERMUTATIONS, Pair
from ctssl_jax.report.comparison.robustness import Claim, Course, Robustness
from ctssl_jax.report.names import SCRATCH, arm_name, listed, stands_on, subject
from ctssl_jax.report.words import (
    FEW_REPEATS,
    cannot_tell,
    legend_name,
    levels,
    number,
    percent,
    signed,
    signed_interval,
    sizes,
)


def training_sizes(task: Task) -> dict[float, str]:
    """Fraction to number of training cases in words, small to large."""
    cases: dict[float, set[int]] = {}
    for cell in task.cells:
        cases.setdefault(cell.fraction, set()).update(cell.sizes("cases"))
    word = plural(task.word)
    return {fraction: f"{sizes(sorted(counts))} {word}" for fraction, counts in cases.items()}


def named(arm: str) -> str:
    """An arm within a sentence."""
    return "training from scratch" if arm == SCRATCH else arm_name(arm)


def pair_rows(task: Task) -> list[tuple[str, str, dict[float, Pair]]]:
    """Both arms of every pair, and what was found at each size that has both."""
    rows: dict[tuple[str, str], dict[float, Pair]] = {}
    for pair in task.pairs:
        rows.setdefault((pair.a, pair.b), {})[pair.fraction] = pair
    return [(legend_name(task, a), _second(task, b), found) for (a, b), found in rows.items()]


def _second(task: Task, arm: str) -> str:
    return named(arm) if arm == SCRATCH else legend_name(task, arm)


def pair_verdict(pair: Pair) -> tuple[str, str]:
    """The verdict of a pair as (kind, words); kind is the colour."""
    a, b = (
        "scratch" if arm == SCRATCH else subject(arm, count)
        for arm, count in zip((pair.a, pair.b), pair.pretrainings, strict=True)
    )
    return {
        "A higher": ("higher", f"{a} higher"),
        "B higher": ("lower", f"{b} higher"),
    }.get(pair.difference.verdict, ("unclear", cannot_tell(pair)))


def families(task: Task) -> str:
    """How many comparisons p is corrected for."""
    against = sum(pair.b == SCRATCH for pair in task.pairs)
    among = len(task.pairs) - against
    said = [f"the {against} with training from scratch"] if against else []
    said += [f"the {among} of pre-trained starts with each other"] if among else []
    return listed(said)


def p_value(p: float) -> str:
    """A p-value in three decimals, never as zero."""
    if not 0 <= p <= 1:
        return "p not known"
    return "p < 0.001" if p < 0.0005 else f"p = {p:.3f}"


def how_tested(task: Task) -> str:
    """Where the p-values of a task come from."""
    drawn = f"{PERMUTATIONS:,} times at random"
    if task.test_patients < PERMUTATIONS.bit_length():
        drawn = "in every possible way"
    return (
        "two-sided, the larger of two: of swapping the two arms' scores of whole patients "
        f"{drawn}, and of all levels that the interval holds; corrected by Holm's method"
    )


def claim_sentences(task: Task) -> list[str]:
    """The paper's claim, arm by arm: how much less SparK loses, or that nobody can tell."""
    found = task.robustness
    return [_claim_sentence(claim) for claim in found.claims] if found else []


def lead(task: Task) -> list[str]:
    """One sentence on the claim for the top of the page; none where it was not looked at."""
    found = task.robustness
    if not found or not found.claims:
        return []
    kinds = {
        kind: [
            subject(claim.b, claim.pretrainings[1])
            for claim in found.claims
            if claim.answer.difference.verdict == kind
        ]
        for kind in ("A higher", "B higher", "cannot tell")
    }
    parts = [
        f"{words} {listed(kinds[kind])}"
        for kind, words in (
            ("A higher", "loses less than"),
            ("B higher", "loses more than"),
            ("cannot tell", "cannot be told apart from"),
        )
        if kinds[kind]
    ]
    spark = subject(found.claims[0].a, found.claims[0].pretrainings[0])
    return [f"Robustness, {_between(found)}: {spark} {listed(parts)}."]


def on(course: Course) -> str:
    """What the arm of a course stands on."""
    return stands_on(course.arm, course.pretrainings)


def left_out_sentence(found: Robustness) -> str:
    """Arms that lack a size, if any."""
    if not found.left_out:
        return ""
    names = listed([named(arm) for arm in found.left_out])
    return f"Left out, for want of a run at every size: {names}."


def _between(found: Robustness) -> str:
    return f"from {percent(found.largest)} to {percent(found.smallest)} of the training data"


def _claim_sentence(claim: Claim) -> str:
    a, b = (
        subject(arm, count)
        for arm, count in zip((claim.a, claim.b), claim.pretrainings, strict=True)
    )
    a, gap = a[:1].upper() + a[1:], claim.answer.difference
    p = f"{p_value(claim.answer.adjusted)}, over {levels(claim.answer.again)}"
    if gap.verdict == "cannot tell":
        ends = f"{signed(gap.estimate)}, {signed_interval(gap)}"
        why = "" if claim.answer.repeated else f"; {FEW_REPEATS}"
        return f"{a} and {b} cannot be told apart in what they lose ({ends}, {p}{why})."
    word = "less" if gap.verdict == "A higher" else "more"
    low, high = sorted((abs(gap.low), abs(gap.high)))
    return (
        f"{a} loses {number(abs(gap.estimate))} {word} AUC than {b} "
        f"({number(low)} to {number(high)}, {p})."
    )
