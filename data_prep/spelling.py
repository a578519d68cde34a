"""Which names mean the same, spelled in another way: `P-017` and `p17`, `COVID` and `Covid`.

Tables come from two readers, a spreadsheet drops zeros, pandas makes 1.0 of 1. Taken as they stand
such names make two classes of one, or two patients of one, who may then be in two splits.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

_NUMBER = re.compile(r"([+-]?)0*(\d+?)(?:\.(\d*?)0*)?")
_SEPARATORS = r"[\s_\-\u2010-\u2015]+"
_BETWEEN_DIGITS = re.compile(rf"(?<=\d){_SEPARATORS}(?=\d)")
_BESIDE_WORDS = re.compile(rf"(?<=\w){_SEPARATORS}(?=\w)")
_LETTERS_OR_DIGITS = re.compile(r"\d+|[^\W\d_]+")
_MOST_DIGITS = 10  # to which numbers are filled with zeros
_UNSEEN = ("Cf", "Cc")  # categories of Unicode: marks of format and control characters
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")

_CUT_NUMBER = re.compile(r"\d([.,]\d+)?[eE]\+\d+")
_NO_NUMBER = re.compile(r"-9{2,}(\.0*)?")

# What pandas, NumPy, R, Python and spreadsheets write for a value that is not there.
_MISSING = {"", "nan", "na", "n/a", "#n/a", "#na", "<na>", "null", "nat", "-nan", "1.#qnan", "nil"}


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value. `none` is a word, `None` is Python's."""
    cell = cell.strip()
    return cell == "None" or cell.casefold() in _MISSING


def is_cut_number(cell: str) -> bool:
    """Whether a cell is a number as a spreadsheet shows a long one: its last digits are lost."""
    return _CUT_NUMBER.fullmatch(cell.strip()) is not None


def says_no_class(label: str) -> bool:
    """Whether a label has no letter or digit, or is a number that stands for a missing one."""
    return _NO_NUMBER.fullmatch(label) is not None or not any(map(str.isalnum, label))


def key(name: str) -> str:
    """What all spellings of a name share.

    Case, leading zeros, and spaces, hyphens and underscores inside do not count, nor do `.0` and
    what nobody sees, as a zero-width space. A sign does, and digits that are apart stay apart:
    `1-11` is not `11-1`.
    """
    seen = "".join(c for c in name if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    text = unicodedata.normalize("NFKC", seen).strip().casefold()
    if number := _NUMBER.fullmatch(text):
        sign, whole, part = number.groups(default="")
        return f"{sign.replace('+', '')}{whole}" + f".{part}" * bool(part)
    text = _BESIDE_WORDS.sub("", _BETWEEN_DIGITS.sub("|", text))
    return _LEADING_ZEROS.sub("", text)


def respelled(name: str) -> Iterator[str]:
    """Other spellings of a name, the usual ones: what is compared by its digest alone has no `key`.

    Lower, upper or title case; no, or one kind of, separator between the words, or words and
    numbers; numbers as they are, or all or the last of them filled with zeros to one width. The
    first is the `key`.
    """
    same = key(name)
    yield same
    if same.isdecimal():
        yield f"{same}.0"  # as pandas writes a column with gaps
    plain = unicodedata.normalize("NFKC", name).strip()
    runs = list(_LETTERS_OR_DIGITS.finditer(plain))
    if not runs:
        return
    texts = [run.group() for run in runs]
    between = [plain[a.end() : b.start()] for a, b in pairwise(runs)]
    before, after = plain[: runs[0].start()], plain[runs[-1].end() :]
    seen = {name, same}
    for filled in _filled(texts):
        for separators in _separators(between):
            joined = "".join(map("".join, zip(filled, [*separators, ""], strict=True)))
            for cased in (joined, joined.lower(), joined.upper(), joined.title()):
                other = f"{before}{cased}{after}"
                if other not in seen and key(other) == same:
                    yield other
                seen.add(other)


def _filled(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Words and numbers, these as they are, and all of them or the last alone filled with zeros."""
    yield texts
    numbers = [place for place, text in enumerate(texts) if text.isdecimal()]
    for width in range(1, _MOST_DIGITS + 1) if numbers else ():
        for places in (numbers, numbers[-1:]):
            yield [
                text.lstrip("0").zfill(width) if place in places else text
                for place, text in enumerate(texts)
            ]


def _separators(between: Sequence[str]) -> Iterator[Sequence[str]]:
    """What may stand between words and numbers: what does, or everywhere one thing or nothing."""
    yield between
    for separator in ("", "-", "_", " "):
        yield [separator] * len(between)


def alike(names: Iterable[str]) -> list[list[str]]:
    """The names that have other spellings among them, together with these, in order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups[key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]
