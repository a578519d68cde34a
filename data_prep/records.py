"""The dataset folder: 2-D CT slices as TFDS records in ArrayRecord, split by patient.

    OUT/manifest.json            counts, classes, intensity, fingerprint
    OUT/rejected.csv             what was left out, and why
    OUT/ct_slices/1.0.0/...      the records (`CtSlices`)

OUT is written under a temporary name beside it and renamed when complete: it is whole or absent.
"""

import csv
import hashlib
import hmac
import io
import json
import os
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from jaxtyping import Int16, Num

from ctssl_jax import __version__
from ctssl_jax.errors import DataError, StorageError

AIR_HU = -1024
NAN3 = (float("nan"),) * 3
DEFAULT_KEY_FILE = Path("~/.config/ctssl_jax/pseudonym.key")

Rejected = list[tuple[str, str]]
"""What was left out: (pseudonym or running number, reason). Never a path, a name or a UID."""


class Unusable(Exception):
    """An input file that is left out; `str(error)` is the reason, without path, name or UID."""


@dataclass(frozen=True)
class Slice:
    """One 2-D CT slice, its identifiers already pseudonyms.

    Attributes:
        image: Rows x columns; HU, or grey values as `manifest.json` says under "intensity".
        patient: Pseudonym of the patient.
        series: Pseudonym of the series; with `slice_index` it names the slice.
        slice_index: Running number along the slice normal, from 0.
        position_mm: Position along the slice normal in mm; NaN if unknown.
        spacing_mm: Slice distance, row and column spacing in mm; NaN if unknown.
        label: Index of the class, -1 if none.
    """

    image: Int16[np.ndarray, "h w"]
    patient: str
    series: str
    slice_index: int
    position_mm: float = float("nan")
    spacing_mm: tuple[float, float, float] = NAN3
    label: int = -1

    @property
    def key(self) -> str:
        """A name of the slice that is unique in its dataset."""
        return f"{self.series}-{self.slice_index}"


Slices = Iterable[Slice] | Callable[[], Iterable[Slice]]


class CtSlices(tfds.core.GeneratorBasedBuilder):
    """2-D CT slices with their patient, place in the series, and label."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Without this TFDS looks for checksums beside the code, and for a
    # builder in a package that needs importlib_resources, which it does not install.
    url_infos: ClassVar[dict] = {}

    def __init__(
        self,
        *,
        source_kind: str = "image",
        slices: Mapping[str, Iterable[Slice]] | None = None,
        **kwargs: Any,
    ):
        """Takes the slices of each split; a builder that only reads needs none."""
        self._source_kind = source_kind
        self._slices = slices or {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        tensor, as_bytes = tfds.features.Tensor, tfds.features.Encoding.BYTES
        features = {
            "image": tensor(shape=(None, None), dtype=np.int16, encoding=as_bytes),
            "patient": tfds.features.Text(),
            "series": tfds.features.Text(),
            "slice_index": np.int32,
            "position_mm": np.float32,
            "spacing_mm": tensor(shape=(3,), dtype=np.float32),
            "label": np.int64,
            "source_kind": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(slices) for split, slices in self._slices.items()}

    def _generate_examples(self, slices: Iterable[Slice]) -> Iterator[tuple[str, dict]]:
        for item in slices:
            yield (
                item.key,
                {
                    "image": item.image,
                    "patient": item.patient,
                    "series": item.series,
                    "slice_index": item.slice_index,
                    "position_mm": item.position_mm,
                    "spacing_mm": np.asarray(item.spacing_mm, np.float32),
                    "label": item.label,
                    "source_kind": self._source_kind,
                },
            )


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
        raise DataError(f"--key {path}: no such file; make one of 32 random bytes, or omit --key")
    key = file.read_bytes().strip()
    if len(key) < 16:
        raise DataError(f"key file {file} holds {len(key)} bytes; at least 16 are needed")
    return key


def pseudonym(key: bytes, identifier: object) -> str:
    """Returns 16 hex digits of HMAC-SHA256 of the identifier: same person, same key, same name."""
    return hmac.new(key, str(identifier).strip().encode(), hashlib.sha256).hexdigest()[:16]


def to_hu(values: Num[np.ndarray, "*shape"]) -> Int16[np.ndarray, "*shape"]:
    """Rounds to whole HU in int16; NaN and all below -1024 HU is padding and becomes air."""
    whole = np.rint(np.nan_to_num(values, nan=AIR_HU, posinf=32767, neginf=AIR_HU))
    return np.clip(whole, AIR_HU, 32767).astype(np.int16)


def write_dataset(
    out: str | Path,
    *,
    name: str,
    source_kind: str,
    intensity: str,
    classes: Sequence[str],
    slices: Mapping[str, Slices],
    rejected: Rejected,
    note: str = "",
    expected: int | None = None,
) -> dict[str, Any]:
    """Writes one dataset folder and returns its manifest.

    Args:
        out: The folder to make; it must not exist or must be empty.
        name: Name of the dataset, e.g. "covid_ct".
        source_kind: "dicom", "nifti", "image", "npz" or "phantom".
        intensity: "hu", "grey8" or "grey16".
        classes: Names of the classes; empty for unlabelled slices.
        slices: For each split its slices, or a function that makes them. Read once, in order.
        rejected: What was left out. Read last: the slices may add to it while they are made.
        note: What a user of the dataset should know, e.g. official splits that share patients.
        expected: About how many slices there will be, for the progress line.

    Raises:
        DataError: If `out` is taken or there is no slice.
        StorageError: If the disk refuses.
    """
    out = Path(out)
    refuse_taken(out)
    counts: dict[str, _Counts] = {}
    progress = _Progress(expected)
    with _complete_or_nothing(out) as folder:
        watched = {}
        for split, source in slices.items():
            items = iter(source() if callable(source) else source)
            first = next(items, None)
            if first is not None:
                counts[split] = _Counts(len(classes))
                watched[split] = _watch(chain([first], items), counts[split], split, progress)
        if not watched:
            raise DataError(f"no CT slices found in --source ({_by_reason(rejected)})")
        _prepare(CtSlices(data_dir=str(folder), source_kind=source_kind, slices=watched))
        manifest: dict[str, Any] = {
            "format": 1,
            "name": name,
            "source_kind": source_kind,
            "intensity": intensity,
            "classes": list(classes),
            "splits": {split: count.summary() for split, count in counts.items()},
            "records": f"ct_slices/{CtSlices.VERSION}",
            "rejected": dict(Counter(reason for _, reason in rejected).most_common()),
            "fingerprint": _fingerprint(d for count in counts.values() for d in count.digests),
            "software": {"ctssl_jax": __version__},
        }
        if note:
            manifest["note"] = note
        with open(folder / "rejected.csv", "w", newline="") as stream:
            csv.writer(stream).writerows([("item", "reason"), *rejected])
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def refuse_taken(out: Path, flag: str = "--out") -> None:
    """Raises DataError if `out` is there already and holds anything."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{flag} {out} exists and is not empty: delete it or choose another")


