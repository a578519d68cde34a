"""DICOM sources of made-up files: pixels, headers, series."""

import gzip
import logging
import os
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from dicom_files import JPEG_2000, SYNTAXES, codestream, compress, outcome, write_enhanced
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from ctssl_jax.errors import DataError
from data_prep import dicom
from data_prep.dicom import DicomSource
from data_prep.irregular import Irregular
from data_prep.readers import dicom_file, dicom_header, hounsfield
from data_prep.readers.hounsfield import Values
from data_prep.readers.lost_file import CUT_OFF, PAGE
from data_prep.source import Rejected

RNG = np.random.default_rng(0)
KEPT = Irregular.ACCEPT_2D


def pixels(dtype=np.int16, low=0, high=2000):
    return RNG.integers(low, high, (16, 12)).astype(dtype)


def only(path, irregular=Irregular.REJECT):
    """The image of a source of one slice."""
    (one,) = outcome(DicomSource(path, irregular)).slices
    return one.image


def reasons(path):
    found = outcome(DicomSource(path))
    assert not found.slices
    return found.reasons


def change(path, target=None, **tags):
    file = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(target or path)


# Pixels


def test_rescale_is_of_each_file_and_order_is_of_position(tmp_path, write_ct):
    n = 6
    stored = [pixels() for _ in range(n)]
    names = RNG.permutation(n)
    scale = [(1, -1024), (1.25, -1000), (0.5, -1024), (1, -900), (1.5, -1000), (0.75, -1024)]
    for i in range(n):
        slope, intercept = scale[i]
        write_ct(
            tmp_path / f"deep{names[i]}" / f"{names[i]}",
            stored[i],
            z=-40 + 3.0 * i,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
            SliceThickness=2.5,
            InstanceNumber=int(names[i]),
        )
    found = outcome(DicomSource(tmp_path))
    assert (found.rejected, found.findings) == ([], [])
    for i, (one, raw, (slope, intercept)) in enumerate(
        zip(found.slices, stored, scale, strict=True)
    ):
        np.testing.assert_array_equal(one.image, np.rint(raw * slope + intercept))
        assert one.image.dtype == np.int16
        assert (one.patient, one.series, one.slice_index) == ("P1", "1.2.3.4", i)
        assert one.position_mm == -40 + 3.0 * i
        assert (one.spacing_mm, one.thickness_mm) == ((3.0, 0.5, 0.75), 2.5)


@pytest.mark.parametrize(
    ("dtype", "padding", "tag", "intercept"),
    [
        (np.int16, -900, ("SS", -900), -20),  # signed, in the SS of its pixels
        (np.int16, -900, ("US", 64636), -20),  # the same, written as unsigned
        (np.int16, -2048, None, -1024),  # no tag: below -1024 HU
        (np.int16, -32768, None, -1024),  # far below any CT scale, but one value only
        (np.int16, -2000, None, 0),
        (np.uint16, 3000, ("US", 3000), -1024),  # bright padding
        (np.uint16, 64636, ("SS", -900), -65000),  # unsigned pixels, signed tag
        (np.uint16, 0, ("US", 0), -900),  # padding that would look like lung
    ],
)
def test_padding_becomes_air(tmp_path, write_ct, dtype, padding, tag, intercept):
    low = max(1, -1024 - intercept)
    stored = pixels(dtype, low, low + 500)
    stored[:3] = padding
    write_ct(tmp_path / "a", stored, RescaleIntercept=intercept, padding=tag)
    (one,) = outcome(DicomSource(tmp_path, values=Values.HU)).slices
    image = one.image
    assert (image[:3] == -1024).all()
    np.testing.assert_array_equal(image[3:], stored[3:].astype(int) + intercept)


def test_padding_range(tmp_path, write_ct):
    stored = pixels(np.uint16, 100, 2000)
    stored[0, :4] = (10, 11, 19, 20)
    write_ct(tmp_path / "a", stored, PixelPaddingValue=10, PixelPaddingRangeLimit=19)
    np.testing.assert_array_equal(only(tmp_path)[0, :4], [-1024, -1024, -1024, 20 - 1024])


def test_metal_beyond_12_bits_is_kept_and_noise_is_not(tmp_path, write_ct):
    stored = pixels()
    stored[0, 0] = 15_720 + 1024
    write_ct(tmp_path / "a", stored)
    assert only(tmp_path)[0, 0] == 15_720
    stored[0, :2] = -32768, -32767  # no padding: two values
    write_ct(tmp_path / "a", stored)
    assert reasons(tmp_path) == ["values beyond any CT scale"]
    stored[0, :2] = 32_000, 0
    write_ct(tmp_path / "a", stored)
    assert reasons(tmp_path) == ["values beyond any CT scale"]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 15])
def test_12_bits_in_16(tmp_path, write_ct, signed, high_bit):
    values = RNG.integers(-70 if signed else 0, 2000, (16, 12))
    stored = (values % 4096) << (high_bit - 11)
    write_ct(
        tmp_path / "a",
        stored.astype(np.uint16),
        BitsStored=12,
        HighBit=high_bit,
        PixelRepresentation=int(signed),
    )
    np.testing.assert_array_equal(only(tmp_path), np.maximum(values - 1024, -1024))


