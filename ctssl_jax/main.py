"""The command: a config file, changes to it, and a run folder.

    python -m ctssl_jax.main --config=spark:demo [--config.FIELD=VALUE] [--workdir=RUN]

A config is one that comes with the package, by name, or a file: `--config=configs/spark.py:demo`.
Loads and validates the config and dispatches on its type. Repeating a command resumes its run.

Several processes make one run with `--coordinator=HOST:PORT --processes=N --process=I`, or by
themselves in a Slurm step and on a TPU slice of GKE.

Exit codes: 0 done; 2 usage or configuration, nothing written; 3 data; 4 diverged; 5 storage;
6 devices: none, a process missing or gone, a run that hangs; 75 pre-empted and 130 interrupted by
Ctrl-C, what was done is saved (repeat the command to go on).
"""

if __name__ == "__main__":
    from ctssl_jax.hosts import signals

    signals.end_at_signals()

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ctssl_jax import command, config_help
from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.hosts import distributed, platform
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.presets import PHANTOM, PHANTOMS


def dispatch(config: object, workdir: Path, supervisor: Supervisor) -> None:
    """Runs what the config's type stands for."""
    # Imported late: a mistyped flag is answered at once, and JAX starts with its flags set.
    from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig

    if not isinstance(config, PretrainConfig | FinetuneConfig | EvaluateConfig):
        raise ConfigError(f"config is a {type(config).__name__}: run it with `launch.sweep`")
    config.validate()
    provide_phantom(config.data.path)
    run(config, workdir, supervisor)


def run(config: Any, workdir: Path, supervisor: Supervisor, store: Any = None) -> None:
    """Makes the run of a valid config; `hang_after_s` counts from its first look at the data.

    `store`, a `FeatureStore`, holds what runs before it have computed.
    """
    from ctssl_jax import evaluate, finetune, pretrain
    from ctssl_jax.config import FinetuneConfig, PretrainConfig

    with supervisor.watch(config.hang_after_s):
        if isinstance(config, PretrainConfig):
            pretrain.run(config, workdir, supervisor)
        elif isinstance(config, FinetuneConfig):
            finetune.run(config, workdir, supervisor)
        else:
            evaluate.run(config, workdir, supervisor, store)


def provide_phantom(path: str) -> None:
    """Makes the embedded phantom where the presets `:demo` and `:smoke` expect it."""
    if path in PHANTOMS:
        distributed.on_first(lambda: prepare_phantom(path))


def prepare_phantom(path: str = PHANTOM) -> None:
    """Makes the embedded phantom if it is not there; does not start JAX."""
    if not Path(path).exists():
        print(f"preparing the embedded CT phantom in {path}", flush=True)
        words = [f"--out={path}", *PHANTOMS[path]]
        # A process of its own: preparation is built on this package, not the other way.
        made = subprocess.run(
            [sys.executable, "-m", "data_prep.phantom", *words], stdout=subprocess.DEVNULL
        )
        if made.returncode:
            raise DataError(
                f"the phantom was not made: try python -m data_prep.phantom {' '.join(words)}"
            )


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if config_help.asked(argv):
        from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig

        defaults = [PretrainConfig(), FinetuneConfig(), EvaluateConfig()]
        return command.run(
            "ctssl_jax", lambda: print(config_help.help_text(argv, __doc__ or "", defaults))
        )
    return command.execute(argv, dispatch)


if __name__ == "__main__":
    platform.use_huge_pages()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command.end(main(sys.argv))
