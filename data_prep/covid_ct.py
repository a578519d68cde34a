"""UCSD COVID-CT -> dataset folder: `python -m data_prep.covid_ct --source=COVID-CT --out=DATASET`.

743 images of publications (Yang et al., arXiv 2003.13865), with the authors' lists in Data-split.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ctssl_jax.errors import DataError
from data_prep import command
from data_prep.folder import Item, shared_patients, write_images
from data_prep.records import Rejected

CLASSES = ("COVID", "NonCOVID")
SPLITS = ("train", "val", "test")


def publication(name: str, kind: str) -> str:
    """Returns what groups the images of a publication, the nearest thing to a patient.

    For COVID the preprint before "-p" (page), else the name up to "%" (image of a figure).
    """
    stem = name.rsplit(".", 1)[0].split("%")[0]
    return f"{kind}/{stem.split('-p')[0] if kind == 'COVID' else stem}"


def prepare(
    source: Path,
    out: Path,
    *,
    key: bytes,
    fractions: Mapping[str, float],
    seed: int = 0,
    split_by: str = "official",
) -> command.Manifest:
    """Writes COVID-CT.

    Args:
        source: Folder that holds CT_COVID, CT_NonCOVID and Data-split.
        out: Dataset folder to make.
        key: Secret key of the pseudonyms.
        fractions: Share of the publications of each split, for `split_by="patient"`.
        seed: Of that split.
        split_by: "official" for the authors' lists, as many as there are; "patient" to pool
            all listed images and split them by publication.

    Raises:
        DataError: If the folder lacks one of its parts.
    """
    rejected: Rejected = []
    items: list[Item] = []
    notes: list[str] = []
    unlisted = 0
    for label, kind in enumerate(CLASSES):
        images = _sub_folder(source, f"CT_{kind}")
        lists = {
            split: _sub_folder(source, "Data-split") / kind / f"{split}CT_{kind}.txt"
            for split in SPLITS
        }
        found = {split: path for split, path in lists.items() if path.is_file()}
        if not found:
            raise DataError(f"--source {source} has no lists in Data-split/{kind}")
        missing = [path.name for split, path in lists.items() if split not in found]
        notes += [f"no list {name}" for name in missing]
        listed = set()
        for split, path in found.items():
            for name in filter(None, map(str.strip, path.read_text("utf-8").splitlines())):
                listed.add(name)
                number = len(items) + 1
                if not (images / name).is_file():
                    rejected.append((f"{kind} {number}", "listed but not there"))
                items.append(Item(number, images / name, publication(name, kind), label, split))
        unlisted += sum(path.is_file() and path.name not in listed for path in images.iterdir())
    rejected += [(f"unlisted {n}", "in no list") for n in range(1, unlisted + 1)]
    items = [item for item in items if item.path.is_file()]
    shared = shared_patients(items)
    if split_by == "patient":
        unique = {item.path: replace(item, split="") for item in items}
        items = list(unique.values())
        notes.append("split by publication, not the official split")
    elif shared:
        notes.append(f"official split: {shared} publications have images in more than one split")
    return write_images(
        items,
        out,
        name="covid_ct",
        classes=CLASSES,
        key=key,
        fractions=fractions,
        seed=seed,
        rejected=rejected,
        note="; ".join(notes),
    )


def _sub_folder(source: Path, name: str) -> Path:
    folder = source / name
    if not folder.is_dir():
        raise DataError(f"--source {source} has no folder {name}: give the folder that holds it")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.new_parser(
        "covid_ct",
        "COVID-CT of UCSD -> dataset folder with the classes COVID and NonCOVID",
        "--source=COVID-CT/Images-processed --out=data/covid_ct",
        source="folder that holds CT_COVID, CT_NonCOVID and Data-split",
        val=0.2,
        test=0.25,
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
