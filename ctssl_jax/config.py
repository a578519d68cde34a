"""The configurations of the commands: typed, validated once in `main`, written to the run folder.

A file in `configs/` has `get_config(preset="")`, which returns one of these dataclasses; the object
*contains* the method, whose fields are its hyperparameters. They are not frozen, because flags such
as `--config.method.mask_ratio=0.5` set attributes; after `validate()` nobody assigns to them.
"""

import dataclasses
import enum
import math

import jax.numpy as jnp

from ctssl_jax.augment import Intensity
from ctssl_jax.config_values import require, require_usable
from ctssl_jax.data import DataConfig
from ctssl_jax.dataset.canvas import SMALLEST
from ctssl_jax.dataset.splits import parts
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods import Method, SparK, Supervised
from ctssl_jax.nn.resnet import DEPTHS, STRIDE, ResNet
from ctssl_jax.optim import OptimConfig, OptimizerName
from ctssl_jax.optim.freezing import FreezeConfig

# Images for BatchNorm's statistics of a network to evaluate. Wu and Johnson 2021 find that 1,000 to
# 10,000 suffice; so many cost a third of the training steps on as many images.
BN_IMAGES = 1024


class Precision(enum.Enum):
    """Of the computation. Parameters, losses and BatchNorm statistics are fp32 in either."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Metric(enum.Enum):
    """What chooses the best epoch, on validation."""

    AUC = "auc"
    ACCURACY = "accuracy"


class FeatureKind(enum.Enum):
    """What features of slices are made by: an encoder, or formulas, see `frozen.radiomics`."""

    ENCODER = "encoder"
    RADIOMICS = "radiomics"


class SubsetBy(enum.Enum):
    """What is drawn for a subset.

    Attributes:
      IMAGE: single cases, in the classes' proportions: scans, nodules, or images where each has a
        label.
      PATIENT: patients with all their cases, each counted in the class of most of them.
      IMAGE_UNSTRATIFIED: single cases, whatever their class (the paper's COVID-CT and head CT).
      FIRST: the first cases in the order of the records; no draw (the paper's OrganSMNIST).
    """

    IMAGE = "image"
    PATIENT = "patient"
    IMAGE_UNSTRATIFIED = "image_unstratified"
    FIRST = "first"


@dataclasses.dataclass
class EncoderConfig:
    """The ResNet; see `nn.resnet.ResNet`.

    The default of `zero_init_residual` is that of a run from scratch and of a random encoder;
    pre-training is configured with `of`, by which the method decides.

    Attributes:
      depth: 18, 34 or 50 layers.
      drop_path_rate: of the last residual block, in pre-training by SparK; falls linearly to the
        first.
      zero_init_residual: whether the last BatchNorm of a residual block starts at scale 0.
      remat_stages: stages whose activations are computed again for the gradient, 0 to 4: less
        memory, more time.
    """

    depth: int = 50
    drop_path_rate: float = 0.0
    zero_init_residual: bool = Supervised.zero_init_residual
    remat_stages: int = dataclasses.field(default=0, metadata={"elastic": True})

    @classmethod
    def of(cls, method: Method, depth: int = 50, drop_path_rate: float = 0.0) -> "EncoderConfig":
        """An encoder that starts as the literature of `method` has it."""
        return cls(depth, drop_path_rate, method.zero_init_residual)

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        require(
            self,
            "encoder",
            depth=(self.depth in DEPTHS, f"one of {', '.join(map(str, DEPTHS))}"),
            drop_path_rate=(0 <= self.drop_path_rate < 1, "in [0, 1)"),
            remat_stages=(0 <= self.remat_stages <= 4, "0 to 4"),
        )

    def build(self, precision: Precision) -> ResNet:
        """The network."""
        return ResNet(
            depth=self.depth,
            drop_path_rate=self.drop_path_rate,
            zero_init_residual=self.zero_init_residual,
            remat_stages=self.remat_stages,
            dtype=jnp.dtype(precision.value),
        )


@dataclasses.dataclass
class ProbeConfig:
    """A kNN score on a labelled dataset while pre-training goes on; see `frozen.probe`.

    Attributes:
      path: a labelled dataset with splits `train` and `val`; `test` is not read.
      every: in steps; 0 never.
      k: neighbours.
      canvas, size: pixels, as in `EvaluateConfig`.
    """

    path: str = dataclasses.field(default="", metadata={"private": True})
    every: int = dataclasses.field(default=0, metadata={"elastic": True})
    k: int = 20
    canvas: int = 224
    size: int = 224

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        require(
            self,
            "probe",
            every=(self.every >= 0, "0 (never) or more"),
            k=(self.k > 0, "above 0"),
            canvas=(self.canvas >= SMALLEST, f"{SMALLEST} or more"),
        )
        if self.every and not self.path:
            raise ConfigError(f"probe.every={self.every} needs probe.path: a labelled dataset")
        _require_size("probe.size", self.size)

    def without_effect(self) -> dict[str, str]:
        """The fields that do nothing as the others are, each with the reason."""
        if self.every:
            return {}
        return dict.fromkeys(("path", "k", "canvas", "size"), "with probe.every=0 there is none")


@dataclasses.dataclass
class PretrainConfig:
    """A pre-training run.

    Attributes:
      encoder_run: run folder or import whose encoder (and SparK's decoder, where an import brings
        it) the run starts from; empty: fresh weights.
      accept_unfinished: start from that run although it is not done; every result says so.
      seed: of initialisation, sample order, augmentation and masks.
      batch_size: slices per step over all devices.
      accumulate: microbatches per step, one after the other on the same devices, whose gradients
        are averaged. The method sees a microbatch as its batch: BatchNorm statistics and negatives
        are those of `batch_size / accumulate` slices.
      shard_state: split the optimizer's state and the teacher over the devices instead of keeping
        them whole on each (ZeRO-1).
      epochs: passes over the training split; sets the schedules' horizon.
      log_every, checkpoint_every, picture_every: in steps; 0 pictures none.
      keep_checkpoints: how many of the latest stay on disk.
      hang_after_s: without a step for so many seconds the run is taken for dead: stacks are
        printed, exit code 6; 0 waits for ever. Must be longer than compilation.
      display_window_hu: HU shown black and white in pictures.
    """

    encoder_run: str = dataclasses.field(default="", metadata={"private": True})
    accept_unfinished: bool = dataclasses.field(default=False, metadata={"unrecorded": True})
    seed: int = 0
    batch_size: int = 32
    accumulate: int = 1
    shard_state: bool = dataclasses.field(default=False, metadata={"elastic": True})
    epochs: float = 1600.0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    intensity: Intensity = dataclasses.field(default_factory=Intensity)
    encoder: EncoderConfig = dataclasses.field(default_factory=lambda: EncoderConfig.of(SparK()))
    method: Method = dataclasses.field(default_factory=SparK)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    precision: Precision = Precision.FLOAT32
    log_every: int = dataclasses.field(default=50, metadata={"elastic": True})
    checkpoint_every: int = dataclasses.field(default=1000, metadata={"elastic": True})
    picture_every: int = dataclasses.field(default=1000, metadata={"elastic": True})
    keep_checkpoints: int = dataclasses.field(default=2, metadata={"elastic": True})
    hang_after_s: float = dataclasses.field(default=1800.0, metadata={"elastic": True})
    display_window_hu: tuple[float, float] = dataclasses.field(
        default=(-1000.0, 500.0), metadata={"elastic": True}
    )

    def validate(self) -> None:
        """Raises `ConfigError`: one line with the fields and values that do not fit."""
        _validate_parts(self)
        _require_positive(self, "batch_size", "accumulate", "epochs", "log_every")
        _require_positive(self, "checkpoint_every", "keep_checkpoints")
        _require_patience(self)
        low, high = self.display_window_hu
        require(
            self,
            picture_every=(self.picture_every >= 0, "0 (never) or more"),
            display_window_hu=(low < high, "of two values, the lower first"),
        )
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size={self.batch_size} does not part into accumulate={self.accumulate} "
                "microbatches: change either"
            )
        if self.optim.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"optim.warmup_epochs={self.optim.warmup_epochs} does not end before "
                f"epochs={self.epochs}: lower it"
            )

    def follow_batch(self) -> None:
        """Moves the learning rate from the batch that it is meant for, if any, to this one."""
        if self.optim.lr_batch:
            self.optim.lr *= self.batch_size / self.optim.lr_batch

    def rate_in_words(self) -> str:
        """The learning rate, and whether the batch has moved it, for people."""
        meant = self.optim.lr_batch
        if meant in (0, self.batch_size):
            return f"learning rate {self.optim.lr:.3g}"
        return (
            f"learning rate {self.optim.lr:.3g}: {self.optim.lr * meant / self.batch_size:.3g} of "
            f"batch {meant} times {self.batch_size}/{meant}"
        )

    @property
    def microbatch(self) -> int:
        """Slices that a method sees at once."""
        return self.batch_size // self.accumulate

    def total_steps(self, slices: int) -> int:
        """Steps of the run on a training split of `slices`."""
        return max(1, math.ceil(self.epochs * slices / self.batch_size))


@dataclasses.dataclass
class FinetuneConfig:
    """A labelled run: one task, training-set size, initialisation and seed.

    Attributes:
      task: name in results and report.
      encoder_run: run folder of the pre-training, or an import; empty trains from scratch.
      accept_unfinished: as in `PretrainConfig`.
      arm: name of the initialisation in the report; empty: the method's name, or "scratch".
      seed: of head, order and augmentation.
      subset_seed: of the training subset.
      subset_by: what is drawn; see `SubsetBy`.
      fraction: share of the training split used; validation and test stay whole.
      count: cases or patients of the training split used, in place of `fraction`; 0: by that.
      val_count: cases or patients of the validation split used, drawn as those of training are:
        its labels are annotations, too. 0: all.
      batch_size: cut to the size of the training subset where that is smaller.
      epochs: passes over the training subset.
      val_split, test_split: as `data.split`; the test split is read once, at the end.
      steps: of training, in place of `epochs`, whatever the size of the training subset; 0: by
        epochs.
      validate_every: in steps; 0: after each epoch.
      bn_images: before each validation BatchNorm's statistics are measured on so many images of the
        training subset, or all where it has fewer; see `batch_statistics`. 0: the running ones.
      layer_decay: the learning rate of a pre-trained encoder's layers falls by this factor from the
        head towards the image; see `layer_decay`. 1: not at all.
      balance_classes: weigh the loss inversely to the classes' numbers in the training subset.
      select_by: validation metric that chooses the epoch, or step; the earliest of equals.
      patience: so many validations without a better one, none of them frozen, end the run; 0:
        never.
      tuned_lrs, tuned_seeds: for the record, what `optim.lr` was chosen from on validation, and on
        which seeds, as a sweep does; empty: it was set.
      read_test: open the test split at the end; False, as when `optim.lr` is being chosen: never.
      checkpoint_every_epochs: resumable checkpoints, but none between two validations; the best
        weights are kept besides.
      hang_after_s: as in `PretrainConfig`.
    """

    task: str = "task"
    encoder_run: str = dataclasses.field(default="", metadata={"private": True})
    accept_unfinished: bool = dataclasses.field(default=False, metadata={"unrecorded": True})
    arm: str = ""
    seed: int = 0
    subset_seed: int = 0
    subset_by: SubsetBy = SubsetBy.IMAGE
    fraction: float = 1.0
    count: int = dataclasses.field(default=0, metadata={"replaces": "fraction"})
    val_count: int = 0
    batch_size: int = 64
    epochs: int = 70
    steps: int = dataclasses.field(default=0, metadata={"replaces": "epochs"})
    validate_every: int = 0
    bn_images: int = BN_IMAGES
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    val_split: str = "val"
    test_split: str = "test"
    intensity: Intensity = dataclasses.field(default_factory=Intensity)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    method: Supervised = dataclasses.field(default_factory=Supervised)
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(
            name=OptimizerName.ADAM,
            lr=1e-4,
            warmup_epochs=0.0,
            weight_decay=5e-4,
            weight_decay_end=5e-4,
            exclude_1d=False,
            b2=0.999,
            eps=1e-8,
            clip_norm=0.0,
        )
    )
    freeze: FreezeConfig = dataclasses.field(default_factory=FreezeConfig)
    layer_decay: float = 1.0
    balance_classes: bool = False
    select_by: Metric = Metric.AUC
    patience: int = 0
    tuned_lrs: tuple[float, ...] = ()
    tuned_seeds: tuple[int, ...] = ()
    read_test: bool = True
    precision: Precision = Precision.FLOAT32
    checkpoint_every_epochs: int = 10
    hang_after_s: float = dataclasses.field(default=1800.0, metadata={"elastic": True})

    def validate(self) -> None:
        """Raises `ConfigError`: one line with the fields and values that do not fit."""
        _validate_parts(self)
        _require_positive(self, "batch_size", "epochs", "checkpoint_every_epochs")
        _require_patience(self)
        _require_subset_and_splits(self)
        _refuse_filter(self)
        require(
            self,
            layer_decay=(0 < self.layer_decay <= 1, "in (0, 1]"),
            patience=(self.patience >= 0, "0 (never) or more"),
            steps=(self.steps >= 0, "0 (by epochs) or more"),
            validate_every=(self.validate_every >= 0, "0 (after each epoch) or more"),
        )
        if bool(self.tuned_lrs) != bool(self.tuned_seeds):
            raise ConfigError(
                f"tuned_lrs={self.tuned_lrs} and tuned_seeds={self.tuned_seeds}: give both or none"
            )
        if self.balance_classes and self.method.class_weights:
            raise ConfigError(
                f"balance_classes=true and method.class_weights={self.method.class_weights}: give "
                "one of them"
            )
        if self.steps and self.freeze.steps >= self.steps:
            raise ConfigError(
                f"freeze.steps={self.freeze.steps} does not end before steps={self.steps}: lower it"
            )
        if not self.steps and not self.freeze.steps and self.freeze.epochs >= self.epochs:
            raise ConfigError(
                f"freeze.epochs={self.freeze.epochs} does not end before epochs={self.epochs}: "
                "lower it"
            )

    def without_effect(self) -> dict[str, str]:
        """The fields that do nothing as the others are, each with the reason."""
        fields = ("lr_batch", "clock", "warmup_epochs", "cosine_epochs", "warmup_start", "final")
        why = "a fine-tuning's rate and decay are the same from first to last step, but for freeze"
        return {f"optim.{name}": why for name in (*fields, "weight_decay_end")}


@dataclasses.dataclass
class EvaluateConfig:
    """Frozen features of an encoder, scored by kNN and by a linear probe; see `evaluate`.

    Attributes:
      task: name in results.
      features: what is scored; RADIOMICS takes the values of the slices alone, without a network.
      encoder_run: run folder of the pre-training, or an import; empty: a random encoder.
      accept_unfinished: as in `PretrainConfig`.
      arm: name of the encoder in results; empty: the method's name, "random" or "radiomics".
      seed: of the random encoder.
      subset_seed: of the training subset.
      subset_by, fraction, count, val_count: training and validation, as in `FinetuneConfig`.
      bn_images: of the training subset, on which BatchNorm's statistics of a random encoder are
        measured, which has none; see `batch_statistics`. A pre-trained one keeps its own, unless it
        is of so few steps that it has none either. 0: never.
      val_split, test_split: as `data.split`.
      size: side of the network's input in pixels; the whole slice is resized to it.
      knn_k: numbers of neighbours to choose from; those above the training subset's size are
        left out.
      linear_c: values of scikit-learn's C to choose from, the inverse strength of the L2 penalty.
      linear_iterations: at most, of the linear probe's solver.
      select_by: validation metric that chooses k and C; the first listed of equals.
      pictures: whether to draw cases beside those most alike.
      hang_after_s: as in `PretrainConfig`, without a batch.
    """

    task: str = "task"
    features: FeatureKind = dataclasses.field(default=FeatureKind.ENCODER, metadata={"added": True})
    encoder_run: str = dataclasses.field(default="", metadata={"private": True})
    accept_unfinished: bool = dataclasses.field(default=False, metadata={"unrecorded": True})
    arm: str = ""
    seed: int = 0
    subset_seed: int = 0
    subset_by: SubsetBy = SubsetBy.IMAGE
    fraction: float = 1.0
    count: int = dataclasses.field(default=0, metadata={"replaces": "fraction"})
    val_count: int = 0
    bn_images: int = BN_IMAGES
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(canvas=224))
    val_split: str = "val"
    test_split: str = "test"
    size: int = 224
    intensity: Intensity = dataclasses.field(default_factory=Intensity)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    knn_k: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200)
    linear_c: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    linear_iterations: int = 2000
    select_by: Metric = Metric.AUC
    precision: Precision = Precision.FLOAT32
    pictures: bool = dataclasses.field(default=True, metadata={"elastic": True})
    hang_after_s: float = dataclasses.field(default=1800.0, metadata={"elastic": True})

    def validate(self) -> None:
        """Raises `ConfigError`: one line with the fields and values that do not fit."""
        _validate_parts(self)
        _require_positive(self, "linear_iterations")
        _require_patience(self)
        _require_size("size", self.size)
        _require_subset_and_splits(self)
        _refuse_filter(self)
        if self.features is FeatureKind.RADIOMICS and self.encoder_run:
            raise ConfigError(
                f"features=radiomics and encoder_run={self.encoder_run}: radiomics has no encoder; "
                "give one of them"
            )
        for name in ("knn_k", "linear_c"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) != len(values):
                raise ConfigError(f"{name}={values}: give one or more different values above 0")


Config = PretrainConfig | FinetuneConfig | EvaluateConfig


def _validate_parts(config: Config) -> None:
    require_usable(config)
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if hasattr(part, "validate"):
            part.validate()


def _require_positive(config: Config, *names: str) -> None:
    require(config, "", **{name: (getattr(config, name) > 0, "above 0") for name in names})


def _require_patience(config: Config) -> None:
    require(config, hang_after_s=(config.hang_after_s >= 0, "0 (never) or more"))


def _require_subset_and_splits(config: FinetuneConfig | EvaluateConfig) -> None:
    require(
        config,
        fraction=(0 < config.fraction <= 1, "in (0, 1]"),
        count=(config.count >= 0, "0 (by fraction) or more"),
        val_count=(config.val_count >= 0, "0 (all) or more"),
        bn_images=(config.bn_images >= 0, "0 (running statistics) or more"),
    )
    if config.count and config.fraction != 1:
        raise ConfigError(f"count={config.count} and fraction={config.fraction}: give one of them")
    splits = (config.data.split, config.val_split, config.test_split)
    names = [name for split in splits for name in parts(split)]
    if len(set(names)) != len(names):
        raise ConfigError(
            f"data.split={config.data.split}, val_split={config.val_split}, "
            f"test_split={config.test_split}: must be three different splits with no part in common"
        )


def _refuse_filter(config: FinetuneConfig | EvaluateConfig) -> None:
    if config.data.filter:
        raise ConfigError(
            "data.filter is for pre-training: leave it out; fraction makes a training split smaller"
        )


def _require_size(name: str, size: int) -> None:
    if size < STRIDE or size % STRIDE:
        raise ConfigError(f"{name}={size}: must be a multiple of {STRIDE}, the encoder's stride")
