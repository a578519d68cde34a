"""An embedded CT phantom, to try everything without data: `python -m data_prep.phantom --out=DATA`.

Each patient is a procedural torso (`anatomy`) with scanner noise. Half of the slices, whatever
their height in the body, hold a lesion: a nodule in the lung or a mass in a soft organ. With
--lesion_slices it is a phantom of scans: every other patient has a lesion, in so many slices one
above the other, and the label is the scan's. With --nodules it is one of scans of the chest: every
other patient has so many small nodules in the lungs of each slice, and they are to be told from the
vessels. The phantom is a function of its seed and of nothing else.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int16

from ctssl_jax.errors import ConfigError
from data_prep import command
from data_prep.cases import Case, CaseOf
from data_prep.phantom.anatomy import FIELD_OF_VIEW_MM, LENGTH_MM, Mask, Patient, Plane
from data_prep.pipeline.prepare import Manifest, refuse_taken
from data_prep.pipeline.prepare import prepare as prepare_source
from data_prep.pipeline.records import PUBLIC_KEY, to_hu
from data_prep.pipeline.split import split_fractions
from data_prep.source import Item, Place, Slice

CLASSES = ("no lesion", "lesion")
PADDING = -2000
CHEST = (0.42, 0.8)  # heights of the slices of scans with nodules
NODULE_MM = (7.0, 11.0)  # their radius
NODULE_HU = (0.0, 60.0)
VISIBLE_HU = 30.0  # by which a lesion differs from what is under it


@dataclass(frozen=True)
class PhantomSource:
    """Artificial patients; an item is one of them.

    Attributes:
        patients: Number of patients.
        slices: Slices of each patient.
        size: Rows and columns of a slice.
        seed: Of anatomy, lesions and noise.
        lesion_slices: Of a scan with a lesion; 0: each slice has a label of its own.
        nodules: In each slice of a scan that has them; 0: no such phantom.
    """

    patients: int
    slices: int
    size: int
    seed: int
    lesion_slices: int = 0
    nodules: int = 0

    name: ClassVar[str] = "phantom"
    kind: ClassVar[str] = "phantom"
    intensity: ClassVar[str] = "hu"
    classes: ClassVar[tuple[str, ...]] = CLASSES
    origin: ClassVar[None] = None

    def options(self) -> dict[str, Any]:
        """See `Source`."""
        shape = {"slices": self.slices, "size": self.size, "seed": self.seed}
        findings = {"lesion_slices": self.lesion_slices, "nodules": self.nodules}
        return shape | {name: value for name, value in findings.items() if value}

    def facts(self) -> Mapping[str, Any]:
        """See `Source`."""
        of = CaseOf.SERIES if self.lesion_slices or self.nodules else CaseOf.SLICE
        return {"patients_known": True, "case": Case(of).told()}

    def notes(self) -> list[str]:
        """See `Source`."""
        return []

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        for patient in range(self.patients):
            yield Item(patient + 1, path="", patient=person(patient, self.nodules))

    def place(self, item: Item) -> Place:
        """See `Source`."""
        return Place(item.patient, item.patient)

    def read(self, items: Sequence[Item]) -> Iterator[Slice]:
        """See `Source`."""
        for item in items:
            yield from patient_slices(
                item.number - 1,
                slices=self.slices,
                size=self.size,
                seed=self.seed,
                lesion_slices=self.lesion_slices,
                nodules=self.nodules,
            )


def person(patient: int, nodules: int) -> str:
    """A patient as the source names them: nobody is in two phantoms of different kinds."""
    return f"chest {patient}" if nodules else str(patient)


def patient_slices(
    patient: int, *, slices: int, size: int, seed: int, lesion_slices: int = 0, nodules: int = 0
) -> Iterator[Slice]:
    """Yields one patient's slices from the kidneys to the collar bones, or those of the chest."""
    body = Patient(seed * 100_003 + patient)
    rng = np.random.default_rng([seed, patient, 1])
    noise_hu = rng.uniform(9, 22)
    foot, head = CHEST if nodules else (0.0, 1.0)
    distance, pixel = (head - foot) * LENGTH_MM / slices, FIELD_OF_VIEW_MM / size
    labels = rng.permuted(np.arange(slices) % 2)
    if lesion_slices:
        ill = lesion_range(patient, slices=slices, seed=seed, lesion_slices=lesion_slices)
        labels = np.isin(np.arange(slices), ill).astype(int)
    if nodules:
        labels = np.full(slices, patient % 2)
    for index in range(slices):
        z = foot + (head - foot) * (index + 0.5) / slices
        site = _site(patient, seed) if lesion_slices else rng
        image = render(body, z, size, bool(labels[index]), noise_hu, rng, site, nodules)
        whole = {
            "label": int(labels.any()),
            "slice_label": int(labels[index]),
            "case": f"series {patient}",
        }
        yield Slice(
            image,
            person(patient, nodules),
            f"{patient}-series",
            index,
            position_mm=z * LENGTH_MM,
            spacing_mm=(distance, pixel, pixel),
            **(whole if lesion_slices or nodules else {"label": int(labels[index])}),
        )


