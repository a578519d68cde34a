"""What a user counts: labelled scans and patients, and which of them nothing is left of.

One damaged file in a hundred may be every slice of a patient. Beside images, the limit of
`--max_rejected` is held against these.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_prep.pipeline.index import Index
from data_prep.pipeline.work import Part
from data_prep.source import EXCLUDED, EXCLUDED_BY_CONTENT, Item

SHOWN = 12  # rows that a message names


@dataclass(frozen=True)
class Losses:
    """Counts of labelled scans and patients.

    A scan is what a row of the table speaks of: a file, a folder, a series, a study, a patient;
    without a table a series or volume. Single images without a table are no scans.

    Attributes:
        scans: How many there are.
        lost: Of how many of them no slice is left.
        rows: Lines of the table that speak of these.
        patients: How many patients have labelled files.
        lost_patients: Of how many of them no slice is left.
    """

    scans: int = 0
    lost: int = 0
    rows: tuple[int, ...] = field(default=())
    patients: int = 0
    lost_patients: int = 0

    def over(self, limit: float) -> str:
        """What is lost beyond a limit, in words; "" if nothing is."""
        told = []
        if self.lost > limit * self.scans:
            told.append(f"{self.lost} of {self.scans} labelled scans{self._named()}")
        if self.lost_patients > limit * self.patients:
            told.append(f"{self.lost_patients} of {self.patients} labelled patients")
        return " and ".join(told)

    def lines(self) -> list[str]:
        """Lines of the table of quality."""
        lines = []
        if self.scans:
            lines.append(f"labelled scans lost: {self.lost:,} of {self.scans:,}{self._named()}")
        if self.patients:
            lines.append(f"labelled patients lost: {self.lost_patients:,} of {self.patients:,}")
        return lines

    def summary(self) -> dict[str, int]:
        """What the manifest says; empty where nothing is labelled."""
        counts = {
            "scans": self.scans,
            "scans_lost": self.lost,
            "patients": self.patients,
            "patients_lost": self.lost_patients,
        }
        return counts if self.scans or self.patients else {}

    def _named(self) -> str:
        named = ", ".join(map(str, self.rows[:SHOWN]))
        more = ", ..." if len(self.rows) > SHOWN else ""
        return f" (--labels, line {named}{more})" if self.rows else ""


def count(index: Index, parts: Iterable[tuple[str, Part]], kind: str, known: bool) -> Losses:
    """Counts them.

    Args:
        index: Of all items.
        parts: What was read.
        kind: Of the source.
        known: Whether its patients are known; else they are not counted.
    """
    gone = dict(_gone(index, parts))
    scans: dict[tuple[str, object], bool] = {}  # whether something is left
    patients: dict[str, bool] = {}
    for item, unit, patient in _items(index):
        left = item.number not in gone
        if item.label < 0 or not (left or item.row or gone[item.number]):
            continue  # what was left out by design, and no row speaks of it
        if scan := _scan(item, unit, kind):
            scans[scan] = scans.get(scan, False) or left
        if known and patient:
            patients[patient] = patients.get(patient, False) or left
    lost = [scan for scan, left in scans.items() if not left]
    rows = sorted(number for name, number in lost if name == "row" and isinstance(number, int))
    lost_patients = sum(not left for left in patients.values())
    return Losses(len(scans), len(lost), tuple(rows), len(patients), lost_patients)


def _scan(item: Item, unit: str, kind: str) -> tuple[str, object] | None:
    """What names the scan of an item; None if it is none."""
    if item.row:
        return "row", item.row
    if kind == "image":
        return None
    if unit:
        return "unit", unit
    # A damaged slice whose series nobody knows is not a scan of its own.
    is_slice = item.part is not None and item.part[0] == "dicom"
    return None if is_slice else ("file", item.number)


def _items(index: Index) -> Iterator[tuple[Item, str, str]]:
    """Each item, with its unit and patient where these are known."""
    yield from index.placed()
    for item, reason in index.unplaced():
        # Not a row without a label, nor a patient of `--exclude_patients_of`.
        if reason != EXCLUDED and (item.flaw is None or item.flaw[1]):
            yield item, "", item.patient


def _gone(index: Index, parts: Iterable[tuple[str, Part]]) -> Iterator[tuple[int, bool]]:
    """Numbers of items of which no slice is left, and whether that is a fault.

    Of a file of many frames some may be: it counts as left if it is the only one of its unit. What
    is left out with its patient is not lost.
    """
    for rejected in index.rejected():
        yield rejected.number, rejected.fault
    for _, part in parts:
        for rejected in part.rejected:
            whole = not part.slices or index.companions(rejected.number) > 1
            if whole and rejected.reason != EXCLUDED_BY_CONTENT:
                yield rejected.number, rejected.fault
