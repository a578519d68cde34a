"""Images that Pillow decodes without a word, though pixels of them are made up."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.readers.image_file import read_stored
from data_prep.source import Unusable

RNG = np.random.default_rng(0)
_Y, _X = np.mgrid[:128, :128]
SMOOTH = (120 + 60 * np.sin(_X / 9) * np.cos(_Y / 7) + RNG.normal(0, 9, _X.shape)).astype(np.uint8)


def stored(format, **how):
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).save(stream, format, **how)
    return stream.getvalue()


def cut(data):
    return data[: len(data) // 2] + b"\xff\xd9"


def changed(data, at, by=0xFF):
    return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]


def changed_strip(data):
    """A deflated TIFF with a strip that damage made longer: its checksum is behind all rows."""
    with Image.open(io.BytesIO(data)) as image:
        (start,), (size,) = image.tag_v2[273], image.tag_v2[279]
    plain = bytearray(zlib.decompress(data[start : start + size]))
    plain[len(plain) // 2 :] = b"\0" * 99999
    packed = zlib.compress(bytes(plain), 0)[:-4] + b"\0\0\0\0"
    head = bytearray(data)
    for tag, number in ((273, len(data)), (279, len(packed))):
        at = head.index(struct.pack("<HHI", tag, 4, 1)) + 8
        head[at : at + 4] = struct.pack("<I", number)
    return bytes(head) + packed


def changed_scan(data):
    """A TIFF of JPEG with one damaged byte after which the decoder is lost."""
    for at in range(len(data) // 2, len(data) - 8):
        try:
            damaged = changed(data, at)
            if np.mean(np.asarray(Image.open(io.BytesIO(damaged))) != SMOOTH_JPEG) > 0.2:
                return damaged
        except Exception:
            continue
    raise AssertionError


def chunk(kind, data, good):
    check = zlib.crc32(kind + data) ^ (not good)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def changed_rows(data):
    """A PNG with other pixels than those that its checksum is of."""
    rows = np.pad(SMOOTH // 2, ((0, 0), (1, 0)))
    pixels = chunk(b"IDAT", zlib.compress(rows.tobytes()), good=False)
    return data[: data.index(b"IDAT") - 4] + pixels + data[-12:]


JPEG, PROGRESSIVE = stored("JPEG", quality=85), stored("JPEG", quality=85, progressive=True)
PNG, DEFLATED = stored("PNG"), stored("TIFF", compression="tiff_adobe_deflate", strip_size=2**20)
PACKED_JPEG = stored("TIFF", compression="jpeg")
SMOOTH_JPEG = np.asarray(Image.open(io.BytesIO(PACKED_JPEG)))
DAMAGED = {
    "rows.png": changed_rows(PNG),
    "cut.jpg": cut(JPEG),
    "cut_progressive.jpg": cut(PROGRESSIVE),
    "gap.jpg": JPEG[: len(JPEG) // 2] + JPEG[len(JPEG) // 2 + 99 :],
    "twice.jpg": JPEG[: len(JPEG) // 2] + JPEG[len(JPEG) // 2 - 99 :],
    "strip.tif": changed_strip(DEFLATED),
    "byte.tif": changed_scan(PACKED_JPEG),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_made_up_pixels_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    np.asarray(Image.open(tmp_path / name))  # without a word
    with pytest.raises(Unusable, match=r"^cannot be decoded \(damaged or cut off\)$"):
        read_stored(tmp_path / name)


HARMLESS = {
    "whole.png": PNG,
    "text.png": PNG[:-12] + chunk(b"tEXt", b"Comment\0x", good=False) + PNG[-12:],
    "endless.png": PNG[:-12],
    "more.png": PNG + b"more",
    "whole.jpg": JPEG,
    "progressive.jpg": PROGRESSIVE,
    "restarts.jpg": stored("JPEG", quality=85, restart_marker_rows=1),
    "filled.jpg": JPEG[:-2] + b"\0" * 7 + JPEG[-2:],
    "more.jpg": JPEG + b"more" * 99,
    "whole.tif": DEFLATED,
    "predicted.tif": stored("TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 2}),
    "jpeg.tif": PACKED_JPEG,
    "lzw.tif": stored("TIFF", compression="tiff_lzw"),
    "plain.tif": stored("TIFF"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_spoils_no_pixel_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(HARMLESS[name])
    read = read_stored(tmp_path / name)
    near = 0 if not name.endswith("jpg") and name != "jpeg.tif" else 30
    np.testing.assert_allclose(read, SMOOTH, atol=near)
