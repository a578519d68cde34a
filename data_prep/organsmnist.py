"""OrganSMNIST, or any grey MedMNIST-like npz file -> dataset folder.

    python -m data_prep.organsmnist --source=organsmnist.npz --out=data/organs

Layout, class names, checksums: medmnist/info.py of the package medmnist, versions 2.1.0 and 3.0.2.

There are two files of the name organsmnist.npz. Versions 1 and 2 of the package load one with
13,940 / 2,452 / 8,829 images, which Wolf et al. (2023) trained on; version 3 one with 13,932 /
2,452 / 8,827. Their results are not quite comparable. Both are read, and `notes` says which it was.
The larger sizes (organsmnist_64, _128, _224.npz) are those of version 3.
"""

import argparse
import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from ctssl_jax.errors import ConfigError, DataError
from data_prep import command
from data_prep.origin import Origin
from data_prep.pipeline.split import shared_patients
from data_prep.readers import npz
from data_prep.source import Item, Place, Slice, Unusable

CITATION = (
    "Yang, Shi, Wei, Liu, Zhao, Ke, Pfister, Ni: MedMNIST v2 - A large-scale lightweight benchmark "
    "for 2D and 3D biomedical image classification. Scientific Data 10:41, 2023"
)
LICENCE = "CC BY 4.0"
DOWNLOAD = (
    "https://zenodo.org/records/10519652 (version 3; organsmnist.npz, organsmnist_224.npz, ...) or "
    "https://zenodo.org/records/6496656 (version 2, the one of the paper)"
)
ORIGIN = Origin(CITATION, LICENCE, DOWNLOAD)

VERSION_2 = "e5c39f1af030238290b9557d9503af9d"
MD5 = {
    "organsmnist.npz": (VERSION_2, "9ab87b696fb54e2a387ebe992d6ed5f1"),
    "organsmnist_64.npz": ("53a6d115339d874c25e309a994ff46d3",),
    "organsmnist_128.npz": ("ded0c5fa01a95dc4978b956f613e9b8e",),
    "organsmnist_224.npz": ("b354719e553fbbb2513d5533f52a4cb1",),
}

# fmt: off
ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver",
    "lung-left", "lung-right", "pancreas", "spleen",
)
# fmt: on
UNIT = 1024  # images of an item


