"""What a dataset folder says of itself, in manifest.json: one reader for all who open one."""

from pathlib import Path
from typing import Any

from ctssl_jax import files
from ctssl_jax.errors import DataError

FORMAT = 1
INTENSITIES = ("hu", "grey8", "grey16")
KEYS = ("name", "intensity", "classes", "splits", "records", "fingerprint")
PREPARE = "prepare one with `python -m data_prep.dicom` (or .folder, ...)"


def read_manifest(dataset: Path) -> dict[str, Any]:
    """The manifest of a dataset folder.

    Raises:
      DataError: no such folder, no manifest, one of another format, or damaged.
    """
    if not dataset.is_dir():
        raise DataError(f"{dataset}: no such dataset; {PREPARE}, or try the preset `:demo`")
    try:
        str(dataset).encode()
    except UnicodeEncodeError:  # the reader of records takes no others
        raise DataError(f"{dataset}: give a path in UTF-8") from None
    file = dataset / "manifest.json"
    if not file.is_file():
        raise DataError(f"{dataset}: not a dataset, it has no manifest.json; {PREPARE}")
    try:
        manifest: dict[str, Any] = files.read_json(file)
        version = manifest.get("format")
    except (OSError, files.Damaged) as error:
        raise DataError(f"{file}: unreadable ({error}); prepare the dataset again") from error
    if version != FORMAT:
        raise DataError(
            f"{file}: format {version!r}, this version of ctssl_jax reads format {FORMAT}; "
            "prepare the dataset again"
        )
    missing = [key for key in KEYS if key not in manifest]
    if missing:
        raise DataError(f"{file}: lacks {', '.join(missing)}; prepare the dataset again")
    if not _is_plausible(manifest):
        raise DataError(f"{file}: damaged, or no manifest; prepare the dataset again")
    if manifest["intensity"] not in INTENSITIES:
        raise DataError(
            f"{file}: intensity {manifest['intensity']!r} is none of {', '.join(INTENSITIES)}"
        )
    return manifest


def _is_plausible(manifest: dict[str, Any]) -> bool:
    """Whether what is read of a manifest has the types that it should have."""
    splits = manifest["splits"]
    return (
        all(isinstance(manifest[key], str) for key in ("name", "records", "fingerprint"))
        and isinstance(manifest["classes"], list)
        and all(isinstance(name, str) for name in manifest["classes"])
        and isinstance(splits, dict)
        and all(isinstance(split, dict) for split in splits.values())
        and all(type(split.get("slices")) is int for split in splits.values())
        and all(isinstance(split.get("labels", []), list) for split in splits.values())
    )
