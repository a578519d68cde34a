"""Files that nothing reads: which of them were meant to be scans or images.

Those are missed, so that they count as rejected; the usual company of scans (texts, tables, what
a viewer on the same disc needs) is left out by design.
"""

import re
from pathlib import Path

from data_prep.source import Unusable, Unwanted

UNREADABLE = "the file cannot be opened"
EMPTY = "an empty file"
ARCHIVE = "a packed archive: unpack it"
VOLUME = "a volume format that is not read, or half of a pair: save it as NIfTI"
PAGE = "a web page in place of a file (a failed download)"
CUT_OFF = "cut off, or nothing but zeros"

_PACKED = r"\.(gz|bz2|xz|zip|zst|7z|rar|z)"
_ARCHIVE = re.compile(rf"({_PACKED}|\.(tar|tgz|tbz2?|txz))$")
_UNREAD = re.compile(
    rf"\.((mgz|mgh|mnc|gipl|brik|hdr|img)({_PACKED})?|(nii|nrrd|mha){_PACKED}(?<!nii\.gz))$"
)
_READ_PACKED = ".nii.gz"
# The values of a volume whose header is another file.
_VALUES = re.compile(rf"\.(raw|zraw|bin|dat)({_PACKED})?$")
_PAIR = re.compile(rf"\.img({_PACKED})?$")
_COMPANY = re.compile(
    r"(^(readme|licen[cs]e|copying|dicomdir|lockfile|version|changelog|notes?|done|_?success)|"
    r"\.(txt|csv|tsv|json|jsonl|xml|md|rst|log|html?|pdf|rtf|docx?|xlsx?|pptx?|ya?ml|ini|inf|cfg|"
    r"toml|db|py|ipynb|sh|bat|exe|dll|jar|js|css|lock|done|flag|ok|md5|sha\d+|bval|bvec))"
    rf"({_PACKED})?$"
)
# Exports name files by numbers and UIDs, whose last part is no suffix.
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}$")
_ARCHIVE_STARTS = (
    b"PK\3\4",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)
_PAGE_START = re.compile(rb"\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)


def not_read(path: Path, reason: str) -> Unusable:
    """What to raise for a file that is not what a reader reads: `Unwanted`, unless it is missed.

    Args:
        path: Of the file.
        reason: Why it is left out by design.
    """
    missed = loss(path)
    return Unusable(missed) if missed else Unwanted(reason)


def loss(path: Path) -> str:
    """Why a file is missed that is no scan or image by its content; "" if it is not."""
    name = path.name.lower()
    if _COMPANY.search(name):
        return ""
    try:
        with open(path, "rb") as stream:
            head = stream.read(512)
    except OSError:
        return UNREADABLE
    if not head:
        return EMPTY
    if _PAIR.search(name) and _has_header(path):
        return ""
    if _UNREAD.search(name):
        return VOLUME
    if name.endswith(_READ_PACKED) or _VALUES.search(name):
        return ""
    if _ARCHIVE.search(name):
        return ARCHIVE
    if _SUFFIX.search(name):
        return ""
    if head.startswith(_ARCHIVE_STARTS):
        return ARCHIVE
    if _PAGE_START.match(head):
        return PAGE
    # DICOM begins with 128 bytes that are mostly 0.
    return CUT_OFF if not head[:128].strip(b"\0") and head[128:132] != b"DICM" else ""


def _has_header(path: Path) -> bool:
    """Whether the header of a pair lies beside its values."""
    stem = _PAIR.sub("", path.name.lower())
    return any(
        other.name.lower() in (f"{stem}.hdr", f"{stem}.hdr.gz") for other in path.parent.iterdir()
    )
