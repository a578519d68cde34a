"""Opening a file as DICOM, in silence and within limits. It may be packed by gzip."""

import gzip
import logging
import os
import re
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydicom.errors import InvalidDicomError

from data_prep.readers.lost_file import EMPTY, not_read
from data_prep.source import Unusable, Unwanted

DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED)
MAX_BYTES = 2**31  # of a file, and of one that was deflated or packed
IN_MEMORY = 2**26  # bytes of an unpacked file; more go to the disk
GZIP = b"\x1f\x8b"
NOT_DICOM = "not DICOM"
_BAD_NAME = "named like DICOM, but it is not"
# What exports name DICOM files, perhaps packed.
_NAMED = re.compile(r"\.(dcm|dicom|dic|ima)(\.(gz|bz2|xz|zip|zst|z))?$", re.IGNORECASE)


@contextmanager
def open_dicom(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, bool]]:
    """Opens a DICOM file for pydicom, in silence; gives the stream and whether to use force.

    Whatever is raised inside becomes `Unusable`.

    Raises:
        Unwanted: If it is not DICOM, not named like it and not missed (`lost_file`).
        Unusable: If it is so and is empty or something else, cannot be read, is too large, or lacks
            a preamble and a transfer syntax.
    """
    # What pydicom logs and warns of quotes values, which may name a patient.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), _plain(path) as stream:
            start = stream.read(1024)
            force = _lacks_preamble(start)
            if DEFLATED.encode() in start:
                _require_small_when_inflated(stream, 0 if force else 132)
            stream.seek(0)
            yield stream, force
    except Unwanted as error:
        if str(error) == NOT_DICOM:
            raise _not_dicom(path) from error
        raise
    except Unusable:
        raise
    except InvalidDicomError as error:
        raise _not_dicom(path) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unusable("cut off or damaged (compression)") from error
    except (PermissionError, FileNotFoundError) as error:
        raise Unusable("the file cannot be opened") from error
    except Exception as error:  # pydicom raises all sorts on a damaged header
        raise Unusable("the header cannot be read") from error


def is_named_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the name of a DICOM file, so that another content is a fault."""
    return bool(_NAMED.search(os.path.basename(os.fspath(path))))


def is_packed_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is packed by gzip and begins like DICOM. Raises OSError."""
    try:
        with open(path, "rb") as packed, gzip.GzipFile(fileobj=packed) as stream:
            return stream.read(132)[128:] == b"DICM"
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False


def _not_dicom(path: str | os.PathLike[str]) -> Unusable:
    """What to raise for a file that is not DICOM."""
    if is_named_dicom(path):
        return Unusable(_BAD_NAME if os.path.getsize(path) else EMPTY)
    return not_read(Path(path), NOT_DICOM)


@contextmanager
def _plain(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if gzip packed it; raises Unusable if there are too many."""
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size > MAX_BYTES:
            raise Unusable("the file is too large")
        packed = stream.read(len(GZIP)) == GZIP
        stream.seek(0)
        if not packed:
            yield stream
            return
        if not is_named_dicom(path) and not is_packed_dicom(path):
            raise Unwanted(NOT_DICOM)
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as unpacked:
            _unpack(stream, unpacked)
            unpacked.seek(0)
            yield unpacked  # type: ignore[misc]


def _unpack(packed: BinaryIO, target: tempfile.SpooledTemporaryFile[bytes]) -> None:
    """Unpacks to the end, so that its checksum is compared; stops where it grows too large."""
    with gzip.GzipFile(fileobj=packed) as stream:
        while block := stream.read(2**20):
            if target.tell() + len(block) > MAX_BYTES:
                raise Unusable("the file is too large")
            target.write(block)


def _lacks_preamble(start: bytes) -> bool:
    """Whether the file begins with its meta header at once; raises if it has none."""
    if start[128:132] == b"DICM":
        return False
    group, element, length = (int.from_bytes(start[i : i + 2], "little") for i in (0, 2, 4))
    if (group, element) == (2, 0) and start[4:6] == b"UL":
        return True
    # The first element of a data set is in group 8, its type two letters or its length small.
    if group == 8 and element < 0x100 and (start[4:6].isupper() or length < 256):
        raise Unusable("no transfer syntax")
    raise Unwanted(NOT_DICOM)


def _require_small_when_inflated(stream: BinaryIO, meta: int) -> None:
    """A deflated file may hold a thousand times its size: pydicom would take all the memory."""
    stream.seek(meta)
    group_length = stream.read(12)  # (0002,0000) UL: the bytes of the meta header that follow
    if group_length[:6] != b"\x02\x00\x00\x00UL":
        raise Unusable("the header cannot be read")
    stream.seek(int.from_bytes(group_length[8:], "little"), os.SEEK_CUR)
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while block := inflate.unconsumed_tail or stream.read(2**16):
        total += len(inflate.decompress(block, 2**24))
        if total > MAX_BYTES:
            raise Unusable("the file is too large")
    if not inflate.eof:
        raise Unusable("cut off")