def test_bits_beyond_bits_stored(tmp_path, write_ct):
    stored = pixels(np.uint16)
    noisy = stored | (RNG.integers(0, 16, stored.shape) << 12).astype(np.uint16)
    write_ct(tmp_path / "a", noisy, BitsStored=12, HighBit=11)
    assert reasons(tmp_path) == ["bits beyond BitsStored are in use"]
    file = pydicom.dcmread(tmp_path / "a")
    file.add_new(0x60000102, "US", 12)  # graphics, as the standard once allowed
    file.save_as(tmp_path / "a")
    np.testing.assert_array_equal(only(tmp_path), stored.astype(int) - 1024)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_byte_orders(tmp_path, write_ct, syntax):
    stored = pixels()
    write_ct(tmp_path / "a", stored)
    file = pydicom.dcmread(tmp_path / "a")
    file.file_meta.TransferSyntaxUID = syntax
    big = syntax == ExplicitVRBigEndian
    file.PixelData = stored.astype(">i2" if big else "<i2").tobytes()
    pydicom.dcmwrite(tmp_path / "a", file, implicit_vr=not big, little_endian=not big)
    np.testing.assert_array_equal(only(tmp_path), stored - 1024)


def test_8_bits(tmp_path, write_ct):
    stored = pixels(np.uint8, 0, 255)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    write_ct(tmp_path / "a", stored, **eight, RescaleSlope=8)
    np.testing.assert_array_equal(only(tmp_path), stored.astype(int) * 8 - 1024)
    file = pydicom.dcmread(tmp_path / "a")
    file.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path / "a", file, implicit_vr=False, little_endian=False)
    assert reasons(tmp_path) == ["8-bit pixels in big-endian words"]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_compressed_pixels_are_the_same(tmp_path, write_ct, syntax, dtype):
    stored = pixels(dtype, 0, 4000)
    if dtype == np.int16:
        stored[:4] -= 2000
    write_ct(tmp_path / "a", stored, RescaleSlope=0.5)
    plain = only(tmp_path)
    compress(tmp_path / "a", syntax)
    np.testing.assert_array_equal(only(tmp_path), plain)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_half_a_codestream_is_rejected(tmp_path, write_ct, syntax, share):
    stored = RNG.integers(0, 2000, (64, 48)).astype(np.int16)
    write_ct(tmp_path / "a", stored)
    compress(tmp_path / "a", syntax)
    size = len(pydicom.dcmread(tmp_path / "a").PixelData)
    write_ct(tmp_path / "a", stored)
    compress(tmp_path / "a", syntax, cut=max(4, int(size * share)))
    rle = syntax == SYNTAXES[0]
    assert reasons(tmp_path) == ["the pixels cannot be decoded" if rle else "cut off"]


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_codestream_that_lacks_its_middle(tmp_path, write_ct, syntax, share):
    """It has its end, and GDCM makes an image of JPEG without a middle."""
    write_ct(tmp_path / "a", RNG.integers(0, 2000, (64, 48)).astype(np.int16))
    compress(tmp_path / "a", syntax)
    file = pydicom.dcmread(tmp_path / "a")
    (data,) = generate_frames(file.PixelData, number_of_frames=1)
    file.PixelData = encapsulate([data[: int(len(data) * share)] + b"\xff\xd9"])
    file.save_as(tmp_path / "a")
    assert reasons(tmp_path) == ["the pixels cannot be decoded"]


