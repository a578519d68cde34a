"""Pre-training on part of a split: reads what `data_prep.duplicates` kept of it."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ctssl_jax.data import DataConfig, Dataset
from ctssl_jax.errors import DataError
from ctssl_jax.files import read_bytes

FORMAT = 1


class Kept(NamedTuple):
    """The rows of a split that a run uses, and what `data.json` says of them.

    `rows` and `summary` are None where no filter is set: the whole split.
    """

    rows: Int[np.ndarray, " m"] | None
    slices: int
    summary: dict[str, Any] | None

    def in_words(self) -> str:
        """For the log."""
        if self.summary is None:
            return f"{self.slices:,} slices"
        method, total = self.summary["method"], self.summary["slices"]
        return f"{self.slices:,} of {total:,} slices (filter: {method})"


def read_filter(config: DataConfig, dataset: Dataset) -> Kept:
    """The rows of `config.split` that `config.filter` keeps.

    Raises:
      DataError: the file is missing or no filter, or of another dataset or split.
    """
    slices = len(dataset.source(config.split))
    if not config.filter:
        return Kept(None, slices, None)
    make = f"make one with `python -m data_prep.duplicates --data={dataset.path}`"
    try:
        content = read_bytes(Path(config.filter))
        known = json.loads(content)
        rows = np.array(known["rows"], np.int64)
        names = ("format", "fingerprint", "split", "slices", "method", "parameters", "volumes")
        version, fingerprint, split, of, method, parameters, volumes = (known[n] for n in names)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"data.filter: cannot be read as a filter; {make}") from error
    if version != FORMAT:
        raise DataError(f"data.filter: format {version!r}, expected {FORMAT}; {make}")
    if fingerprint != dataset.fingerprint:
        raise DataError(f"data.filter: was made for other data than {dataset.name}; {make}")
    if split != config.split:
        raise DataError(f"data.filter: is of split {split!r}, not {config.split!r}; {make}")
    ascending = rows.ndim == 1 and len(rows) and (np.diff(rows) > 0).all()
    if of != slices or not ascending or rows[0] < 0 or rows[-1] >= slices:
        raise DataError(f"data.filter: keeps rows that are not in the split; {make}")
    summary = {
        "method": method,
        "parameters": parameters,
        "slices": slices,
        "kept": len(rows),
        "volumes": volumes,
        "hash": hashlib.sha256(content).hexdigest()[:16],
    }
    return Kept(rows, len(rows), summary)
