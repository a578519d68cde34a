import bz2
import gzip
import os
import struct
import zlib

import numpy as np
import pytest
import SimpleITK

from data_prep import volumes
from data_prep.irregular import Irregular
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.records import pseudonym
from data_prep.readers import volume as volume_module
from data_prep.readers import volume_header
from data_prep.readers.hounsfield import NO_AIR, Values
from data_prep.source import Finding, Rejected, Slice, Unusable, Unwanted
from data_prep.volumes import VolumeSource, read_volume

KEY = b"0123456789abcdef"
RNG = np.random.default_rng(0)
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def volume(shape=(4, 15, 12), spacing=(0.5, 0.75, 3.0), origin=(1.0, 2.0, -30.0), dtype=np.float32):
    """An LPS image of CT's range; shape is z y x."""
    image = SimpleITK.GetImageFromArray(RNG.uniform(-1000, 1100, shape).astype(dtype))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def save(image, path, compressed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), compressed)


def found(source):
    """Everything that the source gives, with what could not be placed, as the engine does it."""
    result = []
    for item in source.items():
        try:
            source.place(item)
        except Unusable as error:
            result.append(Rejected.of(item.number, error))
            continue
        result += source.read([item])
    return result


def reasons(source):
    return {r.number: (r.reason, r.fault) for r in found(source) if isinstance(r, Rejected)}


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI", "PIR", "SRA", "ASL"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slices_are_axial_whatever_the_stored_orientation(tmp_path, orientation, suffix):
    image = volume()
    save(SimpleITK.DICOMOrient(image, orientation), tmp_path / f"a{suffix}")
    slices = [s for s in found(VolumeSource(tmp_path)) if isinstance(s, Slice)]
    expected = np.rint(SimpleITK.GetArrayFromImage(image))
    np.testing.assert_array_equal([s.image for s in slices], expected)
    np.testing.assert_allclose([s.position_mm for s in slices], [-30, -27, -24, -21], atol=1e-4)
    np.testing.assert_allclose(slices[0].spacing_mm, [3.0, 0.75, 0.5], rtol=1e-6)
    assert [s.slice_index for s in slices] == [0, 1, 2, 3]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".hdr"])
def test_values_are_those_that_simpleitk_reads(tmp_path, suffix, dtype, compressed):
    values = RNG.integers(0, 100, (3, 6, 5)).astype(dtype)
    if np.dtype(dtype).kind != "u":
        values -= 50
    if dtype in ("f4", "f8"):
        values += RNG.normal(size=values.shape).astype(dtype)
    path = tmp_path / f"a{suffix}"
    save(SimpleITK.GetImageFromArray(values), path, compressed)
    read = read_volume(path, tmp_path)
    oracle = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    np.testing.assert_array_equal(read.values, oracle)
    assert read.values.dtype == oracle.dtype


@pytest.mark.parametrize("order", "<>")
def test_rescale_and_byte_order_of_nifti(tmp_path, order):
    stored = RNG.integers(0, 4000, (4, 15, 12)).astype(order + "i2")
    head = bytearray(352)
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, 3, 12, 15, 4, 1, 1, 1, 1)
    struct.pack_into(order + "2h", head, 70, 4, 16)
    struct.pack_into(order + "8f", head, 76, *[1.0] * 8)
    struct.pack_into(order + "3f", head, 108, 352, 0.5, -1024)
    struct.pack_into(order + "2h", head, 252, 1, 0)  # a quaternion without rotation
    head[344:348] = b"n+1\0"
    path = tmp_path / "a.nii"
    path.write_bytes(bytes(head) + stored.tobytes())
    read = read_volume(path, tmp_path)
    oracle = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    planes = np.stack([read.plane(i) for i in range(4)])
    np.testing.assert_array_equal(planes, SimpleITK.GetArrayFromImage(oracle))
    np.testing.assert_array_equal(np.ptp(planes), np.ptp(stored) / 2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head: struct.pack_into("<f", head, 80, 0.0),  # pixdim[1]
        lambda head: struct.pack_into("<f", head, 88, float("nan")),  # pixdim[3]
        lambda head: struct.pack_into("<12f", head, 280, *[0.0] * 12),  # the matrix of sform
        lambda head: struct.pack_into("<f", head, 288, 0.4),  # sheared
    ],
)
def test_geometry_that_is_none_is_rejected_in_silence(tmp_path, spoil, capfd):
    save(volume(), tmp_path / "Doe_Jane.nii")
    head = bytearray((tmp_path / "Doe_Jane.nii").read_bytes())
    struct.pack_into("<2h", head, 252, 0, 1)  # no qform to fall back on
    spoil(head)
    (tmp_path / "Doe_Jane.nii").write_bytes(head)
    assert reasons(VolumeSource(tmp_path)) == {1: ("the geometry cannot be read", True)}
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def test_padding_becomes_air_and_metal_stays(tmp_path):
    image = volume((5, 9, 9), dtype=np.int16)
    for z, value in enumerate((-2000, -2048, -3024, 15720)):
        image[4, 4, z] = value
    save(image, tmp_path / "a.nii.gz")
    slices = found(VolumeSource(tmp_path))
    centre = [s.image[4, 4] for s in sorted(slices, key=lambda s: s.slice_index)]
    assert centre[:4] == [-1024, -1024, -1024, 15720]


