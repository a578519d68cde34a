"""Which files are in a folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ctssl_jax.errors import DataError


def files(root: Path) -> Iterator[str]:
    """Yields all files below a folder, or the one file: folder by folder, each in natural order.

    Left out: hidden files, and links that lead out of the folder.

    Raises:
        DataError: If there is none.
    """
    root = root.resolve()
    path = ""
    for path in (str(root),) if root.is_file() else _below(root):
        yield path
    if not path:
        raise DataError("--source holds no files: give the folder of the images or scans")


def natural(text: str) -> list[tuple[int, str]]:
    """A key to sort by that knows numbers: slice2 stands before slice10."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", text)]


def inside(path: str | Path, root: Path) -> bool:
    """Whether a file, or what it links to, is inside a folder."""
    return Path(path).resolve().is_relative_to(root.resolve())


def _below(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):  # does not follow links to folders
        subfolders[:] = sorted((n for n in subfolders if not n.startswith(".")), key=natural)
        for name in sorted(names, key=natural):
            path = os.path.join(folder, name)
            is_there = not name.startswith(".") and os.path.isfile(path)
            if is_there and (not os.path.islink(path) or inside(path, root)):
                yield path
