"""What was left out or is irregular, and why: a table, two lists, and a contact sheet.

Everything is told by running number, pseudonym and fixed phrase. The contact sheet shows slices of
the dataset itself, never of what was rejected: a dose screen may have a name burned into it.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image, ImageDraw, ImageFont

from ctssl_jax.dataset.windows import GREY_RANGE, WINDOWS
from data_prep.pipeline.losses import Losses
from data_prep.pipeline.work import Part
from data_prep.source import Finding, Rejected

TILES, COLUMNS, TILE = 40, 8, 160  # pixels
WINDOW_HU = (-1000.0, 400.0)
# A head has much bone, and more that is like brain than like fat; shares of what is above BODY_HU.
BODY_HU, BONE_HU, BRAIN_HU, FAT_HU = -300, 300, (10, 60), (-150, -30)
HEAD_BONE = 0.05


@dataclass
class Quality:
    """The counts of one preparation.

    Attributes:
        limit: Largest share of images that may be rejected for a fault, as a fraction.
        kept: Slices in the dataset.
        faults: Images that are damaged or irregular, by reason.
        unwanted: Images and other files left out by design, by reason.
        findings: Series with something irregular, kept or not.
        losses: Labelled scans and patients of which nothing is left.
        labels: Slices kept of each class, by its number as text; "-1" for those of none.
    """

    limit: float
    kept: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    unwanted: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    losses: Losses = Losses()
    labels: Counter[str] = field(default_factory=Counter)

    def reject(self, rejected: Rejected) -> None:
        """Counts one rejection."""
        (self.faults if rejected.fault else self.unwanted)[rejected.reason] += rejected.count

    def add(self, part: Part) -> None:
        """Counts a part."""
        self.kept += part.slices
        self.findings += part.findings
        for group in part.groups:
            self.labels.update(group.labels)
        for rejected in part.rejected:
            self.reject(rejected)

    @property
    def share(self) -> float:
        """Share of the images meant to be used that are damaged or irregular, as a fraction."""
        faults = self.faults.total()
        return faults / (faults + self.kept) if faults else 0.0

    def summary(self) -> dict[str, Any]:
        """What the manifest says."""
        return {
            "rejected": dict(self.faults.most_common()),
            "left_out": dict(self.unwanted.most_common()),
            "rejected_share": round(self.share, 6),
            **({"labelled": labelled} if (labelled := self.losses.summary()) else {}),
            "findings": dict(Counter(found.finding for found in self.findings).most_common()),
        }

    def table(self) -> str:
        """The counts by reason, as text."""
        faults, images = self.faults.total(), self.faults.total() + self.kept
        lines = [
            f"images kept: {self.kept:,}",
            f"rejected: {faults:,} of {images:,} ({self.share:.1%}, limit {self.limit:.1%})",
            *(f"  {count:>8,}  {reason}" for reason, count in self.faults.most_common()),
            *self.losses.lines(),
            f"left out by design: {self.unwanted.total():,}",
            *(f"  {count:>8,}  {reason}" for reason, count in self.unwanted.most_common()),
        ]
        if self.findings:
            lines += ["findings:", f"  {'series':>8}  {'slices':>8}  finding"]
        by_kind: dict[tuple[str, bool], list[int]] = {}
        for found in self.findings:
            by_kind.setdefault((found.finding, found.kept), []).append(found.slices)
        for (finding, kept), slices in sorted(by_kind.items(), key=lambda row: -len(row[1])):
            fate = "kept as slices" if kept else "rejected"
            lines.append(f"  {len(slices):>8,}  {sum(slices):>8,}  {finding} ({fate})")
        return "\n".join(lines)


def write_report(
    folder: Path, quality: Quality, rejected: Iterable[Rejected], tiles: Sequence["Tile"]
) -> None:
    """Writes quality.txt, quality.png, rejected.csv and findings.csv."""
    (folder / "quality.txt").write_text(quality.table() + "\n")
    with open(folder / "rejected.csv", "w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("item", "reason", "images", "fault"))
        for row in rejected:
            named = f" (--labels, line {row.row})" if row.row else ""
            table.writerow((f"file {row.number}{named}", row.reason, row.count, int(row.fault)))
    with open(folder / "findings.csv", "w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("series", "finding", "detail", "slices", "kept"))
        for found in quality.findings:
            table.writerow((*astuple(found)[:-1], int(found.kept)))
    if tiles:
        contact_sheet(tiles).save(folder / "quality.png")


class Tile(NamedTuple):
    """One picture of the contact sheet: stored values, how to show them, what to write below."""

    image: Int16[np.ndarray, "h w"]
    intensity: str
    caption: str
    marked: bool = False


def contact_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """Rows of slices, each in its proportions; captions of irregular series are in orange."""
    font = ImageFont.load_default(12)
    captions = max(len(tile.caption.splitlines()) for tile in tiles)
    height = TILE + 4 + 15 * captions
    rows = -(-len(tiles) // COLUMNS)
    columns = min(COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * (TILE + 8), rows * (height + 8)), "black")
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        left = number % COLUMNS * (TILE + 8) + 4
        top = number // COLUMNS * (height + 8) + 4
        shown = Image.fromarray(to_display(tile))
        shown.thumbnail((TILE, TILE), Image.Resampling.BOX)
        if max(shown.size) < TILE:
            scale = TILE / max(shown.size)
            shown = shown.resize(
                (max(1, round(shown.width * scale)), max(1, round(shown.height * scale))),
                Image.Resampling.NEAREST,
            )
        sheet.paste(shown, (left + (TILE - shown.width) // 2, top + (TILE - shown.height) // 2))
        colour = "#ffb000" if tile.marked else "#c0c0c0"
        draw.multiline_text((left, top + TILE + 2), tile.caption, fill=colour, font=font, spacing=2)
    return sheet


def to_display(tile: Tile) -> UInt8[np.ndarray, "h w"]:
    """Its 8 bits to look at: HU through a wide window, of a head that for brain; grey as it is."""
    low, high = GREY_RANGE[tile.intensity] if tile.intensity != "hu" else WINDOW_HU
    if tile.intensity == "hu" and is_head(tile.image):
        low, high = WINDOWS["brain"]
    unit = np.clip((tile.image.astype(np.float32) - low) / (high - low), 0, 1)
    return np.rint(255 * unit).astype(np.uint8)


def is_head(image: Int16[np.ndarray, "h w"]) -> bool:
    """Whether a slice in HU looks like one of a head, by its values alone."""
    body = image[image > BODY_HU]
    bone = np.count_nonzero(body > BONE_HU)
    brain, fat = (
        np.count_nonzero((body > low) & (body < high)) for low, high in (BRAIN_HU, FAT_HU)
    )
    return bool(bone > HEAD_BONE * body.size and brain > fat)
