import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.readers import image_file, images, masks
from data_prep.readers.image_file import image_bits, read_grey
from data_prep.readers.images import ImageSource, numbered
from data_prep.source import Item, Rejected, Unusable, Unwanted

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_pixel_values_of_every_mode(tmp_path):
    colour = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    alpha = RNG.integers(0, 256, (7, 5, 1), dtype=np.uint8)
    deep = RNG.integers(0, 65536, (7, 5)).astype(np.uint16)
    # ITU-R BT.601: the weights 0.299, 0.587 and 0.114.
    luminance = np.floor(colour @ np.array([0.299, 0.587, 0.114]) + 0.5)
    palette = Image.fromarray(GREY).convert("P")
    palette.putpalette([255 - v for v in range(256) for _ in range(3)])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "int32.tiff")
    Image.fromarray(GREY).save(tmp_path / "named.jpg", format="PNG")
    equal = np.repeat(GREY[..., None], 3, -1)
    cases = {
        "l.png": (GREY, GREY),
        "l.bmp": (GREY, GREY),
        "l.tiff": (GREY, GREY),
        "named.jpg": (None, GREY),
        "rgb_equal.png": (equal, GREY),
        "rgba_equal.png": (np.concatenate([equal, alpha], -1), GREY),
        "la.png": (np.concatenate([GREY[..., None], alpha], -1), GREY),
        "rgb.png": (colour, luminance),
        "rgba.png": (np.concatenate([colour, alpha], -1), luminance),
        "deep.png": (deep, deep.astype(int) - 32768),
        "deep.tiff": (deep, deep.astype(int) - 32768),
        "int32.tiff": (None, deep.astype(int) - 32768),
        "palette.png": (None, 255 - GREY),
    }
    for name, (pixels, expected) in cases.items():
        if pixels is not None:
            save(tmp_path / name, pixels)
        read = read_grey(tmp_path / name)
        assert read.dtype == np.int16
        np.testing.assert_allclose(read, expected, atol=name in ("rgb.png", "rgba.png"))
        assert image_bits(tmp_path / name) == (16 if "deep" in name or "int32" in name else 8)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right-hand side: turn clockwise to look at it
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), np.rot90(GREY, -1))
    Image.fromarray(GREY).save(tmp_path / "a.tiff", exif=exif)
    assert reason(tmp_path / "a.tiff") == ("a TIFF that is stored on its side", False)
    exif[0x0112] = 3
    for name in ("a.png", "a.tiff"):
        Image.fromarray(GREY).save(tmp_path / name, exif=exif)
        np.testing.assert_array_equal(read_grey(tmp_path / name), np.rot90(GREY, 2))


def test_white_is_zero(tmp_path):
    deep = RNG.integers(0, 65536, (7, 5)).astype(np.uint16)
    for array, top in ((GREY, 255), (deep, 65535)):
        Image.fromarray(array).save(tmp_path / "black.tiff")
        data = bytearray((tmp_path / "black.tiff").read_bytes())
        entry = data.index(bytes([6, 1, 3, 0, 1, 0, 0, 0, 1, 0]))  # tag 262, one short: 1
        data[entry + 8] = 0
        (tmp_path / "white.tiff").write_bytes(data)
        black, white = read_grey(tmp_path / "black.tiff"), read_grey(tmp_path / "white.tiff")
        offset = 0 if top == 255 else -32768
        np.testing.assert_array_equal(
            white.astype(int) - offset, top - (black.astype(int) - offset)
        )


def reason(path):
    try:
        image_bits(path)
        read_grey(path)
    except Unusable as error:
        return str(error), isinstance(error, Unwanted)
    return None


def test_every_unusable_image_has_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "MAX_PIXELS", 5000)
    noisy = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    for name in ("half.png", "half.jpg", "half.tiff", "half.bmp"):
        save(tmp_path / name, noisy)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    Image.fromarray(GREY > 127).save(tmp_path / "mask.png")
    Image.fromarray(GREY > 127).save(tmp_path / "mask.tif")
    pages = [Image.fromarray(GREY)] * 2
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    save(tmp_path / "large.png", np.zeros((80, 80), np.uint8))
    Image.fromarray(RNG.normal(size=(7, 5)).astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(RNG.integers(-9, 9, (7, 5)).astype(np.int32)).save(tmp_path / "signed.tiff")
    (tmp_path / "page.png").write_text("<html>404</html>")
    (tmp_path / "empty.JPG").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    pages[0].save(tmp_path / "other.gif")
    damaged, no_image = (
        "cannot be decoded (damaged or cut off)",
        "not a PNG, JPEG, TIFF or BMP image",
    )
    mask = "a mask (1 bit for each pixel), not an image"
    expected = {
        "half.png": (damaged, False),
        "half.jpg": (damaged, False),
        "half.bmp": (damaged, False),
        "mask.png": (mask, True),
        "mask.tif": (mask, True),
        "pages.tiff": ("more than one page or frame", False),
        "large.png": ("more than 5000 pixels", False),
        "float.tiff": ("floating-point values: save them as 16-bit grey, or HU as NIfTI", False),
        "signed.tiff": ("values below 0, not grey (if they are HU: --hu_offset=0)", False),
        "page.png": (no_image, False),
        "empty.JPG": (no_image, False),
        "notes.txt": (no_image, True),
        "other.gif": ("an image format that is not read: save it as PNG", False),
    }
    assert {name: reason(tmp_path / name) for name in expected} == expected
    assert reason(tmp_path / "half.tiff") in ((damaged, False), (no_image, False))


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "bits.png")
    Image.new("L", (9000, 9000)).save(tmp_path / "grey.png")
    assert reason(tmp_path / "bits.png") == (f"more than {2**26} pixels", False)
    assert reason(tmp_path / "grey.png") == (f"more than {2**26} pixels", False)


