"""One writer for each folder of a run: a lock that ends with its process, however that ends.

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
from collections.abc import Iterator
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


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the block no other process may do the same with a folder; leaves no file in it.

    For a report, whose folder is given away.

    Raises:
      ConfigError: another process is in such a block; says which, where the system tells.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _locker(os.fstat(descriptor).st_ino)
            raise ConfigError(
                f"{folder}: {who} is writing this folder: wait until it ends, or give another"
            ) from None
        except OSError:  # storage without locks, or none for folders
            pass
        yield
    finally:
        os.close(descriptor)


def _locker(inode: int) -> str:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "FLOCK" in fields and fields[5].endswith(f":{inode}"):
                return f"process {fields[4]}"
    return "another process"


def _forget() -> None:
    """A forked child keeps no lock: it may outlive the run."""
    for stream in _held.values():
        stream.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
