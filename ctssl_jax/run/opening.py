"""The one door of every run: dataset, canvas, leakage gate, config, weights, folder, in this order.

What a run is refused for is found here, before anything is written. `open_pretraining` and
`open_labelled` differ only in what they ask of the data; `start_or_resume` is where a run goes on.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from ctssl_jax import data
from ctssl_jax.config import EvaluateConfig, FeatureKind, FinetuneConfig, PretrainConfig
from ctssl_jax.data import Dataset
from ctssl_jax.dataset.cases import case_word
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import Start, TrainState
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.run import encoder, leakage
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run.checkpoint import Checkpoints
from ctssl_jax.run.slice_filter import Kept, read_filter
from ctssl_jax.run.standardise import resolve
from ctssl_jax.run.subset import Subset, training_subset, validation_subset

LabelledConfig = FinetuneConfig | EvaluateConfig


class Drawn(NamedTuple):
    """The labelled slices that a run may look at before the test."""

    train: Subset
    val: Subset


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """An opened pre-training run.

    Attributes:
      config: with all that it takes from the data.
      dataset: that it reads.
      kept: its slices.
      audit: what the gate says of the data, or of those of the run that it starts from.
      encoder: what is known of the encoder that it starts from; see `run.encoder`.
    """

    config: PretrainConfig
    dataset: Dataset
    kept: Kept
    audit: leakage.Stamp
    encoder: encoder.Stamp | None


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An opened run on labels: a fine-tuning, or frozen features that are scored.

    Attributes:
      config: with all that it takes from data and encoder.
      dataset: that it reads.
      drawn: its slices for training and validation.
      audit: what the gate says of the data.
      overlap: what it says of validation and test beside what the encoder was pre-trained on.
      encoder: what is known of the encoder; see `run.encoder`. None from scratch.
    """

    config: Any  # a FinetuneConfig or EvaluateConfig, as it was given
    dataset: Dataset
    drawn: Drawn
    audit: leakage.Stamp
    overlap: leakage.Stamp | str | None
    encoder: encoder.Stamp | None


def open_dataset(config: PretrainConfig | LabelledConfig, within: str = "") -> tuple[Dataset, Any]:
    """The dataset of a config and what the leakage gate says of it.

    `within` as of `open_labelled`.

    Raises:
      DataError: there is none, it has fewer pixels than the run wants, or it leaks.
    """
    dataset = data.open_dataset(config.data.path)
    data.require_canvas(dataset, config.data.canvas, f"{within}data.canvas")
    accept, flag = config.data.accept_leakage, f"--config.{within}data.accept_leakage=true"
    return dataset, leakage.require_audit(dataset, accept, flag)


def open_pretraining(config: PretrainConfig) -> Pretraining:
    """Everything that pre-training needs of its data.

    Raises:
      UserError: one of its kinds; nothing was written.
    """
    known = encoder.require_finished(config.encoder_run, config.accept_unfinished)
    encoder.require_same_network(config)
    dataset, audit = open_dataset(config)
    config = resolve(config, dataset)
    kept = read_filter(config.data, dataset)
    sharding.check_batch(config.batch_size, config.accumulate)
    config.method.validate_run(config.microbatch, kept.slices)
    audit = leakage.with_earlier(audit, config.encoder_run)
    return Pretraining(config, dataset, kept, audit, known)


def open_labelled(config: LabelledConfig, within: str = "") -> Labelled:
    """Everything that a run needs of its labelled data.

    Args:
      config: of the run.
      within: where the user sets its fields: "base." in the config of a sweep, so that a message
        names --config.base.data.accept_leakage.

    Raises:
      UserError: one of its kinds; nothing was written.
    """
    flag = f"--config.{within}accept_unfinished=true"
    known = encoder.require_finished(config.encoder_run, config.accept_unfinished, flag)
    encoder.require_same_network(config)
    dataset, audit = open_dataset(config, within)
    data.require_labels(dataset, config.data.split, config.val_split, config.test_split)
    config = resolved(config, dataset)
    drawn = Drawn(training_subset(config, dataset), validation_subset(config, dataset))
    held_out, accept = (config.val_split, config.test_split), config.data.accept_leakage
    flag = f"--config.{within}data.accept_leakage=true"
    overlap = leakage.require_unseen(dataset, held_out, config.encoder_run, accept, flag)
    return Labelled(config, dataset, drawn, audit, overlap, known)