def test_numbers_are_natural_and_count_each_patient():
    names = ["b10", "b9", "a2", "a10", "b1"]
    items = numbered([Item(0, f"/x/{name}.png", name[0]) for name in names])
    assert [(i.number, i.path[3:-4], i.part[1]) for i in items] == [
        (1, "a2", 0),
        (2, "a10", 1),
        (3, "b1", 0),
        (4, "b9", 1),
        (5, "b10", 2),
    ]


def test_units_hold_a_limited_number_of_images(tmp_path):
    save(tmp_path / "a.png", GREY)
    items = [
        Item(number, str(tmp_path / "a.png"), f"p{number}", part=("slice", 0, 1))
        for number in range(1, 301)
    ]
    source = ImageSource("x", (), 8, listed=items)
    units = [source.place(item).unit for item in source.items()]
    assert [units.count(unit) for unit in sorted(set(units))] == [128, 128, 44]
    assert units == sorted(units)


def test_depth_is_that_of_most_images(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", GREY.astype(np.uint16) * (200 if name != "c" else 1))
    save(tmp_path / "c.png", GREY)
    (tmp_path / "d.png").write_text("x")
    items = numbered([Item(0, str(p), p.stem) for p in tmp_path.iterdir()])
    source = ImageSource("x", (), images.common_bits(i.path for i in items), listed=items)
    assert source.intensity == "grey16"
    rejected = []
    for item in source.items():
        try:
            source.place(item)
        except Unusable as error:
            rejected.append(Rejected.of(item.number, error))
    assert [r.reason for r in rejected] == [
        "8-bit image among 16-bit images",
        "not a PNG, JPEG, TIFF or BMP image",
    ]
    with pytest.raises(Unusable, match="listed but not there"):
        source.place(Item(9, str(tmp_path / "gone.png"), "p"))


def test_processes_are_not_given_the_list():
    source = ImageSource("x", ("a",), 8, ("note",), None, [Item(1, "/x")])
    again = pickle.loads(pickle.dumps(source))
    assert list(again.items()) == []
    assert (again.name, again.classes, again.bits, again.remarks) == ("x", ("a",), 8, ("note",))


def png(path, channels, colour_type):
    """A PNG of 16 bits a channel, which Pillow reads by the high bytes and does not write."""
    height, width, _ = channels.shape
    rows = channels.astype(">u2").reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">2I5B", width, height, 16, colour_type, 0, 0, 0)
    with open(path, "wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b"")):
            check = zlib.crc32(kind + body)
            stream.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check))


def test_16_bits_of_colour_and_alpha_are_kept_or_refused(tmp_path):
    deep = RNG.integers(0, 65536, (7, 5, 1))
    alpha = np.full_like(deep, 65535)
    colour = RNG.integers(0, 65536, (7, 5, 3))
    png(tmp_path / "rgb.png", np.repeat(deep, 3, -1), 2)
    png(tmp_path / "rgba.png", np.concatenate([np.repeat(deep, 3, -1), alpha], -1), 6)
    png(tmp_path / "colour.png", colour, 2)
    png(tmp_path / "la.png", np.concatenate([deep, alpha], -1), 4)
    for name in ("rgb.png", "rgba.png"):
        assert image_bits(tmp_path / name) == 16
        np.testing.assert_array_equal(read_grey(tmp_path / name), deep[..., 0] - 32768)
    luminance = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_grey(tmp_path / "colour.png"), luminance - 32768, atol=0.51)
    refused = ("16 bits and several channels: save it as 16-bit grey", False)
    assert reason(tmp_path / "la.png") == refused
    whole = (tmp_path / "rgb.png").read_bytes()
    (tmp_path / "rgb.png").write_bytes(whole[:100])
    assert reason(tmp_path / "rgb.png") == ("cannot be decoded (damaged or cut off)", False)


