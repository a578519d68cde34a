"""Every image and volume of the collection of nasty files: its slices, or why there are none."""

import numpy as np
import pytest

from data_prep import folder
from data_prep.folder import Format
from data_prep.source import Rejected, Slice, Unusable

NO_VOLUME = ("no NIfTI, NRRD or MetaImage", True)
MASK = ("a mask (1 bit for each pixel), not an image", False)
TABLE = {
    "images/tiff_1bit/*": (6, MASK),
    "images/wrong_extension/*": (24, (512, 512)),
    "derived/hu_plus1024_16bit.png": (1, (512, 512)),
    "derived/truncated_half.png": (1, ("cannot be decoded (damaged or cut off)", True)),
    "nifti/sample_s0332.nrrd": (1, ("not one 3-D volume", True)),
    "not_ct/ct.nrrd": (1, NO_VOLUME),
    "not_ct/dose.nrrd": (1, NO_VOLUME),
}


def outcome(path, folder_of_its_own):
    """Shape of the only slice, or reason and fault."""
    kind = Format.VOLUME if path.suffix == ".nrrd" else Format.IMAGE
    copy = folder_of_its_own / path.name  # its depth is compared with that of its neighbours
    copy.write_bytes(path.read_bytes())
    source = folder.make_source(folder_of_its_own, format=kind)
    (item,) = source.items()
    try:
        source.place(item)
        (found,) = source.read([item])
    except Unusable as error:
        found = Rejected.of(item.number, error)
    if isinstance(found, Slice):
        return found.image.shape
    return found.reason, found.fault


@pytest.mark.parametrize("pattern", TABLE)
def test_each_file_is_a_slice_or_has_a_reason(shared, pattern, tmp_path_factory):
    count, expected = TABLE[pattern]
    paths = sorted(shared("nasty").glob(pattern))
    assert len(paths) == count
    for path in paths:
        assert outcome(path, tmp_path_factory.mktemp("one")) == expected, path.name


def test_16_bit_png_is_kept_minus_32768(shared, tmp_path):
    path = shared("nasty") / "derived/hu_plus1024_16bit.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    source = folder.make_source(tmp_path / "in")
    (found,) = source.read(list(source.items()))
    assert source.intensity == "grey16"
    assert (found.image.min(), found.image.max()) == (0 - 32768, 4095 - 32768)
    assert found.image.dtype == np.int16


def test_the_table_is_complete(shared):
    nasty = shared("nasty")
    known = {path for pattern in TABLE for path in nasty.glob(pattern)}
    there = {
        path
        for path in nasty.rglob("*")
        if path.suffix in (".png", ".jpg", ".tif", ".tiff", ".bmp", ".nrrd", ".nii", ".gz", ".mha")
    }
    assert there == known
