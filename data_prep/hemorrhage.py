"""Head CT hemorrhage -> dataset folder: `python -m data_prep.hemorrhage --source=… --out=…`.

200 numbered PNG images and labels.csv with the columns id and hemorrhage. The images come
without patients: each counts as its own.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ctssl_jax.errors import DataError
from data_prep import command
from data_prep.folder import Item, read_table, write_images
from data_prep.records import Rejected

CLASSES = ("no hemorrhage", "hemorrhage")


def prepare(
    source: Path, out: Path, *, key: bytes, fractions: Mapping[str, float], seed: int = 0
) -> command.Manifest:
    """Writes the head CT set, its split stratified by class.

    Args:
        source: Folder that holds labels.csv and NNN.png, these perhaps in head_ct/head_ct.
        out: Dataset folder to make.
        key: Secret key of the pseudonyms.
        fractions: Share of the images of each split.
        seed: Of the split.

    Raises:
        DataError: If labels.csv or the images are not there, or a label is not 0 or 1.
    """
    rows = read_table(source / "labels.csv", ("id", "hemorrhage"))
    if not all(r["id"].isdecimal() and r["hemorrhage"] in ("0", "1") for r in rows):
        raise DataError(f"{source / 'labels.csv'}: id must be a number and hemorrhage 0 or 1")
    folders = (source, source / "head_ct", source / "head_ct" / "head_ct")
    images = next((folder for folder in folders if any(folder.glob("[0-9]*.png"))), None)
    if images is None:
        raise DataError(f"--source {source} has no images named like 000.png")
    rejected: Rejected = []
    items = []
    for row in rows:
        number = int(row["id"])
        path = images / f"{number:03d}.png"
        if path.is_file():
            items.append(Item(number, path, f"head-{number}", int(row["hemorrhage"])))
        else:
            rejected.append((f"file {number}", "listed but not there"))
    return write_images(
        items,
        out,
        name="hemorrhage",
        classes=CLASSES,
        key=key,
        fractions=fractions,
        seed=seed,
        rejected=rejected,
        note="patients are not known: each image counts as its own patient",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "hemorrhage",
        "Head CT hemorrhage (numbered PNG and labels.csv) -> dataset folder",
        "--source=head-ct-hemorrhage --out=data/hemorrhage",
        source="folder that holds labels.csv and the images",
        val=0.2,
        test=0.2,
    )

    def from_flags(args: argparse.Namespace) -> command.Manifest:
        return prepare(**command.common_arguments(args))

    return command.run(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
