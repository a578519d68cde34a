"""What is remembered of each slice to find it again: a digest, a hash and a small picture.

    digest     the same pixels, bit for bit
    dhash      64 bits, alike for neighbouring slices; what "Less is More" thins volumes by
    thumbnail  24x24 pixels, which tell whether two slices are one picture (`matching`)

A dataset holds them beside its records, in OUT/signatures/SPLIT.npy, in the order of the rows.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int16, Int32, Shaped, UInt8, UInt64
from PIL import Image

from ctssl_jax.dataset.manifest import read_manifest
from ctssl_jax.dataset.splits import parts
from ctssl_jax.errors import DataError
from ctssl_jax.files import open_ordinary, require_ordinary, whole_file

SIDE = 24  # of a thumbnail, in pixels
WINDOW_HU = (-1000.0, 400.0)  # of a thumbnail of HU
CHUNK = 256  # records held at once


class Signature(NamedTuple):
    """The signature of one slice; see `Signatures`."""

    digest: int
    dhash: int
    thumbnail: UInt8[np.ndarray, "side side"]


@dataclasses.dataclass(frozen=True, eq=False)
class Signatures:
    """The signatures of one split; row i is of record i.

    Attributes:
        digest: First 8 bytes of SHA-256 over shape and little-endian pixels.
        dhash: Difference hash, see `difference_hash`.
        thumbnail: See `thumbnail`.
        patient: Pseudonym, 16 hex digits.
        series: Pseudonym, 16 hex digits.
        slice_index: Running number in the series.
        label: Class, -1 if none.
    """

    digest: UInt64[np.ndarray, " n"]
    dhash: UInt64[np.ndarray, " n"]
    thumbnail: UInt8[np.ndarray, "n side side"]
    patient: Shaped[np.ndarray, " n"]
    series: Shaped[np.ndarray, " n"]
    slice_index: Int32[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]

    @classmethod
    def concatenate(cls, parts: Iterable["Signatures"]) -> "Signatures":
        """All parts, one after the other; there is at least one."""
        parts = list(parts)
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in DTYPES))

    def take(self, rows: Int[np.ndarray, " m"] | slice) -> "Signatures":
        """Those at the given rows."""
        return type(self)(*(getattr(self, name)[rows] for name in DTYPES))

    def __len__(self) -> int:
        return len(self.digest)


DTYPES: dict[str, np.dtype[Any]] = {
    "digest": np.dtype("<u8"),
    "dhash": np.dtype("<u8"),
    "thumbnail": np.dtype("u1"),
    "patient": np.dtype("S16"),
    "series": np.dtype("S16"),
    "slice_index": np.dtype("<i4"),
    "label": np.dtype("<i4"),
}
SUM = b"sha256"
"""Comes before the sum at the end of a file of signatures."""
ROW = np.dtype([(n, d, (SIDE, SIDE) if n == "thumbnail" else ()) for n, d in DTYPES.items()])


def describe(image: Int16[np.ndarray, "h w"], intensity: str) -> Signature:
    """The signature of a slice.

    Args:
        image: Stored values.
        intensity: What they are: "hu", "grey8" or "grey16".
    """
    return Signature(digest(image), difference_hash(image), thumbnail(image, intensity))


def digest(image: Int16[np.ndarray, "h w"]) -> int:
    """First 8 bytes of SHA-256 over shape and pixels: equal for equal slices."""
    pixels = np.ascontiguousarray(image, "<i2")
    found = hashlib.sha256(np.array(image.shape, "<i8").tobytes())
    found.update(pixels.data)
    return int.from_bytes(found.digest()[:8], "little")


def difference_hash(image: Int16[np.ndarray, "h w"]) -> int:
    """The 64 bits by which "Less is More" thins volumes.

    The slice is scaled from its minimum and maximum to 8 bits, as the paper stores it, and resized
    to 9x8 (width x height) with Lanczos' filter. A bit says that a pixel is above its left
    neighbour; row by row, the first bit is the most significant. A constant slice gives 0.

    Source: Hash_LIDC_Volume.py of Wolfda95/Less_is_More@c3ca90d; LIDC_3DDICOM_to_2Dpng.py of
    Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627, lines 48 to 54.
    """
    low, high = float(image.min()), float(image.max())
    if low == high:
        return 0
    grey = _scaled(image, low, high)
    grey = np.rint(grey, out=grey).astype(np.uint8)
    small = np.asarray(Image.fromarray(grey).resize((9, 8), Image.Resampling.LANCZOS))
    bits = small[:, 1:] > small[:, :-1]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(image: Int16[np.ndarray, "h w"], intensity: str) -> UInt8[np.ndarray, "side side"]:
    """The whole slice, small and in 8 bits.

    Lanczos' filter keeps it free of aliasing: a slice that is cut or shifted by less than a pixel
    of the thumbnail gives a thumbnail that is cut or shifted, which area averages do not.

    HU are seen through a window of -1000 to 400 HU, which leaves metal and padding without weight;
    8-bit grey is kept; 16-bit grey is scaled from the slice's minimum and maximum.
    """
    low, high = {"hu": WINDOW_HU, "grey8": (0.0, 255.0)}.get(intensity, (0.0, 0.0))
    if low == high:
        low, high = float(image.min()), max(float(image.max()), float(image.min()) + 1)
    grey = _scaled(image, low, high)
    grey = np.clip(grey, 0, 255, out=grey)
    small = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.rint(np.clip(np.asarray(small), 0, 255)).astype(np.uint8)


def _scaled(image: Int16[np.ndarray, "h w"], low: float, high: float) -> Float32[np.ndarray, "h w"]:
    """From `low` to `high` as 0 to 255, without copies between: memory is what it waits for."""
    grey = image.astype(np.float32)
    grey -= low
    grey *= 255 / (high - low)
    return grey


def save_signatures(path: Path, signatures: Iterable[Signatures]) -> None:
    """Writes one NPY file of them all, one after the other, whole or not at all; makes its folder.

    A row of the file is a record of the fields of `Signatures`, so that it can be read in part.
    Behind the rows, where NumPy does not look, stands the sum of all that comes before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    signatures = list(signatures)
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        count = sum(map(len, signatures))
        fields = {"descr": ROW.descr, "fortran_order": False, "shape": (count,)}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, fields)
        stream.write(header.getvalue())
        found = hashlib.sha256(header.getvalue())
        for part in signatures:
            rows = np.empty(len(part), ROW)
            for name in DTYPES:
                rows[name] = getattr(part, name)
            stream.write(rows.tobytes())
            found.update(rows.tobytes())
        stream.write(SUM + found.digest())


