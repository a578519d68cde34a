"""Your own folder of 2-D images: `python -m data_prep.folder --source=IMAGES --out=DATASET`."""

import argparse
import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctssl_jax.errors import DataError
from data_prep import command, images
from data_prep.records import Rejected, Slice, Unusable, pseudonym, write_dataset
from data_prep.split import patient_finder, split_by_patient


@dataclass(frozen=True)
class Item:
    """One image file: its running number, identity as in the source, label (-1 none), split."""

    number: int
    path: Path
    patient: str
    label: int = -1
    split: str = ""


def prepare(
    source: Path,
    out: Path,
    *,
    key: bytes,
    fractions: Mapping[str, float],
    seed: int = 0,
    patient_regex: str = "",
    labels: str = "",
) -> command.Manifest:
    """Writes all images below a folder.

    Args:
        source: Folder of PNG, JPEG, TIFF or BMP images, searched with all its sub-folders.
        out: Dataset folder to make.
        key: Secret key of the pseudonyms.
        fractions: Share of the patients of each split.
        seed: Of the split.
        patient_regex: Searched in the file name; its first group is the patient. Without it
            each image is its own patient.
        labels: "folder" (class = sub-folder) or the path of a CSV file with the columns file and
            label and, if wanted, patient and split.

    Raises:
        ConfigError: If the expression is not one with a group.
        DataError: If there are no usable images or the CSV file does not fit them.
    """
    if not source.is_dir():
        raise DataError(f"--source {source} is not a folder")
    rejected: Rejected = []
    patient_of = patient_finder(patient_regex, source)
    found = [p for p in sorted(source.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    files = dict(enumerate(found, 1))
    if labels == "folder":
        names = {n: _sub_folder(path, source) for n, path in files.items()}
        classes = sorted({name for name in names.values() if name})
        items = [
            Item(n, path, patient_of(path), classes.index(names[n]) if names[n] else -1)
            for n, path in files.items()
        ]
    elif labels:
        items, classes = _from_table(Path(labels), files, source, patient_of, rejected)
    else:
        items, classes = [Item(n, path, patient_of(path)) for n, path in files.items()], []
    rejected += [
        (f"file {item.number}", "no patient: --patient_regex does not match")
        for item in items
        if not item.patient
    ]
    return write_images(
        [item for item in items if item.patient],
        out,
        name="folder",
        classes=classes,
        key=key,
        fractions=fractions,
        seed=seed,
        rejected=rejected,
    )


def write_images(
    items: Iterable[Item],
    out: Path,
    *,
    name: str,
    classes: Sequence[str],
    key: bytes,
    fractions: Mapping[str, float],
    seed: int,
    rejected: Rejected,
    note: str = "",
) -> command.Manifest:
    """Writes image files as a dataset; items without a split are split by patient."""
    items, intensity = _of_one_depth(items, rejected)
    unsplit = [item for item in items if not item.split]
    strata = patient_strata((item.patient, item.label) for item in unsplit)
    split_of = split_by_patient(strata, fractions, seed, strata)
    by_split: dict[str, list[Item]] = {}
    for item in items:
        by_split.setdefault(item.split or split_of[item.patient], []).append(item)
    order = [*(s for s in ("train", "val", "test") if s in by_split)]
    order += [s for s in by_split if s not in order]
    places = _places(items)
    return write_dataset(
        out,
        name=name,
        source_kind="image",
        intensity=intensity,
        classes=classes,
        slices={split: _slices(by_split[split], places, key, rejected) for split in order},
        rejected=rejected,
        note=note,
        expected=len(items),
    )


def patient_strata(labelled: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """Returns the set of classes of each patient, the stratum of a split by patient."""
    classes: dict[str, set[int]] = defaultdict(set)
    for patient, label in labelled:
        classes[patient].add(label)
    return {patient: tuple(sorted(labels)) for patient, labels in classes.items()}


def _of_one_depth(items: Iterable[Item], rejected: Rejected) -> tuple[list[Item], str]:
    """Keeps the images of the commoner bit depth and returns them with their intensity kind."""
    bits = {}
    for item in items:
        try:
            bits[item] = images.image_bits(item.path)
        except Unusable as error:
            rejected.append((f"file {item.number}", str(error)))
    counts = Counter(bits.values())
    kept = max(counts, key=lambda b: (counts[b], -b), default=8)
    for item, depth in bits.items():
        if depth != kept:
            reason = f"{depth}-bit image among {kept}-bit images"
            rejected.append((f"file {item.number}", reason))
    return [item for item, depth in bits.items() if depth == kept], f"grey{kept}"


def _places(items: Iterable[Item]) -> dict[int, int]:
    """Returns each item's running number among those of its patient, in natural order."""
    places, seen = {}, Counter[str]()
    for item in sorted(items, key=lambda item: _natural(str(item.path))):
        places[item.number] = seen[item.patient]
        seen[item.patient] += 1
    return places


def _slices(
    items: Iterable[Item], places: Mapping[int, int], key: bytes, rejected: Rejected
) -> Iterator[Slice]:
    for item in items:
        try:
            image = images.read_grey(item.path)
        except Unusable as error:
            rejected.append((f"file {item.number}", str(error)))
            continue
        patient = pseudonym(key, item.patient)
        yield Slice(image, patient, patient, places[item.number], label=item.label)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", text)]


def _sub_folder(path: Path, source: Path) -> str:
    parts = path.relative_to(source).parts
    return parts[0] if len(parts) > 1 else ""


def _from_table(
    table: Path,
    files: Mapping[int, Path],
    source: Path,
    patient_of: Callable[[Path], str],
    rejected: Rejected,
) -> tuple[list[Item], list[str]]:
    """Joins the files with a CSV table of file, label, and perhaps patient and split."""
    rows = read_table(table, ("file", "label"))
    classes = sorted({row["label"] for row in rows if row["label"]}, key=_natural)
    splits = {row.get("split", "") for row in rows}
    if not splits <= {"train", "val", "test"} and splits != {""}:
        raise DataError(
            f"--labels {table}: the column split must hold train, val or test in all rows"
        )
    by_name = {path.relative_to(source).as_posix(): n for n, path in files.items()}
    items, listed = [], set()
    for line, row in enumerate(rows, 2):
        number = by_name.get(row["file"])
        if number is None or number in listed:
            reason = "listed twice" if number in listed else "listed in --labels but not there"
            rejected.append((f"line {line}", reason))
            continue
        listed.add(number)
        label = classes.index(row["label"]) if row["label"] else -1
        patient = row.get("patient") or patient_of(files[number])
        items.append(Item(number, files[number], patient, label, row.get("split", "")))
    rejected += [(f"file {n}", "not in --labels") for n in files if n not in listed]
    shared = shared_patients(items)
    if shared:
        raise DataError(f"--labels {table}: {shared} patients are in more than one split")
    return items, classes


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a CSV file with a header; names and cells without spaces around them.

    Raises:
        DataError: If it is missing, is not text, or lacks one of the columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = [
                {(k or "").strip(): (v or "").strip() for k, v in row.items() if k is not None}
                for row in csv.DictReader(stream)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: it must be a CSV file in UTF-8") from error
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise DataError(f"{path} has no rows or no column {', '.join(missing)}")
    return rows


def shared_patients(items: Iterable[Item]) -> int:
    """Returns how many patients have items in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        splits[item.patient].add(item.split)
    return sum(len(of_patient) > 1 for of_patient in splits.values())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "folder",
        "2-D images (PNG, JPEG, TIFF, BMP) -> dataset folder",
        "--source=images --out=data/mine --patient_regex='^(patient[0-9]+)' --labels=folder",
        source="folder of images",
    )
    command.add_patient_regex(parser, "image")
    parser.add_argument(
        "--labels", default="", help='"folder" (class = sub-folder) or a CSV file: file,label[,…]'
    )

    def from_flags(args: argparse.Namespace) -> command.Manifest:
        return prepare(
            **command.common_arguments(args),
            patient_regex=args.patient_regex,
            labels=args.labels,
        )

    return command.run(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
