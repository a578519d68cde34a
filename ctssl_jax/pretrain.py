"""A pre-training run, from config to last checkpoint."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from ctssl_jax import data
from ctssl_jax.augment import IntensityKind
from ctssl_jax.config import PretrainConfig
from ctssl_jax.frozen.probe import make_probe
from ctssl_jax.hosts import distributed, sharding
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.log import Writer
from ctssl_jax.methods.base import Start, TrainState
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.optim import lr_schedule, make_optimizer, weight_decay_schedule
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import leakage, pictures
from ctssl_jax.run.checkpoint import Checkpoints, load_start
from ctssl_jax.run.opening import open_pretraining, start_or_resume
from ctssl_jax.train import Due, Pace, Session, Step, attend, fit, init_state, make_step


class Program(NamedTuple):
    """A pre-training run as pure functions, before any device or data."""

    encoder: ResNet
    tx: optax.GradientTransformation
    init: Callable[..., TrainState]  # of a key, and of the weights to start from
    step: Step
    total_steps: int
    steps_per_epoch: float


def make_program(config: PretrainConfig, slices: int, kind: IntensityKind) -> Program:
    """What a config trains on a split of `slices` stored as `kind`."""
    total_steps, steps_per_epoch = config.total_steps(slices), slices / config.batch_size
    lr = lr_schedule(config.optim, steps_per_epoch, total_steps)
    weight_decay = weight_decay_schedule(config.optim, total_steps)
    tx = make_optimizer(config.optim, lr, weight_decay)
    encoder = config.encoder.build(config.precision)
    step = make_step(
        config.method,
        encoder,
        tx,
        config.intensity,
        kind,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        schedules={"lr": lr, "weight_decay": weight_decay},
        accumulate=config.accumulate,
    )
    init = partial(init_state, config.method, encoder, tx, config.intensity.channels)
    return Program(encoder, tx, init, step, total_steps, steps_per_epoch)


def run(config: PretrainConfig, workdir: Path, supervisor: Supervisor | None = None) -> None:
    """Pre-trains; repeating it in the same `workdir` resumes, on any number of devices.

    Raises:
      UserError: one of its kinds, with the line to show.
    """
    supervisor = supervisor or Supervisor()
    opened = open_pretraining(config)
    config, dataset, kept = opened.config, opened.dataset, opened.kept
    program, mesh = make_program(config, kept.slices, dataset.intensity), sharding.make_mesh()
    probe = probed = None
    if config.probe.every:
        probed = data.open_dataset(config.probe.path).fingerprint
        probe = make_probe(
            config.probe,
            program.encoder,
            config.intensity,
            mesh,
            config.data.accept_leakage,
            attend(supervisor, mesh),
        )
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(program.init, key)
    start = _load_start(config, program.encoder, abstract)
    if run_folder.open_run(
        workdir,
        config,
        dataset,
        audit=opened.audit,
        kept=kept.summary,
        encoder_run=config.encoder_run,
        encoder=opened.encoder,
        probe=probed,
    ):
        distributed.say(f"{workdir} is done already")
        return
    leakage.write_seen(workdir, dataset, config.data.split, kept.rows, config.encoder_run)

    batches = iter(
        data.pretrain_batches(
            dataset,
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            indices=kept.rows,
            **sharding.process_share(),
        )
    )
    places = sharding.state_shardings(abstract, mesh, config.shard_state)
    name = type(config.method).__name__
    checkpoints = Checkpoints(workdir, method=name, keep=config.keep_checkpoints)
    supervisor.beat()  # the data are open; what follows compiles
    init = sharding.jit_init(program.init, places)
    state, unfinished = start_or_resume(checkpoints, init, key, start, batches, places)
    done = int(state.step)
    writer = run_folder.writer(workdir, done)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    writer.line(
        f"{name} on {dataset.name}: {kept.in_words()}, ResNet-{config.encoder.depth}, "
        f"{parameters:,} parameters, {jax.device_count()} x {jax.devices()[0].device_kind}"
        + (", from the encoder of another run" if start else "")
        + (f", resumed at step {done:,}" if done else "")
    )
    writer.line(
        f"{program.total_steps:,} steps of {config.batch_size} slices, {config.epochs:g} epochs; "
        + config.rate_in_words()
    )

    due = []
    if config.picture_every:
        shown = pictures.read_slices(dataset, config)
        if done == 0:  # a resumed run has them
            pictures.draw_views(shown, config, workdir)
        if hasattr(config.method, "reconstruct"):
            draw = pictures.reconstruction(shown, config, program.encoder, workdir)
            due.append(Due(config.picture_every, draw))
    if probe is not None:
        due.append(Due(config.probe.every, partial(log_probe, probe, writer)))
    pace = Pace(
        config.seed,
        program.total_steps,
        program.steps_per_epoch,
        config.batch_size,
        config.log_every,
        config.checkpoint_every,
    )
    session = Session(mesh, writer, supervisor, checkpoints.save, unfinished)
    with supervisor.watch(config.hang_after_s), closing(writer), closing(checkpoints):
        fit(state, sharding.jit_step(program.step, mesh, places), batches, session, pace, due)
    supervisor.resumable = False
    run_folder.set_status(workdir, "done")
    writer.line(f"done: {program.total_steps:,} steps")
    distributed.say(f"the encoder is in {workdir}")


def _load_start(config: PretrainConfig, encoder: ResNet, fresh: TrainState) -> Start | None:
    """The weights of `config.encoder_run`, if one is given."""
    if not config.encoder_run:
        return None
    return load_start(
        Path(config.encoder_run),
        encoder,
        config.intensity.channels,
        type(config.method).__name__,
        Start(fresh.params, fresh.batch_stats),
    )


def log_probe(
    probe: Callable[[TrainState, int], dict[str, float]],
    writer: Writer,
    state: TrainState,
    number: int,
) -> None:
    """Scores the encoder's frozen features and writes what was found."""
    found = probe(state, number)
    writer.scalars(number, found)
    words = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items())
    writer.line(f"  validation: {words}")