@dataclass(frozen=True)
class NpzSource:
    """The images of a MedMNIST-like file; a `source.Source`. An item is a run of images.

    Attributes:
        path: npz file with SPLIT_images (uint8 [n h w]), SPLIT_labels ([n 1]) and perhaps
            SPLIT_patient ([n]), for SPLIT = train, val and perhaps test.
        classes: Names of the classes.
        official: Whether the splits of the file are kept.
        remarks: What `notes` says.
        patients_known: Whether the file names them.
        listed: The items. Only the process that lists them needs them: they do not pickle.
    """

    path: Path
    classes: Sequence[str]
    official: bool = True
    remarks: Sequence[str] = ()
    listed: Sequence[Item] = field(default=(), repr=False)
    patients_known: bool = True

    name: ClassVar[str] = "organsmnist"
    kind: ClassVar[str] = "npz"
    intensity: ClassVar[str] = "grey8"
    origin: ClassVar[Origin] = ORIGIN

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "listed": ()}

    def options(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {"official": self.official}

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        yield from self.listed

    def place(self, item: Item) -> Place:
        """A unit is a run of images, or all images of a patient if the split is left open."""
        split, start, _ = _part(item)
        unit = f"{split}-{start:08d}" if self.official else item.patient
        return Place(unit, item.patient)

    def read(self, items: Sequence[Item]) -> Iterator[Slice]:
        """The images of some runs; no more of the file is held.

        Raises:
            Unusable: If the file is damaged.
        """
        try:
            with zipfile.ZipFile(self.path) as file:
                for item in items:
                    yield from _slices(file, item)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise Unusable("cut off or damaged") from error

    def facts(self) -> Mapping[str, Any]:
        """See `Source`."""
        return {"patients_known": self.patients_known, "labels_of": "slice"}

    def notes(self) -> Sequence[str]:
        """See `Source`."""
        return self.remarks


def make_source(path: Path, split_by: str = "official", md5: str = "auto") -> NpzSource:
    """A MedMNIST-like file as a source.

    Args:
        path: The npz file.
        split_by: "official" for the splits of the file; "patient" to pool all images and leave
            the split open, by patient.
        md5: What the file must have: 32 hex digits; "auto" for what is known of files that are
            named like OrganSMNIST's; "skip".

    Raises:
        ConfigError: If `md5` is none of these.
        DataError: If the file has another checksum, or not this layout, or names no patients for
            `split_by="patient"`.
    """
    found = _require_md5(path, md5)
    notes = []
    if path.name == "organsmnist.npz" and found:
        version = 2 if found == VERSION_2 else 3
        notes.append(f"the file of version {version} of medmnist: two versions differ by 10 images")
    try:
        with zipfile.ZipFile(path) as file:
            arrays = npz.splits(file)
            labels = {split: _labels(file, split) for split in arrays}
            known = all(f"{split}_patient.npy" in file.namelist() for split in arrays)
            patients = {s: _patients(file, s, len(labels[s])) for s in arrays}
            others = {name for name in file.namelist() if name.endswith("_images.npy")}
            classes = _classes(file, set(np.concatenate([*labels.values()]).tolist()))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError("--source is not a readable npz file: download it again") from error
    if split_by == "patient" and not known:
        raise DataError("--split_by=patient: --source has no train_patient: use official")
    notes += [f"no {split} images in the file" for split in npz.SPLITS if split not in arrays]
    if others := others - {f"{split}_images.npy" for split in arrays}:
        told = "arrays of images are of no split and were left out: the splits are"
        notes.append(f"{len(others)} {told} {', '.join(npz.SPLITS)}")
    if not known:
        notes.append("patients are not known: each image counts as its own patient")
    official = split_by != "patient"
    if official:
        shared = shared_patients((p, s) for s, names in patients.items() for p in names)
        notes += [f"official split: {shared} patients are in more than one split"] * bool(shared)
    else:
        notes.append("split by patient, not the official split")
    items: list[Item] = []
    for split, names in patients.items():
        for start, stop in _runs(names, by_patient=not official):
            home = split if official else ""
            part = (split, start, stop)
            items.append(Item(len(items) + 1, str(path.resolve()), names[start], -1, home, part))
    return NpzSource(path.resolve(), classes, official, notes, items, known)


def _require_md5(path: Path, md5: str) -> str:
    """The checksum, "" if it does not matter; raises if it is another one than it must be."""
    if md5 not in ("auto", "skip") and not re.fullmatch("[0-9a-fA-F]{32}", md5):
        raise ConfigError(f"--md5={md5}: must be auto, skip or 32 hex digits")
    expected = MD5.get(path.name, ()) if md5 == "auto" else (md5.lower(),)
    if md5 == "skip" or not expected:
        return ""
    try:
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
    except OSError as error:
        raise DataError("--source cannot be opened: give the npz file") from error
    if found not in expected:
        raise DataError(
            "--source has not the MD5 that it should have: download it again, or, if it is a file "
            "of your own, say --md5=skip"
        )
    return found


def _patients(file: zipfile.ZipFile, split: str, count: int) -> list[str]:
    if f"{split}_patient.npy" in file.namelist():
        return [f"organs-{patient}" for patient in npz.small(file, f"{split}_patient")]
    return [f"organs-{split}-{i}" for i in range(count)]


def _labels(file: zipfile.ZipFile, split: str) -> Int[np.ndarray, " n"]:
    """The labels of a split.

    Raises:
        DataError: If they are not whole numbers from 0 on.
    """
    stored = npz.small(file, f"{split}_labels")
    labels = stored.astype(int)
    if np.any(labels != stored) or labels.min(initial=0) < 0:
        raise DataError(f"--source: {split}_labels must be whole numbers from 0 on")
    return labels


def _classes(file: zipfile.ZipFile, labels: Set[int]) -> list[str]:
    """The names of the classes.

    Raises:
        DataError: If there are fewer names than classes, or a class without an image.
    """
    count = 1 + max(labels)
    classes = list(ORGANS) if count == len(ORGANS) else [f"organ_{i}" for i in range(count)]
    if "class_names.npy" in file.namelist():
        classes = [str(name) for name in npz.small(file, "class_names")]
        if len(classes) < count:
            raise DataError(
                f"--source: class_names holds {len(classes)} names, and there is a label "
                f"{count - 1}: name all classes"
            )
    if unused := sorted(set(range(len(classes))) - labels):
        told = ", ".join(map(str, unused[:12])) + ", ..." * (len(unused) > 12)
        raise DataError(
            f"--source holds labels up to {count - 1} for {len(classes)} classes, and no image of "
            f"{told}: number the classes from 0 without gaps"
        )
    return classes


def _runs(patients: Sequence[str], by_patient: bool) -> Iterator[tuple[int, int]]:
    """Runs of at most `UNIT` images, and of one patient if asked for."""
    start = 0
    for stop in range(1, len(patients) + 1):
        ends = stop == len(patients) or stop - start == UNIT
        if ends or (by_patient and patients[stop] != patients[start]):
            yield start, stop
            start = stop


def _part(item: Item) -> tuple[str, int, int]:
    assert item.part is not None, "`make_source` gave it"
    return item.part


def _slices(file: zipfile.ZipFile, item: Item) -> Iterator[Slice]:
    split, start, stop = _part(item)
    labels = _labels(file, split)
    patients = _patients(file, split, len(labels))
    # The running number of a patient's images goes on from split to split.
    before = [
        s for s in npz.SPLITS[: npz.SPLITS.index(split)] if f"{s}_images.npy" in file.namelist()
    ]
    seen = Counter(patients[:start])
    for other in before:
        count = npz.small(file, f"{other}_labels").size
        seen.update(_patients(file, other, count))
    images = npz.images(file, split, start, stop)
    for i, image in zip(range(start, stop), images, strict=True):
        patient = patients[i]
        yield Slice(
            image.astype(np.int16),
            patient,
            patient,
            seen[patient],
            label=int(labels[i]),
            split=item.split,
        )
        seen[patient] += 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "organsmnist",
        "OrganSMNIST or another grey MedMNIST-like npz file -> dataset folder. " + ORIGIN.text(),
        "--source=organsmnist.npz --out=data/organs",
        source="npz file",
        val=0.15,
        test=0.15,
    )
    command.add_split_by(parser)
    parser.add_argument(
        "--md5",
        default="auto",
        help="what the file must have: 32 hex digits; auto: what is known of organsmnist.npz and "
        "organsmnist_64, _128 and _224.npz; skip: anything",
    )

    def from_flags(args: argparse.Namespace) -> NpzSource:
        return make_source(args.source, args.split_by, args.md5)

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
