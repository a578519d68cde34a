"""The encoder that a run starts from: known by its weights, and refused while it is unfinished.

A config's hash says how an encoder was to be made, not what came of it: the same run folder holds
other weights after more steps. So every result has the sum of the weights that it was made from,
and what was made from other weights is not taken for it.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from ctssl_jax.config import Config
from ctssl_jax.errors import ConfigError
from ctssl_jax.run import checkpoint
from ctssl_jax.run import folder as run_folder

FLAG = "--config.accept_unfinished=true"
"""What accepts an unfinished encoder, in a run; other commands name their own flag."""

TRAINED = ("PretrainConfig", "FinetuneConfig")
"""Types of the configs whose runs make an encoder, and say in `STATUS` when they are done."""

Stamp = dict[str, Any]


def require_finished(run: str, accept: bool, flag: str = FLAG) -> Stamp | None:
    """What results say of the encoder of a run: its weights, their step, the run's status.

    Args:
      run: its folder; empty: none.
      accept: take it although the run is not done.
      flag: with which the user accepts that, for the message.

    Returns:
      `weights_sha256`, `step`, `status`, which is `unknown` of an import, and
      `accepted` where the run is not done; None for no run.

    Raises:
      ConfigError: the run is not done, and that is not accepted.
      DataError, StorageError: it has no weights, or they cannot be read.
    """
    if not run:
        return None
    run_folder.method(run)  # raises where there is none
    status = run_folder.read_status(Path(run))
    # An import has none by design; a run that has lost it may have ended anywhere.
    trained = run_folder.read_config(Path(run)).get("type") in TRAINED
    untold = not trained and not (Path(run) / run_folder.STATUS).exists()
    if status != run_folder.DONE and not untold and not accept:
        raise ConfigError(
            f"{run} is not finished (STATUS: {status}): repeat its command until it is; to start "
            f"from its last checkpoint, with every result marked, set {flag}"
        )
    stamp = {run_folder.WEIGHTS: weights_digest(run), "step": checkpoint.latest_step(Path(run))}
    accepted = {} if status == run_folder.DONE or untold else {"accepted": True}
    return {**stamp, "status": status, **accepted}


def require_same_network(config: Config) -> None:
    """Raises `ConfigError` where the run that a config starts from is of another network.

    By what its record says; what that leaves open, the shapes of the weights tell later.
    """
    if not config.encoder_run:
        return
    theirs = run_folder.read_config(Path(config.encoder_run))["config"]
    told = {"encoder": "depth", "intensity": "channels"}
    for part, field in told.items():
        ours, known = getattr(getattr(config, part), field), theirs.get(part, {}).get(field)
        if known not in (None, ours):
            raise ConfigError(
                f"{part}.{field}={ours}, but that of the encoder in {config.encoder_run} is "
                f"{known}: set {part}.{field}={known}"
            )


def weights_digest(run: str) -> str | None:
    """The sum of a run's encoder as last saved, of parameters and statistics; None for no run.

    Raises:
      DataError: there is no run, or no checkpoint.
      StorageError: it cannot be read.
    """
    if not run:
        return None
    step = checkpoint.latest(Path(run))
    return _digest(step, step.stat().st_mtime_ns)


@functools.cache
def _digest(step: Path, changed: int) -> str:
    """`changed` is when the checkpoint was: who asks again after another save gets another."""
    text = json.dumps(checkpoint.encoder_sums(step), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
