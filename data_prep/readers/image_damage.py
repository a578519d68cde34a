"""Whether the pixels of a PNG, JPEG or TIFF are whole, where Pillow decodes on and says nothing.

PNG and deflated TIFF have checksums, which Pillow does not compare. JPEG has none: libjpeg makes
grey of what is missing and warns, which Pillow does not hear; SimpleITK's readers print it. What is
neither packed nor summed (BMP, plain TIFF) says nothing of its damage.
"""

import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

import SimpleITK
from PIL import Image

from data_prep.readers.silence import hidden_output
from data_prep.source import Unusable

DAMAGED = "cannot be decoded (damaged or cut off)"
_PNG_START = 8  # bytes before the first chunk
# Tags of TIFF 6.0: where the strips or tiles are, and how many bytes each has.
_PIECES = ((273, 279), (324, 325))
_DEFLATED = ("tiff_adobe_deflate", "tiff_deflate")  # as Pillow names compressions
# Warnings of libjpeg (its jerror.h) after which pixels are made up.
_MADE_UP = re.compile(
    rb"Premature end of JPEG|premature end of data|bad Huffman code|instead of RST|"
    rb"Inconsistent progression"
)
_LEFT_OVER = re.compile(rb"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


def require_whole(path: Path, image: Image.Image) -> None:
    """Raises if pixels of an image are not those that were written, as far as its format can say.

    Args:
        path: Of the file.
        image: The same, opened.

    Raises:
        Unusable: If they are not.
    """
    compression = image.info.get("compression", "") if image.format == "TIFF" else ""
    if image.format == "PNG":
        whole = _agrees(path)
    elif image.format in ("JPEG", "MPO"):
        whole = _is_decoded(path, "JPEGImageIO")
    elif compression == "jpeg":
        whole = _is_decoded(path, "TIFFImageIO")
    else:
        whole = compression not in _DEFLATED or _inflates(path, image)
    if not whole:
        raise Unusable(DAMAGED)


def _agrees(path: Path) -> bool:
    """Whether the checksums of all chunks of a PNG that pixels depend on are right.

    Texts and the like may be damaged, and the chunk that ends a PNG may be missing.
    """
    with open(path, "rb") as stream:
        stream.seek(_PNG_START)
        while len(head := stream.read(8)) == 8 and (kind := head[4:]) != b"IEND":
            data, stored = stream.read(int.from_bytes(head[:4])), stream.read(4)
            found = zlib.crc32(data, zlib.crc32(kind)).to_bytes(4)
            if kind[:1].isupper() and found != stored:  # as critical chunks are named
                return False
    return True


def _inflates(path: Path, image: Image.Image) -> bool:
    """Whether all strips or tiles of a TIFF can be inflated, and have the right checksum."""
    with open(path, "rb") as stream:
        for tags in _PIECES:
            starts, sizes = (_numbers(image, tag) for tag in tags)
            for start, size in zip(starts, sizes, strict=False):
                stream.seek(start)
                inflate, rest = zlib.decompressobj(), stream.read(size)
                try:
                    while rest and not inflate.eof:
                        inflate.decompress(rest, 2**20)
                        rest = inflate.unconsumed_tail
                except zlib.error:
                    return False
    return True


def _numbers(image: Image.Image, tag: int) -> tuple[int, ...]:
    """The numbers in a tag of a TIFF; none where it has no such tag."""
    value: Any = getattr(image, "tag_v2", {}).get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _is_decoded(path: Path, reader: str) -> bool:
    """Whether libjpeg decodes an image, or each piece of one, without making up pixels."""
    with tempfile.TemporaryDirectory() as folder, hidden_output() as heard:
        link = Path(folder) / f"image.{'jpg' if reader == 'JPEGImageIO' else 'tif'}"
        link.symlink_to(path.absolute())  # a name that any reader knows
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            SimpleITK.ReadImage(str(link), imageIO=reader)
        except RuntimeError:  # it reads less than Pillow, which has decoded it
            return True
        heard.seek(0)
        said = heard.read()
    left_over = [(int(n), int(marker, 16)) for n, marker in _LEFT_OVER.findall(said)]
    if _MADE_UP.search(said):
        return False
    return not left_over or all(_is_filling(path.read_bytes(), *left) for left in left_over)


def _is_filling(data: bytes, count: int, marker: int) -> bool:
    """Whether so many bytes before such a marker are of one value: filling, as some writers leave.

    Otherwise they are pixels that were not reached, and the others moved.
    """
    found = re.finditer(re.escape(bytes([0xFF, marker])), data)
    return any(len(set(data[max(0, at.start() - count) : at.start()])) == 1 for at in found)
