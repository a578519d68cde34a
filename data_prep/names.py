"""Names of files and patients as bytes and on the screen, whatever their encoding.

A name on disk is bytes. Python shows what is no UTF-8 in them as lone surrogates (PEP 383), which
most writers refuse.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def to_bytes(name: str) -> bytes:
    """The bytes of a name as they are on disk."""
    return name.encode("utf-8", "surrogateescape")


def from_bytes(name: bytes) -> str:
    """The name of some bytes; undoes `to_bytes`."""
    return name.decode("utf-8", "surrogateescape")


def shown(name: str) -> str:
    r"""A name for the screen or a text file, in one line: strange bytes as `\xe9`, ends as `\n`."""
    readable = to_bytes(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in readable)


def is_text(name: str) -> bool:
    """Whether it is UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


@contextmanager
def text_path(path: Path) -> Iterator[str]:
    """A path to a file that is text: the file's own, or a link to it while the context lasts.

    For libraries that take no other. Of a file that names others beside it only itself is there.
    """
    if is_text(str(path)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        suffixes = "".join(part for part in path.suffixes if is_text(part))
        link = os.path.join(folder, f"link{suffixes}")
        os.symlink(os.path.abspath(path), link)
        yield link
