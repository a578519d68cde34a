"""DICOM series -> slices in HU: `python -m data_prep.dicom --source=DICOM --out=DATASET`.

Files are grouped by SeriesInstanceUID, whatever their names, and put in order by the projection
of their position on the slice normal (DICOM PS3.3 C.7.6.2.1.1), not by file name or number.
"""

import argparse
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep import command
from data_prep.cases import Case, CaseOf
from data_prep.irregular import Irregular
from data_prep.origin import Origin
from data_prep.patients import NO_MATCH, PatientBy, PatientFinder
from data_prep.readers import listing
from data_prep.readers.dicom_frame import Frame
from data_prep.readers.dicom_header import Header, read_header
from data_prep.readers.dicom_pixels import LOWEST_TISSUE_HU, read_pixels, to_hounsfield
from data_prep.readers.flat_rows import FlatRows
from data_prep.readers.hounsfield import HOUNSFIELD, SCALE_HU, Evidence, Values
from data_prep.readers.reconstructions import Made, tell_apart
from data_prep.readers.stack import Stack
from data_prep.source import (
    COPY,
    COPY_OF_OTHER_LABEL,
    Finding,
    Item,
    Place,
    Rejected,
    Slice,
    Unusable,
    Unwanted,
)

# What --irregular is about; see `readers/stack.py`.
STACK = "a series with missing or repeated slices, gantry tilt, changing distances or mixed sizes"


