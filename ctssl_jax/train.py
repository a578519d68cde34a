"""The training step and the loop, shared by all methods. Read this file first.

`make_step` turns a method, an encoder and an optimizer into one pure function of (state, batch).
`fit` calls it in a straight line: wait for a batch, step, check, log, what else is due, save.
`pretrain` and `finetune` are runs, from config to last checkpoint.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from ctssl_jax.augment import Intensity, IntensityKind
from ctssl_jax.augment import views as augment
from ctssl_jax.errors import DivergedError, Preempted
from ctssl_jax.hosts import distributed, memory, sharding
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.log import Throughput, Writer, duration, time_of_end
from ctssl_jax.methods.base import Batch, Method, Out, Progress, PyTree, Start, TrainState, started
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.optim import Schedule
from ctssl_jax.run.health import Watch, in_words

Metrics = dict[str, jax.Array]
WORTH_TELLING_S = 60.0  # left to the end, from which on its time is told
QUIET_S = 60.0  # without a line, after which one tells how far the run is
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def init_state(
    method: Method,
    encoder: ResNet,
    tx: optax.GradientTransformation,
    channels: int,
    key: Key[Array, ""],
    start: Start | None = None,
) -> TrainState:
    """The state at step 0, fresh or with the weights of `start`.

    Pure, so that `jax.eval_shape` tells its shapes.
    """
    initial = method.init(encoder, key, channels)
    params, batch_stats, aux = initial if start is None else started(initial, start)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        aux=aux,
    )


def make_step(
    method: Method,
    encoder: ResNet,
    tx: optax.GradientTransformation,
    intensity: Intensity,
    kind: IntensityKind,
    *,
    total_steps: int,
    steps_per_epoch: float | int,
    schedules: Mapping[str, Schedule],
    accumulate: int = 1,
) -> Step:
    """One training step for any method.

    Randomness is a function of (the run's key, step, global index of the slice), never of devices.
    The key is an argument, so that runs that differ by their seed share a compiled program. A batch
    holds `image` (int16 `[b, h, w]`), `index`, `record` and `label` (int32 `[b]`), and what else
    the method reads; one of `features` in place of `image` has no views. With `accumulate` the
    gradient is the mean over so many microbatches, taken one after the other.
    """

    def gradient(
        state: TrainState, batch: Batch, key: jax.Array, step_key: jax.Array, progress: Progress
    ) -> tuple[jax.Array, Out, PyTree]:
        keys = augment.image_keys(key, progress.step, batch["index"])
        view_keys, method_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        seen = {**batch, "keys": method_keys}
        if "image" in batch:
            unit = augment.to_unit(batch["image"], intensity, kind)
            views = augment.make_views(view_keys, unit, method.views)
            seen["views"] = tuple(augment.normalise(view, intensity) for view in views)
        grad = jax.value_and_grad(method.loss, argnums=1, has_aux=True)
        (loss, out), grads = grad(encoder, state.params, state, seen, step_key, progress)
        return loss, out, grads

    def mean_gradient(
        state: TrainState, batch: Batch, key: jax.Array, step_key: jax.Array, progress: Progress
    ) -> tuple[jax.Array, Out, PyTree]:
        # Microbatch i is every accumulate-th slice from the i-th on: no slice changes its device,
        # and who is in a microbatch does not depend on the devices.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), dict(batch)
        )

        def add(carry: PyTree, part: tuple[jax.Array, Batch]) -> tuple[PyTree, Metrics]:
            batch_stats, aux, total = carry
            number, batch = part
            now = state.replace(batch_stats=batch_stats, aux=aux)
            part_key = jax.random.fold_in(step_key, number)
            loss, out, grads = gradient(now, batch, key, part_key, progress)
            total = jax.tree.map(jnp.add, total, grads)
            return (out.batch_stats, out.aux, total), {"loss": loss, **out.metrics}

        start = (state.batch_stats, state.aux, jax.tree.map(jnp.zeros_like, state.params))
        carry, values = jax.lax.scan(add, start, (jnp.arange(accumulate), parts))
        batch_stats, aux, total = carry
        metrics = {name: value.mean() for name, value in values.items()}
        grads = jax.tree.map(lambda x: x / accumulate, total)
        return metrics.pop("loss"), Out(batch_stats, aux, metrics), grads

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        progress = Progress(state.step, total_steps, steps_per_epoch, accumulate)
        find = mean_gradient if accumulate > 1 else gradient
        loss, out, grads = find(state, batch, key, step_key, progress)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **out.metrics}
        metrics |= {name: schedule(state.step) for name, schedule in schedules.items()}
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            batch_stats=out.batch_stats,
            aux=out.aux,
        )
        return method.after_update(state, progress), metrics

    return step


@dataclasses.dataclass(frozen=True)
class Due:
    """Something to do with the state after every `every`-th step and after the last."""

    every: int
    call: Callable[[TrainState, int], None]

    def at(self, step: int, total_steps: int) -> bool:
        """Whether it is due after `step` steps."""
        return step % self.every == 0 or step == total_steps


class Pace(NamedTuple):
    """How far a run goes, and when what happens.

    Attributes:
      seed: of the run.
      total_steps: where it ends.
      steps_per_epoch: passes over the data are counted by it.
      batch_size: slices of a step, over all devices.
      log_every, save_every: in steps.
    """

    seed: int
    total_steps: int
    steps_per_epoch: float | int
    batch_size: int
    log_every: int
    save_every: int


class Session(NamedTuple):
    """What a run has to do with the world.

    Attributes:
      mesh: the devices.
      writer: of metrics and lines.
      supervisor: of signals, and of a run that hangs.
      save: gets the state every `save_every` steps, after the last and before a pre-emption, and
        whether something that was due after its step is due still.
      unfinished: what was due after the step that the run goes on from is done first.
    """

    mesh: Mesh
    writer: Writer
    supervisor: Supervisor
    save: Callable[[TrainState, bool], None]
    unfinished: bool = False


def fit(
    state: TrainState,
    step: Step,
    batches: Iterator[Batch],
    session: Session,
    pace: Pace,
    due: Sequence[Due] = (),
    over: Callable[[int], bool] = lambda step: False,
) -> TrainState:
    """Trains from `state.step` to `pace.total_steps`.

    Args:
      state: a fresh one, or where a run goes on.
      step: as compiled by `sharding.jit_step`.
      batches: this host's shares of the global batches.
      session: the devices, and what is written.
      pace: how far, and how often.
      due: what else is to do.
      over: whether the run ends after a step, asked where something was due; by what is on disk, so
        that a resumed run ends there, too.

    Raises:
      DivergedError: loss or gradient was not finite; found before anything that is due, so that no
        checkpoint holds what came of it.
      Preempted: a signal asked for it; every process has saved the same step.
    """
    mesh, writer, supervisor, save, unfinished = session
    total_steps = pace.total_steps
    start, began = int(state.step), time.monotonic()
    key = sharding.replicate(jax.random.key(pace.seed), mesh)
    throughput, watch = Throughput(pace.batch_size), Watch()
    unchecked: list[tuple[jax.Array, jax.Array]] = []
    votes, alone, foretold = sharding.Votes(mesh), sharding.is_alone(), False
    told = began
    for item in due if unfinished else ():
        if item.at(start, total_steps):
            item.call(state, start)
    if over(start):
        return state
    if start < total_steps:
        writer.line(f"step {start:,}/{total_steps:,}: compiling the training step")
    for number in range(start + 1, total_steps + 1):
        asked = time.monotonic()
        try:
            batch = sharding.put_batch(supervisor.next(batches, alone), mesh)
        except Preempted:
            check_finite(unchecked, number - 1)
            save(state, False)
            raise
        waited = time.monotonic() - asked
        if number == start + 1:
            for line in memory.in_words(step, state, batch, key):
                writer.line(line)
        state, metrics = step(state, batch, key)
        unchecked.append((metrics["loss"], metrics["grad_norm"]))
        throughput.step(waited)
        now_due = [item for item in due if item.at(number, total_steps)]
        log = number % pace.log_every == 0 or number == total_steps
        if number == start + 1:
            jax.block_until_ready(metrics)
            writer.line(f"compiled and first step done in {duration(time.monotonic() - began)}")
            supervisor.resumable = True
            told = time.monotonic()
            if not log:
                throughput.restart()  # later lines leave the compilation out
        supervisor.beat()
        stop = votes.cast(supervisor.asked)
        save_now = number % pace.save_every == 0 or number == total_steps or stop
        pausing = bool(log or now_due or save_now)
        if pausing:
            check_finite(unchecked, number)
            unchecked = []
        # By each process's own clock: nothing may follow from it but a line.
        if log or time.monotonic() - told > QUIET_S:
            epoch = number / pace.steps_per_epoch
            values = {name: float(value) for name, value in metrics.items()}
            speed = throughput.read(total_steps - number)
            left = speed.pop("seconds_left")
            writer.line(log_line(number, total_steps, epoch, values, speed, left))
            told = time.monotonic()
            if number > start + 1 and left > WORTH_TELLING_S and not foretold:
                foretold = True
                rate = f"{speed['images_per_second']:,.1f} img/s"
                distributed.say(f"at {rate} done about {time_of_end(left)}")
        if log:
            elapsed = {"elapsed_s": told - began}
            writer.scalars(number, {"epoch": epoch, **values, **speed, **elapsed})
            for line in filter(None, [in_words(values), *watch.read(values)]):
                writer.line(f"  {line}")
        if not pausing:
            continue
        try:
            for item in now_due:
                item.call(state, number)
        except Preempted:
            save(state, True)
            raise
        ended = bool(now_due) and over(number)
        if save_now or ended:
            save(state, False)
        if stop:
            raise supervisor.stopped()
        if ended:
            break
        throughput.restart()
    return state


def attend(supervisor: Supervisor, mesh: Mesh) -> Callable[[], None]:
    """What a loop over batches within `fit`, such as a validation, calls at each of them.

    It tells the watchdog and raises `Preempted` once all processes agree that one was asked to.
    """
    votes = sharding.Votes(mesh)

    def check() -> None:
        supervisor.beat()
        if votes.cast(supervisor.asked and supervisor.resumable):
            raise supervisor.stopped()

    return check


def check_finite(values: Sequence[tuple[jax.Array, jax.Array]], last_step: int) -> None:
    """Raises `DivergedError` naming the first step, of those up to `last_step`, that is bad."""
    if not values:
        return
    finite = np.isfinite(np.asarray(jax.device_get(values), np.float64)).all(axis=1)
    if not finite.all():
        bad = last_step - len(values) + 1 + int(np.argmin(finite))
        loss, grad_norm = (float(value) for value in values[int(np.argmin(finite))])
        raise DivergedError(
            f"step {bad}: loss {loss}, gradient norm {grad_norm}: stopped, the last good "
            "checkpoint is kept; lower config.optim.lr and start in another --workdir"
        )


def log_line(
    step: int,
    total_steps: int,
    epoch: float,
    values: Mapping[str, float],
    speed: Mapping[str, float],
    seconds_left: float,
) -> str:
    """One line of progress, at most 120 columns."""
    return (
        f"step {step:,}/{total_steps:,} ep {epoch:.1f} loss {values['loss']:.4f} "
        f"lr {values['lr']:.2e} |g| {values['grad_norm']:.2g} "
        f"{speed['images_per_second']:,.1f} img/s in-wait {speed['input_wait']:.0%} "
        f"eta {duration(seconds_left)}"
    )
