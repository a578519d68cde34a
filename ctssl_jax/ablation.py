"""The grid of the study: every initialisation at every training-set size, with several seeds."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from ctssl_jax.config import EvaluateConfig, FinetuneConfig
from ctssl_jax.dataset.splits import fold_names
from ctssl_jax.errors import ConfigError
from ctssl_jax.run import folder as run_folder

SCRATCH = "scratch"
RANDOM = "random"  # the arm of frozen features that goes with it
EVALUATE = "configs/evaluate.py"


class Cell(NamedTuple):
    """One run of the grid.

    Attributes:
      name: of its folder.
      config: of the run.
      file: `--config` of the ordinary command, whose config is this one but for some fields.
      size: fraction, or count, of training images or patients.
    """

    name: str
    config: FinetuneConfig | EvaluateConfig
    file: str
    size: float


@dataclasses.dataclass
class AblationConfig:
    """The grid.

    Attributes:
      base: the labelled run that all cells vary.
      base_config: the file of `configs/`, with :PRESET if wanted, that `base` is of.
      encoders: run folders of pre-trainings, or imports, each an arm: RUN, whose arm is the run's
        method, or ARM=RUN.
      scratch: an arm without pre-training.
      frozen: beside each fine-tuning, kNN and a linear probe on the arm's frozen features; in place
        of scratch a random encoder.
      fractions: of the training split.
      counts: numbers of training images or patients (`base.subset_by`), in place of `fractions`.
      seeds: of head, order and augmentation; all arms of a seed share them.
      subset_per_seed: each seed also draws another subset; False: all have that of
        `base.subset_seed`, as in the paper's code.
      folds: of a cross-validation, for a dataset prepared with as many; each run becomes so many,
        of which each tests another fold. 0: the splits of `base`.
    """

    base: FinetuneConfig
    base_config: str
    encoders: tuple[str, ...] = ()
    scratch: bool = True
    frozen: bool = False
    fractions: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)
    counts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    subset_per_seed: bool = True
    folds: int = 0

    def validate(self) -> None:
        """Raises `UserError` for an axis or arm that will not do, or where a cell is wrong."""
        for name in ("counts", "seeds") if self.counts else ("fractions", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name}={values}: give one or more different values")
        if min(self.counts, default=1) < 1:
            raise ConfigError(f"counts={self.counts}: each must be 1 or more")
        for cell in self.cells():
            cell.config.validate()

    def arms(self) -> dict[str, str]:
        """Each arm's encoder run, empty for scratch.

        Raises:
          ConfigError: there is none, or two have one name.
          DataError: there is no such run.
        """
        arms = {SCRATCH: ""} if self.scratch else {}
        for entry in self.encoders:
            arm, run = _split(entry)
            method = run_folder.method(run)
            arm = arm or method
            if arm in arms or arm in (SCRATCH, RANDOM):
                raise ConfigError(f"encoders: two arms are {arm}: name them, as in NAME={run}")
            arms[arm] = run
        if not arms:
            raise ConfigError("no arm: give encoders, or scratch=true")
        return arms

    def cells(self) -> Iterator[Cell]:
        """The runs, by growing size, so that every arm has a curve early; raises as `arms`."""
        sizes = [(1.0, count, f"n{count}") for count in sorted(self.counts)] or [
            (fraction, 0, f"{fraction:g}") for fraction in sorted(self.fractions)
        ]
        bases = self._bases()
        for size, seed, (fold, base), (arm, run) in itertools.product(
            sizes, self.seeds, bases.items(), self.arms().items()
        ):
            fraction, count, words = size
            config = dataclasses.replace(
                base,
                encoder_run=run,
                arm=arm,
                seed=seed,
                subset_seed=seed if self.subset_per_seed else self.base.subset_seed,
                fraction=fraction,
                count=count,
            )
            words = f"{words}-seed{seed}{fold}"
            name = f"{config.task}-{arm}-{words}"
            yield Cell(name, config, self.base_config, count or fraction)
            if self.frozen:
                frozen = _frozen(config, arm if run else RANDOM)
                name = f"{config.task}-{frozen.arm}-frozen-{words}"
                yield Cell(name, frozen, EVALUATE, count or fraction)

    def _bases(self) -> dict[str, FinetuneConfig]:
        """What the runs vary, by what is added to their names: `base`, or one for each fold.

        That fold is tested, the next one validated on, the others are trained on.
        """
        if not self.folds:
            return {"": self.base}
        names, bases = fold_names(self.folds, "folds"), {}
        for number, test in enumerate(names):
            val = names[(number + 1) % self.folds]
            train = "+".join(name for name in names if name not in (test, val))
            data = dataclasses.replace(self.base.data, split=train)
            bases[f"-{test}"] = dataclasses.replace(
                self.base, data=data, val_split=val, test_split=test
            )
        return bases


def _split(entry: str) -> tuple[str, str]:
    """Arm, perhaps empty, and run of an entry of `encoders`."""
    arm, equals, run = entry.partition("=")
    return (arm, run) if equals and "/" not in arm else ("", entry)


def _frozen(config: FinetuneConfig, arm: str) -> EvaluateConfig:
    """Frozen features of the same encoder on the same slices."""
    same = {
        *("task", "encoder_run", "seed", "subset_seed", "subset_by", "fraction", "count", "data"),
        *("val_split", "test_split", "intensity", "encoder", "select_by", "precision"),
    }
    shared = {name: getattr(config, name) for name in same}
    return EvaluateConfig(**shared | {"arm": arm, "size": config.method.view.size})
