"""DICOM series -> slices in HU: `python -m data_prep.dicom --source=DICOM --out=DATASET`.

Files are grouped by SeriesInstanceUID, whatever their names, and put in order by the projection
of their position on the slice normal (DICOM PS3.3 C.7.6.2.1.1), not by file name or number.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep import command
from data_prep.irregular import Irregular
from data_prep.origin import Origin
from data_prep.readers import listing
from data_prep.readers.dicom_header import Header, read_header
from data_prep.readers.dicom_pixels import read_pixels, to_hounsfield
from data_prep.readers.stack import Stack
from data_prep.source import Finding, Item, Place, Rejected, Slice, Unusable, Unwanted

# What --irregular is about; see `readers/stack.py`.
STACK = "a series with missing or repeated slices, gantry tilt, changing distances or mixed sizes"


@dataclass(frozen=True)
class DicomSource:
    """The axial CT slices of all DICOM files below a folder; a `source.Source`.

    Attributes:
        root: Folder of DICOM files with any names, or one file.
        irregular: Whether the slices of an irregular series are kept. The finding is kept anyway.
    """

    root: Path
    irregular: Irregular = Irregular.REJECT

    name: ClassVar[str] = "dicom"
    kind: ClassVar[str] = "dicom"
    intensity: ClassVar[str] = "hu"
    classes: ClassVar[Sequence[str]] = ()
    origin: ClassVar[Origin | None] = None

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {"irregular": self.irregular.value}

    def items(self) -> Iterator[Item]:
        """The files as `listing.files` lists them.

        Raises:
            DataError: If there is no file.
        """
        for number, path in enumerate(listing.files(self.root), 1):
            yield Item(number, path)

    def place(self, item: Item) -> Place:
        """Series and patient of a file, from its header; raises as `dicom_header.read_header`."""
        header = self._header(item)
        return Place(unit=header.series, patient=header.patient)

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        """The slices of one series along its normal, from the feet to the head."""
        headers: dict[int, Header] = {}
        seen: dict[str, Item] = {}
        for item in items:
            try:
                header = self._header(item)
                _require_new(seen.setdefault(header.instance or item.path, item), item)
                headers[item.number] = header
            except Unusable as error:
                yield Rejected.of(item.number, error)
        if headers:
            yield from self._read_series({i.number: i.path for i in items}, headers)

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return ()

    def _header(self, item: Item) -> Header:
        return read_header(item.path, os.path.relpath(os.path.dirname(item.path), self.root))

    def _read_series(
        self, paths: Mapping[int, str], headers: Mapping[int, Header]
    ) -> Iterator[Slice | Rejected | Finding]:
        places = [(number, k) for number, h in headers.items() for k in range(len(h.frames))]
        stack = _stack([headers[number] for number, _ in places], [k for _, k in places])
        series = headers[places[0][0]].series
        if len({header.patient for header in headers.values()}) > 1:
            raise Unusable("the series names more than one patient")
        keep = self.irregular is Irregular.ACCEPT_2D
        irregularities = stack.irregularities()
        for finding, detail in irregularities:
            yield Finding(series, finding, detail, len(places), kept=keep)
        if irregularities and not keep:
            reason = Unusable(f"irregular series: {irregularities[0].finding}")
            for number, header in headers.items():
                yield Rejected.of(number, reason, len(header.frames))
            return
        positions, distance = stack.positions(), stack.distance()
        reader = _Frames(paths, headers)
        for index, which in enumerate(np.argsort(positions, kind="stable").tolist()):
            number, k = places[which]
            header = headers[number]
            try:
                image = reader.hounsfield(number, k)
            except Unusable as error:
                yield Rejected.of(number, error)
                continue
            yield Slice(
                image,
                header.patient,
                header.series,
                index,
                position_mm=float(positions[which]),
                spacing_mm=(distance, *header.frames[k].pixel_mm),
                thickness_mm=header.frames[k].thickness_mm,
            )


class _Frames:
    """Reads each file once, although the frames of several may take turns along the normal."""

    def __init__(self, paths: Mapping[int, str], headers: Mapping[int, Header]):
        self._paths, self._headers = paths, headers
        self._number, self._frames = 0, list[bytes]()

    def hounsfield(self, number: int, frame: int) -> Any:
        header = self._headers[number]
        if number != self._number:
            self._frames = read_pixels(self._paths[number], header)
            self._number = number
        return to_hounsfield(self._frames[frame], header, frame)


def _require_new(first: Item, item: Item) -> None:
    """Raises if another file has the same SOPInstanceUID; exports often hold files twice."""
    if first is item:
        return
    if Path(first.path).read_bytes() == Path(item.path).read_bytes():
        raise Unwanted("a copy of another file")
    raise Unusable("repeats a SOPInstanceUID with other content")


def _stack(headers: Sequence[Header], which: Sequence[int]) -> Stack:
    frames = [header.frames[k] for header, k in zip(headers, which, strict=True)]
    return Stack(
        normals=np.array([frame.normal for frame in frames]),
        origins=np.array([frame.origin for frame in frames]),
        thickness_mm=np.array([frame.thickness_mm for frame in frames]),
        sizes=np.array([(h.pixels.rows, h.pixels.columns) for h in headers]),
        pixel_mm=np.array([frame.pixel_mm for frame in frames]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "dicom",
        "Axial CT series in DICOM -> dataset folder in Hounsfield units, for pre-training: all of "
        "it goes to train, and irregular series are kept as slices, unless you say otherwise",
        "--source=dicom --out=data/mine",
        source="folder of DICOM files, searched with all sub-folders",
        val=0.0,
        test=0.0,
    )
    command.add_irregular(parser, STACK, Irregular.ACCEPT_2D)

    def from_flags(args: argparse.Namespace) -> DicomSource:
        return DicomSource(args.source, Irregular(args.irregular))

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
