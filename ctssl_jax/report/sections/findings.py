"""What the page says of pairs of arms and of robustness. The template calls these by name."""

from ctssl_jax.report.comparison.compare import SCRATCH, Task, arm_name
from ctssl_jax.report.comparison.pairs import PERMUTATIONS, Pair
from ctssl_jax.report.comparison.robustness import Claim, Robustness
from ctssl_jax.report.words import listed, number, percent, signed, signed_interval, sizes


def training_sizes(task: Task) -> dict[float, str]:
    """Fraction to number of training slices in words, small to large."""
    slices: dict[float, set[int]] = {}
    for cell in task.cells:
        slices.setdefault(cell.fraction, set()).update(cell.sizes("slices"))
    return {fraction: f"{sizes(sorted(counts))} slices" for fraction, counts in slices.items()}


def named(arm: str) -> str:
    """An arm within a sentence."""
    return "training from scratch" if arm == SCRATCH else arm_name(arm)


def pair_rows(task: Task) -> list[tuple[str, str, dict[float, Pair]]]:
    """Both arms of every pair, and what was found at each size that has both."""
    rows: dict[tuple[str, str], dict[float, Pair]] = {}
    for pair in task.pairs:
        rows.setdefault((pair.a, pair.b), {})[pair.fraction] = pair
    return [(arm_name(a), named(b), found) for (a, b), found in rows.items()]


def pair_verdict(pair: Pair) -> tuple[str, str]:
    """The verdict of a pair as (kind, words); kind is the colour."""
    return {
        "A higher": ("higher", f"{arm_name(pair.a)} higher"),
        "B higher": ("lower", f"{arm_name(pair.b)} higher"),
    }.get(pair.difference.verdict, ("unclear", "cannot tell"))


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
        f"two-sided, from swapping the two arms' scores of whole patients {drawn}, and corrected "
        "by Holm's method"
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
        kind: [named(claim.b) for claim in found.claims if claim.difference.verdict == kind]
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
    spark = named(found.claims[0].a)
    return [f"Robustness, {_between(found)}: {spark} {listed(parts)}."]


def left_out_sentence(found: Robustness) -> str:
    """Arms that lack a size, if any."""
    if not found.left_out:
        return ""
    names = listed([named(arm) for arm in found.left_out])
    return f"Left out, for want of a run at every size: {names}."


def _between(found: Robustness) -> str:
    return f"from {percent(found.largest)} to {percent(found.smallest)} of the training data"


def _claim_sentence(claim: Claim) -> str:
    a, b, gap = named(claim.a), named(claim.b), claim.difference
    p = p_value(claim.adjusted) + ("" if claim.over_runs else "; over patients alone")
    if gap.verdict == "cannot tell":
        ends = f"{signed(gap.estimate)}, {signed_interval(gap)}"
        return f"{a} and {b} cannot be told apart in what they lose ({ends}, {p})."
    word = "less" if gap.verdict == "A higher" else "more"
    low, high = sorted((abs(gap.low), abs(gap.high)))
    return (
        f"{a} loses {number(abs(gap.estimate))} {word} AUC than {b} "
        f"({number(low)} to {number(high)}, {p})."
    )
