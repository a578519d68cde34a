"""One writer for each folder of a run or a report: a lock that ends with its process, however.

Process 0 of a run holds it for all of them, from the moment the run begins until it is done. The
same process may take it again: a run that failed may be tried anew. The file says which process has
it and since when, for whoever is refused; not on which machine, whose name is nobody's business.
"""

import contextlib
import errno
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import IO

from ctssl_jax.errors import ConfigError
from ctssl_jax.files import read_text, require_ordinary

NAME = "lock"  # of the file in the folder, which stays there
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: dict[Path, IO[bytes]] = {}


def take(workdir: Path) -> None:
    """Takes the lock of a run folder, which must be there.

    On storage that knows no locks it says so on stderr and goes on.

    Raises:
      ConfigError: another process has it; says which. The folder is left as it is.
      OSError: the file cannot be made.
    """
    workdir = workdir.resolve()
    if workdir in _held:
        return
    if (workdir / NAME).exists():
        require_ordinary(workdir / NAME)
    stream = open(workdir / NAME, "ab")  # noqa: SIM115 (`release` closes it)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise ConfigError(
            f"{workdir}: another run is writing this folder ({_holder(workdir)}): wait until it "
            "ends, or give another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            stream.close()
            raise
        told = f"{workdir}: its storage knows no locks: start no second run in this folder"
        print(told, file=sys.stderr, flush=True)
    _held[workdir] = stream
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    stream.truncate(0)
    stream.write(f"process {os.getpid()}, since {since}\n".encode())
    stream.flush()


def _holder(workdir: Path) -> str:
    """Who has the lock of a folder, as the file says."""
    with contextlib.suppress(OSError, ValueError):
        if told := read_text(workdir / NAME, limit=200).strip():
            return told
    return "it does not say which"


def is_held(workdir: Path) -> bool:
    """Whether this process has the lock."""
    return workdir.resolve() in _held


def release(workdir: Path) -> None:
    """Gives the lock back, if this process has it."""
    if stream := _held.pop(workdir.resolve(), None):
        with contextlib.suppress(OSError):
            stream.truncate(0)
        stream.close()


def _forget() -> None:
    """A forked child keeps no lock: it may outlive the run."""
    for stream in _held.values():
        stream.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