def test_a_run_length_code_of_too_many_pixels(tmp_path, write_ct):
    write_ct(tmp_path / "a", pixels())
    compress(tmp_path / "a", SYNTAXES[0])
    change(tmp_path / "a", Rows=15)
    assert reasons(tmp_path) == ["the pixels cannot be decoded"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_items_that_lead_beyond_the_end(tmp_path, write_ct, syntax):
    """pydicom then takes the first bytes that look like the end."""
    write_ct(tmp_path / "a", pixels())
    compress(tmp_path / "a", syntax)
    whole = (tmp_path / "a").read_bytes()
    item = whole.rindex(b"\xfe\xff\x00\xe0") + 4
    length = int.from_bytes(whole[item : item + 4], "little") + 10
    changed = whole[:item] + length.to_bytes(4, "little") + whole[item + 4 :]
    (tmp_path / "a").write_bytes(changed)
    assert reasons(tmp_path) == ["cut off"]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_12_bits_in_16_compressed(tmp_path, write_ct, syntax, signed):
    """GDCM and pydicom extend the sign, clear the other bits or leave them, each in some cases."""
    values = RNG.integers(-70 if signed else 0, 2000, (16, 12))
    masked = values % 4096
    noisy = masked | RNG.integers(0, 16, values.shape) << 12
    twelve = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    for stored in (values % 65536, masked, noisy):
        write_ct(tmp_path / "a", stored.astype(np.uint16), **twelve)
        compress(tmp_path / "a", syntax)
        if stored is noisy:
            assert reasons(tmp_path) == ["bits beyond BitsStored are in use"]
        else:
            np.testing.assert_array_equal(only(tmp_path), np.maximum(values - 1024, -1024))


@pytest.mark.parametrize("syntax", ["native", *SYNTAXES])
def test_half_a_file_is_rejected(tmp_path, write_ct, syntax):
    write_ct(tmp_path / "in" / "a", pixels())
    if syntax != "native":
        compress(tmp_path / "in" / "a", syntax)
    whole = (tmp_path / "in" / "a").read_bytes()
    begins = whole.index(b"\xe0\x7f\x10\x00")
    for size in (begins + 20, (begins + len(whole)) // 2, len(whole) - 6):
        (tmp_path / "in" / "a").write_bytes(whole[:size])
        assert reasons(tmp_path / "in")[0] in ("cut off", "the header cannot be read"), size
    (tmp_path / "in" / "a").write_bytes(whole[:begins])
    assert reasons(tmp_path / "in") == ["no pixel data"]


def test_more_pixels_than_the_header_says(tmp_path, write_ct):
    write_ct(tmp_path / "a", pixels(), Rows=15)
    assert reasons(tmp_path) == ["more pixels than the header says"]


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
def test_a_codestream_of_another_size(tmp_path, write_ct, syntax):
    write_ct(tmp_path / "a", pixels())
    compress(tmp_path / "a", syntax)
    for size in ({"Rows": 12, "Columns": 16}, {"Rows": 8000, "Columns": 8000}):
        change(tmp_path / "a", **size)
        assert reasons(tmp_path) == ["the compressed image has another size than the header says"]


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
def test_a_codestream_of_more_bits(tmp_path, write_ct, syntax):
    write_ct(tmp_path / "a", pixels())
    compress(tmp_path / "a", syntax)
    change(tmp_path / "a", BitsAllocated=8, BitsStored=8, HighBit=7)
    assert reasons(tmp_path) == ["the compressed image has more bits than the header says"]


def test_limits_come_before_decoding(tmp_path, write_ct, monkeypatch):
    write_ct(tmp_path / "a", pixels(), Rows=60_000, Columns=60_000)
    assert reasons(tmp_path) == ["no pixels, or too many"]
    write_ct(tmp_path / "a", pixels())
    monkeypatch.setattr(dicom_file, "MAX_BYTES", 100)
    assert reasons(tmp_path) == ["the file is too large"]


def test_a_deflated_file_is_read_but_no_bomb(tmp_path, write_ct, monkeypatch):
    stored = pixels()
    write_ct(tmp_path / "a", stored)
    file = pydicom.dcmread(tmp_path / "a")
    file.file_meta.TransferSyntaxUID = pydicom.uid.UID(dicom_file.DEFLATED)
    file.add_new(0x00091010, "OB", bytes(10_000_000))
    file.save_as(tmp_path / "a")
    size = (tmp_path / "a").stat().st_size
    np.testing.assert_array_equal(only(tmp_path), stored - 1024)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-5])
    assert reasons(tmp_path) == ["cut off"]
    (tmp_path / "a").write_bytes(whole)
    monkeypatch.setattr(dicom_file, "MAX_BYTES", 5_000_000)
    assert size < 100_000
    assert reasons(tmp_path) == ["the file is too large"]


def test_a_padding_value_that_tissue_has_is_padding_outside_alone(tmp_path, write_ct):
    stored = RNG.integers(-3, 4, (64, 64)).astype(np.int16)  # in HU: a fifth is 0
    stored[:30] -= 1000
    write_ct(tmp_path / "a", stored, RescaleIntercept=0, padding=("SS", 0))
    found = outcome(DicomSource(tmp_path))
    np.testing.assert_array_equal(found.slices[0].image, stored)
    assert [(f.finding, f.detail, f.kept) for f in found.findings] == [
        ("tissue has the padding value", "0 HU", True)
    ]
    outside = np.add.outer(np.arange(-31.5, 32) ** 2, np.arange(-31.5, 32) ** 2) > 31**2
    stored[outside] = 0
    write_ct(tmp_path / "a", stored, RescaleIntercept=0, padding=("SS", 0))
    (one,) = outcome(DicomSource(tmp_path)).slices
    assert (one.image[outside] == -1024).all()
    inside = stored[12:-12, 12:-12]
    np.testing.assert_array_equal(one.image[12:-12, 12:-12], inside)


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
@pytest.mark.parametrize("tail", [b"", b"\0", b"\x20", b"\xd9", b"\0" * 30, b"\xff\0\0", b"U" * 8])
def test_what_fills_a_codestream_up_is_no_harm(tmp_path, write_ct, syntax, tail):
    stored = pixels()
    write_ct(tmp_path / "a", stored)
    frame = codestream(stored, syntax).rstrip(b"\0")
    assert frame.endswith(b"\xff\xd9")
    file = pydicom.dcmread(tmp_path / "a")
    file.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    for end, whole in ((b"\xff\xd9" + tail, True), (b"\xff\xd9cut off", False), (tail, False)):
        data = frame[:-2] + end
        file.PixelData = encapsulate([data + b"\0" * (len(data) % 2)])
        file["PixelData"].VR = "OB"
        file.save_as(tmp_path / "a")
        if whole:
            np.testing.assert_array_equal(only(tmp_path), stored - 1024)
        else:
            assert reasons(tmp_path) == ["cut off"]


@pytest.mark.parametrize("excess", [b"\0\0", b"ab" * 5, bytes(512), b"\x20" * 4096])
def test_bytes_after_the_last_pixel_are_no_harm(tmp_path, write_ct, excess):
    stored = pixels()
    write_ct(tmp_path / "a", stored)
    change(tmp_path / "a", PixelData=stored.tobytes() + excess)
    np.testing.assert_array_equal(only(tmp_path), stored - 1024)


