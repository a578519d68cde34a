"""Files that nothing reads: missed, or left out by design, whatever the source."""

import bz2
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.dicom import DicomSource
from data_prep.readers import lost_file
from data_prep.readers.image_file import image_bits
from data_prep.readers.lost_file import ARCHIVE, CUT_OFF, EMPTY, PAGE, VOLUME
from data_prep.readers.volume_header import NO_VOLUME
from data_prep.source import Item, Unusable, Unwanted
from data_prep.volumes import VolumeSource


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "x")
    return stream.getvalue()


HTML = b"<!DOCTYPE html><html>502 Bad Gateway</html>"
MISSED = {
    "IM00001": (b"", EMPTY),
    "1.2.840.1": (b"", EMPTY),
    "IM00002": (HTML, PAGE),
    "IM.0003": (b"\n<HTML>", PAGE),
    "IM00004": (bytes(100), CUT_OFF),
    "IM00005": (bytes(9999), CUT_OFF),
    "P3.zip": (zipped(), ARCHIVE),
    "P4": (zipped(), ARCHIVE),
    "P5.tar.gz": (gzip.compress(b"x"), ARCHIVE),
    "P6.7Z": (b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    "c1.nii.bz2": (bz2.compress(b"x"), VOLUME),
    "c2.MGZ": (gzip.compress(b"x"), VOLUME),
    "c3.nii.zip": (zipped(), VOLUME),
    "c4.hdr": (b"", EMPTY),
    "c5.img": (b"x" * 99, VOLUME),
    "c6.xyz": (b"", EMPTY),
}
COMPANY = {
    **dict.fromkeys(("README", "a.txt", "b.CSV", "c.json", "d.xml", "Thumbs.db", "DICOMDIR"), b""),
    "LICENSE": HTML,
    "index.htm": HTML,
    "autorun.inf": b"x",
    "table.csv.gz": gzip.compress(b"x"),
    "notes": b"text",
    "IHE_PDI": b"text",
    "report.docx": zipped(),
    "viewer.jar": zipped(),
    "values.raw": bytes(999),
    "values.raw.gz": gzip.compress(bytes(9)),
    "scan.log": b"",
}


def image(path):
    image_bits(Path(path))


def volume(path):
    VolumeSource(path.parent).place(Item(1, str(path), "p"))


def dicom(path):
    DicomSource(path.parent).place(Item(1, str(path)))


READERS = (image, volume, dicom)


@pytest.mark.parametrize("name", MISSED)
@pytest.mark.parametrize("read", READERS)
def test_what_was_meant_to_be_read_is_missed(tmp_path, name, read):
    content, reason = MISSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unusable) as caught:
        read(tmp_path / name)
    named = {(image, "c4.hdr"): "an image format that is not read: save it as PNG"}
    assert str(caught.value) == named.get((read, name), reason)
    assert not isinstance(caught.value, Unwanted)


@pytest.mark.parametrize("name", COMPANY)
@pytest.mark.parametrize("read", READERS)
def test_company_is_left_out_by_design(tmp_path, name, read):
    (tmp_path / name).write_bytes(COMPANY[name])
    with pytest.raises(Unwanted):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["C5.NII", "C6.NII.GZ", "C7.MHA", "C8.Nrrd"])
@pytest.mark.parametrize("content", [b"", HTML * 20])
def test_the_name_of_a_volume_is_one_in_any_case(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unusable, match=NO_VOLUME) as caught:
        volume(tmp_path / name)
    assert not isinstance(caught.value, Unwanted)


def test_the_values_of_a_pair_are_no_loss(tmp_path):
    for name in ("a.img", "b.img.gz", "a.HDR", "b.hdr.gz"):
        (tmp_path / name).write_bytes(b"x")
    assert [lost_file.loss(tmp_path / name) for name in ("a.img", "b.img.gz")] == ["", ""]


def test_an_image_without_suffix_that_is_cut_off_is_missed(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "IMG4").write_bytes((tmp_path / "a.png").read_bytes()[:6])
    with pytest.raises(Unusable, match="not a PNG") as caught:
        image(tmp_path / "IMG4")
    assert not isinstance(caught.value, Unwanted)
