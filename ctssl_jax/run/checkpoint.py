"""Orbax checkpoints: what a run saves, and how fine-tuning gets its encoder.

A checkpoint has three items: `state` (the whole `TrainState`), `encoder` (its parameters and batch
statistics alone, for fine-tuning and export) and `meta`, JSON, which says where the data goes on.
Orbax commits a step by renaming, so a checkpoint exists whole or not at all. Nothing in it depends
on the number of devices or processes, which may be others when it is restored.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import PyTree, Start, TrainState, abstract_encoder
from ctssl_jax.nn.resnet import ResNet

FOLDER = "checkpoints"
BEST = "best"
FORMAT = 2


class Restored(NamedTuple):
    """What a run goes on from.

    Attributes:
      state: after its last saved step.
      position: of the data, for the batches' `set_state`.
      unfinished: what was due after that step was cut short, and is due still.
    """

    state: TrainState
    position: dict[str, int]
    unfinished: bool


class Checkpoints:
    """The checkpoints of one run folder; all processes call it alike.

    Args:
      run: the run folder.
      method: its name, for `meta`.
      keep: how many of the latest to keep.
    """

    def __init__(self, run: Path, *, method: str = "", keep: int = 2):
        self._method = method
        self._last: int | None = None  # whose save may be under way
        self._manager = _manager(run / FOLDER, keep)

    def latest(self) -> int | None:
        """The last complete step, if any."""
        return self._manager.latest_step()

    def save(self, state: TrainState, unfinished: bool = False) -> None:
        """Starts saving, unless that step is saved already; the state may be reused at once.

        Raises:
          StorageError: this or the save before failed; the last complete checkpoint is kept.
        """
        step = int(state.step)
        if step in (self._last, self.latest()):
            return
        encoder = {
            "params": state.params["encoder"],
            "batch_stats": state.batch_stats["encoder"],
        }
        meta = {
            "format": FORMAT,
            "method": self._method,
            "next_index": step,  # `data.labelled_batches`: one batch a step
            "unfinished": unfinished,
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            encoder=ocp.args.StandardSave(encoder),
            meta=ocp.args.JsonSave(meta),
        )
        with _storage_errors(f"checkpoint of step {step}"):
            self._manager.save(step, args=items)
        self._last = step

    def restore(self, state: TrainState) -> Restored:
        """The latest checkpoint.

        Args:
          state: shapes, dtypes and places (`sharding.abstract`) of the run that asks.

        Raises:
          StorageError: it cannot be read, or is of another run or version.
        """
        step = self.latest()
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            meta=ocp.args.JsonRestore(),
        )
        try:
            found = self._manager.restore(step, args=items)
            # Format 1 kept Grain's own state, which says the same, for one number of processes.
            position = {"next_index": found["meta"].get("next_index", step)}
            return Restored(found["state"], position, found["meta"].get("unfinished", False))
        # Whatever damaged bytes make the readers below say; a run cannot go on from them.
        except Exception as error:
            raise StorageError(
                f"checkpoint of step {step} cannot be restored ({_first_line(error)}): remove the "
                f"folder {FOLDER}/{step} of the run to go on from the one before, or start in "
                "another --workdir"
            ) from None

    def close(self) -> None:
        """Waits for the saves under way; raises `StorageError` where one failed."""
        _close(self._manager, "the last checkpoint")


class BestWeights:
    """The parameters and batch statistics of the best epoch so far, on disk with its score."""

    def __init__(self, run: Path):
        self._manager = _manager(run / BEST, keep=1)

    def read(self) -> dict[str, Any] | None:
        """Epoch and validation metrics of the best, or None."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        return self._manager.restore(epoch, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]

    def save(self, epoch: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Replaces the best, and waits: no later checkpoint of the run may be complete without."""
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights), meta=ocp.args.JsonSave(meta)
        )
        with _storage_errors(f"best weights of epoch {epoch}"):
            self._manager.save(epoch, args=items)
            self._manager.wait_until_finished()

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
        """Waits for the saves under way; raises `StorageError` where one failed."""
        _close(self._manager, "the best weights")


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(keep),
        cleanup_tmp_directories=True,  # what a killed save left behind
    )
    with _storage_errors(folder.name):
        return ocp.CheckpointManager(folder.absolute(), options=options)


def _close(manager: ocp.CheckpointManager, what: str) -> None:
    with _storage_errors(what):
        manager.wait_until_finished()
        manager.close()


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Full disks and the like, as Orbax passes them on from its threads."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        full = "No space left" in str(error)
        reason = "no space left on the device" if full else _first_line(error)
        raise StorageError(
            f"{what} not saved ({reason}); the last complete one is kept: mend it and repeat the "
            "command"
        ) from None


def load_encoder(run: Path, encoder: ResNet, channels: int) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of a run's encoder, from its latest checkpoint, strictly.

    Args:
      run: a pre-training run folder, or that of an imported encoder.
      encoder: the network that they must fit exactly: same tree, same shapes.
      channels: of the network's input.

    Returns:
      `params` and `batch_stats` as NumPy arrays.

    Raises:
      DataError: there is no run or no checkpoint.
      ConfigError: the encoder there is of another shape; names the first difference.
      StorageError: the checkpoint cannot be read.
    """
    params, stats = abstract_encoder(encoder, channels)
    wanted = {"params": params, "batch_stats": stats}
    found = _read_item(_latest(run, FOLDER) / "encoder", wanted, run)
    return found["params"], found["batch_stats"]


def load_best(run: Path, params: PyTree, batch_stats: PyTree) -> tuple[PyTree, PyTree]:
    """The best weights of a fine-tuning run, strictly: encoder and head.

    Args:
      run: its folder.
      params: shapes and dtypes that they must have.
      batch_stats: likewise.

    Raises:
      As `load_encoder`.
    """
    wanted = {"params": params, "batch_stats": batch_stats}
    found = _read_item(_latest(run, BEST) / "weights", wanted, run)
    return found["params"], found["batch_stats"]


def load_start(
    run: Path, encoder: ResNet, channels: int, method: str = "", head: Start | None = None
) -> Start:
    """What a run starts from: the encoder of another, and the head of an import where it fits.

    Args:
      run, encoder, channels: as in `load_encoder`.
      method: the name of the run's method; a head that was imported for another is left.
      head: shapes and dtypes of the method's head, by the key `head`; None asks for none.

    Raises:
      As `load_encoder`.
    """
    params, stats = load_encoder(run, encoder, channels)
    start = Start({"encoder": params}, {"encoder": stats})
    item = _latest(run, FOLDER) / _head_item(method)
    if head is None or not item.exists():
        return start
    wanted = {"params": head.params["head"], "batch_stats": head.batch_stats["head"]}
    found = _read_item(item, wanted, run)
    return Start(
        {**start.params, "head": found["params"]},
        {**start.batch_stats, "head": found["batch_stats"]},
    )


def save_start(run: Path, start: Start, method: str = "") -> None:
    """Writes weights that were not trained here for `load_start`; a head is that of `method`."""
    manager = _manager(run / FOLDER, keep=1)
    items = {
        _head_item(method) if part == "head" else part: ocp.args.StandardSave(
            {"params": start.params[part], "batch_stats": start.batch_stats[part]}
        )
        for part in start.params
    }
    with _storage_errors("the weights"):
        manager.save(0, args=ocp.args.Composite(**items))
    _close(manager, "the weights")


def _head_item(method: str) -> str:
    return f"{method}_head"


def latest_step(run: Path) -> int:
    """The step of the encoder that `load_encoder` reads."""
    return int(_latest(run, FOLDER).name)


def _latest(run: Path, folder: str) -> Path:
    """The last complete checkpoint in a folder of a run."""
    path = (run / folder).absolute()
    if not path.is_dir():
        raise DataError(f"no run at {run}: give the folder of a run that has saved checkpoints")
    with ocp.CheckpointManager(path) as manager:
        step = manager.latest_step()
    if step is None:
        raise DataError(f"no finished checkpoint in {run}: train longer, or give another run")
    return path / str(step)


def _read_item(item: Path, wanted: PyTree, run: Path) -> PyTree:
    """One item of a checkpoint as NumPy arrays, if its tree and shapes are those wanted."""
    try:
        with ocp.StandardCheckpointer() as reader:
            found = reader.metadata(item).item_metadata.tree
            _require_equal_trees(wanted, found, run)
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
            return reader.restore(item, template)
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"weights of {run} cannot be read: {_first_line(error)}") from None


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
                f"the network of {run} has another shape: {name} is {theirs.get(name, 'absent')} "
                f"there and {ours.get(name, 'absent')} in this config; set config.encoder and "
                "config.intensity.channels as that run had them"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
