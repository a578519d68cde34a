"""Which files are in a folder, and what else is: nothing in it goes without a word."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ctssl_jax.dataset.manifest import read_manifest
from ctssl_jax.errors import DataError
from ctssl_jax.files import open_ordinary

# Why something is not read: a fixed phrase, and whether it is a fault or left out by design.
Flaw = tuple[str, bool]

HIDDEN: Flaw = ("hidden (its name begins with a dot)", False)
SPECIAL: Flaw = ("a pipe, socket or device, not a file", False)
UNREADABLE: Flaw = ("a folder that cannot be read", True)
DANGLING: Flaw = ("a link to nothing", True)
TWICE: Flaw = ("a link to what is read elsewhere", False)
LOOP: Flaw = ("a link to a folder that this one is in", False)
OWN: Flaw = ("a folder that data_prep wrote (a dataset, a quality report or pairs)", False)
# Tables that say so, by their first words and what is beside them.
_TABLES = (
    ("rejected.csv", "item,reason,images,fault", "quality.txt"),
    ("pairs.csv", "number,pair,check,splits,rows,duplicate", "pairs.png"),
)


@dataclass(frozen=True)
class Entry:
    """A file, or what could not be one.

    Attributes:
        path: Absolute, below the folder as it was given: links are not resolved in it.
        flaw: Why it is not to be opened; None for a file.
    """

    path: str
    flaw: Flaw | None = None


def files(root: Path) -> Iterator[str]:
    """Yields the files of `entries` alone; raises as it does."""
    return (entry.path for entry in entries(root) if entry.flaw is None)


def entries(root: Path) -> Iterator[Entry]:
    """Yields all that is below a folder, or the one file; links after what is there itself.

    Folder by folder, in natural order. Links are followed, also out of the folder, but nothing is
    read twice and no loop is entered. What is hidden is one entry, not looked into; so is a folder
    that data preparation wrote, whose pictures are no scans.

    Raises:
        DataError: If there is no file, or the folder is itself one that data preparation wrote.
    """
    root = root.resolve()
    if root.is_file():
        yield Entry(str(root))
        return
    found = False
    for entry in _Walk(root):
        if entry == Entry(str(root), OWN):
            raise DataError(f"--source is {OWN[0]}: give the folder of the images or scans")
        found = found or entry.flaw is None
        yield entry
    if not found:
        raise DataError("--source holds no files: give the folder of the images or scans")


def natural(text: str) -> list[tuple[int, str]]:
    """A key to sort by that knows numbers: slice2 stands before slice10."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", text)]


def inside(path: str | Path, root: Path) -> bool:
    """Whether a file, or what it links to, is inside a folder."""
    return Path(path).resolve().is_relative_to(root.resolve())


class _Walk:
    """One walk through a folder; it remembers where links have led."""

    def __init__(self, root: Path):
        self._root = root
        self._links: list[str] = []  # met and not yet followed
        self._followed = set[Path]()  # what they led to

    def __iter__(self) -> Iterator[Entry]:
        yield from self._below(str(self._root), self._root)
        while self._links:
            waiting, self._links = self._links, []
            for link in waiting:
                yield from self._follow(link)

    def _below(self, folder: str, real: Path) -> Iterator[Entry]:
        """What is in a folder, whose path without links is `real`."""
        try:
            with os.scandir(folder) as scan:
                found = sorted(scan, key=lambda entry: natural(entry.name))
        except OSError:
            yield Entry(folder, UNREADABLE)
            return
        if _is_own(folder, {entry.name for entry in found}):
            yield Entry(folder, OWN)
            return
        folders = []
        for entry in found:
            if entry.name.startswith("."):
                yield Entry(entry.path, HIDDEN)
            elif entry.is_symlink():
                self._links.append(entry.path)
            elif self._followed and real / entry.name in self._followed:
                yield Entry(entry.path, TWICE)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry)
            else:
                is_file = entry.is_file(follow_symlinks=False)
                yield Entry(entry.path, None if is_file else SPECIAL)
        for entry in folders:
            yield from self._below(entry.path, real / entry.name)

    def _follow(self, link: str) -> Iterator[Entry]:
        try:
            target = Path(link).resolve(strict=True)
        except (OSError, RuntimeError):  # a link to itself is either
            yield Entry(link, DANGLING)
            return
        if self._root.is_relative_to(target):
            yield Entry(link, LOOP)
        elif self._is_read(target):
            yield Entry(link, TWICE)
        else:
            self._followed.add(target)
            if target.is_dir():
                yield from self._below(link, target)
            else:
                yield Entry(link, None if target.is_file() else SPECIAL)

    def _is_read(self, target: Path) -> bool:
        """Whether it is met without this link."""
        if target in self._followed or not self._followed.isdisjoint(target.parents):
            return True
        if not target.is_relative_to(self._root):
            return False
        return not any(part.startswith(".") for part in target.relative_to(self._root).parts)


def _is_own(folder: str, names: Collection[str]) -> bool:
    """Whether data preparation wrote a folder, which it does into folders of their own."""
    for table, words, beside in _TABLES:
        if table in names and beside in names:
            with suppress(OSError), open_ordinary(Path(folder, table)) as stream:
                if stream.read(len(words)) == words.encode():
                    return True
    if "manifest.json" in names:  # not enough: others call files so, too
        with suppress(DataError):
            return bool(read_manifest(Path(folder)))
    return False