ORIENTATIONS = {
    "prone": ([-1, 0, 0, 0, -1, 0], lambda image: image[::-1, ::-1]),
    "mirrored": ([-1, 0, 0, 0, 1, 0], lambda image: image[:, ::-1]),
    "upside down": ([1, 0, 0, 0, -1, 0], lambda image: image[::-1]),
    "rows down": ([0, 1, 0, 1, 0, 0], lambda image: image.T),
    "on its side": ([0, 1, 0, -1, 0, 0], lambda image: image[:, ::-1].T),
    "nearly prone": ([-0.99, 0.141, 0, -0.141, -0.99, 0], lambda image: image[::-1, ::-1]),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_slices_are_turned_as_their_orientation_says(tmp_path, write_ct, name):
    directions, store = ORIENTATIONS[name]
    row, column = np.reshape(directions, (2, 3))
    body = [pixels() for _ in range(4)]
    for k, image in enumerate(body):
        stored = np.ascontiguousarray(store(image))
        lies_down = stored.shape != image.shape
        spacing = [0.75, 0.5] if lies_down else [0.5, 0.75]
        # So that the first pixel of the turned slice is at the origin of the plain one.
        far = np.maximum(0, -row[:2]) * (stored.shape[1] - 1) * spacing[1]
        far = far + np.maximum(0, -column[:2]) * (stored.shape[0] - 1) * spacing[0]
        place = {"ImagePositionPatient": [*far, 3.0 * k], "PixelSpacing": spacing}
        for folder, pixel, tags in (
            ("plain", image, {"ImagePositionPatient": [0, 0, 3.0 * k]}),
            ("turned", stored, {"ImageOrientationPatient": directions, **place}),
        ):
            write_ct(tmp_path / folder / f"{k}", pixel, **tags)
    plain, turned = (outcome(DicomSource(tmp_path / name)) for name in ("plain", "turned"))
    assert turned.findings == plain.findings == []
    for one, other in zip(plain.slices, turned.slices, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.spacing_mm == pytest.approx(other.spacing_mm)
        assert one.position_mm == pytest.approx(other.position_mm)


def test_a_series_half_of_which_lies_prone_is_one_stack(tmp_path, write_ct):
    body = [pixels() for _ in range(4)]
    for k, image in enumerate(body):
        write_ct(tmp_path / f"{k}a", image, z=6.0 * k)
        write_ct(
            tmp_path / f"{k}b",
            np.ascontiguousarray(image[::-1, ::-1]),
            ImageOrientationPatient=[-1, 0, 0, 0, -1, 0],
            ImagePositionPatient=[11 * 0.75, 15 * 0.5, 6.0 * k + 3],
        )
    found = outcome(DicomSource(tmp_path))
    assert found.findings == []
    for k, image in enumerate(body):
        for one in found.slices[2 * k : 2 * k + 2]:
            np.testing.assert_array_equal(one.image, image - 1024)


@pytest.mark.parametrize(
    ("tag", "values", "by"),
    [
        ("ConvolutionKernel", ("B30f", "B80f"), "kernel"),
        ("ConvolutionKernel", (["I30f", "3"], ["I70f", "3"]), "kernel"),
        ("AcquisitionNumber", (1, 2), "acquisition"),
        ("SliceThickness", (1.5, 5), "thickness"),
    ],
)
def test_two_reconstructions_in_one_series_are_told_apart(tmp_path, write_ct, tag, values, by):
    for k in range(10):
        write_ct(tmp_path / f"{k}", pixels(), z=2.5 * k, **{tag: values[k % 2]})
    found = outcome(DicomSource(tmp_path))
    assert [(f.finding, f.detail, f.kept) for f in found.findings] == [
        ("several reconstructions, told apart", f"2 by {by}", True)
    ]
    assert [s.slice_index for s in found.slices] == [*range(5), *range(5)]
    assert [s.series for s in found.slices] == ["1.2.3.4 1"] * 5 + ["1.2.3.4 2"] * 5
    assert {s.spacing_mm[0] for s in found.slices} == {5.0}


def test_a_series_that_is_not_in_hu_is_rejected_whole(tmp_path, write_ct):
    for k in range(4):
        write_ct(tmp_path / "sound" / f"{k}", pixels(), z=k)
        write_ct(
            tmp_path / "offset" / f"{k}", pixels(), z=k, RescaleIntercept=0, SeriesInstanceUID="1.5"
        )
    found = outcome(DicomSource(tmp_path))
    assert {one.series for one in found.slices} == {"1.2.3.4"}
    assert len(found.slices) == len(found.rejected) == 4
    assert all(r.reason.startswith("not in HU") and r.fault for r in found.rejected)
    told = outcome(DicomSource(tmp_path / "offset", values=Values.HU))
    assert set(told.reasons) <= {hounsfield.DENSE, hounsfield.OFFSET}
    stored = RNG.integers(0, 2000, (3, 16, 12)).astype(np.int16) + 1024
    write_enhanced(tmp_path / "enhanced" / "a.dcm", stored, [0, 1, 2])
    found = outcome(DicomSource(tmp_path / "enhanced"))
    assert [rejected.count for rejected in found.rejected] == [3]


# Headers

UNWANTED = {
    "not CT": {"Modality": "MR"},
    "a CT image whose Modality is OT (other)": {"Modality": "OT"},
    "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "secondary capture": {"SOPClassUID": dicom_header.SECONDARY_CAPTURE},
    "not a CT image": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
    "not axial": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    "a screen, not a slice": {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    "a projection, not a slice": {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]},
    "a map, not HU": {"ImageType": ["DERIVED", "PRIMARY", "PERFUSION"]},
    "text is burned into the image": {"BurnedInAnnotation": "YES"},
    "no image": {"SOPClassUID": None, "Modality": None},
}
UNUSABLE = {
    "no orientation or position": {"ImagePositionPatient": None},
    "no RescaleSlope and RescaleIntercept: HU are not known": {"RescaleIntercept": None},
    "RescaleSlope or RescaleIntercept is not a number to use": {"RescaleSlope": 0},
    "RescaleType is not HU": {"RescaleType": "US"},
    "more than one frame in a file": {"NumberOfFrames": 2},
    "MONOCHROME1: inverted grey, not HU": {"PhotometricInterpretation": "MONOCHROME1"},
    "not one channel of grey": {"SamplesPerPixel": 3},
    "not 8 or 16 bits for each pixel": {"BitsAllocated": 32},
    "no pixels, or too many": {"Columns": 0},
    "cut off": {"Rows": 17},
    "SliceThickness is not a length": {"SliceThickness": -1},
    "PixelSpacing is not a length": {"PixelSpacing": [0.5, 0]},
    "PixelSpacing has one value": {"PixelSpacing": 0.5},
    "SliceThickness has two values": {"SliceThickness": [5, 5]},
    "RescaleSlope has three values": {"RescaleSlope": [1, 1, 1]},
    "ImageOrientationPatient is not a pair of directions": {
        "ImageOrientationPatient": [1, 0, 0, 1, 0, 0]
    },
    "the header cannot be read": {"Rows": None},
}


@pytest.mark.parametrize("reason", UNWANTED | UNUSABLE)
def test_what_is_no_axial_slice_in_hu_is_rejected_with_its_reason(tmp_path, write_ct, reason):
    write_ct(tmp_path / "bad", pixels(), **(UNWANTED | UNUSABLE)[reason])
    write_ct(tmp_path / "good", pixels(), SeriesInstanceUID="1.2.5")
    found = outcome(DicomSource(tmp_path))
    assert found.reasons == [reason]
    assert [rejected.fault for rejected in found.rejected] == [reason in UNUSABLE]
    assert [rejected.number for rejected in found.rejected] == [1]
    assert len(found.slices) == 1


def test_pixels_that_cannot_be_below_0_are_not_hu(tmp_path, write_ct):
    write_ct(tmp_path / "a", pixels(np.uint16), RescaleIntercept=0)
    assert reasons(tmp_path) == ["no value below 0 HU is possible: not in HU"]


def test_directions_that_are_not_at_right_angles(tmp_path, write_ct):
    write_ct(tmp_path / "a", pixels(), ImageOrientationPatient=[1, 0, 0, 0.3, 0.95, 0])
    assert reasons(tmp_path) == ["ImageOrientationPatient is not a pair of directions"]


def test_a_lookup_table_is_not_a_rescale(tmp_path, write_ct):
    table = pydicom.Dataset()
    table.ModalityLUTType = "HU"
    write_ct(tmp_path / "a", pixels(), ModalityLUTSequence=[table])
    assert reasons(tmp_path) == ["a lookup table instead of a rescale"]


def test_derived_axial_ct_and_ct_without_modality_are_kept(tmp_path, write_ct):
    write_ct(tmp_path / "a", pixels(), ImageType=["DERIVED", "SECONDARY", "AXIAL"], Modality=None)
    assert only(tmp_path).shape == (16, 12)


def test_a_modality_in_small_letters_is_read(tmp_path, write_ct):
    write_ct(tmp_path / "a", pixels())
    whole = (tmp_path / "a").read_bytes()
    assert whole.count(b"CS\x02\x00CT") == 1
    (tmp_path / "a").write_bytes(whole.replace(b"CS\x02\x00CT", b"CS\x02\x00ct"))
    assert only(tmp_path).shape == (16, 12)


def test_files_without_preamble_and_files_without_syntax(tmp_path, write_ct):
    stored = pixels()
    write_ct(tmp_path / "a", stored)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[132:])
    np.testing.assert_array_equal(only(tmp_path), stored - 1024)
    meta = int.from_bytes(whole[140:144], "little")
    (tmp_path / "a").write_bytes(whole[144 + meta :])  # the data set alone
    assert reasons(tmp_path) == ["no transfer syntax"]
    without = whole.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI", 1)
    (tmp_path / "a").write_bytes(without)
    assert reasons(tmp_path) == ["no transfer syntax"]


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 500, b"II*\0" + bytes(200)])
def test_what_is_not_dicom_is_a_fault_where_it_is_named_so(tmp_path, content):
    named = "named like DICOM, but it is not" if content else "an empty file"
    unnamed = {b"": "an empty file", b"<html>": PAGE, b"\0" * 500: CUT_OFF}.get(
        content, "not DICOM"
    )
    names = {"a.txt": "not DICOM", "IM0001": unnamed, "1.2.3": unnamed}
    names |= dict.fromkeys(("a.dcm", "b.DCM", "c.ima", "d.dicom", "e.dcm.bz2"), named)
    for name, reason in names.items():
        (tmp_path / name).write_bytes(content)
        found = outcome(DicomSource(tmp_path))
        assert [(r.reason, r.fault) for r in found.rejected] == [(reason, reason != "not DICOM")]
        (tmp_path / name).unlink()


