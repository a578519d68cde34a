"""2-D images in PNG, JPEG, TIFF or BMP: reading one, and a list of them as a source.

What an image is, its content says, not its name. Grey values are kept: 8-bit as they are, 16-bit
minus 32768. An image of 1 bit for each pixel is a mask and no CT; it is left out.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int16
from PIL import Image, ImageOps

from data_prep.origin import Origin
from data_prep.patients import NO_MATCH
from data_prep.readers.labels import positive_last
from data_prep.readers.listing import natural
from data_prep.source import Item, Place, Rejected, Slice, Unusable, Unwanted

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 2**26
UNIT = 128  # images that are read, and read again after a kill, in one go
_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_MODES_8_BIT = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
# Of TIFF 6.0. Pillow 13 scrambles uncompressed pixels that are to be turned by 90 degrees.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ORIENTATION, _ON_ITS_SIDE = 274, (5, 6, 7, 8)


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
    """

    name: str
    classes: Sequence[str]
    bits: int
    remarks: Sequence[str] = ()
    origin: Origin | None = None
    listed: Sequence[Item] = field(default=(), repr=False)
    known: Mapping[str, Any] = field(default_factory=lambda: {"patients_known": False})

    kind: ClassVar[str] = "image"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "listed": ()}

    @property
    def intensity(self) -> str:
        """See `Source`."""
        return f"grey{self.bits}"

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {}

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

    def read(self, items: Sequence[Item]) -> Iterator[Slice | Rejected]:
        """See `Source`. The images of a patient are its one series."""
        for item in items:
            try:
                image = read_grey(Path(item.path))
            except Unusable as error:
                yield Rejected.of(item.number, error)
                continue
            assert item.part is not None, "`numbered` gave it"
            yield Slice(
                image, item.patient, item.patient, item.part[1], label=item.label, split=item.split
            )

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


def common_bits(paths: Iterable[str]) -> int:
    """The depth of most images, 8 or 16; 8 if there is none."""
    counts = Counter[int]()
    for path in paths:
        with suppress(Unusable):
            counts[image_bits(Path(path))] += 1
    return 16 if counts[16] > counts[8] else 8


def image_bits(path: Path) -> int:
    """Returns 8 or 16, the bits of a pixel, from the header alone.

    Raises:
        Unwanted: If it is no image and not named like one, or a mask.
        Unusable: If it is too large, or of a mode without a grey value.
    """
    with _opened(path) as image:
        if image.mode == "1":
            raise Unwanted("a mask (1 bit for each pixel), not an image")
        if image.mode in _MODES_8_BIT:
            return 8
        if image.mode in _MODES_16_BIT:
            return 16
        raise Unusable(f"mode {image.mode} is not grey, RGB or palette")


def is_mask(path: Path) -> bool:
    """Whether an image is left out by design, as its header alone can say."""
    try:
        image_bits(path)
    except Unwanted:
        return True
    except Unusable:
        return False
    return False


def read_grey(path: Path) -> Int16[np.ndarray, "h w"]:
    """Returns the grey values of an image, as a viewer shows it (EXIF orientation).

    Alpha is dropped. Equal colour channels give that channel, others the luminance of
    ITU-R BT.601, rounded.

    Raises:
        Unusable: With the reason.
    """
    bits = image_bits(path)
    try:
        with warnings.catch_warnings(action="ignore"), _opened(path) as image:
            inverted = bits == 16 and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
            if _tag(image, _ORIENTATION) in _ON_ITS_SIDE:
                raise Unusable("a TIFF that is stored on its side")
            # Pillow turns TIFF by itself.
            turned = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
            if bits == 16:
                values = np.asarray(turned).astype(np.int64)
            else:
                colours = turned.convert("RGB") if turned.mode in ("P", "PA") else turned
                return np.asarray(colours.convert("L")).astype(np.int16)
    except Unusable:
        raise
    except Exception as error:  # Pillow raises all sorts on a damaged file
        raise Unusable("cannot be decoded (damaged or cut off)") from error
    if values.min() < 0 or values.max() > 65535:
        raise Unusable("values beyond 16 bits")
    return ((65535 - values if inverted else values) - 32768).astype(np.int16)


def _tag(image: Image.Image, tag: int) -> Any:
    """A tag of a TIFF; None for other formats."""
    tags = getattr(image, "tag_v2", None)
    return tags.get(tag) if tags is not None else None


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(path, formats=FORMATS)
            frames = getattr(image, "n_frames", 1)  # looks for them in the file
    except Image.DecompressionBombError as error:
        raise Unusable(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises all sorts on a damaged header
        named = path.name.lower().endswith(SUFFIXES)
        raise (Unusable if named else Unwanted)("not a PNG, JPEG, TIFF or BMP image") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Unusable(f"more than {MAX_PIXELS} pixels")
    if frames > 1:
        image.close()
        raise Unusable("more than one page or frame")
    return image
