"""What every method promises: gradients, devices, one compilation, learning, resume, hand-over.

SparK's own program is held to the same on a ResNet in test_train.py and test_golden.py; here it
takes part in what needs no compiled decoder.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved
import tiny

from ctssl_jax import finetune, methods, pretrain
from ctssl_jax.config import FinetuneConfig, PretrainConfig
from ctssl_jax.data import DataConfig
from ctssl_jax.hosts import sharding
from ctssl_jax.interop.names import named_leaves
from ctssl_jax.log import read_metrics
from ctssl_jax.methods.base import Method, Progress, init_encoder
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.optim import OptimConfig, OptimizerName
from ctssl_jax.optim.freezing import FreezeConfig
from ctssl_jax.report.names import known_arms
from ctssl_jax.run.checkpoint import Checkpoints, load_encoder

GOLDEN = Path(__file__).parent.parent / "golden" / "parameters.json"
CONTRASTIVE = [name for name in tiny.METHODS if name != "spark"]
REFERENCE = {name: type(method)() for name, method in tiny.METHODS.items()}  # at full size
COMPARE_SLICES = ("moco", "swav", "simclr")  # with each other, over all devices


@pytest.fixture(params=CONTRASTIVE)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def trained():
    """Per method: states and metrics after steps on one device and on four, and the programs."""
    found = {}

    def get(name):
        if name not in found:
            found[name] = {}
            for devices, steps in ((1, 32), (4, 3)):
                state, step = tiny.training(tiny.METHODS[name], total_steps=32)
                run, compiled = tiny.on(devices, state, step)
                after, history = run(range(3))
                found[name][devices] = jax.device_get(after), history, compiled
                if steps > 3:
                    last, more = run((number % 8 for number in range(3, steps)), after)
                    found[name]["long"] = jax.device_get(last), history + more
        return found[name]

    return get


@pytest.mark.parametrize("name", tiny.METHODS)
def test_all_methods_are_checked_and_are_methods(name):
    assert isinstance(tiny.METHODS[name], Method)
    told = type(tiny.METHODS[name]).__name__.lower() in known_arms()
    assert told, "its docstring begins with `Hyperparameters of NAME;`, which the report calls it"
    shipped = {cls for cls in vars(methods).values() if isinstance(cls, type)}
    shipped = {cls for cls in shipped if not issubclass(cls, methods.Supervised)}
    shipped -= {Method, methods.Out, methods.Progress, methods.TrainState}
    assert shipped == {type(method) for method in tiny.METHODS.values()}


def shapes(state):
    return {
        "/".join(path): list(leaf.shape)
        for part in (state.params, state.batch_stats)
        for path, leaf in named_leaves(part)
        if path[0] == "head"
    }


def test_head_parameters_are_the_golden_ones_and_the_encoder_is_the_resnet():
    """A renamed or reshaped parameter breaks every checkpoint; UPDATE_GOLDEN=1 accepts it."""
    encoder, key = ResNet(depth=50), jax.random.key(0)
    initial = {
        name: jax.eval_shape(lambda key, method=method: method.init(encoder, key, 1), key)
        for name, method in REFERENCE.items()
    }
    found = {name: shapes(state) for name, state in initial.items()}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())
    plain = jax.eval_shape(lambda key: init_encoder(encoder, key, 32, 1), key)
    for state in initial.values():
        assert (state.params["encoder"], state.batch_stats["encoder"]) == plain


def test_gradients_reach_all_parameters_and_never_the_teacher(name):
    method = tiny.METHODS[name]
    state, batch = tiny.initial(name), tiny.loss_batch(name)
    teacher = state.aux["params"] if name in ("moco", "byol") else {}

    def loss(params, teacher):
        aux = {**state.aux, "params": teacher} if teacher else state.aux
        progress = Progress(jnp.int32(9), 20, tiny.STEPS_PER_EPOCH)
        value, _ = method.loss(
            tiny.ENCODER, params, state.replace(aux=aux), batch, jax.random.key(2), progress
        )
        return value

    grads, to_teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(state.params, teacher)
    for path, leaf in named_leaves(grads):
        assert float(jnp.abs(leaf).max()) > 0, path
    for leaf in jax.tree.leaves(to_teacher):
        assert not leaf.any()


def test_four_devices_equal_one(trained, name):
    (one, one_history, _), (four, four_history, _) = (trained(name)[n] for n in (1, 4))
    for ours, theirs in zip(one_history, four_history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one.params, four.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one.aux, four.aux)


@functools.cache
def compiled(name, devices):
    """The program that one of so many devices runs."""
    state, step = tiny.training(tiny.METHODS[name], total_steps=32)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    lowered = sharding.jit_step(step, mesh).lower(state, tiny.host_batch(), jax.random.key(3))
    return lowered.compile()


def test_four_devices_share_the_work(name):
    """What `jit` cannot split it computes everywhere, and the numbers are right all the same."""
    one, four = (compiled(name, devices).cost_analysis()["flops"] for devices in (1, 4))
    assert four < 0.26 * one


def test_a_device_is_sent_no_slices_but_where_slices_are_compared(name):
    gathered = " all-gather(" in compiled(name, 4).as_text()
    assert gathered == (name in COMPARE_SLICES)


def test_the_step_compiles_once(trained, name):
    for devices in (1, 4):
        assert trained(name)[devices][2]._cache_size() == 1


def test_training_lowers_the_loss(trained, name):
    _, history = trained(name)["long"]
    losses = [float(row["loss"]) for row in history]
    # MoCo's first steps meet a queue of random vectors, which is easy to tell from
    assert np.mean(losses[-8:]) < np.mean(losses[2:8]) - 0.03


def test_the_metrics_are_read_aloud(trained, name):
    from ctssl_jax.run import health as watch

    _, history = trained(name)["long"]
    values = {key: float(value) for key, value in history[-1].items()}
    assert "spread" in watch.in_words(values)
    assert ("below chance" in watch.in_words(values)) == ("chance" in values)
    assert values["embedding_std"] > watch.COLLAPSED_STD


def config(name, phantom_path):
    return PretrainConfig(
        batch_size=8,
        epochs=3.0,  # 12 steps of the fixture's 32 slices
        data=DataConfig(path=str(phantom_path), canvas=64),
        method=tiny.METHODS[name],
        optim=OptimConfig(name=OptimizerName.ADAMW, lr=1e-3, warmup_epochs=0.0),
        log_every=4,
        checkpoint_every=4,
        picture_every=0,
    )


@pytest.mark.parametrize(
    "name",
    [  # The memory of others is a part of MoCo's, or like it, and SimCLR has none
        name if name == "moco" else pytest.param(name, marks=pytest.mark.slow)
        for name in tiny.METHODS
    ],
)
def test_an_interrupted_run_ends_bit_equal_and_hands_its_encoder_on(
    name, tmp_path, phantom_path, monkeypatch
):
    tiny.patch_runs(monkeypatch)
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    pretrain.run(config(name, phantom_path), alone)

    class Killed(Exception):
        pass

    save = Checkpoints.save

    def save_and_die(self, state, unfinished=False):
        if int(state.step) == 8:
            raise Killed
        save(self, state, unfinished)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            pretrain.run(config(name, phantom_path), broken)
    # What the numbers do not depend on may be another then.
    pretrain.run(dataclasses.replace(config(name, phantom_path), keep_checkpoints=3), broken)
    log = (broken / "log.txt").read_text()
    assert "resumed at step 4" in log
    assert "goes on with another setting (config.keep_checkpoints is 2 there and 3 here)" in log
    assert json.loads((broken / "config.json").read_text())["elastic"]["keep_checkpoints"] == 3

    one, other = saved.state(alone, 12), saved.state(broken, 12)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    for ours, theirs in zip(read_metrics(alone), read_metrics(broken), strict=True):
        assert (ours["step"], ours["loss"]) == (theirs["step"], theirs["loss"])

    params, _ = load_encoder(alone, tiny.ENCODER, 1)
    jax.tree.map(np.testing.assert_array_equal, params, one["params"]["encoder"])
    if name != "moco":  # what follows is the same code for all
        return
    found = finetune.run(
        FinetuneConfig(
            encoder_run=str(alone),
            batch_size=8,
            epochs=2,
            data=DataConfig(path=str(phantom_path), canvas=64),
            method=methods.Supervised(view=tiny.view(64)),
            freeze=FreezeConfig(epochs=1),
        ),
        tmp_path / "finetuned",
    )
    assert found["arm"] == name