def test_nan_and_infinity(tmp_path):
    image = volume((2, 9, 9))
    image[0, 0, 0], image[1, 0, 0], image[2, 0, 0] = float("nan"), float("inf"), float("-inf")
    save(image, tmp_path / "a.nii")
    save(SimpleITK.GetImageFromArray(np.full((2, 9, 9), np.nan, np.float32)), tmp_path / "b.nii")
    first, _, rejected = found(VolumeSource(tmp_path))
    assert first.image[0, :3].tolist() == [-1024, -1024, -1024]
    assert rejected == Rejected(2, "nothing but padding", count=2)


def test_oblique_volumes_are_a_finding(tmp_path):
    image = volume()
    angle = np.radians(12)
    cos, sin = np.cos(angle), np.sin(angle)
    image.SetDirection([1, 0, 0, 0, cos, -sin, 0, sin, cos])
    save(image, tmp_path / "a.nrrd")
    rejecting = found(VolumeSource(tmp_path))
    assert rejecting == [
        Finding("a.nrrd", "oblique volume", "12.0 degrees", 4, kept=False),
        Rejected(1, "irregular volume: oblique volume", count=4),
    ]
    finding, *slices = found(VolumeSource(tmp_path, irregular=Irregular.ACCEPT_2D))
    assert finding == Finding("a.nrrd", "oblique volume", "12.0 degrees", 4, kept=True)
    expected = np.rint(SimpleITK.GetArrayFromImage(image))
    np.testing.assert_array_equal([s.image for s in slices], expected)
    # Along the normal (0, -sin, cos), 3 mm each.
    first = -2 * sin - 30 * cos
    np.testing.assert_allclose([s.position_mm for s in slices], first + 3 * np.arange(4), rtol=1e-5)


def test_orientation_of_oblique_volumes_is_that_of_simpleitk(tmp_path):
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for number in range(12):
        # 30 degrees round one axis after any exchange and reversal of the axes.
        rotation = np.eye(3)
        rotation[np.ix_(*2 * [[(1, 2), (0, 2), (0, 1)][number % 3]])] = turn
        signed = RNG.permutation(np.diag(RNG.choice([-1.0, 1.0], 3)))
        q = rotation @ signed
        image = volume((9, 10, 11), spacing=(0.9, 1.0, 1.1), dtype=np.int16)
        image.SetDirection(q.flatten())
        save(image, tmp_path / f"{number}.mha")
        read = read_volume(tmp_path / f"{number}.mha", tmp_path)
        oracle = SimpleITK.DICOMOrient(image, "LPS")
        np.testing.assert_array_equal(read.values, SimpleITK.GetArrayFromImage(oracle))
        np.testing.assert_allclose(read.spacing_mm, oracle.GetSpacing()[::-1], rtol=1e-6)
        normal = np.reshape(oracle.GetDirection(), (3, 3))[:, 2]
        np.testing.assert_allclose(read.first_mm, np.dot(oracle.GetOrigin(), normal), atol=1e-4)


def nifti(path, qform_code, sform_code, quaternion=(0, 0, 0), signs=(1, 1), slope=1.0, inter=0.0):
    """A volume with air at the low end of its second axis."""
    stored = RNG.uniform(-900, 900, (4, 15, 12)).astype("<i2")
    stored[:, :7] = -1000
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, 12, 15, 4, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 4, 16)
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<3f", head, 108, 352, slope, inter)
    struct.pack_into("<2h", head, 252, qform_code, sform_code)
    struct.pack_into("<3f", head, 256, *quaternion)
    matrix = np.diag([*signs, 1.0])
    struct.pack_into("<12f", head, 280, *np.c_[matrix, np.zeros(3)].ravel())
    head[344:348] = b"n+1\0"
    path.write_bytes(bytes(head) + stored.tobytes())
    return stored


