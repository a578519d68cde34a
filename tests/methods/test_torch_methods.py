"""PyTorch's steps, but for SparK's, compute what ours compute, on an encoder that compiles at once.

`launch.benchmark.torch.methods` against the methods: loss, gradients, one update, teacher, queue,
prototypes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import torch
from tiny import BATCH, METHODS, TinyEncoder
from torch_parity import DECAY, assert_close, filled, gradients, load, optimizers, trained

from ctssl_jax.interop import names
from ctssl_jax.methods import Supervised
from ctssl_jax.methods.base import Progress, TrainState
from ctssl_jax.methods.moco import NO_RECORD
from ctssl_jax.optim import OptimizerName, decay_mask
from launch.benchmark.torch import methods as torch_methods

NAMES = ["moco", "swav", "byol", "simclr", "supervised"]
CLASSES = 3


class TorchTinyEncoder(torch.nn.Module):
    """`tiny.TinyEncoder` and its pooling."""

    num_features = TinyEncoder().widths[-1]

    def __init__(self):
        super().__init__()
        inputs = 1
        for i, (width, stride) in enumerate(zip(TinyEncoder().widths, (4, 2, 2, 2), strict=True)):
            convolution = torch.nn.Conv2d(inputs, width, stride, stride, bias=False)
            self.add_module(f"conv{i}", convolution)
            self.add_module(f"bn{i}", torch.nn.BatchNorm2d(width))
            inputs = width

    def forward(self, x):
        for i in range(4):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
        return x.mean(dim=(2, 3))


def head_names(method):
    """Of our leaf, PyTorch's; layers of an MLP are numbered there."""
    last = 3 if method != "moco" else 2
    layers = {"linear1": "0", "bn1": "1", "linear2": str(last)}
    student = method != "swav"
    whole = {"swav": "encoder", "supervised": "network.0"}.get(method, "student.0")

    def name(path):
        part, *rest = path
        if part == "encoder":
            return f"{whole}.{names.encoder_name(tuple(rest))}"
        *module, layer, leaf = rest
        if layer == "prototypes":
            return "prototypes.weight"
        where = module[0] if module and not (student and module[0] == "projector") else "student.1"
        leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        if method == "supervised":
            return f"network.1.{leaf}"
        return f"{where}.layers.{layers[layer]}.{leaf}"

    return name


def to_torch(method, tree):
    """As `names.to_torch`; prototypes lie here as they do there."""
    found = names.to_torch(tree, head_names(method))
    if method == "swav":
        found["prototypes.weight"] = found["prototypes.weight"].T
    return found


def small(name):
    """A method of `tiny`, as far as PyTorch's has it."""
    changes = {
        "moco": {"bn_groups": 1},
        "swav": {"queue_epoch": 0.0, "frozen_epochs": 0.0},
    }
    if name == "supervised":
        return Supervised(CLASSES, (1.0, 2.0, 4.0), view=METHODS["byol"].view)
    return dataclasses.replace(METHODS[name], **changes.get(name, {}))


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


TOLERANCE = {  # where ours is in float32: assignments and predictions, the momentum
    "swav": 1e-5,
    "byol": 1e-7,
}


def start(name, method, params, stats, model):
    """Fills a model as `params`, with a teacher and a full queue of other numbers.

    Returns the same teacher and queue as ours has them.
    """
    rng = np.random.default_rng(1)
    tensors = to_torch(name, params)
    aux = ()
    if name in ("moco", "byol"):
        params = jax.tree.map(lambda x: 0.9 * x + 0.05, params)
        tensors |= {
            key.replace("student", "teacher"): value
            for key, value in to_torch(name, params).items()
            if key.startswith("student")
        }
        if name == "byol":
            params, stats = (
                {"encoder": tree["encoder"], "projector": tree["head"]["projector"]}
                for tree in (params, stats)
            )
        aux = {"params": params, "batch_stats": stats}
    load(model, tensors)
    if name == "moco":
        queue = unit(rng, method.queue_size, method.features)
        model.criterion.memory_bank.bank = torch.from_numpy(queue.copy())
        record = np.full(method.queue_size, NO_RECORD, np.int32)
        aux |= {"queue": queue, "record": record, "pointer": np.int32(0)}
    if name == "swav":
        queue = unit(rng, 2, method.queue_size, method.features)
        for bank, part in zip(model.queues, queue, strict=True):
            bank.bank = torch.from_numpy(part.copy())
        model.queued = method.queue_size
        aux = {"queue": queue}
    return aux