def test_a_packed_file_is_read_but_no_bomb(tmp_path, write_ct, monkeypatch):
    stored = pixels()
    write_ct(tmp_path / "a", stored)
    packed = gzip.compress((tmp_path / "a").read_bytes())
    (tmp_path / "a").unlink()
    for name in ("a.dcm.gz", "a.DCM.GZ", "a.gz"):
        (tmp_path / name).write_bytes(packed)
        np.testing.assert_array_equal(only(tmp_path), stored - 1024)
        (tmp_path / name).unlink()
    (tmp_path / "notes.gz").write_bytes(gzip.compress(b"x"))
    assert outcome(DicomSource(tmp_path)).rejected == [Rejected(1, "not DICOM", fault=False)]
    (tmp_path / "notes.gz").unlink()
    for damaged in (packed[:-9], packed[:-8] + bytes(8), packed[:40]):
        (tmp_path / "a.dcm.gz").write_bytes(damaged)
        assert reasons(tmp_path) == ["cut off or damaged (compression)"]
    (tmp_path / "a.dcm.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    monkeypatch.setattr(dicom_file, "MAX_BYTES", 1_000_000)
    assert reasons(tmp_path) == ["the file is too large"]


def test_a_header_that_pydicom_warns_of_is_read_in_silence(tmp_path, write_ct, capfd, caplog):
    with warnings.catch_warnings(action="ignore"):
        write_ct(tmp_path / "a", pixels(), SeriesInstanceUID="1.2.CANARY", PatientID="X" * 70)
        write_ct(tmp_path / "b", pixels(), SeriesInstanceUID="1.2.5", SliceThickness=2.5)
        change(tmp_path / "b", Rows=17)
    caplog.clear()
    logging.getLogger("pydicom").setLevel(logging.NOTSET)
    assert len(outcome(DicomSource(tmp_path)).slices) == 1
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# Series


def test_patients_without_an_id_are_kept_apart_by_study(tmp_path, write_ct):
    for i in range(4):
        uids = {"StudyInstanceUID": f"1.{i // 2}", "SeriesInstanceUID": f"1.2.{i}"}
        write_ct(tmp_path / str(i), pixels(), PatientID="", **uids)
    source = DicomSource(tmp_path)
    places = [source.place(item) for item in source.items()]
    assert [place.patient for place in places] == ["1.0", "1.0", "1.1", "1.1"]
    assert len({place.unit for place in places}) == 4


def test_a_header_is_read_once_unless_its_file_changes(tmp_path, write_ct, monkeypatch):
    stored = [pixels() for _ in range(3)]
    for i, image in enumerate(stored):
        write_ct(tmp_path / str(i), image, z=float(i), RescaleIntercept=-1024)
    source, read = DicomSource(tmp_path), []
    items = [replace(item, header=source.place(item).header) for item in source.items()]
    reads = dicom_header.read_header
    monkeypatch.setattr(dicom, "read_header", lambda *of: read.append(of[0]) or reads(*of))
    before = list(source.read(items))
    assert read == []
    # Longer by its PatientName, so that the pixels are elsewhere.
    new = {"RescaleIntercept": -1000, "PatientName": "LONGER"}
    write_ct(tmp_path / "1", stored[1], z=1.0, **new)
    after = list(source.read(items))
    assert [os.path.basename(path) for path in read] == ["1"]
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        np.testing.assert_array_equal(other.image, one.image + 24 * (number == 1))


def test_files_without_a_series_are_one_for_each_folder(tmp_path, write_ct):
    nothing = {"SeriesInstanceUID": None, "StudyInstanceUID": None, "PatientID": None}
    for name in ("x/1", "x/2", "y/1"):
        write_ct(tmp_path / name, pixels(), z=float(name[-1]), **nothing)
    source = DicomSource(tmp_path)
    places = [source.place(item) for item in source.items()]
    assert [place.unit for place in places] == ["folder x", "folder x", "folder y"]
    assert len({place.patient for place in places}) == 2


def test_a_series_of_two_patients_is_of_neither(tmp_path, write_ct):
    for i in range(2):
        write_ct(tmp_path / str(i), pixels(), z=float(i), PatientID=f"P{i}")
    assert reasons(tmp_path) == ["the series names more than one patient"] * 2


def test_copies_and_repeated_names(tmp_path, write_ct):
    write_ct(tmp_path / "a", pixels(), SOPInstanceUID="1.2.9")
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    write_ct(tmp_path / "c", pixels(), SOPInstanceUID="1.2.9")
    found = outcome(DicomSource(tmp_path))
    assert [(r.number, r.reason, r.fault) for r in found.rejected] == [
        (2, "a copy of another file", False),
        (3, "repeats a SOPInstanceUID with other content", True),
    ]
    assert len(found.slices) == 1


def test_a_file_sent_again_is_a_copy_whatever_else_its_header_says(tmp_path, write_ct):
    stored = pixels()
    same = {"SOPInstanceUID": "1.2.9"}
    write_ct(tmp_path / "0", stored, **same)
    write_ct(tmp_path / "1", stored, **same, InstitutionName="x", ConvolutionKernel="B30f")
    write_ct(tmp_path / "2", stored + 24, **same, RescaleIntercept=-1048)
    file = pydicom.dcmread(tmp_path / "1")
    file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file.save_as(tmp_path / "3", implicit_vr=True)
    file.compress(RLELossless, generate_instance_uid=False)
    file.save_as(tmp_path / "4")
    other = stored.copy()
    other[3, 3] += 1
    write_ct(tmp_path / "5", other, **same)
    write_ct(tmp_path / "6", stored, **same, z=1.0)
    write_ct(tmp_path / "7", stored, **same, PixelSpacing=[0.5, 0.5])
    write_ct(tmp_path / "8", stored, **same, PatientID="another")
    write_ct(tmp_path / "9", stored[:-1], **same)
    found = outcome(DicomSource(tmp_path))
    assert len(found.slices) == 1
    assert [r.reason for r in found.rejected if not r.fault] == ["a copy of another file"] * 4
    assert [r.number for r in found.rejected if r.fault] == [6, 7, 8, 9, 10]


def test_an_irregular_series_is_rejected_or_kept_as_slices(tmp_path, write_ct):
    for i in (0, 1, 2, 5, 6):
        write_ct(tmp_path / str(9 - i), pixels(), z=2.0 * i)
    found = outcome(DicomSource(tmp_path))
    assert found.slices == []
    assert found.reasons == ["irregular series: missing slices"] * 5
    assert all(rejected.fault for rejected in found.rejected)
    (finding,) = found.findings
    assert finding.detail == "2 missing, widest gap 6 mm"
    assert (finding.slices, finding.kept) == (5, False)
    kept = outcome(DicomSource(tmp_path, KEPT))
    assert kept.rejected == []
    assert kept.findings == [replace(finding, kept=True)]
    assert [one.position_mm for one in kept.slices] == [0, 2, 4, 10, 12]
    assert [one.slice_index for one in kept.slices] == list(range(5))


def test_order_is_along_the_normal_of_a_tilted_gantry(tmp_path, write_ct):
    tilt = np.deg2rad(20)
    orientation = [1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt))]
    normal = np.cross(orientation[:3], orientation[3:])
    for i, name in enumerate("cab"):
        place = [float(f"{v:.4f}") for v in 5 * i * normal]
        stored = pixels()
        stored[0, 0] = i
        write_ct(
            tmp_path / name,
            stored,
            ImageOrientationPatient=orientation,
            ImagePositionPatient=place,
        )
    found = outcome(DicomSource(tmp_path, KEPT))
    assert [(f.finding, f.detail) for f in found.findings] == [("gantry tilt", "20.0 degrees")]
    assert [one.image[0, 0] + 1024 for one in found.slices] == [0, 1, 2]
    np.testing.assert_allclose(found.slices[2].position_mm, 10, atol=1e-3)