def test_nifti_without_orientation_is_a_finding_and_taken_as_its_format_says(tmp_path):
    stored = nifti(tmp_path / "a.nii", 0, 0)
    finding, rejected = found(VolumeSource(tmp_path))
    assert (finding.finding, finding.kept) == ("orientation not known", False)
    assert rejected.reason == "irregular volume: orientation not known"
    finding, *slices = found(VolumeSource(tmp_path, irregular=Irregular.ACCEPT_2D))
    assert finding.kept
    # nifti1.h: +x to the right and +y to the front.
    np.testing.assert_array_equal([s.image for s in slices], stored[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ("quaternion", "signs", "degrees"),
    [
        ((0, 0, 0), (1, 1), 0.0),
        ((0, 0, 1), (-1, -1), 0.0),
        ((0, 0, 0), (-1, -1), 180.0),
        ((0, 0, 0), (1, -1), 180.0),  # another handedness
        ((0, 0, float(np.sin(np.radians(5)))), (1, 1), 10.0),
    ],
)
def test_two_orientations_of_nifti_that_disagree_are_a_finding(
    tmp_path, quaternion, signs, degrees
):
    nifti(tmp_path / "a.nii", 1, 1, quaternion, signs)
    findings = {f.finding: f.detail for f in found(VolumeSource(tmp_path)) if type(f) is Finding}
    told = {"qform and sform disagree": f"{degrees:.1f} degrees"} if degrees else {}
    assert findings == told
    nifti(tmp_path / "a.nii", 0, 1, quaternion, signs)
    assert not reasons(VolumeSource(tmp_path))


def test_a_matrix_of_another_scale_than_the_spacing_is_a_finding(tmp_path):
    nifti(tmp_path / "a.nii", 0, 1, signs=(2, 2))
    assert reasons(VolumeSource(tmp_path)) == {
        1: ("irregular volume: contradictions in the geometry", True)
    }


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_other_formats_without_orientation_are_a_finding(tmp_path, name):
    save(volume(dtype=np.int16), tmp_path / name)
    assert not reasons(VolumeSource(tmp_path))
    data = (tmp_path / name).read_bytes()
    end = data.index(b"\n\n" if name == "a.nrrd" else b"ElementDataFile")
    told = (b"space", b"TransformMatrix", b"AnatomicalOrientation")
    lines = [line for line in data[:end].split(b"\n") if not line.startswith(told)]
    lines += [b"spacings: 0.5 0.75 3"] * (name == "a.nrrd")
    (tmp_path / name).write_bytes(b"\n".join(lines) + data[end:])
    assert reasons(VolumeSource(tmp_path)) == {1: ("irregular volume: orientation not known", True)}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_names_that_are_no_utf_8(tmp_path, suffix):
    save(volume(dtype=np.int16), tmp_path / f"a{suffix}")
    folder = tmp_path / os.fsdecode(b"gr\xfc\xdfe")
    folder.mkdir()
    (tmp_path / f"a{suffix}").rename(folder / (os.fsdecode(b"\xe9") + suffix))
    assert len(found(VolumeSource(tmp_path))) == 4


def test_a_slope_without_an_intercept_is_refused(tmp_path):
    for slope in (2.0, 1.0):
        nifti(tmp_path / "a.nii", 1, 0, slope=slope, inter=float("nan"))
        reason = "scl_slope without scl_inter: the values are not known"
        assert reasons(VolumeSource(tmp_path)) == {1: (reason, True)}
    for slope in (0.0, float("nan")):
        nifti(tmp_path / "a.nii", 1, 0, slope=slope, inter=float("nan"))
        assert not reasons(VolumeSource(tmp_path))


def test_volumes_that_are_not_in_hu_are_rejected_whole(tmp_path):
    image = volume(dtype=np.int16)
    save(image + 1024, tmp_path / "a.nii.gz")
    save(image * 4, tmp_path / "b.mha")
    brain = RNG.integers(15, 50, (4, 15, 12)).astype(np.int16)
    brain[:, :5] = 0
    save(SimpleITK.GetImageFromArray(brain), tmp_path / "c.nrrd")
    for values, rejected in ((Values.AUTO, {1, 2, 3}), (Values.HU, {1, 2})):
        found_reasons = reasons(VolumeSource(tmp_path, values=values))
        assert found_reasons.keys() == rejected
        assert all(r.startswith("not in HU") and fault for r, fault in found_reasons.values())


def test_stacks_of_other_directions_are_no_axial_slices(tmp_path):
    # Sagittal slices of 0.7 mm pixels, 5 mm apart from left to right.
    save(volume((40, 40, 12), spacing=(5.0, 0.7, 0.7)), tmp_path / "a.nii")
    assert reasons(VolumeSource(tmp_path)) == {1: ("not a stack of axial slices", False)}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "raw.nrrd", "a.mha", "raw.mha"])
