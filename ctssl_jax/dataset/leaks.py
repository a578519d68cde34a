"""What lots of slices have in common: patients, series, equal and nearly equal pictures."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from ctssl_jax.dataset.matching import Name, Pairs, exact_pairs, is_blank, near_pairs
from ctssl_jax.dataset.signatures import Signatures
from ctssl_jax.dataset.verdict import Finding

EXAMPLES = 10


def compare(
    first: tuple[str, Signatures], second: tuple[str, Signatures], apart: Collection[Name] = ()
) -> list[Finding]:
    """What two lots of slices, each with its name, have in common; nothing for what is not found.

    Pairs of `apart` are no duplicates.
    """
    return findings_of((first[0], second[0]), shared(first[1], second[1], apart))


def shared(left: Signatures, right: Signatures, apart: Collection[Name] = ()) -> dict[str, Pairs]:
    """What two lots of slices share, by check, as `Finding` names them.

    Which of the two comes first makes no difference, nor does the order of the slices. The near
    duplicates are without pairs of which both have an equal one as well.
    """
    exact, near = exact_pairs(left, right), near_pairs(left, right, apart)
    known = np.isin(near.left, exact.left) & np.isin(near.right, exact.right)
    return {
        "patients": _shared(left.patient, right.patient),
        "series": _shared(left.series, right.series),
        "exact": exact,
        "near": near.take(~known),
    }


def findings_of(splits: tuple[str, str], found: dict[str, Pairs]) -> list[Finding]:
    """What `shared` found between two splits, without what it did not find."""
    return [_finding(check, splits, pairs) for check, pairs in found.items() if len(pairs.left)]


def label_conflicts(splits: dict[str, Signatures]) -> Iterator[Finding]:
    """Equal slices with different labels, wherever they are."""
    title = list(splits)
    rows = Signatures.concatenate(splits.values())
    split = np.repeat(np.arange(len(title)), [len(part) for part in splits.values()])
    row = np.concatenate([np.arange(len(part)) for part in splits.values()])
    usable = np.flatnonzero(~is_blank(rows) & (rows.label >= 0))
    order = usable[np.lexsort((rows.label[usable], rows.digest[usable]))]
    here, after = order[:-1], order[1:]
    differ = (rows.digest[here] == rows.digest[after]) & (rows.label[here] != rows.label[after])
    here, after = here[differ], after[differ]
    for pair in sorted(set(zip(split[here].tolist(), split[after].tolist(), strict=True))):
        mine = (split[here] == pair[0]) & (split[after] == pair[1])
        pairs = Pairs(row[here[mine]], row[after[mine]])
        yield _finding("exact", (title[pair[0]], title[pair[1]]), pairs)


def _shared(left: np.ndarray, right: np.ndarray) -> Pairs:
    """The first rows of each value that is in both."""
    _, rows_left, rows_right = np.intersect1d(left, right, return_indices=True)
    return Pairs(rows_left, rows_right)


def _finding(check: str, splits: tuple[str, str], pairs: Pairs) -> Finding:
    # Evenly spread, so that the examples are not all of one patient.
    some = np.unique(np.linspace(0, len(pairs.left) - 1, EXAMPLES).astype(int))
    examples = tuple(
        ((splits[0], int(pairs.left[i])), (splits[1], int(pairs.right[i]))) for i in some
    )
    count = len(np.unique(pairs.right))
    if check == "near":
        count = max(count, len(np.unique(pairs.left)))
    return Finding(check, splits, count, examples)


def to_text(name: Name) -> str:
    """The name of a pair as a file holds it."""
    return f"{name[0]:016x}-{name[1]:016x}"


def from_text(text: str) -> Name:
    """The inverse of `to_text`; raises ValueError."""
    one, other = (int(digest, 16) for digest in text.split("-"))
    return min(one, other), max(one, other)


def from_texts(texts: Iterable[str]) -> frozenset[Name]:
    """The pairs that an audit recorded; raises ValueError."""
    return frozenset(map(from_text, texts))
