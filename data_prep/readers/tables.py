"""CSV tables, read strictly: what is not as it should be is refused, with its line and column."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctssl_jax.errors import DataError
from ctssl_jax.files import read_bytes
from data_prep.names import is_text

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_WORD = re.compile(r"[A-Za-z][\w \-]{0,39}")


@dataclass(frozen=True)
class Row:
    """One row: the line of the file where it ends, and its cells by column."""

    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        """A cell, or "" if there is no such column."""
        return self.cells.get(column, "")


def read_table(
    path: Path, columns: Sequence[str], name: str, others: Mapping[str, Sequence[str]] | None = None
) -> list[Row]:
    """Reads a CSV file with a header; names and cells without spaces around them.

    Rows of blank cells are skipped; columns without a name are, too.

    Args:
        path: The file.
        columns: Those that must be there.
        name: What errors call the file: they do not tell its path.
        others: Other names of columns, in small letters without spaces and underscores. Case,
            spaces and underscores of a name never matter.

    Raises:
        DataError: If it cannot be read, is not CSV in UTF-8 with commas, has no rows, lacks a
            column or has one twice, or a row has more or fewer cells than the header.
    """
    rows = _records(_text(path, name), name)
    header = _header(rows[0][1] if rows else [], columns, name, others or {})
    found = [Row(line, _cells(cells, header, line, name)) for line, cells in rows[1:]]
    if not found:
        raise DataError(f"{name} has no rows")
    return found


def _text(path: Path, name: str) -> str:
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DataError(f"cannot read {name}: give a CSV file in UTF-8") from error
    if data.startswith(_UTF_16) or b"\0" in data[:4096]:
        found = "is UTF-16" if not data.startswith(b"PK") else "is a spreadsheet or archive"
        raise DataError(f"{name} {found}: save it as CSV in UTF-8, with commas")
    # Names of files may be no UTF-8: what else is not is refused where it is used.
    return data.decode("utf-8-sig", "surrogateescape")


def _records(text: str, name: str) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with its line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: no CSV ({error}); is a quote not closed?"
        ) from error
    return rows


def _header(
    cells: Sequence[str], columns: Sequence[str], name: str, others: Mapping[str, Sequence[str]]
) -> list[str]:
    """The columns by their own names.

    Raises:
        DataError: If one is missing or there twice, or they are not separated by commas.
    """
    for separator, word in _SEPARATORS.items():
        if len(cells) == 1 and separator in cells[0]:
            named = _listed(cells[0].split(separator))
            raise DataError(
                f"{name}: its columns are separated by {word} ({named}): save it with commas"
            )
    own = {other: column for column, names in others.items() for other in names}
    header = []
    for cell in cells:
        plain = re.sub(r"[\s_]", "", cell).casefold()
        header.append(own.get(plain, plain))
    known = {*columns, *others}
    for column, count in Counter(header).items():
        if count > 1 and column in known:
            twice = _listed(c for c, h in zip(cells, header, strict=True) if h == column)
            raise DataError(f"{name} has the column {column} {count} times ({twice}): keep one")
    if missing := [column for column in columns if column not in header]:
        raise DataError(
            f"{name} has no column {', '.join(missing)}: its first line names {_listed(cells)}"
        )
    return header


def _listed(cells: Iterable[str]) -> str:
    """Names of columns for a message: words alone, since a first line may be data."""
    names = [cell.strip() for cell in cells]
    words = [name for name in names if _WORD.fullmatch(name)][:12]
    rest = len(names) - len(words)
    return ", ".join([*words, *([f"{rest} more that are no words"] if rest else [])]) or "nothing"


def _cells(cells: Sequence[str], header: Sequence[str], line: int, name: str) -> dict[str, str]:
    if len(cells) < len(header) or any(cells[len(header) :]):
        raise DataError(
            f"{name}, line {line}: it has {len(cells)} cells and the header {len(header)}: give "
            "each row as many, and put quotes round a cell that holds a comma"
        )
    return {column: cell for column, cell in zip(header, cells, strict=False) if column}


def require_text(row: Row, columns: Sequence[str], name: str) -> None:
    """Raises DataError if one of these cells is no UTF-8."""
    for column in columns:
        if not is_text(row.get(column)):
            raise DataError(f"{name}, line {row.line}, column {column}: not UTF-8")
