"""The grid of the study: every initialisation at every training-set size, with several seeds."""

import copy
import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ctssl_jax.config import EvaluateConfig, FeatureKind, FinetuneConfig
from ctssl_jax.config_record import first_difference
from ctssl_jax.config_values import NAME, require_usable
from ctssl_jax.dataset.splits import fold_names
from ctssl_jax.errors import ConfigError
from ctssl_jax.run import folder as run_folder

MOST_FOLDS = 100
SIX = ", in six digits, by which cells are named"
SCRATCH = "scratch"
RANDOM = "random"  # the arm of frozen features that goes with it
RADIOMICS = FeatureKind.RADIOMICS.value
FEW = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # C of a tenth as many features, which need less of a penalty
EVALUATE = "evaluate"
TUNING = "tuning"  # folder of the cells that try learning rates
# Fields of `base` that the grid sets itself, and what a sweep is given in their place.
SET = {
    "encoder_run": "encoders",
    "arm": "encoders, as ARM=RUN",
    "seed": "seeds",
    "fraction": "fractions",
    "count": "counts",
    "tuned_lrs": "lrs",
    "tuned_seeds": "tuning_seeds",
}
SET_FOR_FOLDS = ("data.split", "val_split", "test_split")


class Cell(NamedTuple):
    """One run of the grid.

    Attributes:
      name: of its folder.
      config: of the run.
      file: `--config` of the ordinary command, whose config is this one but for some fields.
      size: fraction, or count, of training images or patients.
      tuning: names of the cells that try a learning rate, by rate: this cell takes the best.
      tries: whether it tries a learning rate itself, and reads no test.
      otherwise: its name if its encoder were alone in its arm, where it is not, or were not, where
        it is; empty where it has none or takes turns with others.
    """

    name: str
    config: FinetuneConfig | EvaluateConfig
    file: str
    size: float
    tuning: Mapping[float, tuple[str, ...]] = MappingProxyType({})
    tries: bool = False
    otherwise: str = ""


