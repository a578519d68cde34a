"""A dataset of slices that a test holds: `from memory import write_slices`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.pipeline.prepare import prepare
from data_prep.source import Item, Place, Slice

KEY = b"0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class MemorySource:
    """One item is one series."""

    series: dict[str, list[Slice]]
    classes: Sequence[str] = ("no", "yes")
    intensity: str = "grey8"
    name: str = "small"
    kind: str = "image"
    origin: None = None

    def options(self) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"patients_known": True}

    def notes(self) -> list[str]:
        return []

    def items(self) -> Iterator[Item]:
        for number, slices in enumerate(self.series.values(), 1):
            yield Item(number, "", slices[0].patient)

    def place(self, item: Item) -> Place:
        return Place(str(item.number), item.patient)

    def read(self, items: Sequence[Item]) -> Iterator[Slice]:
        for item in items:
            yield from list(self.series.values())[item.number - 1]


def write_slices(out: Path, splits: Mapping[str, Sequence[Slice]], **settings: Any) -> Path:
    """Writes the slices of each split; `settings` are of `MemorySource`."""
    series: dict[str, list[Slice]] = {}
    for split, slices in splits.items():
        for item in slices:
            series.setdefault(f"{split} {item.series}", []).append(replace(item, split=split))
    source = MemorySource(series, **settings)
    prepare(source, out, key=KEY, fractions={"train": 1.0})
    return out
