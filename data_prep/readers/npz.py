"""Files in the layout of MedMNIST: reading parts of them, and nothing unpickled."""

import math
import zipfile
from typing import IO

import numpy as np
from jaxtyping import Shaped, UInt8

from ctssl_jax.errors import DataError

SPLITS = ("train", "val", "test")
MAX_BYTES = 2**35  # of an array of images
MAX_SMALL = 2**28  # of any other array


def splits(file: zipfile.ZipFile) -> list[str]:
    """The splits of the file, after a look at the headers of all arrays.

    Raises:
        DataError: If it has not this layout or is too large.
    """
    found = [split for split in SPLITS if f"{split}_images.npy" in file.namelist()]
    if "train" not in found:
        raise DataError("--source has no train_images: not a MedMNIST file")
    for split in found:
        with file.open(f"{split}_images.npy") as stream:
            shape, dtype = _npy_header(stream)
        if dtype != np.uint8 or len(shape) != 3 or min(shape) < 1:
            raise DataError(f"--source: {split}_images is {dtype} {shape}, not uint8 [n h w]")
        if math.prod(shape) > MAX_BYTES:
            raise DataError(f"--source: {split}_images is too large")
        for name in (f"{split}_labels", f"{split}_patient"):
            if f"{name}.npy" not in file.namelist():
                if name.endswith("_labels"):
                    raise DataError(f"--source has no {name}")
            elif small(file, name).size != shape[0]:
                raise DataError(f"--source: {name} and {split}_images are of different lengths")
    return found


def small(file: zipfile.ZipFile, name: str) -> Shaped[np.ndarray, " n"]:
    """An array of one value for each image."""
    if file.getinfo(f"{name}.npy").file_size > MAX_SMALL:
        raise DataError(f"--source: {name} is too large")
    with file.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False).reshape(-1)


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if by_columns:
        raise ValueError("column order")
    return shape, dtype


def images(file: zipfile.ZipFile, split: str, start: int, stop: int) -> UInt8[np.ndarray, "n h w"]:
    """Some images, without the rest of the array."""
    with file.open(f"{split}_images.npy") as stream:
        (_, *size), _ = _npy_header(stream)
        one = math.prod(size)
        stream.seek(stream.tell() + start * one)
        data = stream.read((stop - start) * one)
    return np.frombuffer(data, np.uint8).reshape(stop - start, *size)
