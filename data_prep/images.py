"""Reading one PNG, JPEG, TIFF or BMP as grey values."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from PIL import Image

from data_prep.records import Unusable

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 2**26
_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")


def image_bits(path: Path) -> int:
    """Returns 8 or 16, the bits of a pixel, from the header alone.

    Raises:
        Unusable: If it is no image, too large, or of a mode without a grey value.
    """
    with _opened(path) as image:
        if image.mode in _MODES_8_BIT:
            return 8
        if image.mode in _MODES_16_BIT:
            return 16
        raise Unusable(f"mode {image.mode} is not grey, RGB or palette")


def read_grey(path: Path) -> Int16[np.ndarray, "h w"]:
    """Returns the grey values of an image: 8-bit as they are, 16-bit minus 32768.

    Alpha is dropped. Equal colour channels give that channel, others the luminance of
    ITU-R BT.601, rounded.

    Raises:
        Unusable: With the reason.
    """
    bits = image_bits(path)
    try:
        with warnings.catch_warnings(action="ignore"), _opened(path) as image:
            if bits == 16:
                values = np.asarray(image).astype(np.int64)
            else:
                colours = image.convert("RGB") if image.mode in ("P", "PA") else image
                return np.asarray(colours.convert("L")).astype(np.int16)
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise Unusable("cannot be decoded (damaged or cut off)") from error
    if values.min() < 0 or values.max() > 65535:
        raise Unusable("values beyond 16 bits")
    return (values - 32768).astype(np.int16)


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Unusable(f"more than {MAX_PIXELS} pixels") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise Unusable("not a PNG, JPEG, TIFF or BMP image") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Unusable(f"more than {MAX_PIXELS} pixels")
    if getattr(image, "n_frames", 1) > 1:
        image.close()
        raise Unusable("more than one frame")
    return image
