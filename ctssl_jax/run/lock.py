"""One writer for each run folder: a lock that ends with its process, however it ends.

Process 0 of a run holds it for all of them, from the moment the run begins until it is done. The
same process may take it again: a run that failed may be tried anew.
"""

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import IO

from ctssl_jax.errors import ConfigError

NAME = "lock"  # of the file in the run folder, which stays there and is empty
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: dict[Path, IO[bytes]] = {}


def take(workdir: Path) -> None:
    """Takes the lock of a run folder, which must be there.

    On storage that knows no locks it says so on stderr and goes on.

    Raises:
      ConfigError: another process has it. The folder is left as it is, its STATUS too.
      OSError: the file cannot be made.
    """
    workdir = workdir.resolve()
    if workdir in _held:
        return
    stream = open(workdir / NAME, "ab")  # noqa: SIM115 (`release` closes it)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise ConfigError(
            f"{workdir}: another run is writing this folder: wait until it ends, or give another "
            "--workdir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            stream.close()
            raise
        told = f"{workdir}: its storage knows no locks: start no second run in this folder"
        print(told, file=sys.stderr, flush=True)
    _held[workdir] = stream


def is_free(workdir: Path) -> bool:
    """Whether this process has the lock or nobody has it."""
    if workdir.resolve() in _held:
        return True
    try:
        with open(workdir / NAME, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no such file, or no locks
        return True
    return True


def release(workdir: Path) -> None:
    """Gives the lock back, if this process has it."""
    if stream := _held.pop(workdir.resolve(), None):
        stream.close()


def _forget() -> None:
    """A forked child keeps no lock: it may outlive the run."""
    for stream in _held.values():
        stream.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
