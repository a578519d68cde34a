"""What the decoders in C write to stderr: kept from the user, since it can quote the file."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


@contextmanager
def hidden_stderr() -> Iterator[BinaryIO]:
    """Hides what this process writes to stderr in the block; gives the file that receives it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(kept, 2)
            os.close(kept)