def test_a_file_that_ends_early_is_an_error(tmp_path, name):
    path = tmp_path / name
    save(volume((20, 30, 40)), path, compressed=not name.startswith("raw"))
    whole = path.read_bytes()
    assert read_volume(path, tmp_path).values.shape == (20, 30, 40)
    for kept in (len(whole) // 2, len(whole) - 1, len(whole) * 9 // 10):
        path.write_bytes(whole[:kept])
        with pytest.raises(Unusable, match=r"^cut off"):
            read_volume(path, tmp_path)


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd", "a.hdr"])
def test_a_data_file_that_ends_early_is_an_error(tmp_path, name):
    save(volume((20, 30, 40)), tmp_path / name)
    (data,) = (p for p in tmp_path.iterdir() if p.name != name)
    data.write_bytes(data.read_bytes()[:-1])
    assert reasons(VolumeSource(tmp_path))[1] == ("cut off", True)
    data.unlink()
    assert reasons(VolumeSource(tmp_path)) == {1: ("its data file is missing", True)}


def test_damage_that_keeps_the_length_is_found_by_the_checksum(tmp_path):
    save(volume((20, 30, 40)), tmp_path / "a.nii.gz")
    data = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(data[:-6] + b"\0\1" + data[-4:])
    assert reasons(VolumeSource(tmp_path)) == {1: ("cut off or damaged (compression)", True)}


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_data_files_outside_of_the_folder_are_not_read(tmp_path, suffix):
    source, secret = tmp_path / "in", tmp_path / "secret.raw"
    save(volume(), source / f"a{suffix}")
    (data,) = (p for p in source.iterdir() if p.suffix != suffix)
    data.rename(secret)
    header = source / f"a{suffix}"
    text = header.read_text()
    for name in ("../secret.raw", str(secret)):
        header.write_text(text.replace(data.name, name))
        assert reasons(VolumeSource(source)) == {
            1: ("its data file is outside of the folder", True)
        }
    (source / "link.raw").symlink_to(secret)
    header.write_text(text.replace(data.name, "link.raw"))
    assert reasons(VolumeSource(source)) == {
        1: ("its data file is outside of the folder", True),
        2: ("no NIfTI, NRRD or MetaImage", False),  # the link, which is looked at itself
    }


def test_the_image_of_a_nifti_pair_is_beside_its_header_and_no_link_to_elsewhere(tmp_path):
    source, secret = tmp_path / "in", tmp_path / "secret.img"
    save(volume(), source / "a.hdr")
    assert read_volume(source / "a.hdr", source).values.shape == (4, 15, 12)
    (source / "a.img").rename(secret)
    (source / "a.img").symlink_to(secret)
    assert reasons(VolumeSource(source))[1] == ("its data file is outside of the folder", True)


def test_what_unpacks_to_more_than_its_header_says_is_given_up_early(tmp_path):
    save(volume((2, 9, 9)), tmp_path / "a.nii")
    head = (tmp_path / "a.nii").read_bytes()
    with gzip.open(tmp_path / "b.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(head)
        for _ in range(200):
            stream.write(bytes(2**20))
    (tmp_path / "a.nii").unlink()
    unpacked = []
    original = volume_module._unpacked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            volume_module,
            "_unpacked",
            lambda *args: (unpacked.append(len(b)) or b for b in original(*args)),
        )
        assert reasons(VolumeSource(tmp_path)) == {1: ("longer than its header says", True)}
    assert sum(unpacked) < 4 * 2**20


def test_zlib_bombs_are_unpacked_in_small_blocks(tmp_path):
    save(volume((2, 9, 9)), tmp_path / "a.mha", compressed=True)
    head = (tmp_path / "a.mha").read_bytes().split(b"LOCAL\n")[0] + b"LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head + zlib.compress(bytes(2**28)))
    assert reasons(VolumeSource(tmp_path)) == {1: ("longer than its header says", True)}


def test_sizes_are_limited_before_anything_is_read(tmp_path):
    save(volume(dtype=np.int16), tmp_path / "a.nii")
    head = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<8h", head, 40, 3, 32000, 32000, 32000, 1, 1, 1, 1)
    (tmp_path / "a.nii").write_bytes(head)
    with pytest.raises(Unusable, match="too large"):
        VolumeSource(tmp_path).place(*VolumeSource(tmp_path).items())


def test_other_headers(tmp_path):
    values = RNG.integers(-1000, 1000, (4, 12, 12)).astype("<i2")
    nrrd = "NRRD0004\ntype: {}\ndimension: 3\nsizes: 12 12 4\nendian: little\nencoding: {}\n{}\n"
    packed = bz2.compress(b"1234567" + values.tobytes())
    head = nrrd.format("short", "bzip2", "byte skip: 7\n").encode()
    (tmp_path / "a.nrrd").write_bytes(head + packed)
    (tmp_path / "tail.raw").write_bytes(b"any" + values.tobytes())
    (tmp_path / "b.nhdr").write_text(
        nrrd.format("int16", "raw", "byte skip: -1\ndata file: tail.raw\n")
    )
    for name in ("a.nrrd", "b.nhdr"):
        header = volume_header.read_header(tmp_path / name, tmp_path)
        np.testing.assert_array_equal(volume_module.read_values(header), values)
    encoding = "an encoding that is not read"
    cases = {
        "hex.nrrd": (nrrd.format("short", "hex", ""), encoding),
        "list.nhdr": (nrrd.format("short", "raw", "data file: LIST\n"), encoding),
        "block.nrrd": (nrrd.format("block", "raw", ""), "not one 3-D volume of real numbers"),
        "page.nii": ("<html>404</html>" * 50, "no NIfTI, NRRD or MetaImage"),
        "empty.nii.gz": ("", "no NIfTI, NRRD or MetaImage"),
        "half.nrrd": ("NRRD0004\ntype: sh", "the header cannot be read"),
        "half.mha": ("ObjectType = Image\nNDims = 3\nDimS", "cut off"),
        "rgb.mha": (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 2 2 2\n"
            "ElementNumberOfChannels = 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n",
            "not one 3-D volume of real numbers",
        ),
    }
    for name, (text, reason) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(Unusable) as raised:
            volume_header.read_header(tmp_path / name, tmp_path)
        assert str(raised.value) == reason, name
        assert not isinstance(raised.value, Unwanted)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(Unwanted):
        volume_header.read_header(tmp_path / "notes.txt", tmp_path)


def test_localizers_and_slabs_are_no_axial_slices(tmp_path):
    save(volume((40, 1, 40), spacing=(0.7, 0.7, 0.7)), tmp_path / "a.nii")
    save(volume((40, 2, 40), spacing=(0.7, 0.7, 0.7)), tmp_path / "b.nii")
    save(volume((4, 10, 40), spacing=(0.7, 0.7, 5)), tmp_path / "c.nii")
    other = ("not a stack of axial slices", False)
    assert reasons(VolumeSource(tmp_path)) == {1: other, 2: other}


def test_segmentations_of_slicer_say_what_they_are(tmp_path):
    fields = "type: uchar\ndimension: 4\nsizes: 2 4 4 4\nencoding: raw\nSegment0_ID:=Segment_1\n\n"
    (tmp_path / "a.seg.nrrd").write_bytes(b"NRRD0004\n" + fields.encode() + bytes(128))
    assert reasons(VolumeSource(tmp_path)) == {1: ("a segmentation, not an image", False)}


@pytest.mark.parametrize("values", [Values.AUTO, Values.HU])
def test_masks_are_told_whatever_else_is_said_of_values(tmp_path, values):
    mask, empty = np.zeros((2, 4, 20, 20), np.int16)
    mask[1:3, 5:12, 5:12] = 1
    ignored = mask.copy()
    ignored[3] = -1
    brain = np.where(mask, RNG.normal(35, 5, mask.shape), 0).round().astype(np.int16)
    for name, stored in {"a": mask, "b": empty, "c": ignored, "d": brain}.items():
        save(SimpleITK.GetImageFromArray(stored), tmp_path / f"{name}.nii")
    found_reasons = reasons(VolumeSource(tmp_path, values=values))
    assert found_reasons.pop(4, None) == (None if values is Values.HU else (NO_AIR, True))
    assert found_reasons == dict.fromkeys((1, 2, 3), ("a segmentation, not an image", False))


def test_values_are_judged(tmp_path):
    labels = RNG.integers(0, 30, (4, 15, 4)).astype(np.uint8).repeat(4, axis=2)
    grey = np.arange(4 * 15 * 16).reshape(4, 15, 16).astype(np.uint8)
    windowed = RNG.uniform(0, 560, (4, 15, 16)).astype(np.float32)
    scores = RNG.normal(size=(4, 15, 16)).astype(np.float32)
    for name, values in {"a": labels, "b": grey, "c": windowed, "d": scores}.items():
        save(SimpleITK.GetImageFromArray(values), tmp_path / f"{name}.nii")
    save(volume(), tmp_path / "e.nii.gz")
    no_hu = (NO_AIR, True)
    assert reasons(VolumeSource(tmp_path)) == {
        1: ("a segmentation, not an image", False),
        2: no_hu,
        3: no_hu,
        4: no_hu,
    }
    no_grey = ("not 8-bit grey (values beyond 0 to 255)", True)
    source = VolumeSource(tmp_path, values=Values.GREY8)
    assert source.intensity == "grey8"
    assert reasons(source) == {
        1: ("a segmentation, not an image", False),
        3: no_grey,
        4: no_grey,
        5: no_grey,
    }
    (kept, *_) = (s for s in found(source) if isinstance(s, Slice))
    np.testing.assert_array_equal(kept.image, grey[0])
    assert reasons(VolumeSource(tmp_path, values=Values.HU)) == {}


def test_command(tmp_path, read, key_file, capfd):
    for name in ("case1_pre", "case1_post", "case2_pre", "nobody"):
        save(volume(), tmp_path / "in" / f"{name}.nii.gz")
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'o'}", f"--key={key_file}"]
    flags += ["--workers=0", "--max_rejected=0.5", "--val_fraction=0", "--test_fraction=0"]
    assert volumes.main([*flags, "--patient_regex=^(case[0-9]+)"]) == 0
    records = read(tmp_path / "o")
    expected = {pseudonym(key_file.read_bytes(), name).encode() for name in ("case1", "case2")}
    assert {r["patient"] for r in records} == expected
    assert len({r["series"] for r in records}) == 3
    assert "no patient: --patient_regex does not match" in capfd.readouterr().out
    assert volumes.main([*flags, "--out=x", "--patient_regex=("]) == 2


