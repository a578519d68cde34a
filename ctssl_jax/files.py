"""Files that are whole or absent, and reading that neither waits nor believes.

What is read is an ordinary file: a FIFO or a device, which might never end, is refused. A JSON file
that is written here says what it held when it was written (`sealed`), so that a flipped bit is an
error and not a result; a file of an older version says nothing, and is taken as it is.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ctssl_jax.errors import ConfigError

LIMIT = 1 << 28
"""Bytes of a file that is read whole: more is none of ours."""
SEAL = "sha256"
"""The key of a JSON object under which the sum of all the others stands."""
_MARK = "sha256:"  # before the sum: tells a sealed object also where the key itself is damaged
PRIVATE = 0o700
_HOMES = (("manifest.json", "signatures"), ("config.json", "STATUS"))  # of datasets, and of runs


class Damaged(ValueError):
    """A file is not what was written; `str(error)` says how, to come after its name."""


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


def write_text(path: Path, text: str) -> None:
    """Writes a small file, whole or not at all, also where the machine loses its power."""
    with whole_file(path) as temporary:
        try:
            with open(temporary, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def _is_dataset_or_run(folder: Path) -> bool:
    """Whether a folder is a dataset or a run, whose files belong together."""
    return any(all((folder / name).exists() for name in names) for names in _HOMES)


def require_own_file(path: Path, flag: str, *keys: str) -> None:
    """Raises `ConfigError` where a JSON file would take the place of anything but an earlier one.

    Args:
      path: the file to write.
      flag: that named it.
      keys: what the object in such a file has.
    """
    if _is_dataset_or_run(path.absolute().parent) and (path.exists() or path.name == "audit.json"):
        raise ConfigError(
            f"{flag}={path}: is a file of a dataset or run folder: give a file beside the folder"
        )
    if not path.exists():
        return
    try:
        known = read_json(path)
    except (OSError, Damaged):
        known = {}
    if not known or not known.keys() >= set(keys):
        raise ConfigError(
            f"{flag}={path}: is there, and not an earlier one of this command: choose another"
        )


def make_private(folder: Path) -> None:
    """Makes a folder that only its owner may look into, whatever the umask; one there is kept.

    What lies below it is protected by it. Who wants to share makes the folder first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=PRIVATE)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        folder.chmod(PRIVATE)


def require_ordinary(path: Path) -> os.stat_result:
    """What the system says of an ordinary file; raises `OSError` for anything else."""
    try:
        found = os.stat(path)
    except ValueError:  # a NUL in its name
        raise OSError(errno.EINVAL, "is no name of a file", repr(str(path))) from None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no ordinary file", str(path))
    return found


def require_ordinary_files(folder: Path) -> None:
    """Raises `OSError` where something in a folder is neither folder nor ordinary file."""
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process may clear up
                require_ordinary(Path(place, name))


def open_ordinary(path: Path) -> BinaryIO:
    """Opens an ordinary file for reading, without waiting for anybody.

    Raises:
      OSError: it is missing, cannot be read or is no ordinary file.
    """
    require_ordinary(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # changed meanwhile
        stream.close()
        raise OSError(errno.EINVAL, "is no ordinary file", str(path))
    return stream


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """All of an ordinary file.

    Raises:
      OSError: as `open_ordinary`, or it is larger than `limit` bytes.
    """
    with open_ordinary(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit >> 20} MiB", str(path))
    return content


def read_text(path: Path, limit: int = LIMIT) -> str:
    """All of an ordinary file of text.

    Raises:
      OSError: as `read_bytes`.
      Damaged: it is no text in UTF-8.
    """
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError:
        raise Damaged("cannot be read as text") from None


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """The object that a JSON file holds, without its seal.

    Raises:
      OSError: as `read_bytes`.
      Damaged: it is no JSON object, or not the one that was written.
    """
    try:
        content = json.loads(read_text(path, limit))
        json.dumps(content, ensure_ascii=False).encode()  # fails on halves of characters
    except Damaged:
        raise
    except (ValueError, RecursionError):
        raise Damaged("is not valid JSON") from None
    if not isinstance(content, dict):
        raise Damaged("is not a JSON object")
    return unsealed(content)


def is_sealed(path: Path) -> bool:
    """Whether a file is a JSON object that was sealed here, and is undamaged."""
    try:
        return SEAL in json.loads(read_text(path)) and bool(read_json(path))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the sum of what it holds, as `unsealed` checks it."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return {**rest, SEAL: _sum(json.loads(json.dumps(rest)))}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object that `sealed` made, or one that is not sealed, without the sum.

    Raises:
      Damaged: it does not hold what it held when it was sealed.
    """
    rest = {name: value for name, value in content.items() if name != SEAL}
    marked = any(isinstance(value, str) and value.startswith(_MARK) for value in rest.values())
    if marked or (SEAL in content and content[SEAL] != _sum(rest)):
        raise Damaged("is damaged, or was changed after it was written")
    return rest


def _sum(content: Mapping[str, Any]) -> str:
    return _MARK + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The sum of an ordinary file, in hexadecimal; raises as `open_ordinary`."""
    with open_ordinary(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def no_formula(value: Any) -> Any:
    """A cell of a CSV; text that a spreadsheet might take for a formula with an apostrophe before.

    >>> no_formula("=1+1"), no_formula("spark"), no_formula(-1)
    ("'=1+1", 'spark', -1)
    """
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
