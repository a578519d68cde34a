"""A run as `ctssl_jax.main` makes it, of the tiny encoder, that can be stopped where a test wants.

    python tiny_run.py JSON [flags of ctssl_jax.main]

JSON: `methods`, names of `tiny.METHODS`, or `finetune`; `data`; `steps`; `changes` to the config;
`pause`, [phase, step, seconds]: prints `PHASE` and waits there, until RUN.paused exists;
`throttle`, seconds for each step; `blow_up`, the step whose slices are not finite; `fill`, [folder,
step]: a file takes all space there; `evaluation_batch`; `data_of`, `steps_of`: of single processes.
Each process writes the rows of its batches beside the run folder.
"""

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from ctssl_jax import command, main  # noqa: E402


def build(ask, name):
    """The config of one run."""
    import jax.numpy as jnp
    import tiny

    from ctssl_jax import methods
    from ctssl_jax.config import EncoderConfig, FinetuneConfig, PretrainConfig
    from ctssl_jax.data import DataConfig
    from ctssl_jax.optim import OptimConfig, OptimizerName
    from ctssl_jax.optim.freezing import FreezeConfig

    dtype = jnp.float64 if ask.get("float64") else jnp.float32
    encoder = tiny.TinyEncoder(dtype=dtype, param_dtype=dtype)
    EncoderConfig.build = lambda self, precision: encoder
    data = DataConfig(path=ask["data"], canvas=64)
    if name == "finetune":
        return FinetuneConfig(
            batch_size=8,
            epochs=ask["steps"] // 4,
            data=data,
            method=methods.Supervised(view=tiny.view(64)),
            freeze=FreezeConfig(epochs=0),
            checkpoint_every_epochs=2,
        )
    none = {"warmup_epochs": 0.0, "weight_decay": 0.0, "weight_decay_end": 0.0}
    optim = OptimConfig(name=OptimizerName.SGD, lr=0.003, clip_norm=0.0, **none)
    config = PretrainConfig(
        batch_size=8,
        epochs=ask["steps"] / 4,  # of 32 slices
        data=data,
        method=tiny.METHODS[name],
        optim=optim,
        log_every=1,
        checkpoint_every=4,
        picture_every=0,
        keep_checkpoints=2,
    )
    return dataclasses.replace(config, **ask.get("changes", {}))


def pause(ask, workdir, phase, step):
    """Waits where it is asked for, until a test says that it has seen it."""
    wanted, at, seconds = ask.get("pause", ("", 0, 0))
    mark = workdir.with_suffix(".paused")
    if (wanted, at) != (phase, step) or mark.exists():
        return
    print("PHASE", phase, flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)


def fill(file):
    """Takes all that is left of a file system."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 4096)


def instrument(ask, workdir):
    """Puts the pauses where a run comes by."""
    import jax

    from ctssl_jax import finetune, pretrain
    from ctssl_jax.hosts import sharding
    from ctssl_jax.hosts.signals import Supervisor
    from ctssl_jax.run import checkpoint

    at = {"step": 0}
    put_batch, jit_step, save = sharding.put_batch, sharding.jit_step, checkpoint.Checkpoints.save
    predict, fit = finetune.evaluate, pretrain.fit

    def fit_and_count(state, *args, **kwargs):
        at["step"] = int(state.step)
        return fit(state, *args, **kwargs)

    def rows(batch, mesh):
        if "valid" not in batch:
            with workdir.with_suffix(f".rows{jax.process_index()}").open("a") as file:
                file.write(json.dumps([at["step"] + 1, batch["record"].tolist()]) + "\n")
            time.sleep(ask.get("throttle", 0))
            if ask.get("fill", ("", 0))[1] == at["step"] + 1:
                while not (workdir / "checkpoints" / "4").exists():
                    time.sleep(0.01)
                fill(Path(ask["fill"][0]) / "filler")
        return put_batch(batch, mesh)

    def slow_step(*args):
        compiled = jit_step(*args)

        def step(state, batch, key):
            first = compiled._cache_size() == 0
            pause(ask, workdir, "compilation" if first else "training", at["step"] + 1)
            state, metrics = compiled(state, batch, key)
            at["step"] += 1
            if at["step"] == ask.get("blow_up"):
                metrics = {**metrics, "loss": metrics["loss"] * float("inf")}
            return state, metrics

        return step

    def slow_save(self, state, unfinished=False):
        save(self, state, unfinished)
        pause(ask, workdir, "saving", int(state.step))

    def slow_evaluate(*args):
        def check():
            pause(ask, workdir, "evaluation", at["step"])
            args[-1]()

        return predict(*args[:-1], check)

    class Waiting:
        """An iterator whose next batch takes its time, as a slow disk's."""

        def __init__(self, items):
            self.items = items

        def __next__(self):
            pause(ask, workdir, "data", at["step"] + 1)
            return next(self.items)

    items_next = Supervisor.next
    Supervisor.next = lambda self, items, alone: items_next(self, Waiting(items), alone)
    pretrain.fit = finetune.fit = fit_and_count
    sharding.put_batch, sharding.jit_step = rows, slow_step
    checkpoint.Checkpoints.save = slow_save
    finetune.evaluate = slow_evaluate


def work(ask):
    """What `command.execute` runs."""

    def run(config, workdir, supervisor):
        import jax

        from ctssl_jax import data

        me = str(jax.process_index())
        ask["data"] = ask.get("data_of", {}).get(me, ask["data"])
        ask["steps"] = ask.get("steps_of", {}).get(me, ask["steps"])
        data.EVALUATION_BATCH = ask.get("evaluation_batch", data.EVALUATION_BATCH)
        instrument(ask, workdir)
        for name in ask["methods"]:
            folder = workdir / name if len(ask["methods"]) > 1 else workdir
            main.dispatch(build(ask, name), folder, supervisor)

    return run


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    command.end(
        command.execute(["tiny", "--config=configs/spark.py:smoke", *sys.argv[2:]], work(asked))
    )
