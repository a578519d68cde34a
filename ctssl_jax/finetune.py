"""One labelled run: one task, initialisation, training-set size and seed.

The encoder comes strictly from a run folder, or is random. The epoch is chosen on validation; the
test split is opened once, at the end, by the chosen weights.
"""

import dataclasses
import math
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ctssl_jax import data
from ctssl_jax.augment import views as augment
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import distributed, sharding
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.methods.base import PyTree, Start, TrainState
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.metrics import Scored, classification_metrics, write_predictions
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.optim.freezing import FreezeConfig, finetune_optimizer
from ctssl_jax.optim.layer_decay import scale_by_layer
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import leakage
from ctssl_jax.run.checkpoint import BestWeights, Checkpoints, load_start
from ctssl_jax.run.standardise import resolve
from ctssl_jax.run.subset import Subset, training_subset
from ctssl_jax.train import Due, attend, fit, init_state, make_step

Predictor = Callable[[PyTree, PyTree, dict[str, jax.Array]], tuple[jax.Array, jax.Array]]


def run(
    config: FinetuneConfig, workdir: Path, supervisor: Supervisor | None = None
) -> dict[str, Any]:
    """Fine-tunes; repeating it in the same `workdir` resumes, or returns what it found.

    Returns:
      The content of `results.json`.

    Raises:
      UserError: one of its kinds, with the line to show.
    """
    supervisor = supervisor or Supervisor()
    dataset = data.open_dataset(config.data.path)
    data.require_canvas(dataset, config.data.canvas)
    accept = config.data.accept_leakage
    audit = leakage.require_audit(dataset, accept)
    config = resolved(config, dataset)
    encoder = config.encoder.build(config.precision)
    pretrained = None
    if config.encoder_run:
        pretrained = load_start(Path(config.encoder_run), encoder, config.intensity.channels)
    subset = training_subset(config, dataset)
    held_out = (config.val_split, config.test_split)
    overlap = leakage.require_unseen(dataset, held_out, config.encoder_run, accept)
    if run_folder.open_run(workdir, config, dataset, audit=audit, encoder_run=config.encoder_run):
        return run_folder.read_json(workdir / "results.json")
    run_folder.write_subset(workdir, subset.record(config))

    mesh = sharding.make_mesh()
    predict = make_predictor(config, encoder, dataset, mesh)
    with supervisor.watch(config.hang_after_s), closing(BestWeights(workdir)) as best:
        state = _train(
            config, workdir, dataset, encoder, pretrained, subset, predict, best, mesh, supervisor
        )
        supervisor.resumable = False  # all is saved, and the rest is not worth waiting for
        supervisor.leave_if_asked()
        chosen = best.read()
        assert chosen is not None, "validation follows every epoch"
        state = best.restore(state, mesh)
        test = _test_once(config, predict, state, dataset, workdir, mesh, supervisor.beat)
    results = {
        "task": config.task,
        "arm": config.arm,
        "encoder_run": run_folder.run_hash(config.encoder_run),
        "fraction": subset.fraction,
        "train_slices": len(subset.rows),
        "train_patients": subset.patients,
        "seed": config.seed,
        "test_split": config.test_split,
        "select_by": config.select_by.value,
        "best_epoch": chosen["epoch"],
        "epochs": config.epochs,
        "epochs_trained": int(state.step) // _batching(config, subset)[1],
        "val": {name: chosen[name] for name in ("auc", "accuracy", "f1")},
        "test": test,
        "classes": list(dataset.classes),
        "data_fingerprint": dataset.fingerprint,
        "config_hash": run_folder.read_json(workdir / "config.json")["hash"],
        "audit": audit,
        "pretraining_audit": leakage.pretraining_audit(config.encoder_run),
        "pretraining_overlap": overlap,
        "test_reads": 1,
    }
    run_folder.write_results(workdir, results)
    distributed.say(
        f"test: AUC {test['auc']:.3f}, F1 {test['f1']:.3f}, accuracy {test['accuracy']:.3f} on "
        f"{test['n']} slices of {test['patients']} patients (epoch {chosen['epoch']})"
    )
    return results


