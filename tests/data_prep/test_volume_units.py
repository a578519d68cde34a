"""Spacing of NRRD and MetaImage: its unit, and headers that do not say it."""

import numpy as np
import pytest

from data_prep.irregular import Irregular
from data_prep.source import Finding, Item, Rejected, Slice, Unusable
from data_prep.volumes import VolumeSource

RNG = np.random.default_rng(0)
VALUES = RNG.uniform(-1000, 1100, (4, 15, 12)).astype("<i2")
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 -30\n"
SPACED = MATRIX + "ElementSpacing = 0.5 0.75 3\n"
SPACE = "space: left-posterior-superior\n"
DIRECTIONS = SPACE + "space directions: ({},0,0) (0,{},0) (0,0,{})\nspace origin: ({},{},{})\n"
MM = DIRECTIONS.format(0.5, 0.75, 3, 1, 2, -30)
CM = DIRECTIONS.format(0.05, 0.075, 0.3, 0.1, 0.2, -3)


def write(path, lines):
    if path.suffix == ".mha":
        head = (
            f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{lines}DimSize = 12 15 4\n"
            "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        )
    else:
        head = (
            "NRRD0005\ntype: short\ndimension: 3\nsizes: 12 15 4\nencoding: raw\n"
            f"endian: little\n{lines}\n"
        )
    path.write_bytes(head.encode() + VALUES.tobytes())


def read(path, irregular=Irregular.REJECT):
    source = VolumeSource(path.parent, irregular=irregular)
    item = Item(1, str(path), "p")
    source.place(item)
    return list(source.read([item]))


SOUND = {
    "plain.mha": SPACED,
    "size.mha": MATRIX + "ElementSize = 0.5 0.75 3\n",
    "unknown.mha": SPACED + "DistanceUnits = ?\n",
    "mm.mha": SPACED + "DistanceUnits = mm\n",
    "cm.mha": MATRIX.replace("1 2 -30", "0.1 0.2 -3")
    + "ElementSpacing = 0.05 0.075 0.3\nDistanceUnits = cm\n",
    "usual.mha": SPACED
    + "ElementToIntensityFunctionSlope = 1\nElementToIntensityFunctionOffset = 0\n",
    "plain.nrrd": MM,
    "mm.nrrd": MM + 'space units: "mm" "mm" "mm"\n',
    "none.nrrd": MM + 'space units: "" "" ""\n',
    "cm.nrrd": CM + 'space units: "cm" "cm" "cm"\n',
}


@pytest.mark.parametrize("name", SOUND)
def test_lengths_are_in_the_unit_of_the_header(tmp_path, name):
    write(tmp_path / name, SOUND[name])
    slices = read(tmp_path / name)
    for index, one in enumerate(slices):
        np.testing.assert_allclose(one.spacing_mm, (3.0, 0.75, 0.5), rtol=1e-6)
        assert one.position_mm == pytest.approx(-30 + 3 * index)
        np.testing.assert_array_equal(one.image, VALUES[index])


REFUSED = {
    "mixed.nrrd": MM + 'space units: "mm" "mm" "cm"\n',
    "odd.nrrd": MM + 'space units: "pixel" "pixel" "pixel"\n',
    "odd.mha": SPACED + "DistanceUnits = furlong\n",
    "slope.mha": SPACED + "ElementToIntensityFunctionSlope = 2\n",
    "offset.mha": SPACED + "ElementToIntensityFunctionOffset = -1024\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_units_and_a_rescale_that_is_not_applied_are_refused(tmp_path, name):
    write(tmp_path / name, REFUSED[name])
    with pytest.raises(Unusable, match=r"units of length|rescale"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_spacing_that_is_not_said_is_not_1_mm(tmp_path, name):
    lines = {"a.mha": MATRIX, "a.nrrd": SPACE + "space directions: none none none\n"}[name]
    write(tmp_path / name, lines)
    *found, rejected = read(tmp_path / name)
    assert [(one.finding, one.kept) for one in found] == [("spacing not known", False)]
    assert rejected == Rejected(1, "irregular volume: spacing not known", count=4)
    read_anyway = read(tmp_path / name, Irregular.ACCEPT_2D)
    slices = [one for one in read_anyway if isinstance(one, Slice)]
    assert np.isnan([[*one.spacing_mm, one.position_mm] for one in slices]).all()
    assert [one.kept for one in read_anyway if isinstance(one, Finding)] == [True]
    assert len(slices) == 4
