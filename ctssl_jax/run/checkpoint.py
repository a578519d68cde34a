"""Orbax checkpoints: what a run saves, and how fine-tuning gets its encoder.

A checkpoint has three items: `state` (the whole `TrainState`), `encoder` (its parameters and batch
statistics alone, for fine-tuning and export) and `meta`, JSON, which says where the data goes on.
Orbax commits a step by renaming, so a checkpoint exists whole or not at all. Nothing in it depends
on the number of devices or processes, which may be others when it is restored. `meta` also holds
the sum of every array (`digests`), which is compared whenever one is read.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ctssl_jax import files
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import PyTree, Start, TrainState, abstract_encoder
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.run import digests, storage
from ctssl_jax.run.storage import META, MetaSave, first_line, storage_errors

FOLDER = "checkpoints"
BEST = "best"
FORMAT = 3
DIGESTS = "digests"
BEST_META = {"epoch", "step", "auc", "accuracy", "f1"}


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
        self._folder = run / FOLDER
        self._manager = storage.manager(self._folder, keep)

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
        sums = digests.later(state)
        meta = {
            "format": FORMAT,
            "method": self._method,
            "next_index": step,  # `data.labelled_batches`: one batch a step
            "unfinished": unfinished,
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            encoder=ocp.args.StandardSave(encoder),
            meta=MetaSave(lambda: meta | {DIGESTS: sums()}),
        )
        with storage_errors(f"checkpoint of step {step}"):
            self._manager.save(step, args=items)
        self._last = step

    def restore(self, state: TrainState) -> Restored:
        """The latest checkpoint.

        Args:
          state: shapes, dtypes and places (`sharding.abstract`) of the run that asks.

        Raises:
          StorageError: it cannot be read, is damaged, or is of another run or version.
        """
        step = self._manager.latest_step()
        assert step is not None, "whoever asks has looked"
        items = ocp.args.Composite(state=ocp.args.StandardRestore(state))
        try:
            files.require_ordinary_files(self._folder / str(step))
            meta = storage.read_meta(self._folder / str(step))
            if not meta:  # each version has written one
                raise files.Damaged(f"{META} is missing or empty")
            found = self._manager.restore(step, args=items)["state"]
            _require_sums(found, meta)
            # Format 1 kept Grain's own state, which says the same, for one number of processes.
            position = {"next_index": meta.get("next_index", step)}
            return Restored(found, position, meta.get("unfinished", False))
        # Whatever damaged bytes make the readers below say; a run cannot go on from them.
        except Exception as error:
            raise StorageError(
                f"checkpoint of step {step} cannot be restored ({first_line(error)}): remove the "
                f"folder {FOLDER}/{step} of the run to go on from the one before, or start in "
                "another --workdir"
            ) from None

    def close(self) -> None:
        """Waits for the saves under way; raises `StorageError` where one failed."""
        storage.close(self._manager, "the last checkpoint")


class BestWeights:
    """The parameters and batch statistics of the best epoch so far, on disk with its score."""

    def __init__(self, run: Path):
        self._run = run
        self._manager = storage.manager(run / BEST, keep=1)

    def read(self) -> dict[str, Any] | None:
        """Epoch, step and validation metrics of the best, or None; `StorageError` where damaged."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        meta = _read_meta(self._run / BEST / str(epoch), self._run)
        if BEST_META - meta.keys():
            raise self._lost(f"{BEST}/{epoch}/{META}")
        return meta

    def require(self, validated: bool) -> None:
        """Raises `StorageError` where a run has validated and the best that it found is gone."""
        if validated and self.read() is None:
            raise self._lost(BEST)

    def _lost(self, what: str) -> StorageError:
        return StorageError(
            f"{self._run}: {what} is missing or damaged, without which the run cannot be finished "
            "as it would have been: restore it, or delete the run folder and repeat the command"
        )

    def save(self, epoch: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Replaces the best, and waits: no later checkpoint of the run may be complete without."""
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        sums = digests.later(weights)
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            meta=MetaSave(lambda: meta | {DIGESTS: sums()}),
        )
        with storage_errors(f"best weights of epoch {epoch}"):
            self._manager.save(epoch, args=items)
            self._manager.wait_until_finished()

    def restore(self, state: TrainState, mesh: Mesh) -> TrainState:
        """`state` with the best parameters and batch statistics.

        Raises:
          StorageError: they cannot be read, or are damaged.
        """
        template = {"params": state.params, "batch_stats": state.batch_stats}
        places = jax.tree.map(lambda _: sharding.replicated(mesh), template)
        items = ocp.args.Composite(
            weights=ocp.args.StandardRestore(sharding.abstract(template, places))
        )
        step = self._run / BEST / str(self._manager.latest_step())
        meta = _read_meta(step, self._run)
        # Whatever damaged bytes make the readers below say.
        try:
            files.require_ordinary_files(step)
            weights = self._manager.restore(int(step.name), args=items)["weights"]
            _require_sums(weights, meta)
        except Exception as error:
            raise _unreadable(self._run, error) from None
        return state.replace(**weights)

    def close(self) -> None:
        """Waits for the saves under way; raises `StorageError` where one failed."""
        storage.close(self._manager, "the best weights")


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
    found = _read_item(latest(run) / "encoder", wanted, run, "encoder")
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
    found = _read_item(latest(run, BEST) / "weights", wanted, run)
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
    item = latest(run) / _head_item(method)
    if head is None or not item.exists():
        return start
    wanted = {"params": head.params["head"], "batch_stats": head.batch_stats["head"]}
    found = _read_item(item, wanted, run, "head")
    return Start(
        {**start.params, "head": found["params"]},
        {**start.batch_stats, "head": found["batch_stats"]},
    )


def save_start(run: Path, start: Start, method: str = "") -> None:
    """Writes weights that were not trained here for `load_start`; a head is that of `method`."""
    manager = storage.manager(run / FOLDER, keep=1)
    sums = digests.later({"params": start.params, "batch_stats": start.batch_stats})
    items: dict[str, Any] = {
        _head_item(method) if part == "head" else part: ocp.args.StandardSave(
            {"params": start.params[part], "batch_stats": start.batch_stats[part]}
        )
        for part in start.params
    }
    items[META] = MetaSave(lambda: {"format": FORMAT, DIGESTS: sums()})
    with storage_errors("the weights"):
        manager.save(0, args=ocp.args.Composite(**items))
    storage.close(manager, "the weights")


def _head_item(method: str) -> str:
    return f"{method}_head"


def encoder_sums(step: Path) -> dict[str, str]:
    """The sums of the arrays of a checkpoint's encoder, by their names in a state.

    An older checkpoint has none: then its arrays are read.

    Raises:
      StorageError: it cannot be read.
    """
    run = step.parent.parent
    sums = _read_meta(step, run).get(DIGESTS)
    if sums is None:
        try:
            files.require_ordinary_files(step / "encoder")
            with ocp.StandardCheckpointer() as reader:
                there = reader.metadata(step / "encoder").item_metadata.tree
                empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), there)
                found = reader.restore(step / "encoder", empty)
        # Whatever damaged bytes make the readers below say.
        except Exception as error:
            raise _unreadable(run, error) from None
        sums = digests.later({part: {"encoder": found[part]} for part in found})()
    return {name: value for name, value in sums.items() if name.split("/")[1:2] == ["encoder"]}


def latest_step(run: Path) -> int:
    """The step of the encoder that `load_encoder` reads."""
    return int(latest(run).name)


def latest(run: Path, folder: str = FOLDER) -> Path:
    """The last complete checkpoint in a folder of a run.

    Raises:
      DataError: there is no run or no checkpoint.
      StorageError: the folder cannot be read.
    """
    path = (run / folder).absolute()
    if not path.is_dir():
        raise DataError(f"no run at {run}: give the folder of a run that has saved checkpoints")
    try:
        with ocp.CheckpointManager(path) as manager:
            step = manager.latest_step()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(run, error) from None
    if step is None:
        raise DataError(f"no finished checkpoint in {run}: train longer, or give another run")
    return path / str(step)


def _read_item(item: Path, wanted: PyTree, run: Path, part: str = "") -> PyTree:
    """One item of a checkpoint as NumPy arrays, if its tree, shapes and sums are those wanted.

    `part` is which of a state's parts it is, where it holds one alone.
    """
    meta = _read_meta(item.parent, run)
    # Whatever damaged bytes make the readers below say.
    try:
        files.require_ordinary_files(item)
        with ocp.StandardCheckpointer() as reader:
            there = reader.metadata(item).item_metadata.tree
            _require_equal_trees(wanted, there, run)
            template = jax.tree.map(
                lambda leaf, stored: np.empty(leaf.shape, stored.dtype), wanted, there
            )
            found = reader.restore(item, template)
        _require_sums({key: _nested(found[key], part) for key in found}, meta)
    except ConfigError:
        raise
    except Exception as error:
        raise _unreadable(run, error) from None
    return jax.tree.map(lambda array, leaf: array.astype(leaf.dtype, copy=False), found, wanted)


def _nested(tree: PyTree, part: str) -> PyTree:
    return {part: tree} if part else tree


def _require_sums(found: PyTree, meta: dict[str, Any]) -> None:
    """Raises `files.Damaged` for an array that is not the one saved; older ones have no sums."""
    sums = meta.get(DIGESTS)
    if sums is None and meta.get("format", 0) < FORMAT:
        return
    if name := digests.first_damaged(found, sums or {}):
        raise files.Damaged(f"{name} is not what was saved: a damaged file")


def _read_meta(step: Path, run: Path) -> dict[str, Any]:
    try:
        return storage.read_meta(step)
    except (OSError, files.Damaged) as error:
        raise _unreadable(run, error) from None


def _unreadable(run: Path, error: Exception) -> StorageError:
    return StorageError(
        f"weights of {run} cannot be read ({first_line(error)}): restore them, or make them anew "
        "in another --workdir"
    )


def _require_equal_trees(wanted: PyTree, found: PyTree, run: Path) -> None:
    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        return {name: tuple(leaf.shape) for name, leaf in digests.named(tree).items()}

    ours, theirs = shapes(wanted), shapes(found)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"the network of {run} has another shape: {name} is {theirs.get(name, 'absent')} "
                f"there and {ours.get(name, 'absent')} in this config; set config.encoder and "
                "config.intensity.channels as that run had them"
            )