def test_real_volumes(tmp_path, shared):
    source = shared("volumes/totalsegmentator-example")
    options = {"key": KEY, "fractions": {"train": 1.0}}
    manifest = prepare(VolumeSource(source), tmp_path / "out", **options)
    assert manifest["splits"]["train"]["slices"] == 112 + 30
    assert manifest["source_kind"] == "volume"
    # Beside them is a series in DICOM.
    assert (
        sorted(reasons(VolumeSource(source)).values())[:2]
        == [("a segmentation, not an image", False)] * 2
    )


def test_real_volumes_are_those_that_simpleitk_reads(shared):
    folder = shared("volumes/totalsegmentator-example")
    path = folder / "example_ct.nii.gz"
    read = read_volume(path, folder)
    oracle = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(read.values, SimpleITK.GetArrayFromImage(oracle))
    assert read.spacing_mm == oracle.GetSpacing()[::-1]
    assert read.first_mm == pytest.approx(oracle.GetOrigin()[2])


def test_real_angiography_and_oblique_volume(shared):
    source = VolumeSource(shared("volumes/niivue"))
    no_hu = (NO_AIR, True)
    assert reasons(source) == {1: no_hu, 2: no_hu}
    grey = VolumeSource(source.root, values=Values.GREY8, irregular=Irregular.ACCEPT_2D)
    (finding,) = (row for row in found(grey) if isinstance(row, Finding))
    assert (finding.finding, finding.detail, finding.slices) == (
        "oblique volume",
        "16.5 degrees",
        58,
    )
