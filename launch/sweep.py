"""An ablation: one task, several training-set sizes and seeds, from scratch and pre-trained.

    python -m launch.sweep --config=configs/ablation.py:covid_ct \
        --config.encoder_run=RUN --workdir=runs/covid_ct

Runs the grid one after the other in this process, each cell in its own run folder; finished cells
are kept, so repeating the command goes on. `--config.base.FIELD=VALUE` changes the task's config.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ctssl_jax import main, platform
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.errors import ConfigError, UserError
from ctssl_jax.metrics import duration


@dataclasses.dataclass
class AblationConfig:
    """The grid.

    Attributes:
      base: the labelled run that all cells vary.
      encoder_run: run folder of the pre-training; empty leaves the scratch arm alone.
      pretrained_arm: its name in the report.
      fractions: of the training split.
      seeds: each draws another subset and another head, order and augmentation; both arms of a
        seed share them.
    """

    base: FinetuneConfig
    encoder_run: str = ""
    pretrained_arm: str = "spark"
    fractions: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def validate(self) -> None:
        """Raises `ConfigError` for an empty or repeated axis, or where a cell is wrong."""
        for name in ("fractions", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name}={values}: give one or more different values")
        for _, config in self.cells():
            config.validate()

    def cells(self) -> Iterator[tuple[str, FinetuneConfig]]:
        """Name and config of each run; the largest training sets last, so that curves grow."""
        arms = [("scratch", "")]
        if self.encoder_run:
            arms.append((self.pretrained_arm, self.encoder_run))
        for fraction, seed, (arm, encoder_run) in itertools.product(
            sorted(self.fractions), self.seeds, arms
        ):
            config = dataclasses.replace(
                self.base,
                method=dataclasses.replace(self.base.method),
                encoder_run=encoder_run,
                arm=arm,
                fraction=fraction,
                seed=seed,
                subset_seed=seed,
            )
            yield f"{config.task}-{arm}-{fraction:g}-seed{seed}", config


def run(config: AblationConfig, workdir: Path) -> None:
    """Runs all cells that are not done."""
    from ctssl_jax import finetune

    cells, began = list(config.cells()), time.monotonic()
    for number, (name, cell) in enumerate(cells, start=1):
        print(f"[{number}/{len(cells)}] {name}", flush=True)
        finetune.run(cell, workdir / name)
        left = (time.monotonic() - began) / number * (len(cells) - number)
        print(f"[{number}/{len(cells)}] done, about {duration(left)} left", flush=True)


def command(argv: list[str]) -> int:
    """The command; returns its exit code."""
    platform.set_cpu_flags()
    try:
        config, workdir = main.parse(argv)
        if not isinstance(config, AblationConfig):
            raise ConfigError(f"config is a {type(config).__name__}: give configs/ablation.py")
        config.validate()
        main.provide_phantom(config.base.data.path)
        platform.enable_compilation_cache()
        run(config, workdir)
    except UserError as error:
        print(f"launch.sweep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("launch.sweep: interrupted; repeat the command to go on", file=sys.stderr)
        return main.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv))