def lesion_range(patient: int, *, slices: int, seed: int, lesion_slices: int) -> range:
    """Which slices of a scan hold the lesion; none of a patient with an even number."""
    if patient % 2 == 0:
        return range(0)
    start = int(np.random.default_rng([seed, patient, 3]).integers(slices - lesion_slices + 1))
    return range(start, start + lesion_slices)


def lesion_mask(patient: int, index: int, *, slices: int, size: int, seed: int) -> Mask:
    """Where the lesion of a scan is, in one of the slices that hold it."""
    body = Patient(seed * 100_003 + patient)
    plain, lung, soft = body.draw((index + 0.5) / slices, 2 * size)
    ill = plain.copy()
    add_lesion(ill, lung, soft, _site(patient, seed))
    return np.abs(_halved(ill) - _halved(plain)) > VISIBLE_HU


def _site(patient: int, seed: int) -> np.random.Generator:
    """The randomness of a scan's one lesion, anew for each of its slices."""
    return np.random.default_rng([seed, patient, 4])


def render(
    body: Patient,
    z: float,
    size: int,
    lesion: bool,
    noise_hu: float,
    rng: np.random.Generator,
    site: np.random.Generator,
    nodules: int = 0,
) -> Int16[np.ndarray, "{size} {size}"]:
    """Returns one slice in HU: anatomy drawn at twice the size, averaged, with noise.

    The lesion, which is so many `nodules` unless that is 0, is drawn with the randomness of `site`,
    all else with that of `rng`.
    """
    fine, lung, soft = body.draw(z, 2 * size)
    if lesion and nodules:
        add_nodules(fine, lung, nodules, site)
    elif lesion:
        add_lesion(fine, lung, soft, site)
    image = _halved(fine)
    grain = rng.normal(size=(size, size))
    grain = 0.6 * grain + 0.2 * (np.roll(grain, 1, 0) + np.roll(grain, 1, 1))
    attenuation = 0.45 + np.clip((image + 1000) / 1100, 0, 1)
    return to_hu(image + 1.45 * noise_hu * attenuation * grain)


