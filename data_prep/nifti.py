"""NIfTI volumes -> slices in HU: `python -m data_prep.nifti --source=NIFTI --out=DATASET`."""

import argparse
import gzip
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from jaxtyping import Num

from ctssl_jax.errors import DataError
from data_prep import command
from data_prep.records import Rejected, Slice, Unusable, pseudonym, to_hu, write_dataset
from data_prep.split import patient_finder, split_by_patient

MAX_LABELS = 128
SUFFIXES = (".nii", ".nii.gz")
_CHUNK = 2**20


@dataclass(frozen=True)
class Volume:
    """A volume as axial slices from foot to head, rows to the back, columns to the left (LPS)."""

    values: Num[np.ndarray, "z y x"]
    spacing_mm: tuple[float, float, float]
    first_mm: float


def read_volume(path: Path) -> Volume:
    """Reads one .nii or .nii.gz file as axial slices.

    Raises:
        Unusable: If it is cut off, damaged or has not three dimensions.
    """
    _require_whole(path)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = SimpleITK.ReadImage(str(path), imageIO="NiftiImageIO")
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise Unusable("not one 3-D volume")
        image = SimpleITK.DICOMOrient(image, "LPS")
    except RuntimeError as error:
        raise Unusable("cannot be read") from error
    x_mm, y_mm, z_mm = image.GetSpacing()
    normal = np.reshape(image.GetDirection(), (3, 3))[:, 2]
    first_mm = float(np.dot(image.GetOrigin(), normal))
    return Volume(SimpleITK.GetArrayFromImage(image), (z_mm, y_mm, x_mm), first_mm)


def require_intensity(values: Num[np.ndarray, "z y x"], intensity: str) -> None:
    """Raises Unusable if the values are labels, or are not what `intensity` says.

    Args:
        values: Of a volume.
        intensity: "grey8"; "hu" to take them as HU; "auto" to take them as HU if some are below
            0, as air and fat are in every CT.
    """
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    whole = np.issubdtype(values.dtype, np.integer) or not np.any(values % 1)
    if intensity != "hu" and low >= 0 and whole and len(np.unique(values)) <= MAX_LABELS:
        raise Unusable("a segmentation, not an image")
    if intensity == "auto" and low >= 0:
        raise Unusable("not in Hounsfield units (no value below 0)")
    if intensity == "grey8" and not (low >= 0 and high <= 255):
        raise Unusable("not 8-bit grey (values beyond 0 to 255)")


def _require_whole(path: Path) -> None:
    """Raises Unusable if bytes are missing: SimpleITK reads half a .nii.gz without an error."""
    zipped = path.name.endswith(".gz")
    try:
        with gzip.open(path) if zipped else open(path, "rb") as stream:
            head = stream.read(544)
            expected = _expected_bytes(head)
            size = len(head)
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unusable("cut off or damaged (gzip)") from error
    except OSError as error:
        raise Unusable("cannot be read") from error
    except struct.error as error:
        raise Unusable("not NIfTI") from error
    if size < expected:
        raise Unusable("cut off")


def _expected_bytes(head: bytes) -> int:
    """Returns the size of an uncompressed NIfTI-1 or NIfTI-2 file from its header."""
    for order in "<>":
        if struct.unpack_from(order + "i", head, 0)[0] == 348:
            dims = struct.unpack_from(order + "8h", head, 40)
            (bits,) = struct.unpack_from(order + "h", head, 72)
            (offset,) = struct.unpack_from(order + "f", head, 108)
            break
        if struct.unpack_from(order + "i", head, 0)[0] == 540:
            (bits,) = struct.unpack_from(order + "h", head, 14)
            dims = struct.unpack_from(order + "8q", head, 16)
            (offset,) = struct.unpack_from(order + "q", head, 168)
            break
    else:
        raise Unusable("not NIfTI")
    if not 1 <= dims[0] <= 7 or not np.isfinite(offset):
        raise Unusable("not NIfTI")
    voxels = 1
    for length in dims[1 : dims[0] + 1]:
        voxels *= max(int(length), 1)
    return int(offset) + voxels * bits // 8