@pytest.mark.parametrize("name", NAMES)
def test_a_step_equals_ours(name):
    method, rng = small(name), np.random.default_rng(0)
    tolerance = TOLERANCE.get(name, 1e-9)
    model = torch_methods.ON_ENCODER[type(method)](method, TorchTinyEncoder()).double()
    tx, optimizer = optimizers(OptimizerName.SGD, model, clip_norm=0.0, weight_decay_end=DECAY)
    views = tuple(
        rng.standard_normal((group.count, BATCH, group.size, group.size, 1))
        for group in method.views
    )
    # The queue of SwAV is full and due; BYOL's momentum is still tau.
    progress = Progress(jnp.int32(0 if name == "byol" else 5), 20, 4.0)

    with jax.enable_x64(True):
        encoder = TinyEncoder(param_dtype=jnp.float64, dtype=jnp.float64)
        params, stats, _ = filled(method, encoder)
        aux = start(name, method, params, stats, model)

        @jax.jit
        def step(params, stats, aux, views):
            state = TrainState(progress.step, params, stats, (), aux)
            rows = jnp.arange(BATCH, dtype=jnp.int32)
            batch = {"views": views, "record": rows, "label": rows % CLASSES}
            grad = jax.value_and_grad(method.loss, argnums=1, has_aux=True)
            (loss, out), grads = grad(encoder, params, state, batch, jax.random.key(0), progress)
            updates, _ = tx.update(grads, tx.init(params), params)
            state = state.replace(params=optax.apply_updates(params, updates), aux=out.aux)
            return loss, grads, method.after_update(state, progress)

        loss, grads, after = jax.device_get(
            step(*jax.tree.map(jnp.asarray, (params, stats, aux, views)))
        )

    merged = tuple(
        torch.from_numpy(np.concatenate(view.transpose(0, 1, 4, 2, 3))) for view in views
    )
    decayed = jax.tree.map(lambda d, x: np.full(x.shape, d), decay_mask(params), params)
    resting = {
        id(parameter)
        for group in optimizer.param_groups
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    assert {key: value.all() for key, value in to_torch(name, decayed).items()} == {
        key: id(parameter) not in resting
        for key, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    found = model(merged)
    found.backward()
    optimizer.step()
    model.after_update()
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert_close(to_torch(name, grads), gradients(model), tolerance)
    assert_close(to_torch(name, after.params), trained(model), tolerance)
    if name in ("moco", "byol"):
        teacher = after.aux["params"]
        if name == "byol":
            teacher = {"encoder": teacher["encoder"], "head": {"projector": teacher["projector"]}}
        found = {
            f"student.{key}": value.numpy() for key, value in model.teacher.state_dict().items()
        }
        expected = to_torch(name, teacher)
        assert_close(expected, {key: found[key] for key in expected}, tolerance)
    if name == "moco":
        bank = model.criterion.memory_bank.bank.numpy()
        np.testing.assert_allclose(bank, after.aux["queue"], atol=tolerance)
    if name == "swav":  # the newest; ours are in order of age, of theirs the oldest go as well
        for bank, part in zip(model.queues, after.aux["queue"], strict=True):
            np.testing.assert_allclose(bank.bank[:BATCH], part[:BATCH], atol=tolerance)
