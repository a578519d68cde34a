"""Features of slices by a frozen encoder: what they are, and the file that holds them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Features(NamedTuple):
    """Features of a split, or of some of its records, in record order."""

    x: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    patients: Shaped[np.ndarray, " n"]
    records: Int[np.ndarray, " n"]  # row numbers in the split

    def take(self, rows: Int[np.ndarray, " m"]) -> "Features":
        """Those at the given places."""
        return Features(*(part[rows] for part in self))


def save_embeddings(path: Path, **splits: Features) -> None:
    """Writes an NPZ file, whole or not at all, of each split's arrays.

    `SPLIT_features` float32 `[n, d]`; `SPLIT_record` (row number) and `SPLIT_label` int32 `[n]`.
    """
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        arrays[f"{name}_features"] = split.x.astype(np.float32)
        arrays[f"{name}_record"] = split.records.astype(np.int32)
        arrays[f"{name}_label"] = split.labels.astype(np.int32)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.rename(path)