@dataclasses.dataclass
class AblationConfig:
    """The grid.

    Attributes:
      base: the labelled run that all cells vary.
      base_config: the config, by name or file, with :PRESET if wanted, that `base` is of.
      encoders: run folders of pre-trainings, or imports: RUN, whose arm is the run's method, or
        ARM=RUN. Several runs of one arm are its pre-trainings, which differ by their seed alone.
      scratch: an arm without pre-training.
      finetuned: False: no fine-tuning, so that `frozen` or `radiomics` stands alone.
      frozen: beside each fine-tuning, kNN and a linear probe on the arm's frozen features; in place
        of scratch a random encoder.
      radiomics: an arm of its own, of first-order and texture features without any network, with
        the same two classifiers.
      fractions: of the training split.
      counts: numbers of training images or patients (`base.subset_by`), in place of `fractions`.
      seeds: of head, order and augmentation; all arms of a seed share them.
      subset_per_seed: each seed also draws another subset; False: all have that of
        `base.subset_seed`, as in the paper's code.
      lrs: learning rates to choose from, for each arm, size and fold by itself, by the mean
        validation score over `tuning_seeds`; their runs come first and read no test. Empty: that of
        `base`.
      tuning_seeds: none of `seeds`. The runs of an arm take its encoders in turn.
      folds: of a cross-validation, for a dataset prepared with as many; each run becomes so many,
        of which each tests another fold. 0: the splits of `base`.
    """

    base: FinetuneConfig
    base_config: str
    encoders: tuple[str, ...] = ()
    scratch: bool = True
    finetuned: bool = True
    frozen: bool = False
    radiomics: bool = False
    fractions: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)
    counts: tuple[int, ...] = dataclasses.field(default=(), metadata={"replaces": "fractions"})
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    subset_per_seed: bool = True
    lrs: tuple[float, ...] = ()
    tuning_seeds: tuple[int, ...] = ()
    folds: int = 0

    def __post_init__(self) -> None:
        """Notes `base` as its own config has it, by which `validate` knows what was changed."""
        self._unchanged = copy.deepcopy(self.base)

    def validate(self) -> None:
        """Raises `UserError` for an axis or arm that will not do, or where a cell is wrong."""
        require_usable(self)
        if self.folds > MOST_FOLDS:
            raise ConfigError(f"folds={self.folds}: must be at most {MOST_FOLDS}")
        for name in ("counts", "seeds") if self.counts else ("fractions", "seeds"):
            values = getattr(self, name)
            if not values or _shared_name(values):
                raise ConfigError(f"{name}={values}: give one or more different values{SIX}")
        if min(self.counts, default=1) < 1:
            raise ConfigError(f"counts={self.counts}: each must be 1 or more")
        if not (self.finetuned or self.frozen or self.radiomics):
            raise ConfigError("finetuned, frozen and radiomics are all false: give one of them")
        if self.encoders and not (self.finetuned or self.frozen):
            raise ConfigError(
                f"encoders={self.encoders} and radiomics alone, which has none: leave them out, or "
                "give finetuned=true or frozen=true"
            )
        self._validate_tuning()
        self._validate_base()
        names = set[str]()
        for cell in self.cells():
            cell.config.validate()
            if cell.name in names:
                raise ConfigError(
                    f"two cells are named {cell.name}: name the arms otherwise, by encoders as in "
                    "NAME=RUN"
                )
            names.add(cell.name)

    def _validate_tuning(self) -> None:
        if bool(self.lrs) != bool(self.tuning_seeds):
            raise ConfigError(
                f"lrs={self.lrs} and tuning_seeds={self.tuning_seeds}: give both or none"
            )
        if self.lrs and not self.finetuned:
            raise ConfigError(f"lrs={self.lrs} and finetuned=false: frozen features have no rate")
        if self.lrs and (_shared_name(self.lrs) or len(self.lrs) < 2):
            raise ConfigError(f"lrs={self.lrs}: give two or more different values{SIX}")
        if len(set(self.tuning_seeds)) != len(self.tuning_seeds):
            raise ConfigError(f"tuning_seeds={self.tuning_seeds}: give different values")
        if shared := sorted(set(self.tuning_seeds) & set(self.seeds)):
            raise ConfigError(
                f"tuning_seeds={self.tuning_seeds}: {shared[0]} is one of seeds, on which the arms "
                "are compared; give others"
            )

    def _validate_base(self) -> None:
        """Raises `ConfigError` for a field of `base` that was changed, but that the grid sets."""
        instead = dict(SET)
        if self.lrs:
            instead["optim.lr"] = "lrs, from which it is chosen"
        if self.subset_per_seed:
            instead["subset_seed"] = "seeds, or subset_per_seed=false"
        if self.folds:
            instead |= dict.fromkeys(SET_FOR_FOLDS, "folds, by which each is tested in turn")
        for name, field in instead.items():
            value = operator.attrgetter(name)(self.base)
            if value != operator.attrgetter(name)(self._unchanged):
                raise ConfigError(f"base.{name}={value} has no effect in a sweep: give {field}")

    def arms(self) -> dict[str, list[str]]:
        """Each arm's encoder runs; of scratch one, empty.

        Raises:
          ConfigError: there is none, or the runs of one are not pre-trainings of one recipe.
          DataError: there is no such run.
        """
        arms = {SCRATCH: [""]} if self.scratch else {}
        for entry in self.encoders:
            arm, run = _split(entry)
            method = run_folder.method(run)
            arm = arm or method
            if arm in (SCRATCH, RANDOM, RADIOMICS):
                raise ConfigError(
                    f"encoders: {arm} is the arm without pre-training: give {run} another name, as "
                    f"in NAME={run}"
                )
            for other in arms.setdefault(arm, []):
                _require_same_recipe(arm, run, other)
            arms[arm].append(run)
        if not arms and not self.radiomics:
            raise ConfigError("no arm: give encoders, or scratch=true")
        return arms

    def cells(self) -> Iterator[Cell]:
        """The runs: those that try learning rates, then by growing size, so that every arm has a
        curve early; raises as `arms`.
        """
        arms = self.arms()
        tries: dict[tuple[str, str, str], dict[float, tuple[str, ...]]] = {}
        for size, (fold, base), (arm, runs) in itertools.product(
            self._sizes(), self._bases().items(), arms.items()
        ):
            for lr in self.lrs:
                made = [
                    self._tuning_cell(size, fold, base, arm, runs[place % len(runs)], lr, seed)
                    for place, seed in enumerate(self.tuning_seeds)
                ]
                names = tuple(cell.name for cell in made)
                tries.setdefault((size[2], fold, arm), {})[lr] = names
                yield from made
        yield from self._compared(arms, tries)

    def _sizes(self) -> list[tuple[float, int, str]]:
        """Fraction, count and name of each training-set size."""
        return [(1.0, count, f"n{count}") for count in sorted(self.counts)] or [
            (fraction, 0, f"{fraction:g}") for fraction in sorted(self.fractions)
        ]

    def _tuning_cell(
        self,
        size: tuple[float, int, str],
        fold: str,
        base: FinetuneConfig,
        arm: str,
        run: str,
        lr: float,
        seed: int,
    ) -> Cell:
        fraction, count, words = size
        optim = dataclasses.replace(base.optim, lr=lr)
        config = self._varied(base, arm, run, seed, fraction, count)
        config = dataclasses.replace(config, optim=optim, read_test=False)
        name = f"{TUNING}/{config.task}-{arm}-{words}-lr{lr:g}-seed{seed}{fold}"
        return Cell(name, config, self.base_config, count or fraction, tries=True)

    def _varied(
        self, base: FinetuneConfig, arm: str, run: str, seed: int, fraction: float, count: int
    ) -> FinetuneConfig:
        return dataclasses.replace(
            base,
            encoder_run=run,
            arm=arm,
            seed=seed,
            subset_seed=seed if self.subset_per_seed else self.base.subset_seed,
            fraction=fraction,
            count=count,
        )

    def _compared(
        self,
        arms: Mapping[str, list[str]],
        tries: Mapping[tuple[str, str, str], Mapping[float, tuple[str, ...]]],
    ) -> Iterator[Cell]:
        """The runs that are compared, by growing size."""
        runs = [(arm, run, *_marks(run, own)) for arm, own in arms.items() for run in own]
        sizes = self._sizes()
        for place, seed, (fold, base) in itertools.product(
            sizes, self.seeds, self._bases().items()
        ):
            fraction, count, words = place
            size, end = count or fraction, f"{words}-seed{seed}{fold}"
            pictures = place == sizes[-1] and seed == self.seeds[0]  # others would hardly differ
            for arm, run, mark, other in runs:
                config = self._varied(base, arm, run, seed, fraction, count)
                if self.finetuned:
                    tuning = tries.get((words, fold, arm), MappingProxyType({}))
                    lrs, seeds = (self.lrs, self.tuning_seeds) if tuning else ((), ())
                    made = dataclasses.replace(config, tuned_lrs=lrs, tuned_seeds=seeds)
                    name, otherwise = (f"{config.task}-{arm}{m}-{end}" for m in (mark, other))
                    yield Cell(name, made, self.base_config, size, tuning, otherwise=otherwise)
                if self.frozen:
                    frozen = _frozen(config, arm=arm if run else RANDOM, pictures=pictures)
                    yield _evaluated(frozen, mark, other, end, size)
            if self.radiomics:
                config = self._varied(base, RADIOMICS, "", seed, fraction, count)
                kind: dict[str, Any] = {"features": FeatureKind.RADIOMICS, "linear_c": FEW}
                frozen = _frozen(config, arm=RADIOMICS, pictures=pictures, **kind)
                yield _evaluated(frozen, "", "", end, size)

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


