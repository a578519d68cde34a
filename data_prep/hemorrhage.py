"""Head CT hemorrhage -> dataset folder: `python -m data_prep.hemorrhage --source=… --out=…`.

200 numbered PNG images and labels.csv with the columns id and hemorrhage. The images come
without patients: each counts as its own. It stands for the private Brain set of the paper.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ctssl_jax.errors import DataError
from data_prep import command
from data_prep.origin import Origin
from data_prep.readers import images
from data_prep.readers.images import ImageSource
from data_prep.readers.tables import read_table
from data_prep.source import Item

CITATION = "Kitamura: Head CT - hemorrhage. Kaggle, 2018"
LICENCE = "none stated"
DOWNLOAD = (
    "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage (needs an account): "
    "unpack the archive"
)
ORIGIN = Origin(CITATION, LICENCE, DOWNLOAD)

CLASSES = ("no hemorrhage", "hemorrhage")


def make_source(root: Path) -> ImageSource:
    """The head CT set as a source.

    Args:
        root: Folder that holds labels.csv and NNN.png, these perhaps in head_ct/head_ct.

    Raises:
        DataError: If labels.csv or the images are not there, a label is not 0 or 1, or an image
            has two rows.
    """
    root = root.resolve()
    rows = read_table(root / "labels.csv", ("id", "hemorrhage"), "labels.csv of --source")
    for row in rows:
        if not row["id"].isdecimal() or row["hemorrhage"] not in ("0", "1"):
            raise DataError(
                f"labels.csv of --source, line {row.line}: id must be a number, hemorrhage 0 or 1"
            )
    if len({int(row["id"]) for row in rows}) != len(rows):
        raise DataError("labels.csv of --source holds the same id twice")
    folders = (root, root / "head_ct", root / "head_ct" / "head_ct")
    folder = next((folder for folder in folders if any(folder.glob("[0-9]*.png"))), None)
    if folder is None:
        raise DataError("--source has no images named like 000.png")
    items = [
        Item(
            0,
            str(folder / f"{int(row['id']):03d}.png"),
            f"head-{int(row['id'])}",
            int(row["hemorrhage"]),
            row=row.line,
            wanted=True,
        )
        for row in rows
    ]
    notes = ["patients are not known: each image counts as its own patient"]
    images_there = {str(path) for path in folder.glob("*.png") if not path.name.startswith(".")}
    if unlisted := len(images_there - {item.path for item in items}):
        notes.append(f"{unlisted} images are not in labels.csv and were left out")
    return ImageSource("hemorrhage", CLASSES, 8, notes, ORIGIN, images.numbered(items))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "hemorrhage",
        "Head CT hemorrhage (numbered PNG and labels.csv) -> dataset folder. " + ORIGIN.text(),
        "--source=head-ct-hemorrhage --out=data/hemorrhage",
        source="folder that holds labels.csv and the images",
        val=0.2,
        test=0.2,
    )
    command.add_positive(parser)

    def from_flags(args: argparse.Namespace) -> ImageSource:
        return images.with_positive(make_source(args.source), args.positive)

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
