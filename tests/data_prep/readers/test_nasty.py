"""Real files of every awkward sort: a slice that equals pydicom's, or the reason that is expected.

The files are not part of the project; without them these tests skip.
"""

from fnmatch import fnmatch

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import outcome

from data_prep.dicom import DicomSource
from data_prep.irregular import Irregular
from data_prep.pipeline.records import AIR_HU
from data_prep.readers.hounsfield import DENSE, NO_AIR, NO_TISSUE

SLICE = "a slice"
# Patterns of paths; the first that fits counts.
EXPECTED = {
    "bad_header/CT_Explicit_Little.dcm": SLICE,
    "bad_header/dicompyler-ct.0.dcm": SLICE,
    "bad_header/CT_Implicit_Little_Headless_Retired.dcm": "no transfer syntax",
    "bad_header/gdcm-CT-MONO2-8-abdo.dcm": "secondary capture",
    "bad_header/no_preamble_dicm_in_data": "no image",
    "bad_header/*": "not CT",  # MR, SR, US
    "derived/no_rescale.dcm": "no RescaleSlope and RescaleIntercept: HU are not known",
    "derived/truncated_60pct.dcm": "cut off",
    "derived/truncated_header_only.dcm": "no pixel data",
    "derived/zero_bytes.dcm": "an empty file",
    "derived/html_error_page.dcm": "named like DICOM, but it is not",
    "derived/*": "not DICOM",
    "localizer_and_secondary/FreezePattern.dcm": "secondary capture",
    "localizer_and_secondary/Philips/*/DIRFILE": "no image",
    "localizer_and_secondary/Philips/*/S1000/I10": "localizer",
    "localizer_and_secondary/Philips/*/S4010/*": "secondary capture",
    "localizer_and_secondary/image-00000.dcm": "localizer",
    "localizer_and_secondary/*": "not CT",  # OT, PT, MR, SC
    "multiframe_enhanced_ct/CT0012.*": "a map, not HU",
    "multiframe_enhanced_ct/*/multiframe/mf.dcm": "RescaleType is not HU",
    "not_ct/ct_[12].dcm": SLICE,  # they lie here for another reason
    "not_ct/*.nrrd": "not DICOM",
    "not_ct/.DS_Store": "not DICOM",
    "not_ct/DICOMDIR": "no image",
    "not_ct/*": "not CT",  # SEG and RTSTRUCT, also under the class of CT; MR, CR, US
    # 8-bit grey with the rescale of HU: 0 to 254 minus 1024.
    "spacing_and_geometry/gantrytilting/*": NO_TISSUE,
    "spacing_and_geometry/notavolume/*": NO_TISSUE,
    "spacing_and_geometry/odd_size/CT-MONO2-16-ankle": "secondary capture",
    "spacing_and_geometry/odd_size/GH1308.dcm": SLICE,
    "spacing_and_geometry/odd_size/GH355.dcm": "not a CT image",
    "spacing_and_geometry/odd_size/GH538-jpeg14sv1.dcm": "not CT",
    "spacing_and_geometry/odd_size/IMG0001.dcm": NO_AIR,  # 8-bit grey
    "spacing_and_geometry/reformat_sagittal/*": "not axial",
    "spacing_and_geometry/tiny/2?x38x3/*": "RescaleType is not HU",
    "spacing_and_geometry/tiny/dicomdirtests/98892001/CT2N/*": "localizer",
    # Of 16 x 16 pixels, cut out of a slice: nothing but bone, or no air.
    "spacing_and_geometry/tiny/dicomdirtests/77654033/CT2/171[69]6": DENSE,
    "spacing_and_geometry/tiny/dicomdirtests/77654033/CT2/171[369]6": NO_AIR,
    "spacing_and_geometry/tiny/dicomdirtests/98892001/CT5N/2693": NO_AIR,
    "spacing_and_geometry/tiny/dicomdirtests/98892001/CT5N/3*": NO_AIR,
    "spacing_and_geometry/tiny/*": SLICE,
    "spacing_and_geometry/two_adjacent/*": SLICE,
    "transfer_syntax/fragments/*_IVRLE_BigEndian_undefined_*": "the header cannot be read",
    "transfer_syntax/jpeg_lossless/CT_JPEG70.dcm": "localizer",
    "transfer_syntax/jpeg_lossless/*_bad.dcm": "values beyond any CT scale",
    "transfer_syntax/jpeg_lossless/JPGLosslessP14SV1_1s_1f_8b.dcm": "not CT",
    "transfer_syntax/jpeg_lossless/test16signed.dcm": "not CT",
    "transfer_syntax/wadors_raw/*": "not DICOM",
    "transfer_syntax/*": SLICE,
}
BY_DESIGN = {
    *("not DICOM", "not CT", "not a CT image", "not axial", "no image"),
    *("localizer", "secondary capture", "a map, not HU"),
}
# JPEG 1, 2, 4, 6, 10 and the lossy kinds of JPEG-LS and JPEG 2000, by the end of the file name.
LOSSY = ("4.50.dcm", "4.51.dcm", "4.53.dcm", "4.55.dcm", "4.81.dcm", "4.91.dcm")


def single(path):
    """The outcome of one file, whatever the rest of its series is like."""
    return outcome(DicomSource(path, Irregular.ACCEPT_2D))


