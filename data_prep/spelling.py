"""Which names mean the same, spelled in another way: `P-017` and `p17`, `COVID` and `Covid`.

Tables come from two readers, a spreadsheet drops zeros, pandas makes 1.0 of 1. Taken as they stand
such names make two classes of one, or two patients of one, who may then be in two splits.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"([+-]?)0*(\d+?)(?:\.(\d*?)0*)?")
_SEPARATORS = r"[\s_\-\u2010-\u2015]+"
_BETWEEN_DIGITS = re.compile(rf"(?<=\d){_SEPARATORS}(?=\d)")
_BESIDE_WORDS = re.compile(rf"(?<=\w){_SEPARATORS}(?=\w)")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")

# What pandas, NumPy, R, Python and spreadsheets write for a value that is not there.
_MISSING = {"", "nan", "na", "n/a", "#n/a", "#na", "<na>", "null", "nat", "-nan", "1.#qnan", "nil"}


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value. `none` is a word, `None` is Python's."""
    cell = cell.strip()
    return cell == "None" or cell.casefold() in _MISSING


def key(name: str) -> str:
    """What all spellings of a name share.

    Case, leading zeros, and spaces, hyphens and underscores inside do not count, nor does `.0`. A
    sign does, and digits that are apart stay apart: `1-11` is not `11-1`.
    """
    text = unicodedata.normalize("NFKC", name).strip().casefold()
    if number := _NUMBER.fullmatch(text):
        sign, whole, part = number.groups(default="")
        return f"{sign.replace('+', '')}{whole}" + f".{part}" * bool(part)
    text = _BESIDE_WORDS.sub("", _BETWEEN_DIGITS.sub("|", text))
    return _LEADING_ZEROS.sub("", text)


def alike(names: Iterable[str]) -> list[list[str]]:
    """The names that have other spellings among them, together with these, in order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups[key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]