def body(seed=0, n=64):
    """HU: air, tissue, bone."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n] / (n - 1) * 2 - 1
    hu = np.full((n, n), -1000.0)
    hu[x**2 + y**2 < 0.8], hu[x**2 + y**2 < 0.7], hu[x**2 + y**2 < 0.02] = -100, 45, 700
    return np.rint(hu + rng.normal(0, 12, hu.shape)).astype(int)


STORED_AS = {32768: lambda hu: hu + 32768, 1024: lambda hu: np.maximum(hu + 1024, 0)}
STORED_AS[0] = lambda hu: hu % 65536


@pytest.mark.parametrize("offset", STORED_AS)
def test_hu_in_images(tmp_path, offset):
    for k in range(4):
        save(tmp_path / f"{k}.png", STORED_AS[offset](body(k)).astype(np.uint16))
    items = numbered([Item(0, str(p), p.stem) for p in tmp_path.iterdir()])
    assert images.suspected_offset([item.path for item in items]) == offset
    source = ImageSource("x", (), 16, listed=items, hu_offset=offset)
    assert source.intensity == "hu"
    slices = list(source.read(items))
    for k, one in enumerate(slices):
        np.testing.assert_array_equal(one.image, np.maximum(body(k), -1024))
    assert source.options() != ImageSource("x", (), 16).options()
    wrong = ImageSource("x", (), 16, hu_offset=offset + 1500)
    with pytest.raises(Unusable, match=r"^not in HU"):
        list(wrong.read(items))


def test_grey_is_not_suspected(tmp_path):
    grey = (body() + 1000).clip(0, 2000)
    save(tmp_path / "a.png", (grey * 32).astype(np.uint16))
    save(tmp_path / "b.png", (grey // 8).astype(np.uint8))
    save(tmp_path / "c.png", RNG.integers(0, 65536, (64, 64)).astype(np.uint16))
    for name in "abc":
        assert images.suspected_offset([str(tmp_path / f"{name}.png")]) is None
    assert images.suspected_offset([]) is None


def test_signed_tiff_is_hu_by_its_flag(tmp_path):
    Image.fromarray(body().astype(np.int32)).save(tmp_path / "a.tiff")
    (item,) = numbered([Item(0, str(tmp_path / "a.tiff"), "p")])
    (one,) = ImageSource("x", (), 16, hu_offset=0).read([item])
    np.testing.assert_array_equal(one.image, np.maximum(body(), -1024))


def test_masks_are_told_by_their_values(tmp_path):
    y, x = np.mgrid[:64, :64]
    disc = (x - 32) ** 2 + (y - 32) ** 2 < 300
    pictures = {
        "0-255": (disc * 255).astype(np.uint8),
        "0-3": (disc * 1 + (x < 10) * 2).astype(np.uint8),
        "deep": (disc * 40000).astype(np.uint16),
        "slice": ((body() + 1000) // 8).clip(0, 255).astype(np.uint8),
        "black": np.zeros((64, 64), np.uint8),
        "coarse": RNG.integers(0, 4, (64, 64)).astype(np.uint8),
        "tiny": np.array([[0, 255]] * 2, np.uint8),
    }
    for name, picture in pictures.items():
        save(tmp_path / f"{name}.png", picture)
    items = numbered([Item(0, str(p), "p") for p in tmp_path.iterdir()])
    *found, finding = ImageSource("x", (), 8).read(items)
    masks = {Path(items[r.number - 1].path).stem for r in found if isinstance(r, Rejected)}
    assert masks == {"0-255", "0-3", "deep"}
    assert all(not r.fault for r in found if isinstance(r, Rejected))
    assert (finding.finding, finding.detail, finding.slices) == (
        "masks among the images",
        "3 of 7",
        3,
    )


def test_masks_are_told_by_their_names(tmp_path):
    names = {
        "images/p1.png": False,
        "masks/p1.png": True,
        "a/Lung Masks/p2_mask.png": True,
        "a/p2.jpg": False,
        "b/case (1).png": False,
        "b/case (1)_mask.png": True,
        "b/case (1)_mask_1.png": True,
        "labels/other.png": False,  # beside no image
        "masked/p1.png": False,
        "unmask.png": False,
    }
    paths = [str(tmp_path / name) for name in names]
    found = masks.mask_names(paths, tmp_path)
    assert {name: str(tmp_path / name) in found for name in names} == names
    marked, count = images.without_masks(numbered([Item(0, p, p) for p in paths]), tmp_path)
    assert count == 4
    for path in paths:
        save(Path(path), GREY)
    for item in marked:
        if item.path in found:
            with pytest.raises(Unwanted, match=r"^a mask beside an image"):
                ImageSource("x", (), 8).place(item)
        else:
            assert ImageSource("x", (), 8).place(item)
