"""How checkpoints lie on disk: Orbax's manager, what we add to it, and its errors in our words.

Two things are added. `meta` may hold what is known only once a save is under way (`MetaSave`). And
no path gets into a checkpoint: Orbax notes in each folder where it lies, which may name a patient.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.path import atomicity

from ctssl_jax import files
from ctssl_jax.errors import StorageError

META = "meta"
_META_FILE = "metadata"  # as Orbax's JSON handler has it
_COMMITTED = "commit_success.txt"  # Orbax asks whether it is there, not what it says
_COMMITTED_TEXT = "complete\n"


class _MetaHandler(ocp.JsonCheckpointHandler):
    """Writes what a function returns, which is called in the background."""

    async def async_save(
        self, directory: Any, item: Any = None, args: Any = None
    ) -> list[ocp.future.Future]:
        return [
            ocp.future.CommitFutureAwaitingContractedSignals(
                self._write(args.content, directory), name="meta"
            )
        ]

    async def _write(self, content: Callable[[], dict[str, Any]], directory: Any) -> None:
        if jax.process_index() == 0:
            (directory / _META_FILE).write_text(json.dumps(files.sealed(content())))


@ocp.args.register_with_handler(_MetaHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class MetaSave(ocp.args.CheckpointArgs):
    """Saves the JSON object that `content` returns, sealed; `content` may take its time."""

    content: Callable[[], dict[str, Any]]


class _NamelessPath(atomicity.AtomicRenameTemporaryPath):
    """Commits a folder as Orbax does, and leaves no path in it."""

    async def finalize(self) -> None:
        await super().finalize()
        committed = Path(self.get_final()) / _COMMITTED
        await asyncio.to_thread(files.write_text, committed, _COMMITTED_TEXT)


def manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    """Of the checkpoints in a folder, which is made; clears what a killed save left behind.

    Raises:
      StorageError: the folder cannot be read or written.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.LatestN(keep),
        cleanup_tmp_directories=True,
        temporary_path_class=_NamelessPath,
    )
    with storage_errors(folder.name):
        found = ocp.CheckpointManager(folder.absolute(), options=options)
        if jax.process_index() == 0:
            _forget_paths(folder)
    return found


def _forget_paths(folder: Path) -> None:
    """Where a kill came between a commit and `_NamelessPath`, or an older version saved."""
    steps = [step for step in folder.iterdir() if step.name.isdecimal()]
    for committed in (file for step in steps for file in step.rglob(_COMMITTED)):
        if files.read_bytes(committed) != _COMMITTED_TEXT.encode():
            files.write_text(committed, _COMMITTED_TEXT)


def close(manager: ocp.CheckpointManager, what: str) -> None:
    """Waits for the saves under way; raises `StorageError` where one failed."""
    with storage_errors(what):
        manager.wait_until_finished()
        manager.close()


def read_meta(step: Path) -> dict[str, Any]:
    """What `MetaSave` wrote, or an older version; nothing where there is none, as of old imports.

    Raises:
      OSError, files.Damaged: it cannot be read.
    """
    file = step / META / _META_FILE
    return files.read_json(file) if file.exists() else {}


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Full disks and the like, as Orbax passes them on from its threads."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        full = "No space left" in str(error)
        reason = "no space left on the device" if full else first_line(error)
        raise StorageError(
            f"{what} not saved ({reason}); the last complete one is kept: mend it and repeat the "
            "command"
        ) from None


def first_line(error: Exception) -> str:
    """Of what an error says; its kind where it says nothing."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