def _train(
    config: FinetuneConfig,
    workdir: Path,
    dataset: data.Dataset,
    encoder: ResNet,
    pretrained: Start | None,
    subset: Subset,
    predict: Predictor,
    best: BestWeights,
    mesh: Mesh,
    supervisor: Supervisor,
) -> TrainState:
    """All epochs, each followed by validation; leaves the best weights in `best`."""
    batch_size, steps_per_epoch = _batching(config, subset)
    total_steps = config.epochs * steps_per_epoch
    freeze = config.freeze if pretrained or config.freeze.scratch else FreezeConfig(epochs=0)
    tx, head_lr = finetune_optimizer(config.optim, freeze, steps_per_epoch)
    if pretrained and config.layer_decay < 1:
        tx = optax.chain(tx, scale_by_layer(config.layer_decay, config.encoder.depth))
    method = _balanced(config, dataset, subset)
    batches = iter(
        data.labelled_batches(
            dataset,
            config.data,
            split=config.data.split,
            indices=subset.rows,
            batch_size=batch_size,
            seed=config.seed,
            **sharding.process_share(),
        )
    )
    fresh = partial(init_state, method, encoder, tx, config.intensity.channels)
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(fresh, key)
    places = sharding.state_shardings(abstract, mesh)
    checkpoints = Checkpoints(workdir, method=type(config.method).__name__, keep=1)
    unfinished = False
    if checkpoints.latest() is None:
        state = sharding.jit_init(fresh, places)(key, pretrained)
    else:
        state, position, unfinished = checkpoints.restore(sharding.abstract(abstract, places))
        batches.set_state(position)
    writer = run_folder.writer(workdir, int(state.step))
    check = attend(supervisor, mesh)
    writer.line(
        f"{config.task}: {config.arm}, {len(subset.rows)} of {subset.of} training slices "
        f"({subset.patients} patients), {len(dataset.classes)} classes, seed {config.seed}"
        + (f", resumed at step {int(state.step):,}" if int(state.step) else "")
    )

    def validate(state: TrainState, number: int) -> None:
        truth, scores, loss = evaluate(
            predict, state, dataset, config, config.val_split, mesh, check
        )
        found = {"loss": loss, **classification_metrics(truth, scores)}
        epoch = number // steps_per_epoch
        row = {f"val_{name}": value for name, value in found.items()}
        writer.scalars(number, {"epoch": epoch, **row})
        so_far = best.read()
        if so_far is None or found[config.select_by.value] > so_far[config.select_by.value]:
            best.save(epoch, state, {"epoch": epoch, **found})

    def over(number: int) -> bool:
        so_far = best.read()
        if not config.patience or so_far is None:
            return False
        waited = number // steps_per_epoch - max(so_far["epoch"], freeze.epochs)
        return waited >= config.patience

    step = make_step(
        method,
        encoder,
        tx,
        config.intensity,
        dataset.intensity,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        schedules={"lr": head_lr},
    )
    with closing(writer), closing(checkpoints):
        return fit(
            state,
            sharding.jit_step(step, mesh, places),
            batches,
            mesh,
            writer,
            supervisor,
            seed=config.seed,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            log_every=max(1, total_steps // 10),
            save_every=config.checkpoint_every_epochs * steps_per_epoch,
            save=checkpoints.save,
            due=[Due(steps_per_epoch, validate)],
            unfinished=unfinished,
            over=over,
        )


def resolved(config: FinetuneConfig, dataset: data.Dataset) -> FinetuneConfig:
    """The config as the run folder has it, with what it takes from dataset and encoder.

    Raises:
      UserError: labels or splits are not what it needs, or there is no such encoder.
    """
    data.require_labels(dataset, config.data.split, config.val_split, config.test_split)
    classes = dataset.classes
    if config.method.classes not in (0, len(classes)):
        raise ConfigError(
            f"method.classes={config.method.classes} but {dataset.name} has {len(classes)}: "
            "set it to 0"
        )
    if len(config.method.class_weights) not in (0, len(classes)):
        raise ConfigError(
            f"method.class_weights={config.method.class_weights} but {dataset.name} has "
            f"{len(classes)} classes: give one for each"
        )
    method = dataclasses.replace(config.method, classes=len(classes))
    arm = config.arm or run_folder.method(config.encoder_run)
    return resolve(dataclasses.replace(config, method=method, arm=arm), dataset)


def _batching(config: FinetuneConfig, subset: Subset) -> tuple[int, int]:
    """The batch, cut to the training subset and to a multiple of the devices; steps per epoch."""
    devices, slices = len(sharding.all_devices()), len(subset.rows)
    sharding.check_batch(config.batch_size)
    batch_size = min(config.batch_size, max(devices, slices // devices * devices))
    return batch_size, math.ceil(slices / batch_size)


def _balanced(config: FinetuneConfig, dataset: data.Dataset, subset: Subset) -> Supervised:
    """The method, with weights n / (k * n_c) of the n slices and k classes if that is asked for.

    Not in `config.json`: the runs of an arm are of one config, whatever subset a seed draws.
    """
    if not config.balance_classes:
        return config.method
    labels = data.read_labels(dataset, config.data.split)[0][subset.rows]
    count = np.bincount(labels, minlength=len(dataset.classes))
    weights = len(labels) / (len(count) * np.maximum(count, 1))
    return dataclasses.replace(config.method, class_weights=tuple(weights.tolist()))


def make_predictor(
    config: FinetuneConfig, encoder: ResNet, dataset: data.Dataset, mesh: Mesh
) -> Predictor:
    """Class probabilities and losses of a batch: whole slices, BatchNorm in evaluation mode.

    They are whole on every device and host.
    """

    def predict(
        params: PyTree, batch_stats: PyTree, batch: dict[str, jax.Array]
    ) -> tuple[Float[jax.Array, "b k"], Float[jax.Array, " b"]]:
        view = config.method.view
        image = augment.whole_slices(
            batch["image"], config.intensity, dataset.intensity, view.size, view.interpolation
        )
        logits, _ = config.method.logits(encoder, params, batch_stats, image, train=False)
        label = jnp.maximum(batch["label"], 0)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
        return jax.nn.softmax(logits), loss

    return jax.jit(predict, out_shardings=sharding.replicated(mesh))


def evaluate(
    predict: Predictor,
    state: TrainState,
    dataset: data.Dataset,
    config: FinetuneConfig,
    split: str,
    mesh: Mesh,
    check: Callable[[], None] = lambda: None,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n k"], float]:
    """Labels, class probabilities in the order of the records, and the mean loss of a split.

    `check` is called at every batch and may raise.
    """
    labels, _ = data.read_labels(dataset, split)
    scores, losses = [], []
    for batch in data.evaluation_batches(
        dataset,
        config.data,
        split=split,
        batch_size=sharding.round_up(data.EVALUATION_BATCH),
        **sharding.process_share(),
    ):
        check()
        probability, loss = predict(
            state.params, state.batch_stats, sharding.put_batch(batch, mesh)
        )
        scores.append(np.asarray(probability))
        losses.append(np.asarray(loss))
    n = len(labels)  # the rest is padding of the last batch
    return labels, np.concatenate(scores)[:n], float(np.concatenate(losses)[:n].mean())


def _test_once(
    config: FinetuneConfig,
    predict: Predictor,
    state: TrainState,
    dataset: data.Dataset,
    workdir: Path,
    mesh: Mesh,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Reads validation and test with the chosen weights, saves every prediction, scores test."""
    scored: dict[str, Scored] = {}
    for split in (config.val_split, config.test_split):
        labels, scores, _ = evaluate(predict, state, dataset, config, split, mesh, check)
        scored[split] = Scored(labels, data.read_labels(dataset, split)[1], scores)
    if distributed.is_first():
        write_predictions(workdir / "predictions.csv", scored)
    return scored[config.test_split].metrics()
