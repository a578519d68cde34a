"""One labelled run: one task, initialisation, training-set size and seed.

The encoder comes strictly from a run folder, or is random. The epoch is chosen on validation; the
test split is opened once, at the end, by the chosen weights. What is drawn, validated and tested
are cases, whatever a step learns (`run.learning`): scans, nodules, or slices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ctssl_jax import data
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.dataset.cases import SLICE, case_of, case_word, plural
from ctssl_jax.finetune_program import Program, Recipe, make_program
from ctssl_jax.hosts import distributed, sharding
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.methods.base import Start, TrainState
from ctssl_jax.methods.cases import Cases
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.run import batch_statistics, leakage, learning, likeness
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run.batch_statistics import Measure
from ctssl_jax.run.budget import Budget, budget
from ctssl_jax.run.checkpoint import BestWeights, Checkpoints, load_start
from ctssl_jax.run.opening import Drawn, open_labelled, results_header, start_or_resume
from ctssl_jax.run.prediction import Predictor, evaluate, slice_features
from ctssl_jax.run.subset import Subset
from ctssl_jax.scores import Scored, classification_metrics, write_predictions
from ctssl_jax.train import Due, Pace, Session, attend, fit


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
    opened = open_labelled(config)
    config, dataset, drawn = opened.config, opened.dataset, opened.drawn
    encoder = config.encoder.build(config.precision)
    pretrained = None
    if config.encoder_run:
        pretrained = load_start(Path(config.encoder_run), encoder, config.intensity.channels)
    plan = budget(config, learning.items(config.method, drawn.train))
    if run_folder.open_run(
        workdir,
        config,
        dataset,
        audit=leakage.with_earlier(opened.audit, config.encoder_run),
        encoder_run=config.encoder_run,
        encoder=opened.encoder,
        batch_size=plan.batch_size,
    ):
        return run_folder.read_results(workdir)
    run_folder.write_subset(workdir, drawn.train.record(config, drawn.val))
    leakage.pass_on_seen(workdir, config.encoder_run)
    leakage.write_learnt(
        workdir,
        dataset,
        {config.data.split: drawn.train.rows, config.val_split: drawn.val.rows},
    )

    mesh = sharding.make_mesh(sharding.devices_of(plan.batch_size))
    method = _balanced(config, dataset, drawn.train)
    decay = config.layer_decay if pretrained else 1.0
    same = Recipe(method, config.intensity, dataset.intensity, config.optim, plan.freeze, decay)
    program = make_program(same, encoder, mesh)
    with supervisor.watch(config.hang_after_s), closing(BestWeights(workdir)) as best:
        state = _train(
            config,
            workdir,
            dataset,
            program,
            pretrained,
            drawn,
            plan,
            best,
            mesh,
            supervisor,
        )
        supervisor.resumable = False  # all is saved, and the rest is not worth waiting for
        supervisor.leave_if_asked()
        chosen = best.read()
        assert chosen is not None, "validation follows every epoch"
        steps_trained = int(state.step)
        state = best.restore(state, mesh)
        test = _test_once(
            config, program.predict, state, dataset, drawn, workdir, mesh, supervisor.beat
        )
    results = {
        **results_header(opened, workdir),
        "best_epoch": chosen["epoch"],
        "best_step": chosen["step"],
        "epochs": plan.epoch(plan.total_steps),
        "epochs_trained": plan.epoch(steps_trained),
        "steps_trained": steps_trained,
        "total_steps": plan.total_steps,
        "bn_images": min(config.bn_images, len(drawn.train.rows)),
        "val": {name: chosen[name] for name in ("auc", "accuracy", "f1")},
        **({"test": test} if test else {}),
        **({"tuning": _tuning(config)} if config.tuned_lrs else {}),
        "test_reads": int(config.read_test),
    }
    run_folder.write_results(workdir, results)
    if test is None:
        distributed.say(f"test was not read; validation: {_scores(results['val'])}")
        return results
    distributed.say(
        f"test: AUC {test['auc']:.3f}, F1 {test['f1']:.3f}, accuracy {test['accuracy']:.3f} on "
        f"{test['n']} {plural(results['case'])} of {test['patients']} patients "
        f"(epoch {chosen['epoch']})"
    )
    return results


def _train(
    config: FinetuneConfig,
    workdir: Path,
    dataset: data.Dataset,
    program: Program,
    pretrained: Start | None,
    drawn: Drawn,
    plan: Budget,
    best: BestWeights,
    mesh: Mesh,
    supervisor: Supervisor,
) -> TrainState:
    """All steps, with validations between; leaves the best weights in `best`."""
    (subset, val), predict = drawn, program.predict
    frozen = learning.is_frozen(config.method)
    key = jax.random.key(config.seed)
    checkpoints = Checkpoints(workdir, method=type(config.method).__name__, keep=1)
    position = learning.Position()
    state, unfinished = start_or_resume(
        checkpoints, program.init, key, pretrained, position, program.places
    )
    # What is due after a step is done before it is saved, unless the checkpoint says otherwise.
    last = int(state.step) - unfinished
    best.require(last >= plan.validate_every or last >= plan.total_steps)
    writer = run_folder.writer(workdir, int(state.step))
    check = attend(supervisor, mesh)
    for line in _opening_lines(config, dataset, drawn, plan, mesh, int(state.step)):
        writer.line(line)
    settle = _make_settle(config, program.measure, dataset, subset, mesh, check)
    known = learning.NONE
    if frozen:
        state = settle(state)
        writer.line("features of all slices, once: the encoder learns nothing")
        known = learning.known_features(predict, state, dataset, config, drawn, mesh, check)
    batches = iter(learning.batches(config, dataset, subset, plan.batch_size, known.train))
    position.seek(batches)

    def validate(state: TrainState, number: int) -> None:
        # What training goes on with stays as it is.
        ready = state if frozen else settle(state)
        truth, scores, loss = evaluate(
            *(predict, ready, dataset, config, config.val_split, mesh, val.cases, check, known.val)
        )
        found = {"loss": loss, **classification_metrics(truth, scores)}
        epoch = plan.epoch(number)
        row = {f"val_{name}": value for name, value in found.items()}
        writer.scalars(number, {"epoch": epoch, **row})
        so_far = best.read()
        better = so_far is None or found[config.select_by.value] > so_far[config.select_by.value]
        writer.line(
            f"validation after step {number:,}: {_scores(found)}"
            + (f", best {config.select_by.value} so far" if better else "")
        )
        if better:
            meta = {"epoch": epoch, "step": number, **found}
            best.save(plan.validation(number), ready, meta)

    def over(number: int) -> bool:
        so_far = best.read()
        if not config.patience or so_far is None:
            return False
        waited = number - max(so_far["step"], plan.frozen_steps)
        return waited >= config.patience * plan.validate_every

    pace = Pace(
        config.seed,
        plan.total_steps,
        plan.steps_per_epoch,
        plan.batch_size * learning.slices_of_one(config.method),
        log_every=max(1, plan.total_steps // 10),
        # Of little data an epoch is a step or two, and to save takes longer than that.
        save_every=max(config.checkpoint_every_epochs * plan.steps_per_epoch, plan.validate_every),
    )
    with closing(writer), closing(checkpoints):
        session = Session(mesh, writer, supervisor, checkpoints.save, unfinished)
        due = [Due(plan.validate_every, validate)]
        state = fit(state, program.step, batches, session, pace, due, over)
        chosen = best.read()
        if chosen is not None and chosen["step"] == plan.total_steps:
            writer.line(
                f"WARNING: best at the last step, {plan.total_steps:,}: not finished learning, "
                "give more steps or epochs"
            )
        return state


def _opening_lines(
    config: FinetuneConfig,
    dataset: data.Dataset,
    drawn: Drawn,
    plan: Budget,
    mesh: Mesh,
    step: int,
) -> list[str]:
    """What the log says of a run as it starts or goes on."""
    word, (train, val) = case_word(dataset.manifest), drawn
    return [
        f"{config.task}: {config.arm}, {train.counted(word, 'training')}, "
        f"{len(dataset.classes)} classes, seed {config.seed}, {val.counted(word, 'validation')}"
        + (f", resumed at step {step:,}" if step else ""),
        f"{plan.total_steps:,} steps of {plan.batch_size} {_learnt(config, word)}, learning rate "
        f"{config.optim.lr:.3g}, {mesh.devices.size} x {jax.devices()[0].device_kind}"
        + _idle(mesh),
        f"labels in all: {len(train.cases) + len(val.cases)} {plural(word)}, validation's among "
        "them",
        *_notes(config, dataset),
    ]


def _idle(mesh: Mesh) -> str:
    """That some devices have nothing to do, where the batch does not divide over all of them."""
    idle = len(sharding.all_devices()) - mesh.devices.size
    return f" ({idle} idle: so small a batch does not divide over them)" if idle else ""


def _learnt(config: FinetuneConfig, word: str) -> str:
    """What a step is counted in: cases, with their slices, or slices."""
    if not isinstance(config.method, Cases) or learning.slices_of_one(config.method) == 1:
        return "slices"
    return f"{plural(word)} of {learning.slices_of_one(config.method)} slices"


def _make_settle(
    config: FinetuneConfig,
    measure: Measure,
    dataset: data.Dataset,
    subset: Subset,
    mesh: Mesh,
    check: Callable[[], None],
) -> Callable[[TrainState], TrainState]:
    """Gives a state the encoder statistics to evaluate it with: see `batch_statistics`.

    BatchNorm trains on the batch in every phase, also while the convolutions rest (as Lightning's
    BackboneFinetuning has it), so that its running statistics lag in every phase.
    """
    if not config.bn_images:
        return lambda state: state
    rows = batch_statistics.chosen_rows(subset.rows, config.bn_images, config.seed)
    of_encoder = partial(
        batch_statistics.settled, measure, dataset, config.data, rows, mesh, check=check
    )

    def settle(state: TrainState) -> TrainState:
        stats = of_encoder(state.params["encoder"], state.batch_stats["encoder"])
        return state.replace(batch_stats={**state.batch_stats, "encoder": stats})

    return settle


def _notes(config: FinetuneConfig, dataset: data.Dataset) -> list[str]:
    """What the log says of the input before training."""
    notes = []
    of_cases = case_of(dataset.manifest) != SLICE
    if dataset.manifest.get("labels_of") == "scan" and not of_cases:
        notes.append("note: the labels are of scans; each slice was given that of its scan")
    if of_cases and not isinstance(config.method, Cases):
        word = case_word(dataset.manifest)
        notes.append(
            f"note: the labels are of {plural(word)}; each slice learns that of its {word}, which "
            "is scored by the mean of its slices: configs/finetune_cases.py learns "
            f"{plural(word)}"
        )
    if config.encoder_run:
        notes += run_folder.notes(config.encoder_run, config.intensity)
    return notes


def _tuning(config: FinetuneConfig) -> dict[str, Any]:
    """How the learning rate was chosen: never on test."""
    return {
        "lr": config.optim.lr,
        "candidates": list(config.tuned_lrs),
        "seeds": list(config.tuned_seeds),
        "split": config.val_split,
    }


def _scores(found: Mapping[str, float]) -> str:
    return ", ".join(
        f"{label} {found[name]:.3f}"
        for name, label in (("auc", "AUC"), ("f1", "F1"), ("accuracy", "accuracy"))
    )


def _balanced(config: FinetuneConfig, dataset: data.Dataset, subset: Subset) -> Supervised:
    """The method, with weights n / (k * n_c) of n labels and k classes if that is asked for.

    Not in `config.json`: the runs of an arm are of one config, whatever subset a seed draws.
    """
    if not config.balance_classes:
        return config.method
    labels = learning.labels(config.method, dataset, config.data.split, subset)
    count = np.bincount(labels, minlength=len(dataset.classes))
    weights = len(labels) / (len(count) * np.maximum(count, 1))
    return dataclasses.replace(config.method, class_weights=tuple(weights.tolist()))


def _test_once(
    config: FinetuneConfig,
    predict: Predictor,
    state: TrainState,
    dataset: data.Dataset,
    drawn: Drawn,
    workdir: Path,
    mesh: Mesh,
    check: Callable[[], None],
) -> dict[str, Any] | None:
    """Reads validation and test with the chosen weights, saves every prediction, scores test.

    None without `read_test`: then neither a test slice nor its label is looked at.
    """
    cases = {config.val_split: drawn.val.cases}
    if config.read_test:
        cases[config.test_split] = data.read_cases(dataset, config.test_split)
    scored: dict[str, Scored] = {}
    for split, own in cases.items():
        rows = own.slice_rows()
        features = slice_features(predict, state, dataset, config, split, mesh, rows, check)
        labels, scores, _ = evaluate(
            *(predict, state, dataset, config, split, mesh, own, check, features)
        )
        scored[split] = Scored(labels, own.patients, scores)
        if split == config.val_split and distributed.is_first():
            likeness.save_reference(workdir, own.means(features, rows))
    if distributed.is_first():
        write_predictions(workdir / "predictions.csv", scored, cases)
    split = config.test_split
    return scored[split].metrics(cases[split]) if config.read_test else None
