"""Rows of one value, as interrupted copies leave them, beside all that makes rows of one value."""

import numpy as np
import pytest
import SimpleITK

from data_prep.dicom import DicomSource
from data_prep.readers.flat_rows import FLAT_ROWS, FlatRows
from data_prep.readers.hounsfield import Values
from data_prep.source import Finding, Item, Slice
from data_prep.volumes import VolumeSource

RNG = np.random.default_rng(0)
N = 32
_Y, _X = np.mgrid[:N, :N] / (N - 1) * 2 - 1
INSIDE = _X**2 + _Y**2 < 0.7


def body(background=-1000.0, noise=12.0, slices=6):
    image = np.where(INSIDE, 40.0, background) + RNG.normal(0, noise, (slices, N, N))
    return np.rint(np.where(INSIDE | (background < 0), image, background)).astype(np.int16)


def filled(image, start, value=0):
    """What is behind a voxel of the file is one value."""
    image.reshape(-1)[start:] = value
    return image


def findings(scan):
    rows = FlatRows()
    for image in scan:
        rows.add(image)
    return [finding.detail for finding in rows.findings("s")]


@pytest.mark.parametrize(
    ("start", "detail"), [(3 * N * N, "0 HU in 3"), (3 * N * N + N * 14, "0 HU in 3")]
)
def test_an_interrupted_copy_is_told(start, detail):
    assert findings(filled(body(), start)) == [detail]


def test_the_end_of_each_slice_is_told():
    scan = body()
    scan[:, 15:] = 0
    assert findings(scan) == ["0 HU in 6"]


def test_what_scanners_and_tools_make_is_not_told():
    padded = body()
    padded[:, :9] = padded[:, -9:] = -1024
    corners = body()
    corners[:, _X**2 + _Y**2 > 1] = 0
    last = body()
    last[-1] = -1000
    scans = {
        "plain": body(),
        "without noise": body(noise=0),
        "without its skull": np.concatenate([body(0), np.zeros((3, N, N), np.int16)]),
        "padded with air": padded,
        "round field of view": corners,
        "a slice of air": last,
        "cut to a window": body().clip(-160, 240),
    }
    assert {name: told for name, scan in scans.items() if (told := findings(scan))} == {}


def test_both_readers_tell_it(tmp_path, write_ct):
    scan = filled(body(), 3 * N * N)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(scan), str(tmp_path / "a.mha"))
    item = Item(1, str(tmp_path / "a.mha"), "p")
    for values, told in ((Values.AUTO, 1), (Values.HU, 1), (Values.GREY8, 0)):
        read = list(VolumeSource(tmp_path, values=values).read([item]))
        found = [one for one in read if isinstance(one, Finding) and one.finding == FLAT_ROWS]
        assert len(found) == told
    for k, image in enumerate(scan):
        write_ct(tmp_path / "dicom" / f"{k}", image, z=3.0 * k, RescaleIntercept=0)
    source = DicomSource(tmp_path / "dicom")
    items = [*source.items()]
    read = list(source.read([*items]))
    assert sum(isinstance(one, Slice) for one in read) == 6
    assert [(f.finding, f.detail, f.slices) for f in read if isinstance(f, Finding)] == [
        (FLAT_ROWS, "0 HU in 3", 6)
    ]
