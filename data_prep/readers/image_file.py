"""Reading one 2-D image in PNG, JPEG, TIFF or BMP. What an image is, its content says."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from jaxtyping import Int16, Int32
from PIL import Image, ImageOps

from data_prep.readers.image_damage import DAMAGED, require_whole
from data_prep.readers.lost_file import not_read
from data_prep.readers.silence import hidden_output
from data_prep.source import Unusable, Unwanted

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Images all the same, so that they are missed rather than left out by design.
OTHER_SUFFIXES = (
    *(".webp", ".gif", ".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".avif", ".heic", ".heif"),
    *(".pgm", ".ppm", ".pnm", ".pbm", ".tga", ".exr", ".apng", ".svg", ".psd", ".hdr"),
)
MAX_PIXELS = 2**26
_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_MODES_8_BIT = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
_DEEP_COLOUR = "16 bits and several channels: save it as 16-bit grey"
_NO_IMAGE = "not a PNG, JPEG, TIFF or BMP image"
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Of TIFF 6.0. Pillow 13 scrambles uncompressed pixels that are to be turned by 90 degrees.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ORIENTATION, _ON_ITS_SIDE = 274, (5, 6, 7, 8)


def image_bits(path: Path) -> int:
    """Returns 8 or 16, the bits of a pixel, from the header alone.

    Raises:
        Unwanted: If it is no image, not named like one and not missed (`lost_file`), or a mask.
        Unusable: If it is too large, or of a mode without a grey value.
    """
    with _opened(path) as image:
        if image.mode == "1":
            raise Unwanted("a mask (1 bit for each pixel), not an image")
        if image.mode in _MODES_16_BIT or _is_deep_colour(image):
            return 16
        if image.mode in _MODES_8_BIT:
            return 8
        if image.mode == "F":
            raise Unusable("floating-point values: save them as 16-bit grey, or HU as NIfTI")
        raise Unusable(f"mode {image.mode} is not grey, RGB or palette")


def is_unwanted(path: Path) -> bool:
    """Whether an image is left out by design, as its header alone can say."""
    try:
        image_bits(path)
    except Unwanted:
        return True
    except Unusable:
        return False
    return False


def is_named_image(path: str) -> bool:
    """Whether a file has the name of an image, so that another content is a fault."""
    return path.lower().endswith(SUFFIXES + OTHER_SUFFIXES)


def read_stored(path: Path) -> Int32[np.ndarray, "h w"]:
    """Returns the grey values of an image, as a viewer shows it (EXIF orientation).

    Alpha is dropped. Equal colour channels give that channel, others the luminance of
    ITU-R BT.601, rounded. Values are 0 to 255 or 0 to 65,535; those of a signed TIFF may be
    negative.

    Raises:
        Unusable: With the reason.
    """
    bits = image_bits(path)
    try:
        with warnings.catch_warnings(action="ignore"), _opened(path) as image:
            inverted = bits == 16 and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
            if _tag(image, _ORIENTATION) in _ON_ITS_SIDE:
                raise Unusable("a TIFF that is stored on its side")
            require_whole(path, image)
            if _is_deep_colour(image):
                return _deep_colour(image, path)
            # Pillow turns TIFF by itself.
            turned = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
            if bits == 16:
                values = np.asarray(turned).astype(np.int64)
            else:
                colours = turned.convert("RGB") if turned.mode in ("P", "PA") else turned
                return np.asarray(colours.convert("L")).astype(np.int32)
    except Unusable:
        raise
    except Exception as error:  # Pillow raises all sorts on a damaged file
        raise Unusable(DAMAGED) from error
    if values.min() < -32768 or values.max() > 65535:
        raise Unusable("values beyond 16 bits")
    return (65535 - values if inverted else values).astype(np.int32)


def read_grey(path: Path) -> Int16[np.ndarray, "h w"]:
    """Returns the grey values: 8-bit as they are, 16-bit minus 32,768; raises as `read_stored`.

    Raises:
        Unusable: Also if there are values below 0.
    """
    stored, bits = read_stored(path), image_bits(path)
    if stored.min() < 0:
        raise Unusable("values below 0, not grey (if they are HU: --hu_offset=0)")
    return (stored - (32768 if bits == 16 else 0)).astype(np.int16)


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether it has 16 bits that Pillow would cut to 8: colour, or grey with alpha."""
    tiles = getattr(image, "tile", None)
    if image.mode not in _MODES_8_BIT or not tiles:
        return False
    arguments = tiles[0][3]
    raw_mode = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
    return ";16" in str(raw_mode)


def _deep_colour(image: Image.Image, path: Path) -> Int32[np.ndarray, "h w"]:
    """The grey values of a PNG with several channels of 16 bits each, by SimpleITK's reader."""
    if image.format != "PNG" or image.getexif().get(_ORIENTATION, 1) != 1:
        raise Unusable(_DEEP_COLOUR)
    image.load()  # tells whether the file is whole
    try:
        with tempfile.TemporaryDirectory() as folder, hidden_output():
            link = Path(folder) / "image.png"  # a name that any reader knows
            link.symlink_to(path.absolute())
            read = SimpleITK.ReadImage(str(link), imageIO="PNGImageIO")
    except RuntimeError as error:  # it knows no grey with alpha
        raise Unusable(_DEEP_COLOUR) from error
    channels = SimpleITK.GetArrayFromImage(read)
    if channels.dtype != np.uint16 or channels.ndim != 3:
        raise Unusable(_DEEP_COLOUR)
    colours = channels[..., :3].astype(np.int32)
    if (colours == colours[..., :1]).all():
        return colours[..., 0]
    return np.rint(colours @ _LUMINANCE).astype(np.int32)


def _tag(image: Image.Image, tag: int) -> Any:
    """A tag of a TIFF; None for other formats."""
    tags = getattr(image, "tag_v2", None)
    return tags.get(tag) if tags is not None else None


def _begins_image(path: Path) -> bool:
    """Whether a file begins like an image; BMP has no such beginning that texts have not, too."""
    try:
        with open(path, "rb") as stream:
            return stream.read(4).startswith(_STARTS)
    except OSError:
        return False


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(path, formats=FORMATS)
            frames = getattr(image, "n_frames", 1)  # looks for them in the file
    except Image.DecompressionBombError as error:
        raise Unusable(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow raises all sorts on a damaged header
        name = path.name.lower()
        if name.endswith(OTHER_SUFFIXES):
            raise Unusable("an image format that is not read: save it as PNG") from error
        if name.endswith(SUFFIXES) or _begins_image(path):
            raise Unusable(_NO_IMAGE) from error
        raise not_read(path, _NO_IMAGE) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Unusable(f"more than {MAX_PIXELS} pixels")
    if frames > 1:
        image.close()
        raise Unusable("more than one page or frame")
    return image
