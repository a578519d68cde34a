"""2-D images in PNG, JPEG, TIFF or BMP: a list of them as a source.

Grey values are kept: 8-bit as they are, 16-bit minus 32768, or minus an offset that makes HU of
them. Masks among the images are left out, told by their depth, name or values.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int16, Int32

from data_prep.cases import Case
from data_prep.origin import Origin
from data_prep.patients import NO_MATCH
from data_prep.pipeline.records import to_hu
from data_prep.readers.hounsfield import OFFSETS, Evidence, Values
from data_prep.readers.image_file import image_bits, read_grey, read_stored
from data_prep.readers.labels import positive_last
from data_prep.readers.listing import natural
from data_prep.readers.masks import is_mask, mask_names
from data_prep.source import Finding, Item, Place, Rejected, Slice, Unusable, Unwanted

MASK = "a mask beside an image (by its name)"
SUSPECTED = 32  # images that are looked at for HU
NARROW = 0.125  # of 16 bits: the values of 12 or 13 bits, or fewer
UNIT = 128  # images that are read, and read again after a kill, in one go


@dataclass(frozen=True)
class ImageSource:
    """A list of images; a `source.Source`. `numbered` makes its items.

    Attributes:
        name: Of the dataset.
        classes: Names of the classes.
        bits: 8 or 16; images of the other depth are rejected.
        remarks: What `notes` says.
        origin: Of a public set.
        known: What `facts` says.
        listed: The items. Only the process that lists them needs them: they do not pickle.
        hu_offset: What is subtracted from 16-bit values to make HU; None: they are grey.
        values: AUTO, or HU if what that makes is HU by the user's word.
        case: What a label is of.
    """

    name: str
    classes: Sequence[str]
    bits: int
    remarks: Sequence[str] = ()
    origin: Origin | None = None
    listed: Sequence[Item] = field(default=(), repr=False)
    known: Mapping[str, Any] = field(default_factory=lambda: {"patients_known": False})
    hu_offset: int | None = None
    values: Values = Values.AUTO
    case: Case = Case()

    kind: ClassVar[str] = "image"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "listed": ()}

    @property
    def intensity(self) -> str:
        """See `Source`."""
        return f"grey{self.bits}" if self.hu_offset is None else "hu"

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        case = {} if self.case == Case() else {"case": self.case.of.value}
        if self.hu_offset is None:
            return case
        return {"hu_offset": self.hu_offset, "values": self.values.value, **case}

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        yield from self.listed

    def place(self, item: Item) -> Place:
        """Up to `UNIT` images in natural order are a unit.

        Raises:
            Unwanted: If it is no image and not named like one, or a mask.
            Unusable: If it is missing, damaged, or of the other depth.
        """
        item.require_sound()
        if not os.path.isfile(item.path):
            raise Unusable("listed but not there")
        bits = image_bits(Path(item.path))
        if bits != self.bits:
            raise Unusable(f"{bits}-bit image among {self.bits}-bit images")
        if not item.patient:
            raise Unusable(NO_MATCH)
        return Place(unit=f"{(item.number - 1) // UNIT:07d}", patient=item.patient)

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected | Finding]:
        """See `Source`. The images of a patient are its one series.

        Raises:
            Unusable: If they should be HU, and are not.
        """
        seen, masks = Evidence(), 0
        for item in items:
            try:
                image = self._image(Path(item.path), seen)
            except Unusable as error:
                masks += isinstance(error, Unwanted)
                yield Rejected.of(item.number, error)
                continue
            assert item.part is not None, "`numbered` gave it"
            yield Slice(
                image,
                item.patient,
                item.patient,
                item.part[1],
                label=item.label,
                split=item.split,
                case=self.case.name(item, item.patient, item.patient),
                slice_label=item.slice_label,
            )
        if masks:
            found = "masks among the images"
            yield Finding(items[0].patient, found, f"{masks} of {len(items)}", masks, kept=False)
        if self.hu_offset is not None and masks < len(items):
            seen.require(self.values)

    def _image(self, path: Path, seen: Evidence) -> Int16[np.ndarray, "h w"]:
        """One image; raises Unwanted if it is a mask."""
        if self.hu_offset is None:
            image = read_grey(path)
        else:
            hu = to_offset(read_stored(path), self.hu_offset)
            image = to_hu(hu)
        if is_mask(image):
            raise Unwanted("a mask (few values), not an image")
        if self.hu_offset is not None:
            seen.add(hu)
        return image

    def facts(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {**({"labels_of": "slice"} if self.classes else {}), **self.known}

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return self.remarks


def with_positive(source: ImageSource, positive: str) -> ImageSource:
    """The source with that class of two as the last; raises as `labels.positive_last`."""
    if not positive:
        return source
    classes = positive_last(source.classes, positive)
    items = source.listed
    if classes != list(source.classes):
        items = [replace(i, label=1 - i.label) if i.label >= 0 else i for i in items]
    known = {**source.known, "positive": positive}
    return replace(source, classes=classes, listed=items, known=known)


def numbered(items: Iterable[Item]) -> list[Item]:
    """The items in natural order of their paths, numbered: all of them, and those of each patient.

    The latter number, the future `slice_index`, is the start of the part.
    """
    ordered = sorted(items, key=lambda item: natural(item.path))
    seen = Counter[str]()
    result = []
    for number, item in enumerate(ordered, 1):
        place = seen[item.patient]
        result.append(replace(item, number=number, part=("slice", place, place + 1)))
        seen[item.patient] += 1
    return result


def without_masks(items: Sequence[Item], root: Path) -> tuple[list[Item], int]:
    """The items, and how many have the name of a mask beside an image: these get a flaw.

    It is a fault where the user's table names that very file.
    """
    names = mask_names([item.path for item in items if item.flaw is None], root)
    marked = [replace(i, flaw=(MASK, i.wanted)) if i.path in names else i for i in items]
    return marked, len(names)


def to_offset(stored: Int32[np.ndarray, "h w"], offset: int) -> Int32[np.ndarray, "h w"]:
    """Stored values minus an offset, as signed 16-bit numbers.

    With offset 0, what was cast from signed to unsigned gets its sign back.
    """
    return (stored - offset + 32768) % 65536 - 32768


def suspected_offset(paths: Sequence[str]) -> int | None:
    """The offset with which 16-bit grey values look like HU, from some of the images.

    0 stands for HU that were cast to unsigned, so that air is brighter than bone; None is no
    suspicion.
    """
    seen = {offset: Evidence() for offset in (32768, *OFFSETS, 0)}
    for stored in _some(paths):
        for offset, evidence in seen.items():
            evidence.add(to_offset(stored, offset))
    return next((offset for offset, evidence in seen.items() if not evidence.reason()), None)


def narrow_range(paths: Sequence[str]) -> tuple[int, int] | None:
    """Lowest and highest of 16-bit grey values, from some of the images, if they are near.

    A thousandth of the pixels of each is not looked at: marks and dead pixels.
    """
    ends = [np.percentile(stored, (0.1, 99.9)) for stored in _some(paths)]
    if not ends:
        return None
    low, high = int(min(low for low, _ in ends)), int(max(high for _, high in ends))
    return (low, high) if high - low < NARROW * 65535 else None


def _some(paths: Sequence[str]) -> Iterator[Int32[np.ndarray, "h w"]]:
    """The stored values of some of the images, of those with 16 bits."""
    for path in paths[:: max(1, len(paths) // SUSPECTED)]:
        with suppress(Unusable):
            if image_bits(Path(path)) == 16:
                yield read_stored(Path(path))


def common_bits(paths: Iterable[str]) -> int:
    """The depth of most images, 8 or 16; 8 if there is none."""
    counts = Counter[int]()
    for path in paths:
        with suppress(Unusable):
            counts[image_bits(Path(path))] += 1
    return 16 if counts[16] > counts[8] else 8