def add_lesion(hu: Plane, lung: Mask, soft: Mask, rng: np.random.Generator) -> None:
    """Paints a nodule into the lung or a mass into a soft organ, in place."""
    in_lung = lung.mean() > 0.03 and (rng.uniform() < 0.7 or soft.mean() < 0.02)
    step = FIELD_OF_VIEW_MM / len(hu)
    x, y = np.meshgrid(*2 * [np.arange(len(hu)) * step])
    radius = rng.uniform(15, 28) if in_lung else rng.uniform(22, 36)
    sites = _eroded(lung if in_lung else soft, int(0.6 * radius / step))
    if not sites.any():
        sites = lung | soft
    row, column = rng.choice(np.argwhere(sites))
    dx, dy = x - column * step, y - row * step
    angle = np.arctan2(dy, dx)
    lobes = sum(
        rng.normal(0, 0.07) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    distance = np.hypot(dx, dy * rng.uniform(0.8, 1.25)) / (radius * (1 + lobes))
    share = np.clip((1 - distance) * radius / 2.5, 0, 1)
    if in_lung:
        value = np.full_like(hu, rng.uniform(60, 160))
    else:
        value = np.where(distance > 0.6, rng.uniform(300, 420), rng.uniform(-90, -30))
    hu += share * (value - hu)


def add_nodules(hu: Plane, lung: Mask, count: int, rng: np.random.Generator) -> None:
    """Paints small round nodules anywhere into the lung, in place; none where there is no lung."""
    step = FIELD_OF_VIEW_MM / len(hu)
    x, y = np.meshgrid(*2 * [np.arange(len(hu)) * step])
    sites = np.argwhere(lung)
    for _ in range(count if len(sites) else 0):
        row, column = rng.choice(sites)
        depth = rng.uniform(*NODULE_MM) - np.hypot(x - column * step, y - row * step)
        share = np.clip(depth / 2.5 + 0.5, 0, 1) * lung
        hu += share * (rng.uniform(*NODULE_HU) - hu)


def _eroded(mask: Mask, pixels: int) -> Mask:
    """Returns the mask less a border of about `pixels`."""
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (-pixels, pixels):
            inner &= np.roll(mask, shift, axis)
    return inner


def _halved(plane: Plane) -> Float[np.ndarray, "h2 w2"]:
    size = len(plane) // 2
    return plane.reshape(size, 2, size, 2).mean((1, 3))


def write_dicom(
    folder: Path,
    *,
    patients: int,
    slices: int,
    size: int,
    seed: int,
    lesion_slices: int = 0,
    nodules: int = 0,
) -> None:
    """Writes each patient as one DICOM series in a folder of its own, the files in no order.

    Of a phantom of scans a table `labels.csv` of these folders lies beside them.

    Stored values alternate between the two ways of scanners: unsigned 12-bit with the intercept
    -1024, and signed with padding -2000 outside the scanner's circle.

    Args:
        folder: Where the patients' folders go; made if need be.
        patients: Number of patients.
        slices: Slices of each patient.
        size: Rows and columns of a slice.
        seed: Of anatomy, lesions and noise.
        lesion_slices, nodules: As in `PhantomSource`.
    """
    axis = (np.arange(size) - (size - 1) / 2) / (size / 2)
    outside = np.hypot(*np.meshgrid(axis, axis)) > 1
    for patient in range(patients):
        home = folder / f"patient{patient:03d}"
        home.mkdir(parents=True)
        signed = patient % 2 == 1
        shuffled = np.random.default_rng([seed, patient, 2]).permutation(slices)
        shape = {"slices": slices, "size": size, "seed": seed}
        for item in patient_slices(patient, **shape, lesion_slices=lesion_slices, nodules=nodules):
            stored = item.image + 1024
            if signed:
                stored[outside] = PADDING
            else:
                stored = stored.clip(0, 4095).astype(np.uint16)
            name = f"phantom-{seed}-{person(patient, nodules)}"
            dataset = dicom_of(stored, item, name, signed)
            dataset.save_as(
                home / f"{shuffled[item.slice_index]:04d}.dcm", enforce_file_format=True
            )
    if lesion_slices or nodules:
        rows = [f"patient{patient:03d},{CLASSES[patient % 2]}" for patient in range(patients)]
        (folder / "labels.csv").write_text("\n".join(["folder,label", *rows]) + "\n")


def dicom_of(stored: np.ndarray, item: Slice, name: str, signed: bool) -> Any:
    """Returns a CT Image Storage object of one slice; its UIDs are a function of the name."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def uid(*parts: object) -> UID:
        return generate_uid(entropy_srcs=[name, *map(str, parts)])

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid(item.slice_index)
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study"), uid("series")
    data.FrameOfReferenceUID = uid("frame")
    data.PatientName, data.PatientID = "Phantom", name
    data.PatientBirthDate = data.PatientSex = data.AccessionNumber = data.StudyID = ""
    data.StudyDate = data.StudyTime = data.ReferringPhysicianName = (
        data.PositionReferenceIndicator
    ) = ""
    data.Modality, data.Manufacturer = "CT", "ctssl_jax"
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 1, 1, item.slice_index + 1
    distance, *pixel = item.spacing_mm
    data.PixelSpacing, data.SliceThickness = [f"{mm:.6f}" for mm in pixel], f"{distance:.6f}"
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    corner = (pixel[0] - FIELD_OF_VIEW_MM) / 2
    data.ImagePositionPatient = [f"{mm:.4f}" for mm in (corner, corner, item.position_mm)]
    data.KVP = "120"
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = -1024, 1, "HU"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.PixelRepresentation = 16, int(signed)
    data.BitsStored = 16 if signed else 12
    data.HighBit = data.BitsStored - 1
    if signed:
        data.PixelPaddingValue = PADDING
    data.PixelData = stored.tobytes()
    return data


def prepare(
    out: Path,
    *,
    patients: int = 24,
    slices: int = 24,
    size: int = 96,
    seed: int = 0,
    val: float = 0.2,
    test: float = 0.2,
    lesion_slices: int = 0,
    nodules: int = 0,
) -> Manifest:
    """Writes the phantom as a dataset folder.

    Args:
        out: Dataset folder to make.
        patients: Number of patients.
        slices: Slices of each patient.
        size: Rows and columns of a slice.
        seed: Of anatomy, lesions, noise and split.
        val: Share of the patients in the split val.
        test: Share of the patients in the split test.
        lesion_slices, nodules: As in `PhantomSource`.
    """
    return prepare_source(
        make_source(patients, slices, size, seed, lesion_slices, nodules),
        out,
        key=PUBLIC_KEY,
        fractions=split_fractions(val, test),
        seed=seed,
    )


def make_source(
    patients: int, slices: int, size: int, seed: int, lesion_slices: int = 0, nodules: int = 0
) -> PhantomSource:
    """The source; raises ConfigError where a number is too small or too large."""
    if not 0 <= lesion_slices <= slices:
        raise ConfigError(f"--lesion_slices={lesion_slices}: must be 0 to --slices={slices}")
    if nodules < 0 or (nodules and lesion_slices):
        raise ConfigError(
            f"--nodules={nodules} --lesion_slices={lesion_slices}: 0 or more, and one of them"
        )
    if min(patients, slices) < 1 or size < 16:
        raise ConfigError(
            f"--patients={patients} --slices={slices} --size={size}: at least 1, 1 and 16"
        )
    return PhantomSource(patients, slices, size, seed, lesion_slices, nodules)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "phantom",
        "An artificial CT torso with and without lesions -> dataset folder",
        "--out=data/phantom --patients=24 --slices=24 --size=96",
        val=0.2,
        test=0.2,
    )
    parser.add_argument("--patients", type=int, default=24, help="number of patients")
    parser.add_argument("--slices", type=int, default=24, help="slices of each patient")
    parser.add_argument("--size", type=int, default=96, help="rows and columns in pixels")
    parser.add_argument(
        "--lesion_slices",
        type=int,
        default=0,
        help="a phantom of scans: every other patient has a lesion, in so many slices, and labels "
        "are of scans; 0: half of all slices have one, and labels of their own",
    )
    parser.add_argument(
        "--nodules",
        type=int,
        default=0,
        help="a phantom of chest scans: every other patient has so many small nodules in the lungs "
        "of each slice, and labels are of scans",
    )
    parser.add_argument(
        "--dicom", type=Path, help="write the patients as DICOM series into this new folder as well"
    )

    def from_flags(args: argparse.Namespace) -> PhantomSource:
        shape = {"patients": args.patients, "slices": args.slices, "size": args.size}
        shape |= {"lesion_slices": args.lesion_slices, "nodules": args.nodules}
        source = make_source(**shape, seed=args.seed)
        if args.dicom:
            refuse_taken(args.dicom, "--dicom")
            write_dicom(args.dicom, seed=args.seed, **shape)
        return source

    return command.run_source(from_flags, parser, argv)
