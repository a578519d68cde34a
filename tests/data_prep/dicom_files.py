"""Compressed and multi-frame DICOM files, and the outcome of a source, for the tests of DICOM."""

import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import SimpleITK
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid

from data_prep.source import Finding, Rejected, Slice, Unusable

JPEG_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"
SYNTAXES = (str(RLELossless), JPEG_LOSSLESS, JPEG_2000)


class Outcome(NamedTuple):
    slices: list[Slice]
    rejected: list[Rejected]
    findings: list[Finding]

    @property
    def reasons(self) -> list[str]:
        return [rejected.reason for rejected in self.rejected]


def outcome(source) -> Outcome:
    """Reads a source as preparation does, in this process and without writing."""
    found = Outcome([], [], [])
    units = defaultdict(list)
    for item in source.items():
        try:
            place = source.place(item)
            units[place.unit].append(replace(item, header=place.header))
        except Unusable as error:
            found.rejected.append(Rejected.of(item.number, error))
    for items in units.values():
        of_unit = Outcome([], [], [])
        try:
            for one in source.read(items):
                kind = (Slice, Rejected, Finding).index(type(one))
                of_unit[kind].append(one)
        except Unusable as error:
            images = [error.images.get(item.number, 1) for item in items]
            rejected = map(Rejected.of, [i.number for i in items], [error] * len(items), images)
            of_unit = Outcome([], list(rejected), [])
        for everything, of_this in zip(found, of_unit, strict=True):
            everything.extend(of_this)
    return found


def codestream(image: np.ndarray, syntax: str) -> bytes:
    """One frame, losslessly compressed."""
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "a.dcm"
        if syntax == RLELossless:
            return pydicom.pixels.encoders.RLELosslessEncoder.encode(
                image,
                encoding_plugin="pydicom",
                **_described(image),
            )
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(name))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000" if syntax == JPEG_2000 else "JPEG")
        writer.Execute(SimpleITK.GetImageFromArray(image[None]))
        file = pydicom.dcmread(name)
    assert file.file_meta.TransferSyntaxUID == syntax
    (frame,) = generate_frames(file.PixelData, number_of_frames=1)
    return frame


def _described(image: np.ndarray) -> dict:
    bits = image.dtype.itemsize * 8
    return {
        "rows": image.shape[0],
        "columns": image.shape[1],
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": bits,
        "bits_stored": bits,
        "pixel_representation": int(image.dtype.kind == "i"),
    }


def compress(path: Path, syntax: str, cut: int = 0) -> None:
    """Compresses the pixels of a file; leaves out the last `cut` bytes of the codestream."""
    file = pydicom.dcmread(path)
    dtype = np.int16 if file.PixelRepresentation else np.uint16
    image = np.frombuffer(file.PixelData, dtype).reshape(file.Rows, file.Columns)
    data = codestream(image, syntax)
    file.file_meta.TransferSyntaxUID = UID(syntax)
    file.PixelData = encapsulate([data[: len(data) - cut]])
    file["PixelData"].VR = "OB"
    file.save_as(path)


def _item(**tags) -> Sequence:
    item = pydicom.Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return Sequence([item])


def write_enhanced(path: Path, stored: np.ndarray, z, syntax=ExplicitVRLittleEndian, **tags):
    """An Enhanced CT of frames at heights `z`; `tags` go into the shared groups or the file."""
    frame_type = tags.pop("FrameType", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    rescale_type = tags.pop("RescaleType", "HU")
    slopes = tags.pop("slopes", np.ones(len(z)))
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = UID(syntax)
    file.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    file.PatientID, file.Modality = "P1", "CT"
    file.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.NumberOfFrames, file.Rows, file.Columns = stored.shape
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit = 15
    file.PixelRepresentation = int(stored.dtype == np.int16)
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = _item(PixelSpacing=[0.5, 0.75], SliceThickness=2)
    shared.CTImageFrameTypeSequence = _item(FrameType=frame_type)
    # What each frame says itself comes first.
    shared.PixelValueTransformationSequence = _item(RescaleSlope=7, RescaleIntercept=0)
    file.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for height, slope in zip(z, slopes, strict=True):
        group = pydicom.Dataset()
        group.PlanePositionSequence = _item(ImagePositionPatient=[0, 0, float(height)])
        rescale = {"RescaleSlope": float(slope), "RescaleIntercept": -1024}
        if rescale_type:
            rescale["RescaleType"] = rescale_type
        group.PixelValueTransformationSequence = _item(**rescale)
        groups.append(group)
    file.PerFrameFunctionalGroupsSequence = Sequence(groups)
    if syntax == ExplicitVRLittleEndian:
        file.PixelData = stored.tobytes()
    else:
        file.PixelData = encapsulate([codestream(frame, syntax) for frame in stored])
        file["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(file, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
