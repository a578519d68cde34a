"""An ablation: one task, several training-set sizes and seeds, from scratch and pre-trained.

    python -m launch.sweep --config=configs/ablation.py:covid_ct \
        --config.encoder_run=RUN --workdir=runs/covid_ct

Several methods share the runs from scratch when they share a workdir: repeat the command with each
method's run.

Runs the grid one after the other in this process, each cell in its own run folder; finished cells
are kept, so repeating the command goes on. `--config.base.FIELD=VALUE` changes the task's config.
"""

import sys
import time
from pathlib import Path

from ctssl_jax import distributed, main, run_folder
from ctssl_jax.config import AblationConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.metrics import duration
from ctssl_jax.supervisor import Supervisor


def run(config: object, workdir: Path, supervisor: Supervisor) -> None:
    """Runs all cells that are not done."""
    from ctssl_jax import finetune

    if not isinstance(config, AblationConfig):
        raise ConfigError(f"config is a {type(config).__name__}: give configs/ablation.py")
    if config.encoder_run and not config.pretrained_arm:
        config.pretrained_arm = run_folder.method(config.encoder_run)
    config.validate()
    main.provide_phantom(config.base.data.path)
    cells, began = list(config.cells()), time.monotonic()
    for number, (name, cell) in enumerate(cells, start=1):
        distributed.say(f"[{number}/{len(cells)}] {name}")
        finetune.run(cell, workdir / name, supervisor)
        left = (time.monotonic() - began) / number * (len(cells) - number)
        distributed.say(f"[{number}/{len(cells)}] done, about {duration(left)} left")


def command(argv: list[str]) -> int:
    """The command; returns its exit code."""
    return main.execute(argv, run, "launch.sweep")


if __name__ == "__main__":
    main.end(command(sys.argv))
