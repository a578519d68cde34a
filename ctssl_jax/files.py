"""Files that are whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_name(path: Path) -> Path:
    """Where this process writes a file before it gets its name.

    Another process has another: one that a kill left over may still be writing the same file.
    """
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the temporary name, to be written in the block; the file appears when that ends."""
    temporary = temporary_name(path)
    yield temporary
    os.replace(temporary, path)
