"""CSV tables."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ctssl_jax.errors import DataError


def read_table(path: Path, columns: Sequence[str], name: str) -> list[dict[str, str]]:
    """Reads a CSV file with a header; names and cells without spaces around them.

    Args:
        path: The file.
        columns: Those that must be there.
        name: What errors call the file: they do not tell its path.

    Raises:
        DataError: If it is missing, is not text, or lacks one of the columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = [
                {(k or "").strip(): (v or "").strip() for k, v in row.items() if k is not None}
                for row in csv.DictReader(stream)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {name}: it must be a CSV file in UTF-8") from error
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise DataError(f"{name} has no rows or no column {', '.join(missing)}")
    return rows