def image(path):
    (one,) = single(path).slices
    return one.image


def test_every_file_is_a_slice_or_the_expected_reason(shared):
    root = shared("nasty")
    used, wrong = set(), {}
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    dicom = [path for path in files if path.parent != root]
    dicom = [path for path in dicom if path.relative_to(root).parts[0] not in ("images", "nifti")]
    assert len(dicom) > 140
    for path in dicom:
        name = path.relative_to(root).as_posix()
        pattern = next(pattern for pattern in EXPECTED if fnmatch(name, pattern))
        used.add(pattern)
        found = single(path)
        made = [SLICE] * len(found.slices) + found.reasons
        faults = [rejected.fault for rejected in found.rejected]
        expected = EXPECTED[pattern]
        if made != [expected] or faults != [expected not in BY_DESIGN] * len(faults):
            wrong[name] = made, faults
    assert wrong == {}
    assert used == set(EXPECTED)


def test_no_image_or_volume_of_another_kind_is_taken_for_dicom(shared):
    for folder in ("images", "nifti"):
        found = outcome(DicomSource(shared("nasty") / folder))
        assert found.slices == []
        assert set(found.reasons) == {"not DICOM"}


def test_the_whole_folder_at_once(shared):
    root = shared("nasty")
    files = sum(path.is_file() for path in root.rglob("*"))  # hidden ones are counted, too
    found = outcome(DicomSource(root))
    # Among each other the transfer syntaxes are copies, the sagittal reformats left out, ...
    assert len(found.slices) + sum(r.count for r in found.rejected) == files
    findings = {finding.finding for finding in found.findings}
    assert {"gantry tilt", "duplicate positions", "missing slices"} <= findings
    assert found.reasons.count("a copy of another file") == 19
    assert all(one.image.dtype == np.int16 and one.image.ndim == 2 for one in found.slices)


@pytest.mark.parametrize(
    "group",
    [
        ("transfer_syntax/same_ct_16_syntaxes", "*"),
        ("transfer_syntax/nema_wg04", "CT1_*"),
        ("transfer_syntax/nema_wg04", "CT2_*"),
        ("transfer_syntax/big_endian", "*"),
        ("transfer_syntax/fragments", "CT1_*"),
    ],
)
def test_all_syntaxes_of_an_image_give_the_same_pixels(shared, group):
    folder, pattern = group
    images = {path.name: image(path) for path in sorted(shared(f"nasty/{folder}").glob(pattern))}
    lossless = {
        name: pixels
        for name, pixels in images.items()
        if not name.endswith(("_J2KI", "_JLSN", *LOSSY))
    }
    assert len(lossless) >= 3
    first, *others = lossless.values()
    for other in others:
        np.testing.assert_array_equal(other, first)
    for name in images.keys() - lossless.keys():
        # Measured: 22 HU for J2KI, which is compressed 1:70, 14 for 8-bit JPEG, 4 for 12-bit.
        mean = 24 if "J2KI" in name else 16 if "4.50" in name else 5
        assert np.abs(images[name] - first.astype(int)).mean() < mean, name


def oracle(path):
    """HU and padding of a file by pydicom's own decoders and rescale."""
    file = pydicom.dcmread(path)
    try:
        stored = file.pixel_array
    except (RuntimeError, NotImplementedError):
        return None
    hu = pydicom.pixels.apply_modality_lut(stored, file)
    return np.maximum(np.rint(hu), AIR_HU), stored


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of values in the headers
@pytest.mark.parametrize("tree", ["nasty/transfer_syntax", "nasty/spacing_and_geometry", "volumes"])
def test_hu_equal_pydicom(shared, tree):
    for plugin in ("libjpeg", "openjpeg", "jpeg_ls"):
        pytest.importorskip(plugin, reason="pydicom's decoders: see requirements-oracles.txt")
    compared = 0
    for path in sorted(shared(tree).rglob("*")):
        slices = single(path).slices if path.is_file() else []
        if not slices or (expected := oracle(path)) is None:
            continue
        hu, stored = expected
        seen = (stored != -2000) & (stored != -32768)  # what is padding in these files
        tolerance = 0
        if path.name.endswith(LOSSY[:4]):  # decoders of lossy JPEG may differ by 1 stored value
            tolerance = float(pydicom.dcmread(path).RescaleSlope) + 1
        assert np.abs(slices[0].image - hu)[seen].max() <= tolerance, path.name
        assert (slices[0].image[~seen] == AIR_HU).all()
        compared += 1
    # Of the odd geometries 13 slices are no HU by their values: 8-bit grey, crops without air.
    assert compared >= {"volumes": 118, "nasty/spacing_and_geometry": 7}.get(tree, 20)


def test_hu_equal_gdcm_reading_the_whole_file(shared):
    """A second reader, for uncompressed files: those are decoded by pydicom here and above."""
    compared = 0
    for path in sorted(shared("volumes").rglob("*")):
        slices = single(path).slices if path.is_file() else []
        if slices:
            (values,) = SimpleITK.GetArrayFromImage(
                SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
            )
            np.testing.assert_array_equal(slices[0].image, np.maximum(values, AIR_HU), path.name)
            compared += 1
    assert compared == 118
