"""A source for the tests of the engine: each file is JSON that says what reading it does."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.origin import Origin
from data_prep.source import Finding, Item, Place, Rejected, Slice, Unusable, Unwanted


@dataclass(frozen=True)
class ToySource:
    """One file is one series: {"patient", "slices", "label", "split", "place", "read"}.

    `place` and `read` name what goes wrong there. Every read leaves a mark in `log`.
    """

    root: Path
    log: Path | None = None
    name: str = "toy"
    kind: str = "image"
    intensity: str = "hu"
    classes: tuple[str, ...] = ("a", "b")
    origin: Origin | None = None

    def options(self) -> dict[str, Any]:
        return {}

    def notes(self) -> list[str]:
        return ["a toy"]

    def facts(self) -> dict[str, Any]:
        return {"patients_known": True}

    def items(self) -> Iterator[Item]:
        for number, path in enumerate(sorted(self.root.glob("*.json")), 1):
            yield Item(number, str(path))

    def place(self, item: Item) -> Place:
        file = json.loads(Path(item.path).read_text())
        trouble(file.get("place", ""))
        return Place(item.path, file["patient"])

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        (item,) = items
        file = json.loads(Path(item.path).read_text())
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(f"{Path(item.path).stem}\n")
        if file.get("tilt"):
            yield Finding(item.path, "gantry tilt", "18.5 degrees", file["slices"], True)
        rng = np.random.default_rng(file["seed"])
        for index in range(file["slices"]):
            if index == file["slices"] - 1:
                trouble(file.get("read", ""))
            image = rng.integers(-1024, 2000, (24, 32)).astype(np.int16)
            yield Slice(
                image,
                file["patient"],
                item.path,
                index,
                position_mm=2.5 * index,
                spacing_mm=(2.5, 0.5, 0.75),
                thickness_mm=3.0,
                label=file.get("label", -1),
                split=file.get("split", ""),
            )
        if file.get("broken"):
            yield Rejected(item.number, "cut off", count=file["broken"])


def trouble(kind: str) -> None:
    """Does what goes wrong."""
    if kind == "unusable":
        raise Unusable("cut off")
    if kind == "unwanted":
        raise Unwanted("localizer")
    if kind == "raise":
        raise ValueError("Doe^Jane")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "hang":
        time.sleep(1000)
    if kind == "memory":
        np.ones(2**33, np.uint8)


def write_toy(root: Path, files: dict[str, dict[str, Any]]) -> ToySource:
    """Writes the files of a toy source; what they do not say is given here."""
    root.mkdir(exist_ok=True)
    for number, (name, file) in enumerate(files.items()):
        content = {"patient": name, "slices": 3, "seed": number, **file}
        (root / f"{name}.json").write_text(json.dumps(content))
    return ToySource(root, root.parent / "reads.log")


def reads(source: ToySource) -> list[str]:
    """Which files were read since the last call."""
    assert source.log is not None
    if not source.log.exists():
        return []
    names = source.log.read_text().split()
    source.log.unlink()
    return sorted(names)
