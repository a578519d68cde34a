"""What the tests of data preparation share: reading a dataset back, writing DICOM and images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
import tensorflow_datasets as tfds
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

KEY = b"0123456789abcdef0123456789abcdef"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def read(out: Path, split: str = "train") -> list[dict]:
    """All records of a split in the order of series and slice."""
    source = tfds.builder_from_directory(out / "ct_slices" / "1.0.0").as_data_source(split=split)
    records = [source[i] for i in range(len(source))]
    return sorted(records, key=lambda r: (r["series"], r["slice_index"]))


def write_ct(path: Path, stored: np.ndarray, **tags) -> None:
    """Writes one valid CT slice; `tags` change or (None) remove elements.

    `z` is its height, `padding` the VR and value of PixelPaddingValue.
    """
    z, padding = tags.pop("z", 0.0), tags.pop("padding", None)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    data.PatientID, data.PatientName, data.Modality = "P1", "Doe^Jane", "CT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [0, 0, z]
    data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [0.5, 0.75], 1, -1024
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = int(stored.dtype == np.int16)
    data.PixelData = stored.tobytes()
    if padding is not None:
        data.add_new("PixelPaddingValue", *padding)
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


@pytest.fixture(name="read")
def read_fixture() -> Callable[..., list[dict]]:
    return read


@pytest.fixture(name="write_ct")
def write_ct_fixture() -> Callable[..., None]:
    return write_ct


@pytest.fixture
def write_volume() -> Callable[..., None]:
    """Writes a CT volume of some slices."""

    def write(path: Path, slices: int = 4) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(path.name))
        values = rng.uniform(-1000, 300, (slices, 15, 12)).astype(np.float32)
        image = SimpleITK.GetImageFromArray(values)
        SimpleITK.WriteImage(image, str(path))

    return write


@pytest.fixture
def key_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "pseudonym.key"
    path.write_bytes(KEY)
    return path


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Finds real data beside the repository, or skips the test."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"no shared data {name}")
        return SHARED / name

    return find
