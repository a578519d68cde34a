"""Unpacks a zip archive of unknown making: plain files below one folder, of bounded size."""

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ctssl_jax.errors import DataError, StorageError

MAX_FILES = 1_000_000
MAX_RATIO = 50  # unpacked to packed; pictures reach 1, text 10


def unpack(archive: Path, limit: int) -> Path:
    """Unpacks `NAME.zip` into the folder `NAME` beside it and returns that, whole or not at all.

    Args:
        archive: The file.
        limit: Bytes at most, unpacked.

    Raises:
        DataError: If the folder is there, or the archive is damaged, encrypted or too large, or
            holds anything that is not a plain file below one folder.
        StorageError: If the disk is full.
    """
    folder = archive.with_suffix("")
    if folder.exists():
        raise DataError(f"{folder.name} in --out is there already: delete it")
    partial = folder.with_name(f".{folder.name}.unpacking")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with zipfile.ZipFile(archive) as opened:
                members = _checked(opened, archive, limit)
                partial.mkdir()
                for member, path in members:
                    target = partial / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive.name} is not a zip archive that can be read") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{archive.name} holds two files of one name") from error
    except OSError as error:
        why = error.strerror or "I/O error"
        raise StorageError(f"cannot unpack {archive.name} in --out ({why})") from error
    return folder


def _checked(
    opened: zipfile.ZipFile, archive: Path, limit: int
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files with their places, of an archive that is safe to unpack.

    The sizes are the archive's own word; `zipfile` reads no more of a member than that.
    """
    members = opened.infolist()
    size, packed = sum(member.file_size for member in members), archive.stat().st_size
    if len(members) > MAX_FILES or size > limit or size > MAX_RATIO * packed:
        raise DataError(f"{archive.name}: too much in it ({len(members)} files, {size:,} bytes)")
    free = shutil.disk_usage(archive.parent).free
    if size > free:
        raise StorageError(f"{archive.name}: {size:,} bytes unpacked, {free:,} free in --out")
    files = []
    for member in members:
        # What `zipfile` made of the name in `filename` is not what other programs see.
        path, mode = PurePosixPath(member.orig_filename), member.external_attr >> 16
        kind = stat.S_IFMT(mode)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{archive.name} holds a link or device: not unpacked")
        unsafe = path.is_absolute() or ".." in path.parts or not path.parts
        if unsafe or any(character in member.orig_filename for character in "\\:\0"):
            raise DataError(f"{archive.name} holds a name that leaves its folder: not unpacked")
        if member.flag_bits & 1:
            raise DataError(f"{archive.name} is encrypted: not unpacked")
        if not member.is_dir():
            files.append((member, path))
    return files