def load_file(path: Path) -> Signatures:
    """What `save_signatures` wrote: views of the file, of which only what is used is read.

    Raises:
        DataError: If the file is missing, damaged or holds anything else.
    """
    try:
        size = require_ordinary(path).st_size
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if rows.dtype != ROW or rows.ndim != 1:
            raise ValueError("not signatures")
        _require_sum(path, size, rows.nbytes)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: no signatures can be read; prepare the dataset again") from error
    return Signatures(*(rows[name] for name in DTYPES))


def _require_sum(path: Path, size: int, nbytes: int) -> None:
    """Raises ValueError unless a file is as it was written; one of an older version has no sum."""
    length = len(SUM) + hashlib.sha256().digest_size
    found, left = hashlib.sha256(), size - length
    with open_ordinary(path) as stream:
        while chunk := stream.read(min(left, 1 << 20)):
            found.update(chunk)
            left -= len(chunk)
        kept = stream.read(length)
    if kept.startswith(SUM) and kept != SUM + found.digest():
        raise ValueError("damaged")
    header = size - nbytes
    if not kept.startswith(SUM) and header % 64:  # NumPy's headers are multiples of 64 bytes
        raise ValueError("damaged at the end")


def load_signatures(dataset: Path, split: str) -> Signatures:
    """The signatures of a split, or of a sum of splits, read from the dataset folder.

    A dataset that was prepared before there were any has its records read instead.

    Raises:
        DataError: If they are damaged or not as many as the manifest says.
    """
    if len(parts(split)) > 1:
        return Signatures.concatenate(load_signatures(dataset, part) for part in parts(split))
    manifest = read_manifest(dataset)
    path = dataset / "signatures" / f"{split}.npy"
    found = load_file(path) if path.exists() else signatures_of_records(dataset, split)
    if len(found) != manifest["splits"][split]["slices"]:
        raise DataError(
            f"{dataset}: split {split!r} has {manifest['splits'][split]['slices']} slices but "
            f"{len(found)} signatures; prepare the dataset again"
        )
    return found


def signatures_of_records(dataset: Path, split: str) -> Signatures:
    """The signatures of a split, computed from its records.

    Raises:
        DataError: If the records cannot be read.
    """
    import tensorflow_datasets as tfds  # slow to import

    manifest = read_manifest(dataset)
    try:
        folder = str(dataset / manifest["records"])
        source = tfds.builder_from_directory(folder).as_data_source(split=split)
        chunks = [range(n, min(n + CHUNK, len(source))) for n in range(0, len(source), CHUNK)]
        parts = [of_records(source.__getitems__(rows), manifest["intensity"]) for rows in chunks]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{dataset}: split {split!r} cannot be read; prepare the dataset again"
        ) from error
    return Signatures.concatenate(parts)


def of_records(records: Iterable[Mapping[str, Any]], intensity: str) -> Signatures:
    """The signatures of records, read one at a time; `intensity` as for `describe`."""
    columns: dict[str, list[Any]] = {name: [] for name in DTYPES}
    for record in records:
        fields = {**record, **describe(record["image"], intensity)._asdict()}
        for name, column in columns.items():
            column.append(fields[name])
    arrays: dict[str, Any] = {name: np.array(columns[name], DTYPES[name]) for name in DTYPES}
    return Signatures(**arrays)
