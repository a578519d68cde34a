"""Orbax checkpoints: what a run saves, and how fine-tuning gets its encoder.

A checkpoint has four items: `state` (the whole `TrainState`), `encoder` (its parameters and batch
statistics alone, for fine-tuning and export), `data` (the Grain iterator) and `meta` (JSON). Orbax
commits a step by renaming, so a checkpoint exists whole or not at all.
"""

import json
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from ctssl_jax import sharding
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.methods.base import PyTree, TrainState, init_encoder
from ctssl_jax.nn.resnet import ResNet

FOLDER = "checkpoints"
FORMAT = 1


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      run: the run folder.
      keep: how many of the latest to keep.
    """

    def __init__(self, run: Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=True,  # what a killed save left behind
        )
        self._manager = ocp.CheckpointManager((run / FOLDER).absolute(), options=options)

    def latest(self) -> int | None:
        """The last complete step, if any."""
        return self._manager.latest_step()

    def save(self, state: TrainState, batches: grain.DatasetIterator, meta: dict[str, Any]) -> None:
        """Starts saving; the state may be reused at once."""
        encoder = {
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats["encoder"],
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            encoder=ocp.args.StandardSave(encoder),
            data=grain.checkpoint.CheckpointSave(batches),
            meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
        )
        try:
            self._manager.save(int(state.step), args=items)
        except (OSError, ValueError) as error:
            raise StorageError(f"checkpoint of step {int(state.step)} not saved: {error}") from None

    def restore(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """The latest checkpoint; `batches` is set to go on after it.

        Args:
          state: shapes, dtypes and places (`sharding.abstract`) of the run that asks.
          batches: the run's iterator, moved in place.

        Raises:
          StorageError: it cannot be read, or is of another run.
        """
        step = self.latest()
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            data=grain.checkpoint.CheckpointRestore(batches),
        )
        try:
            return self._manager.restore(step, args=items)["state"]
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
            raise StorageError(
                f"checkpoint of step {step} cannot be restored ({_first_line(error)}): remove it "
                "to go on from the one before, or start in another --workdir"
            ) from None

    def close(self) -> None:
        """Waits for the saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


class BestWeights:
    """The parameters and batch statistics of the best epoch so far, on disk with its score."""

    def __init__(self, run: Path):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(1), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager((run / "best").absolute(), options=options)

    def read(self) -> dict[str, Any] | None:
        """Epoch and validation metrics of the best, or None."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        return self._manager.restore(epoch, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]

    def save(self, epoch: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Replaces the best."""
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(weights), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(self, state: TrainState, mesh: Mesh) -> TrainState:
        """`state` with the best parameters and batch statistics."""
        template = {"params": state.params, "batch_stats": state.batch_stats}
        places = jax.tree.map(lambda _: sharding.replicated(mesh), template)
        items = ocp.args.Composite(
            weights=ocp.args.StandardRestore(sharding.abstract(template, places))
        )
        weights = self._manager.restore(self._manager.latest_step(), args=items)["weights"]
        return state.replace(**weights)

    def close(self) -> None:
        """Waits for the saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_encoder(run: Path, encoder: ResNet, channels: int) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of a run's encoder, from its latest checkpoint, strictly.

    Args:
      run: a pre-training run folder.
      encoder: the network that they must fit exactly: same tree, same shapes.
      channels: of the network's input.

    Returns:
      `params` and `batch_stats` as NumPy arrays.

    Raises:
      DataError: there is no run or no checkpoint.
      ConfigError: the encoder there is of another shape; names the first difference.
      StorageError: the checkpoint cannot be read.
    """
    folder = (run / FOLDER).absolute()
    if not folder.is_dir():
        raise DataError(f"no run at {run}: config.encoder_run takes a pre-training run folder")
    with ocp.CheckpointManager(folder) as manager:
        step = manager.latest_step()
    if step is None:
        raise DataError(f"no finished checkpoint in {run}: pre-train longer, or give another run")

    params, stats = jax.eval_shape(
        lambda key: init_encoder(encoder, key, 32, channels), jax.random.key(0)
    )
    wanted = {"params": params, "batch_stats": stats}
    item = folder / str(step) / "encoder"
    try:
        with ocp.StandardCheckpointer() as reader:
            found = reader.metadata(item).item_metadata.tree
            _require_equal_trees(wanted, found, run)
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
            restored = reader.restore(item, template)
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"encoder of {run} cannot be read: {_first_line(error)}") from None
    return restored["params"], restored["batch_stats"]


def _require_equal_trees(wanted: PyTree, found: PyTree, run: Path) -> None:
    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {
            "/".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
            for path, leaf in leaves
        }

    ours, theirs = shapes(wanted), shapes(found)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"the encoder of {run} has another shape: {name} is {theirs.get(name, 'absent')} "
                f"there and {ours.get(name, 'absent')} in this config; set config.encoder and "
                "config.intensity.channels as that run had them"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