@dataclass
class _Counts:
    """What was seen of one split."""

    classes: int
    slices: int = 0
    patients: set[str] = field(default_factory=set)
    series: set[str] = field(default_factory=set)
    labels: Counter[int] = field(default_factory=Counter)
    digests: list[bytes] = field(default_factory=list)

    def add(self, item: Slice, split: str) -> None:
        self.slices += 1
        self.patients.add(item.patient)
        self.series.add(item.series)
        self.labels[item.label] += 1
        head = f"{split} {item.key} {item.patient} {item.label} {item.image.shape} "
        pixels = np.ascontiguousarray(item.image, "<i2").tobytes()
        self.digests.append(hashlib.sha256(head.encode() + pixels).digest())

    def summary(self) -> dict[str, Any]:
        return {
            "slices": self.slices,
            "patients": len(self.patients),
            "series": len(self.series),
            "labels": [self.labels[label] for label in range(self.classes)],
        }


def _watch(
    items: Iterable[Slice], counts: _Counts, split: str, progress: "_Progress"
) -> Iterator[Slice]:
    for item in items:
        counts.add(item, split)
        progress.step()
        yield item


def _fingerprint(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _by_reason(rejected: Rejected) -> str:
    counts = Counter(reason for _, reason in rejected).most_common()
    return "; ".join(f"{count} x {reason}" for reason, count in counts) or "it holds no files"


def _prepare(builder: CtSlices) -> None:
    """Writes the records without TFDS's chatter, and without its look at Google's storage."""
    tfds.disable_progress_bar()
    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=offline)
    finally:
        absl_logging.set_verbosity(level)


@contextmanager
def _complete_or_nothing(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out` that becomes `out` unless anything is raised."""
    folder = out.absolute().parent / f".{out.name}.incomplete-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        yield folder
        os.replace(folder, out)
    except OSError as error:
        raise StorageError(f"cannot write --out {out}: {error.strerror or 'I/O error'}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Progress:
    """One line on stderr every few seconds: slices, slices per second, time to the end."""

    def __init__(self, expected: int | None, every: float = 5.0):
        self._expected, self._every = expected, every
        self._start = self._last = time.monotonic()
        self._done = 0

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        rate = self._done / (now - self._start)
        line = f"{self._done} slices, {rate:.1f} slices/s"
        if self._expected and self._expected > self._done:
            left = (self._expected - self._done) / rate
            line += f", done at {time.strftime('%H:%M:%S', time.localtime(time.time() + left))}"
        print(line, file=sys.stderr, flush=True)