@dataclass(frozen=True)
class DicomSource:
    """The axial CT slices of all DICOM files below a folder; a `source.Source`.

    Attributes:
        root: Folder of DICOM files with any names, or one file.
        irregular: Whether the slices of an irregular series are kept. The finding is kept anyway.
        values: AUTO, or HU if they are that by the user's word.
        patient_regex: As `patients.PatientFinder` takes it; "" for the patient of the header.
        patient_by: What counts as a patient.
        remarks: What `notes` says.
    """

    root: Path
    irregular: Irregular = Irregular.REJECT
    values: Values = Values.AUTO
    patient_regex: str = ""
    patient_by: PatientBy = PatientBy.AUTO
    remarks: Sequence[str] = ()

    name: ClassVar[str] = "dicom"
    kind: ClassVar[str] = "dicom"
    intensity: ClassVar[str] = "hu"
    classes: ClassVar[Sequence[str]] = ()
    origin: ClassVar[Origin | None] = None

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        # Who is the patient, records hold; what else that flag may say changes the split alone.
        study = {"patient_by": "study"} if self.patient_by is PatientBy.STUDY else {}
        return {"irregular": self.irregular.value, "values": self.values.value, **study}

    def items(self) -> Iterator[Item]:
        """The files as `listing.entries` lists them.

        Raises:
            ConfigError: If `patient_regex` is not one with a group.
            DataError: If there is no file.
        """
        finder = PatientFinder.of(self.patient_regex, self.root.resolve())
        for number, entry in enumerate(listing.entries(self.root), 1):
            patient = finder.find(entry.path) if self.patient_regex else ""
            yield Item(number, entry.path, patient, flaw=entry.flaw)

    def place(self, item: Item) -> Place:
        """Series, patient and study of a file; raises as `dicom_header.read_header`.

        Raises:
            Unusable: Also if `patient_regex` does not match.
        """
        stamp = item.stamp()  # before it is read: a file that changes meanwhile is read again
        own = self._read(item)
        if self.patient_regex and not item.patient:
            raise Unusable(NO_MATCH)
        header = self._named(item, own)
        return Place(
            unit=header.series,
            patient=header.patient,
            study=header.study,
            header=pickle.dumps((stamp, header)),
            patient_id=own.patient if own.patient != own.study else "",
        )

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        """The slices of one series along its normal, from the feet to the head."""
        headers: dict[int, Header] = {}
        seen: dict[str, tuple[Item, Header]] = {}
        for item in items:
            try:
                header = self._header(item)
                first = seen.setdefault(header.instance or item.path, (item, header))
                _require_new(first, (item, header))
                headers[item.number] = header
            except Unusable as error:
                yield Rejected.of(item.number, error)
        if headers:
            yield from self._read_series({i.number: i.path for i in items}, headers)

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return self.remarks

    def facts(self) -> Mapping[str, Any]:
        """See `Source`."""
        case = Case(CaseOf.SERIES).told()
        if self.patient_by is PatientBy.STUDY:
            return {"patients_known": False, "patients_from": "study", "case": case}
        origin = "path" if self.patient_regex else "header"
        return {"patients_known": True, "patients_from": origin, "case": case}

    def _header(self, item: Item) -> Header:
        """The header of an item; its patient is that of the item, if it has one."""
        # What `place` made, in this preparation: it is in no file that others could write.
        stamp, header = pickle.loads(item.header) if item.header else ("", None)
        if header is None or stamp != item.stamp():
            header = self._read(item)
        return self._named(item, header)

    def _read(self, item: Item) -> Header:
        return read_header(item.path, os.path.relpath(os.path.dirname(item.path), self.root))

    def _named(self, item: Item, header: Header) -> Header:
        if self.patient_by is PatientBy.STUDY:
            return replace(header, patient=header.study)
        return replace(header, patient=item.patient or header.patient)

    def _read_series(
        self, paths: Mapping[int, str], headers: Mapping[int, Header]
    ) -> Iterator[Slice | Rejected | Finding]:
        if len({header.patient for header in headers.values()}) > 1:
            raise Unusable("the series names more than one patient")
        reader = _Frames(paths, headers)
        findings, parts = _tell_apart(headers)
        yield from findings
        for series, places in parts:
            yield from self._read_stack(series, places, reader)
        reason = reader.seen.reason(self.values) if reader.was_used else ""
        if reason:  # what was read is taken back: the unit as a whole is rejected
            error = Unusable(reason)
            error.images = {number: len(header.frames) for number, header in headers.items()}
            raise error
        yield from reader.rows.findings(next(iter(headers.values())).series)

    def _read_stack(
        self, series: str, places: Sequence[tuple[int, int]], reader: "_Frames"
    ) -> Iterator[Slice | Rejected | Finding]:
        """The slices of one reconstruction, each place being the number of a file and a frame."""
        headers = reader.headers
        stack = _stack(headers, places)
        keep = self.irregular is Irregular.ACCEPT_2D
        irregularities = stack.irregularities()
        for finding, detail in irregularities:
            yield Finding(series, finding, detail, len(places), kept=keep)
        if irregularities and not keep:
            reason = Unusable(f"irregular series: {irregularities[0].finding}")
            for number, frames in Counter(number for number, _ in places).items():
                yield Rejected.of(number, reason, frames)
            return
        positions, distance = stack.positions(), stack.distance()
        for index, which in enumerate(np.argsort(positions, kind="stable").tolist()):
            number, k = places[which]
            frame = headers[number].frames[k]
            try:
                image = reader.hounsfield(number, k)
            except Unusable as error:
                yield Rejected.of(number, error)
                continue
            yield Slice(
                image,
                headers[number].patient,
                series,
                index,
                position_mm=float(positions[which]),
                spacing_mm=(distance, *frame.pixel_mm),
                thickness_mm=frame.thickness_mm,
                number=number,
                case=f"series {series}",
            )


def _tell_apart(
    headers: Mapping[int, Header],
) -> tuple[list[Finding], list[tuple[str, list[tuple[int, int]]]]]:
    """What is to be said of a series, and its reconstructions: name, and (file, frame) of each."""
    places = [(number, k) for number, header in headers.items() for k in range(len(header.frames))]
    frames = [headers[number].frames[k] for number, k in places]
    series = headers[places[0][0]].series
    findings = []
    odd = {hu for header in headers.values() if (hu := _padding_hu(header)) is not None}
    if odd:
        detail = ", ".join(f"{hu:g} HU" for hu in sorted(odd)[:3])
        findings.append(Finding(series, "tissue has the padding value", detail, len(places), True))
    made = [Made(f.kernel, _mm(f.thickness_mm), f.acquisition) for f in frames]
    numbers, by = tell_apart(_stack(headers, places).positions(), made)
    count = int(numbers.max()) + 1
    if count == 1:
        return findings, [(series, places)]
    findings.append(
        Finding(
            series, "several reconstructions, told apart", f"{count} by {by}", len(places), True
        )
    )
    parts = [
        (
            f"{series} {part + 1}",
            [place for place, n in zip(places, numbers, strict=True) if n == part],
        )
        for part in range(count)
    ]
    return findings, parts


