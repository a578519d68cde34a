"""The index of a preparation: which items make up which unit."""

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from data_prep.names import from_bytes, to_bytes
from data_prep.patients import Study
from data_prep.pipeline.records import pseudonym
from data_prep.source import Item, Place, Rejected


class Index:
    """Which items make up which unit: in a temporary file without a name, not in memory.

    The file holds identifiers as in the source. No other process can open it, and nothing of it is
    left when this one ends, however it ends.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("")
        # Names are bytes, since not all are UTF-8.
        self._db.execute(
            "CREATE TABLE item "
            "(number INTEGER PRIMARY KEY, unit, patient, study, patient_id, stamp, item, header)"
        )
        self._db.execute("CREATE TABLE rejected (number INTEGER PRIMARY KEY, reason, fault, item)")
        self._db.execute("CREATE TABLE left_out (patient, study, patient_id)")

    def close(self) -> None:
        """Frees the file."""
        self._db.close()

    def add(self, item: Item, place: Place, stamp: str) -> None:
        """Adds an item; the stamp changes when its file does."""
        names = (place.unit, place.patient, place.study, place.patient_id)
        row = (item.number, *map(to_bytes, names), stamp, json.dumps(item.plain()), place.header)
        self._db.execute("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def reject(self, item: Item, reason: str, fault: bool) -> None:
        """Adds an item that has no unit."""
        row = (item.number, reason, fault, json.dumps(item.plain()))
        self._db.execute("INSERT INTO rejected VALUES (?, ?, ?, ?)", row)

    def leave_out(self, item: Item, place: Place, reason: str) -> None:
        """Adds an item of a patient who is left out; who else that is may show in its study."""
        self.reject(item, reason, False)
        names = (place.patient, place.study, place.patient_id)
        self._db.execute("INSERT INTO left_out VALUES (?, ?, ?)", tuple(map(to_bytes, names)))

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
            query = "SELECT stamp, item, header FROM item WHERE unit = ? ORDER BY number"
            rows = self._db.execute(query, (unit,)).fetchall()
            items = tuple(_item(text, header) for _, text, header in rows)
            yield from_bytes(unit), " ".join(stamp for stamp, _, _ in rows), items

    def rejected(self) -> Iterator[Rejected]:
        """Yields the items without a unit."""
        query = "SELECT number, reason, fault, item FROM rejected ORDER BY number"
        for number, reason, fault, item in self._db.execute(query):
            yield Rejected(number, reason, bool(fault), row=_item(item).row)

    def placed(self) -> Iterator[tuple[Item, str, str]]:
        """Yields each item that has a unit, with its unit and patient."""
        query = "SELECT item, unit, patient FROM item ORDER BY number"
        for item, unit, patient in self._db.execute(query):
            yield _item(item), from_bytes(unit), from_bytes(patient)

    def unplaced(self) -> Iterator[tuple[Item, str]]:
        """Yields each item without a unit, and why it has none."""
        for item, reason in self._db.execute("SELECT item, reason FROM rejected ORDER BY number"):
            yield _item(item), reason

    def companions(self, number: int) -> int:
        """How many items are in the unit of an item."""
        query = "SELECT COUNT(*) FROM item WHERE unit = (SELECT unit FROM item WHERE number = ?)"
        return self._db.execute(query, (number,)).fetchone()[0]

    def path(self, number: int) -> str:
        """Where an item is."""
        for table in ("rejected", "item"):
            query = f"SELECT item FROM {table} WHERE number = ?"
            if row := self._db.execute(query, (number,)).fetchone():
                return _item(row[0]).path
        raise KeyError(number)

    def patients(self, key: bytes) -> dict[str, str]:
        """The patients as in the source, by pseudonym."""
        rows = self._db.execute("SELECT DISTINCT patient FROM item")
        return {pseudonym(key, name): name for name in (from_bytes(row[0]) for row in rows)}

    def everyone(self) -> list[str]:
        """The patients as in the source, with those that are left out."""
        rows = self._db.execute("SELECT patient FROM item UNION SELECT patient FROM left_out")
        return [from_bytes(patient) for (patient,) in rows]

    def studies(self) -> list[Study]:
        """What files say of their studies, where they name one; of those left out, too."""
        names = "study, patient, patient_id"
        all_items = f"SELECT {names} FROM item UNION ALL SELECT {names} FROM left_out"
        query = f"SELECT {names}, COUNT(*) FROM ({all_items}) WHERE study != ? GROUP BY {names}"
        return [
            Study(from_bytes(study), from_bytes(patient), files, from_bytes(patient_id))
            for study, patient, patient_id, files in self._db.execute(query, (b"",))
        ]


def _item(text: str, header: bytes = b"") -> Item:
    fields: dict[str, Any] = json.loads(text)
    for name in ("part", "flaw"):
        fields[name] = fields[name] and tuple(fields[name])
    return Item(**fields, header=header)