def resolved(config: LabelledConfig, dataset: Dataset) -> Any:
    """The config, of the same type, as the run folder has it: with what data and encoder say.

    Raises:
      UserError: classes are not what it needs, or there is no such encoder.
    """
    known = run_folder.method(config.encoder_run)  # scratch without one
    if isinstance(config, EvaluateConfig):
        if config.features is FeatureKind.RADIOMICS:
            own = config.features.value
        else:
            own = known if config.encoder_run else "random"
        return resolve(dataclasses.replace(config, arm=config.arm or own), dataset)
    method = _for_classes(config.method, dataset)
    return resolve(dataclasses.replace(config, method=method, arm=config.arm or known), dataset)


def _for_classes(method: Supervised, dataset: Dataset) -> Supervised:
    """The method with as many outputs as the dataset has classes."""
    classes = len(dataset.classes)
    if method.classes not in (0, classes):
        raise ConfigError(
            f"method.classes={method.classes} but {dataset.name} has {classes}: set it to 0"
        )
    if len(method.class_weights) not in (0, classes):
        raise ConfigError(
            f"method.class_weights={method.class_weights} but {dataset.name} has {classes} "
            "classes: give one for each"
        )
    return dataclasses.replace(method, classes=classes)


def start_or_resume(
    checkpoints: Checkpoints,
    init: Callable[..., TrainState],
    key: Key[Array, ""],
    start: Start | None,
    batches: Any,
    places: TrainState,
) -> tuple[TrainState, bool]:
    """The state that a run goes on from, and whether what was due after its step is due still.

    Args:
      checkpoints: of the run; where they hold one, it is taken.
      init: of a key and the weights to start from, compiled; see `train.init_state`.
      key: of the fresh weights.
      start: weights to start from, if any.
      batches: an iterator that is set to where the state stands.
      places: where each array lies, as `sharding.state_shardings` has it.
    """
    if checkpoints.latest() is None:
        return init(key, start), False
    abstract = jax.eval_shape(init, key)
    state, position, unfinished = checkpoints.restore(sharding.abstract(abstract, places))
    batches.set_state(position)
    return state, unfinished


def results_header(opened: Labelled, workdir: Path) -> dict[str, Any]:
    """What every `results.json` of a run on labels begins with."""
    config, (train, val) = opened.config, opened.drawn
    return {
        "task": config.task,
        "arm": config.arm,
        "encoder_run": run_folder.run_hash(config.encoder_run),
        "encoder": opened.encoder,
        "fraction": train.fraction,
        "case": case_word(opened.dataset.manifest),
        "train_cases": len(train.cases),
        "train_slices": len(train.rows),
        "train_patients": train.patients,
        "val_cases": len(val.cases),
        "val_slices": len(val.rows),
        "val_patients": val.patients,
        "annotated_cases": len(train.cases) + len(val.cases),
        "annotated_slices": len(train.rows) + len(val.rows),
        "seed": config.seed,
        "subset_seed": config.subset_seed,
        "test_split": config.test_split,
        "select_by": config.select_by.value,
        "classes": list(opened.dataset.classes),
        "data_fingerprint": opened.dataset.fingerprint,
        "config_hash": run_folder.read_json(workdir / "config.json")["hash"],
        "audit": opened.audit,
        "pretraining_audit": leakage.pretraining_audit(config.encoder_run),
        "pretraining_overlap": opened.overlap,
    }