def _slices(
    paths: Mapping[int, Path],
    root: Path,
    patient_of: Callable[[Path], str],
    key: bytes,
    grey: bool,
    rejected: Rejected,
) -> Iterator[Slice]:
    for number, path in paths.items():
        try:
            volume = read_volume(path)
        except Unusable as error:
            rejected.append((f"file {number}", str(error)))
            continue
        patient = pseudonym(key, patient_of(path))
        series = pseudonym(key, path.relative_to(root).as_posix())
        for index, plane in enumerate(volume.values):
            yield Slice(
                np.rint(plane).astype(np.int16) if grey else to_hu(plane),
                patient,
                series,
                index,
                position_mm=volume.first_mm + index * volume.spacing_mm[0],
                spacing_mm=volume.spacing_mm,
            )


def prepare(
    source: Path,
    out: Path,
    *,
    key: bytes,
    fractions: Mapping[str, float],
    seed: int = 0,
    patient_regex: str = "",
    intensity: str = "auto",
) -> command.Manifest:
    """Writes the axial slices of all NIfTI volumes below a folder.

    Each volume is read twice, first to see whether it can be used, so that the split is made
    over the patients that are really there and no more than one volume is held in memory.

    Args:
        source: Folder of .nii and .nii.gz files, or one file.
        out: Dataset folder to make.
        key: Secret key of the pseudonyms.
        fractions: Share of the patients of each split.
        seed: Of the split.
        patient_regex: Searched in the file name; its first group is the patient. Without it
            each file is its own patient.
        intensity: See `require_intensity`.

    Raises:
        DataError: If there is no usable volume.
    """
    found = [source] if source.is_file() else sorted(source.rglob("*"))
    files = [p for p in found if p.is_file() and p.name.endswith(SUFFIXES)]
    if not files:
        raise DataError(f"no .nii or .nii.gz files in --source {source}")
    root = source.parent if source.is_file() else source
    patient_of = patient_finder(patient_regex, root)
    rejected: Rejected = []
    usable: dict[int, Path] = {}
    expected = 0
    for number, path in enumerate(files, 1):
        try:
            if not patient_of(path):
                raise Unusable("no patient: --patient_regex does not match")
            values = read_volume(path).values
            require_intensity(values, intensity)
            usable[number] = path
            expected += len(values)
        except Unusable as error:
            rejected.append((f"file {number}", str(error)))
    split_of = split_by_patient(map(patient_of, usable.values()), fractions, seed)
    by_split = {
        split: {n: path for n, path in usable.items() if split_of[patient_of(path)] == split}
        for split in fractions
    }
    return write_dataset(
        out,
        name="nifti",
        source_kind="nifti",
        intensity="grey8" if intensity == "grey8" else "hu",
        classes=(),
        slices={
            split: _slices(paths, root, patient_of, key, intensity == "grey8", rejected)
            for split, paths in by_split.items()
        },
        rejected=rejected,
        expected=expected,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "nifti",
        "CT volumes in NIfTI -> dataset folder of axial slices",
        "--source=nifti --out=data/mine --patient_regex='^(case[0-9]+)'",
        source="folder of .nii and .nii.gz files, or one file",
    )
    command.add_patient_regex(parser, "file")
    parser.add_argument(
        "--intensity",
        choices=("auto", "hu", "grey8"),
        default="auto",
        help="auto: HU, and volumes that cannot be HU are rejected; hu: taken as HU unseen; "
        "grey8: 0 to 255",
    )

    def from_flags(args: argparse.Namespace) -> command.Manifest:
        return prepare(
            **command.common_arguments(args),
            patient_regex=args.patient_regex,
            intensity=args.intensity,
        )

    return command.run(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