def _padding_hu(header: Header) -> float | None:
    """The HU of the padding value, if tissue may have it too."""
    if header.pixels.padding is None:
        return None
    frame = header.frames[0]
    hu = max(stored * frame.slope + frame.intercept for stored in header.pixels.padding)
    return hu if LOWEST_TISSUE_HU < hu <= SCALE_HU else None


def _mm(length: float) -> str:
    return f"{length:.2f}" if np.isfinite(length) else ""


class _Frames:
    """Reads each file once, although the frames of several may take turns along the normal."""

    def __init__(self, paths: Mapping[int, str], headers: Mapping[int, Header]):
        self.headers, self.seen, self.was_used = headers, Evidence(), False
        self.rows = FlatRows()
        self._paths = paths
        self._number, self._frames = 0, list[bytes]()

    def hounsfield(self, number: int, frame: int) -> Any:
        header = self.headers[number]
        if number != self._number:
            self._frames = read_pixels(self._paths[number], header)
            self._number = number
        image = to_hounsfield(self._frames[frame], header, frame, self.seen)
        self.rows.add(image)
        self.was_used = True
        return image


def _require_new(first: tuple[Item, Header], other: tuple[Item, Header]) -> None:
    """Raises if another file has the same SOPInstanceUID; exports often hold files twice."""
    paths = [Path(item.path) for item, _ in (first, other)]
    if paths[0] == paths[1]:
        return
    if paths[0].read_bytes() == paths[1].read_bytes() or _show_the_same(first, other):
        labels = {item.label for item, _ in (first, other)}
        if len(labels - {-1}) > 1:
            raise Unusable(COPY_OF_OTHER_LABEL)
        raise Unwanted(COPY)
    raise Unusable("repeats a SOPInstanceUID with other content")


def _show_the_same(first: tuple[Item, Header], other: tuple[Item, Header]) -> bool:
    """Whether two files are of one patient and study, place and HU, whatever else they say.

    What is sent twice may have got another header or compression on the way.
    """
    (_, mine), (_, theirs) = first, other
    owners = [(header.patient, header.study, len(header.frames)) for header in (mine, theirs)]
    if owners[0] != owners[1]:
        return False
    pairs = zip(mine.frames, theirs.frames, strict=True)
    if not all(np.array_equal(_place(a), _place(b), equal_nan=True) for a, b in pairs):
        return False
    try:
        images = [
            [to_hounsfield(frame, header, k, Evidence()) for k, frame in enumerate(frames)]
            for item, header in (first, other)
            for frames in [read_pixels(item.path, header)]
        ]
    except Unusable:
        return False
    return all(np.array_equal(a, b) for a, b in zip(*images, strict=True))


def _place(frame: Frame) -> list[float]:
    """Where a frame lies."""
    return [
        *frame.normal,
        *frame.origin,
        *map(float, frame.size),
        *frame.pixel_mm,
        frame.thickness_mm,
    ]


def _stack(headers: Mapping[int, Header], places: Sequence[tuple[int, int]]) -> Stack:
    frames = [headers[number].frames[k] for number, k in places]
    return Stack(
        normals=np.array([frame.normal for frame in frames]),
        origins=np.array([frame.origin for frame in frames]),
        thickness_mm=np.array([frame.thickness_mm for frame in frames]),
        sizes=np.array([frame.size for frame in frames]),
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
    command.add_values(parser, HOUNSFIELD)
    command.add_patient_regex(parser, "without it the patient is the PatientID")
    command.add_patient_by(parser)

    def from_flags(args: argparse.Namespace) -> DicomSource:
        finder = PatientFinder.of(args.patient_regex, args.source.resolve())
        files = list(listing.files(args.source)) if args.patient_regex else []
        return DicomSource(
            args.source,
            Irregular(args.irregular),
            Values(args.values),
            args.patient_regex,
            PatientBy(args.patient_by),
            finder.require_clear(files),
        )

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
