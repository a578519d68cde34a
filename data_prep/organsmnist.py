"""OrganSMNIST, or any grey MedMNIST-like npz file -> dataset folder.

    python -m data_prep.organsmnist --source=organsmnist.npz --out=data/organs

Layout and class names: MedMNIST v2 (Yang et al., Scientific Data 2023), medmnist/info.py.
"""

import argparse
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ctssl_jax.errors import DataError
from data_prep import command
from data_prep.folder import patient_strata
from data_prep.records import Slice, pseudonym, write_dataset
from data_prep.split import split_by_patient

# fmt: off
ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver",
    "lung-left", "lung-right", "pancreas", "spleen",
)
# fmt: on
SPLITS = ("train", "val", "test")

Place = tuple[str, int]
"""Where an image is: the split in the file, the index in its array."""


def prepare(
    source: Path,
    out: Path,
    *,
    key: bytes,
    fractions: Mapping[str, float],
    seed: int = 0,
    split_by: str = "official",
) -> command.Manifest:
    """Writes a MedMNIST-like file.

    Args:
        source: npz file with SPLIT_images (uint8 [n h w]), SPLIT_labels ([n 1]) and perhaps
            SPLIT_patient ([n]), for SPLIT = train, val and perhaps test.
        out: Dataset folder to make.
        key: Secret key of the pseudonyms.
        fractions: Share of the patients of each split, for `split_by="patient"`.
        seed: Of that split.
        split_by: "official" for the splits of the file; "patient" to pool all images and split
            them by patient.

    Raises:
        DataError: If the file has not this layout, or names no patients for `split_by="patient"`.
    """
    arrays = _read(source)
    splits = [split for split in SPLITS if f"{split}_images" in arrays]
    labels = {split: arrays[f"{split}_labels"].reshape(-1).astype(int) for split in splits}
    classes = _classes(arrays, 1 + max(int(of_split.max()) for of_split in labels.values()))
    known = all(f"{split}_patient" in arrays for split in splits)
    if split_by == "patient" and not known:
        raise DataError(f"--split_by=patient: {source} has no train_patient: use official")
    patients: dict[Place, str] = {
        (split, i): f"organs-{arrays[f'{split}_patient'][i] if known else f'{split}-{i}'}"
        for split in splits
        for i in range(len(labels[split]))
    }
    notes = [f"no {split} images in the file" for split in SPLITS if split not in splits]
    if not known:
        notes.append("patients are not known: each image counts as its own patient")
    if split_by == "patient":
        strata = patient_strata((who, int(labels[s][i])) for (s, i), who in patients.items())
        of_patient = split_by_patient(strata, fractions, seed, strata)
        target = {place: of_patient[who] for place, who in patients.items()}
        notes.append("split by patient, not the official split")
    else:
        target = {place: place[0] for place in patients}
        homes = {(who, place[0]) for place, who in patients.items()}
        shared = sum(count > 1 for count in Counter(who for who, _ in homes).values())
        notes += [f"official split: {shared} patients are in more than one split"] * bool(shared)
    running: Counter[str] = Counter()
    index = {}
    for place, who in patients.items():
        index[place] = running[who]
        running[who] += 1

    def of_split(split: str) -> Iterator[Slice]:
        for (home, i), who in patients.items():
            if target[home, i] == split:
                image = arrays[f"{home}_images"][i].astype(np.int16)
                name = pseudonym(key, who)
                yield Slice(image, name, name, index[home, i], label=int(labels[home][i]))

    return write_dataset(
        out,
        name="organsmnist",
        source_kind="npz",
        intensity="grey8",
        classes=classes,
        slices={split: of_split(split) for split in SPLITS},
        rejected=[],
        note="; ".join(notes),
        expected=len(patients),
    )


def _read(source: Path) -> dict[str, np.ndarray]:
    """Reads and checks the arrays; nothing is unpickled."""
    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"--source {source} is not a readable npz file") from error
    if "train_images" not in arrays:
        raise DataError(f"--source {source} has no train_images: not a MedMNIST file")
    for name, images in arrays.items():
        if not name.endswith("_images"):
            continue
        if images.dtype != np.uint8 or images.ndim != 3:
            raise DataError(f"{source}: {name} is {images.dtype} {images.shape}, not uint8 [n h w]")
        for other in (name.replace("_images", end) for end in ("_labels", "_patient")):
            if other.endswith("_labels") and other not in arrays:
                raise DataError(f"{source} has no {other}")
            if other in arrays and arrays[other].size != len(images):
                raise DataError(f"{source}: {other} and {name} are of different lengths")
    return arrays


def _classes(arrays: Mapping[str, np.ndarray], count: int) -> list[str]:
    named = arrays.get("class_names")
    if named is not None and named.ndim == 1 and len(named) >= count:
        return [str(name) for name in named]
    return list(ORGANS) if count == len(ORGANS) else [f"organ_{i}" for i in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "organsmnist",
        "OrganSMNIST or another grey MedMNIST-like npz file -> dataset folder",
        "--source=organsmnist.npz --out=data/organs",
        source="npz file",
        val=0.15,
        test=0.15,
    )
    command.add_split_by(parser)

    def from_flags(args: argparse.Namespace) -> command.Manifest:
        return prepare(
            **command.common_arguments(args),
            split_by=args.split_by,
        )

    return command.run(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
