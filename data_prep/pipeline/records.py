"""The records: 2-D CT slices with pseudonyms, as a TFDS dataset in ArrayRecord.

A dataset folder holds

    manifest.json                counts, classes, intensity, statistics, fingerprint
    audit.json                   whether patients or images are in more than one split (`audit`)
    rejected.csv, findings.csv   what was left out or is irregular, and why
    quality.txt, quality.png     the same as a table, and a contact sheet
    signatures/SPLIT.npy         a digest and a thumbnail of each record (`signatures`)
    statistics/SPLIT.npz         histogram of the stored values (`tally`)
    ct_slices/1.0.0/             the records
"""

import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Int16, Num
from tensorflow_datasets.core import example_serializer

from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import temporary_name
from data_prep.names import to_bytes
from data_prep.source import Slice

AIR_HU = -1024
PUBLIC_KEY = b"ctssl_jax phantom: nobody to protect"
DEFAULT_KEY_FILE = Path("~/.config/ctssl_jax/pseudonym.key")
NAME, VERSION = "ct_slices", "1.0.0"


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """The fields of a record."""
    tensor, as_bytes = tfds.features.Tensor, tfds.features.Encoding.BYTES
    return tfds.features.FeaturesDict(
        {
            "image": tensor(shape=(None, None), dtype=np.int16, encoding=as_bytes),
            "patient": tfds.features.Text(),
            "series": tfds.features.Text(),
            "slice_index": np.int32,
            "position_mm": np.float32,
            "spacing_mm": tensor(shape=(3,), dtype=np.float32),
            "thickness_mm": np.float32,
            "label": np.int64,
            "case": tfds.features.Text(),
            "slice_label": np.int64,
            "source_kind": tfds.features.Text(),
        }
    )


@functools.cache
def _serializer() -> example_serializer.ExampleSerializer:
    return example_serializer.ExampleSerializer(features().get_serialized_info())


def encode(item: Slice, patient: str, series: str, source_kind: str, case: str = "") -> bytes:
    """One record; `patient`, `series` and `case` are pseudonyms in place of the slice's names."""
    example = {
        "image": item.image,
        "patient": patient,
        "series": series,
        "slice_index": item.slice_index,
        "position_mm": item.position_mm,
        "spacing_mm": np.asarray(item.spacing_mm, np.float32),
        "thickness_mm": item.thickness_mm,
        "label": item.label,
        "case": case,
        "slice_label": item.slice_label,
        "source_kind": source_kind,
    }
    encoded = features().encode_example(example)
    # TFDS's own serialisation leaves the order of the fields to chance.
    return _serializer().get_tf_example(encoded).SerializeToString(deterministic=True)


def decode(record: bytes) -> dict[str, Any]:
    """The fields of one record."""
    return features().deserialize_example_np(record)


def load_key(path: str | Path | None = None) -> bytes:
    """Returns the secret key of the pseudonyms; the default key file is made on first use.

    Raises:
        DataError: If a key file that was asked for is missing or shorter than 16 bytes.
    """
    file = Path(path or DEFAULT_KEY_FILE).expanduser()
    if path is None and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
    if not file.is_file():
        raise DataError("--key: no such file; make one of 32 random bytes, or omit --key")
    key = file.read_bytes().strip()
    if len(key) < 16:
        raise DataError(f"--key: the file holds {len(key)} bytes; at least 16 are needed")
    return key


def pseudonym(key: bytes, identifier: object) -> str:
    """Returns 16 hex digits of HMAC-SHA256 of the identifier: same person, same key, same name."""
    name = to_bytes(str(identifier).strip())
    return hmac.new(key, name, hashlib.sha256).hexdigest()[:16]


def key_mark(key: bytes) -> str:
    """By which two datasets tell that they have one key; it gives away nothing of the key."""
    return pseudonym(key, "the key of a dataset of ctssl_jax")


def to_hu(values: Num[np.ndarray, "*shape"]) -> Int16[np.ndarray, "*shape"]:
    """Rounds to whole HU in int16; what is not finite or below -1024 HU is padding: air."""
    whole = np.rint(np.nan_to_num(values, nan=AIR_HU, posinf=AIR_HU, neginf=AIR_HU))
    return np.clip(whole, AIR_HU, 32767).astype(np.int16)


class Writer:
    """Writes an ArrayRecord file under a temporary name; `close` gives it its own.

    Args:
        path: The file.
        compressed: By the file format itself, or not, for files that do not stay.
    """

    def __init__(self, path: Path, *, compressed: bool):
        self._path, self._temporary = path, temporary_name(path)
        # Random access wants one record a group. Level 1 of zstd takes a third of the time of level
        # 3, the usual one, and less to read, for a tenth more bytes (CT of 512 x 512 pixels).
        options = "group_size:1,max_parallelism:1," + ("zstd:1" if compressed else "uncompressed")
        self._writer = ArrayRecordWriter(str(self._temporary), options)

    def write(self, record: bytes) -> None:
        """Adds a record; raises StorageError if the disk refuses."""
        with _refusals():
            self._writer.write(record)

    def close(self) -> None:
        """Ends the file, which appears whole; raises StorageError if the disk refuses."""
        with _refusals():
            self._writer.close()
        os.replace(self._temporary, self._path)


@contextmanager
def _refusals() -> Iterator[None]:
    """ArrayRecord's errors of writing as ours; its text holds the path."""
    try:
        yield
    except RuntimeError as error:
        raise StorageError("cannot write records: is the disk full? then repeat it") from error


def read(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Yields the records `start` to `stop` (not included) of a file, one held at a time."""
    reader = ArrayRecordReader(str(path))
    try:
        for number in range(start, stop):
            yield from reader.read([number])
    finally:
        reader.close()


def shard_name(split: str, index: int, count: int) -> str:
    """The file name of a shard, as TFDS wants it."""
    return f"{NAME}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_metadata(folder: Path, shards: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Writes what TFDS needs beside the shards.

    Args:
        folder: Where the shards are.
        shards: For each split the (records, bytes) of each shard.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[records for records, _ in lengths],
            num_bytes=sum(size for _, size in lengths),
            filename_template=template.replace(split=split),
        )
        for split, lengths in shards.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(),
        split_infos=splits,
        filename_template=template,
        check_data=False,
    )