def _shared_name(values: Sequence[int | float]) -> bool:
    """Whether two values, as the names of cells have them, are one."""
    names = {f"{value:g}" if isinstance(value, float) else str(value) for value in values}
    return len(names) != len(values)


def _split(entry: str) -> tuple[str, str]:
    """Arm, perhaps empty, and run of an entry of `encoders`."""
    arm, equals, run = entry.strip().partition("=")
    arm, run = (arm.strip(), run.strip()) if equals and "/" not in arm else ("", entry.strip())
    if arm and not NAME.fullmatch(arm):
        raise ConfigError(f"encoders: {arm}={run}: the arm must be a name of letters and digits")
    if "," in run and not Path(run).exists():
        raise ConfigError(f"encoders: {run}: give each run a flag --config.encoders of its own")
    return arm, run


def _marks(run: str, runs: list[str]) -> tuple[str, str]:
    """What tells the folders of an arm's encoders apart, whatever their order; "" for one alone.

    And what it would be if the encoder were alone, where it is not, or were not, where it is.
    """
    mark = f"@{str(run_folder.run_hash(run))[:6]}" if run else ""
    return (mark, "") if len(runs) > 1 else ("", mark)


def _require_same_recipe(arm: str, run: str, other: str) -> None:
    """Raises `ConfigError` unless two runs are pre-trainings that differ by their seed alone."""
    if run_folder.run_hash(run) == run_folder.run_hash(other):
        raise ConfigError(f"encoders: {run} and {other} are one run of {arm}: give it once")
    ours, theirs = (run_folder.recipe(path) for path in (run, other))
    if ours != theirs:
        difference = first_difference(ours, theirs, "recipe")
        raise ConfigError(
            f"encoders: two arms are {arm}, {run} and {other} ({difference}): name them, as in "
            f"NAME={run}; runs of one arm differ by their seed alone"
        )


def _evaluated(config: EvaluateConfig, mark: str, other: str, end: str, size: int | float) -> Cell:
    """The cell of frozen features."""
    name, otherwise = (f"{config.task}-{config.arm}{m}-frozen-{end}" for m in (mark, other))
    return Cell(name, config, EVALUATE, size, otherwise=otherwise)


def _frozen(config: FinetuneConfig, **own: Any) -> EvaluateConfig:
    """Frozen features of the same encoder on the same slices."""
    same = {
        *("task", "encoder_run", "seed", "subset_seed", "subset_by", "fraction", "count", "data"),
        *("val_split", "test_split", "intensity", "encoder", "select_by", "precision"),
        *("val_count", "bn_images", "accept_unfinished"),
    }
    shared = {name: getattr(config, name) for name in same}
    return EvaluateConfig(**shared | {"size": config.method.view.size} | own)
