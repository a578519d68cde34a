"""What a run has saved, read back without knowing its tree."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp


def state(run: Path, step: int):
    """Every array of a checkpoint's state, by name."""
    item = (run / "checkpoints" / str(step) / "state").absolute()
    with ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(item).item_metadata.tree
        as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
        return reader.restore(item, restore_args=as_numpy)