def test_a_damaged_slice_does_not_take_its_series_with_it(tmp_path, write_ct):
    for i in range(4):
        write_ct(tmp_path / str(i), pixels(), z=float(i))
    (tmp_path / "1").write_bytes((tmp_path / "1").read_bytes()[:-10])
    found = outcome(DicomSource(tmp_path))
    assert [(r.number, r.reason) for r in found.rejected] == [(2, "cut off")]
    assert [one.slice_index for one in found.slices] == [0, 2, 3]
    assert found.findings == []


# Enhanced multi-frame


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", *SYNTAXES])
def test_each_frame_of_an_enhanced_ct_is_a_slice(tmp_path, syntax):
    stored = RNG.integers(0, 2000, (3, 16, 12)).astype(np.int16)
    slopes = [1, 0.5, 2]
    write_enhanced(tmp_path / "a", stored, [4, 0, 2], syntax, slopes=slopes)
    found = outcome(DicomSource(tmp_path))
    assert (found.rejected, found.findings) == ([], [])
    for i, frame in enumerate([1, 2, 0]):
        one = found.slices[i]
        np.testing.assert_array_equal(one.image, np.rint(stored[frame] * slopes[frame] - 1024))
        assert (one.slice_index, one.position_mm, one.thickness_mm) == (i, 2.0 * i, 2)
        assert one.spacing_mm == (2.0, 0.5, 0.75)


