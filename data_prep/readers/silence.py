"""What the readers in C print: kept from the user, since it can quote the file or its name."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


@contextmanager
def hidden_output() -> Iterator[BinaryIO]:
    """Hides stdout and stderr of this process in the block; gives the file that receives them."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(os.dup(descriptor), descriptor) for descriptor in (1, 2)]
    with tempfile.TemporaryFile() as heard:
        try:
            for _, descriptor in kept:
                os.dup2(heard.fileno(), descriptor)
            yield heard
        finally:
            for copy, descriptor in kept:
                os.dup2(copy, descriptor)
                os.close(copy)
