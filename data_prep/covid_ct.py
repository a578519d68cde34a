"""UCSD COVID-CT -> dataset folder: `python -m data_prep.covid_ct --source=COVID-CT --out=DATASET`.

743 images from publications (Yang et al., arXiv 2003.13865), with the authors' lists in Data-split:
train 425, val 118 and test 203 (COVID 191, 60 and 98; NonCOVID 234, 58 and 105). The lists share
publications; --split_by=patient makes a split that does not.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ctssl_jax.errors import DataError
from data_prep import command
from data_prep.origin import Origin
from data_prep.pipeline.split import shared_patients
from data_prep.readers import images
from data_prep.readers.images import ImageSource
from data_prep.source import Item

CITATION = (
    "Yang, He, Zhao, Zhang, Zhang, Xie: COVID-CT-Dataset: a CT scan dataset about COVID-19. "
    "arXiv 2003.13865, 2020"
)
LICENCE = "none stated: the images are of publications with terms of their own"
DOWNLOAD = (
    "https://github.com/UCSD-AI4H/COVID-CT: unpack CT_COVID.zip and CT_NonCOVID.zip of "
    "Images-processed, and put the folder Data-split beside them"
)
ORIGIN = Origin(CITATION, LICENCE, DOWNLOAD)

CLASSES = ("COVID", "NonCOVID")
SPLITS = ("train", "val", "test")


def publication(name: str, kind: str) -> str:
    """Returns what groups the images of a publication, the nearest thing to a patient.

    For COVID the preprint before "-p" (page), else the name up to "%" (image of a figure).
    """
    stem = name.rsplit(".", 1)[0].split("%")[0]
    return f"{kind}/{stem.split('-p')[0] if kind == 'COVID' else stem}"


def make_source(root: Path, split_by: str = "official") -> ImageSource:
    """COVID-CT as a source.

    Args:
        root: Folder that holds CT_COVID, CT_NonCOVID and Data-split.
        split_by: "official" for the authors' lists, as many as there are; "patient" to pool
            all listed images and leave the split open, by publication.

    Raises:
        DataError: If the folder lacks one of its parts.
    """
    items: list[Item] = []
    notes: list[str] = []
    unlisted = repeated = 0
    for label, kind in enumerate(CLASSES):
        folder = _sub_folder(root.resolve(), f"CT_{kind}")
        lists = {
            split: _sub_folder(root, "Data-split") / kind / f"{split}CT_{kind}.txt"
            for split in SPLITS
        }
        found = {split: path for split, path in lists.items() if path.is_file()}
        if not found:
            raise DataError(f"--source holds no lists in Data-split/{kind}")
        notes += [f"no list {path.name}" for split, path in lists.items() if split not in found]
        listed = set()
        for split, path in found.items():
            names = _names(path)
            repeated += len(names) - len(set(names))
            for name in dict.fromkeys(names):
                listed.add(name)
                patient = publication(name, kind)
                item = Item(0, str(folder / name), patient, label, split, wanted=True)
                items.append(item)
        unlisted += sum(path.is_file() and path.name not in listed for path in folder.iterdir())
    if unlisted:
        notes.append(f"{unlisted} images are in no list and were left out")
    if repeated:
        notes.append(f"{repeated} lines of the lists repeat one of the same list and do not count")
    shared = shared_patients((i.patient, i.split) for i in items if Path(i.path).is_file())
    if split_by == "patient":
        items = list({item.path: replace(item, split="") for item in items}.values())
        notes.append("split by publication, not the official split")
    elif shared:
        notes.append(f"official split: {shared} publications have images in more than one split")
    known = {"patients_known": True}  # as far as publications are patients
    return ImageSource("covid_ct", CLASSES, 8, notes, ORIGIN, images.numbered(items), known)


def _names(path: Path) -> list[str]:
    """The file names of a list.

    Raises:
        DataError: If it is not text, or a line is a path.
    """
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} of --source is not text: download it again") from error
    if any(Path(name).name != name for name in names):
        raise DataError(f"{path.name} of --source holds lines that are no file names")
    return names


def _sub_folder(root: Path, name: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"--source has no folder {name}: give the folder that holds it")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "covid_ct",
        "COVID-CT of UCSD -> dataset folder with the classes COVID and NonCOVID. " + ORIGIN.text(),
        "--source=COVID-CT/Images-processed --out=data/covid_ct",
        source="folder that holds CT_COVID, CT_NonCOVID and Data-split",
        val=0.2,
        test=0.25,
    )
    command.add_split_by(parser)
    command.add_positive(parser)

    def from_flags(args: argparse.Namespace) -> ImageSource:
        source = make_source(args.source, args.split_by)
        return images.with_positive(source, args.positive)

    return command.run_source(from_flags, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