def test_an_enhanced_series_may_have_many_files(tmp_path):
    stored = RNG.integers(0, 2000, (4, 16, 12)).astype(np.int16)
    write_enhanced(tmp_path / "a", stored[::2], [0, 4])
    write_enhanced(tmp_path / "b", stored[1::2], [2, 6])
    found = outcome(DicomSource(tmp_path))
    np.testing.assert_array_equal([one.image for one in found.slices], stored - 1024)
    write_enhanced(tmp_path / "b", stored[1::2], [2, 16])
    found = outcome(DicomSource(tmp_path))
    assert [(r.number, r.count) for r in found.rejected] == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"RescaleType": "US"}, "RescaleType is not HU"),
        ({"RescaleType": None}, "RescaleType is not HU"),
        ({"FrameType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]}, "a map, not HU"),
        ({"FrameType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]}, "localizer"),
        ({"NumberOfFrames": 4}, "the frames are not described"),
        ({"PerFrameFunctionalGroupsSequence": []}, "the frames are not described"),
        ({"SharedFunctionalGroupsSequence": []}, "no orientation or position"),
    ],
)
def test_frames_of_which_hu_or_place_are_not_known(tmp_path, tags, reason):
    stored = RNG.integers(0, 2000, (3, 16, 12)).astype(np.int16)
    write_enhanced(tmp_path / "a", stored, [0, 2, 4], **tags)
    assert reasons(tmp_path) == [reason]


def test_frames_that_are_missing(tmp_path):
    stored = RNG.integers(0, 2000, (3, 16, 12)).astype(np.int16)
    write_enhanced(tmp_path / "a", stored, [0, 2, 4], PixelData=stored[:2].tobytes())
    assert reasons(tmp_path) == ["cut off"] * 3
    write_enhanced(tmp_path / "a", stored, [0, 2, 4], JPEG_2000)
    file = pydicom.dcmread(tmp_path / "a")
    first = file.PixelData.index(b"\xff\xd9") + 2
    file.PixelData = file.PixelData[: first + first % 2]
    file.save_as(tmp_path / "a")
    assert reasons(tmp_path) == ["the compressed frames cannot be told apart"] * 3


# Sources


TRAIN_ALONE = ("--val_fraction=0", "--test_fraction=0")


def test_links_are_followed_once_and_pipes_are_not_opened(tmp_path, write_ct):
    write_ct(tmp_path / "out" / "a", pixels(), SOPInstanceUID="1.2.8")
    write_ct(tmp_path / "in" / "objects" / "a", pixels(), SOPInstanceUID="1.2.9")
    (tmp_path / "in" / "c").symlink_to(tmp_path / "out", target_is_directory=True)
    (tmp_path / "in" / "d").symlink_to(tmp_path / "in" / "objects" / "a")
    (tmp_path / "in" / "e").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in" / "f")
    items = list(DicomSource(tmp_path / "in").items())
    read = [item.path.removeprefix(str(tmp_path)) for item in items if item.flaw is None]
    assert read == ["/in/objects/a", "/in/c/a"]
    assert len(items) == 5
    (tmp_path / "link").symlink_to(tmp_path / "in", target_is_directory=True)
    assert len(list(DicomSource(tmp_path / "link").items())) == 5


def test_items_are_in_a_fixed_order_and_pickle(tmp_path):
    for name in ("b/1", "a/2", "a/10", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = pickle.loads(pickle.dumps(DicomSource(tmp_path)))
    items = list(source.items())
    assert [item.number for item in items] == [1, 2, 3, 4]
    assert [item.path[len(str(tmp_path)) :] for item in items] == ["/c", "/a/2", "/a/10", "/b/1"]
    assert source.options() == {"irregular": "reject", "values": "auto"}


def test_an_empty_source_is_an_error_without_its_path(tmp_path):
    with pytest.raises(DataError, match="--source holds no files") as error:
        list(DicomSource(tmp_path).items())
    assert str(tmp_path) not in str(error.value)


def test_no_identity_is_written_or_shown(tmp_path, write_ct, capfd, key_file):
    canaries = {
        "PatientName": "CANARYNAME^ANNA",
        "PatientID": "CANARYID77",
        "PatientBirthDate": "19470203",
        "SeriesInstanceUID": "1.2.77777.1",
        "StudyInstanceUID": "1.2.77777.2",
        "AccessionNumber": "CANARYACC",
        "InstitutionName": "CANARYHOSPITAL",
        "StudyDate": "20011213",
    }
    source = tmp_path / "CANARYFOLDER"
    for i in range(3):
        uid = f"1.2.77777.3.{i}"
        write_ct(source / f"CANARYFILE{i}", pixels(), z=float(i), SOPInstanceUID=uid, **canaries)
    odd = canaries | {"SeriesInstanceUID": "1.2.77777.4"}
    for i in (0, 1, 5):
        write_ct(source / f"CANARYODD{i}", pixels(), z=float(i), **odd)
    (source / "CANARYFILE9").write_bytes((source / "CANARYFILE1").read_bytes()[:-50])
    (source / "CANARYFILE8").write_bytes(b"CANARY")
    out = tmp_path / "out"
    flags = [f"--source={source}", f"--out={out}", f"--key={key_file}", "--workers=0"]
    assert dicom.main([*flags, "--irregular=accept_2d", "--max_rejected=1", *TRAIN_ALONE]) == 0
    shown = capfd.readouterr()
    written = [shown.out.encode(), shown.err.encode()]
    for path in out.rglob("*"):
        written.append(str(path.relative_to(out)).encode())
        written += [path.read_bytes()] if path.is_file() else []
    assert any(b"missing slices" in text for text in written)
    for secret in (*canaries.values(), "CANARY", "77777", key_file.read_text(), str(tmp_path)):
        assert not any(secret.encode() in text for text in written), secret


def test_an_odd_element_of_the_header_is_named_without_its_value(tmp_path, write_ct):
    write_ct(tmp_path / "bad", pixels(), NumberOfFrames="7251")
    file = tmp_path / "bad"
    file.write_bytes(file.read_bytes().replace(b"7251", b"DOE "))
    found = outcome(DicomSource(tmp_path))
    assert found.reasons == ["the header cannot be read (NumberOfFrames)"]
