"""The index of a preparation: which items make up which unit."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import astuple

from data_prep.pipeline.records import pseudonym
from data_prep.source import Item, Rejected


class Index:
    """Which items make up which unit: in a temporary file without a name, not in memory.

    The file holds identifiers as in the source. No other process can open it, and nothing of it is
    left when this one ends, however it ends.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("")
        self._db.execute(
            "CREATE TABLE item (number INTEGER PRIMARY KEY, unit, patient, stamp, item)"
        )
        self._db.execute("CREATE TABLE rejected (number INTEGER PRIMARY KEY, reason, fault, path)")

    def close(self) -> None:
        """Frees the file."""
        self._db.close()

    def add(self, item: Item, unit: str, patient: str, stamp: str) -> None:
        """Adds an item; the stamp changes when its file does."""
        row = (item.number, unit, patient, stamp, json.dumps(astuple(item)))
        self._db.execute("INSERT INTO item VALUES (?, ?, ?, ?, ?)", row)

    def reject(self, item: Item, reason: str, fault: bool) -> None:
        """Adds an item that has no unit."""
        row = (item.number, reason, fault, item.path)
        self._db.execute("INSERT INTO rejected VALUES (?, ?, ?, ?)", row)

    def complete(self) -> None:
        """To be called once all is added."""
        self._db.execute("CREATE INDEX unit ON item (unit)")

    @property
    def items(self) -> int:
        """How many items have a unit."""
        return self._db.execute("SELECT COUNT(*) FROM item").fetchone()[0]

    def units(self) -> Iterator[tuple[str, str, tuple[Item, ...]]]:
        """Yields name, stamp and items of each unit."""
        for (unit,) in self._db.execute("SELECT DISTINCT unit FROM item ORDER BY unit"):
            query = "SELECT stamp, item FROM item WHERE unit = ? ORDER BY number"
            rows = self._db.execute(query, (unit,)).fetchall()
            yield unit, " ".join(stamp for stamp, _ in rows), tuple(_item(row) for _, row in rows)

    def rejected(self) -> Iterator[Rejected]:
        """Yields the items without a unit."""
        query = "SELECT number, reason, fault FROM rejected ORDER BY number"
        for number, reason, fault in self._db.execute(query):
            yield Rejected(number, reason, bool(fault))

    def path(self, number: int) -> str:
        """Where an item is."""
        query = "SELECT path FROM rejected WHERE number = ?"
        if row := self._db.execute(query, (number,)).fetchone():
            return row[0]
        row = self._db.execute("SELECT item FROM item WHERE number = ?", (number,)).fetchone()
        return _item(row[0]).path

    def patients(self, key: bytes) -> dict[str, str]:
        """The patients as in the source, by pseudonym."""
        rows = self._db.execute("SELECT DISTINCT patient FROM item")
        return {pseudonym(key, patient): patient for (patient,) in rows}


def _item(text: str) -> Item:
    *fields, part = json.loads(text)
    return Item(*fields, part=part and tuple(part))
