"""What tests of PyTorch's training steps share: one set of numbers on both sides, compared."""

import jax
import numpy as np
from oracles import torch

from ctssl_jax.interop import names
from ctssl_jax.optim import OptimConfig, make_optimizer
from launch.benchmark.torch import methods as torch_methods

LR, DECAY = 0.01, 0.03


def formula(path, leaf):
    """A value for each leaf that hides nothing, as zero-initialised scales would."""
    rng = np.random.default_rng(sum(map(ord, "/".join(path))))
    z = rng.standard_normal(leaf.shape)
    if path[-1].startswith("mask_token"):
        return 0.02 * z
    if leaf.ndim > 1:
        return z / np.sqrt(np.prod(leaf.shape[:-1]))
    return 0.05 * z if path[-1] == "bias" else 1 + 0.1 * z


def filled(method, encoder, channels=1):
    """What `method.init` makes, with values of `formula`; its memory is left abstract."""
    initial = jax.eval_shape(lambda key: method.init(encoder, key, channels), jax.random.key(0))
    params = names.map_named(formula, initial.params)
    stats = names.map_named(
        lambda path, leaf: np.full(leaf.shape, float(path[-1] == "var")), initial.batch_stats
    )
    return params, stats, initial.aux


def optimizers(name, model, **numbers):
    """Ours and PyTorch's, at constant rates."""
    config = OptimConfig(name=name, lr=LR, weight_decay=DECAY, **numbers)
    ours = make_optimizer(config, lambda _: LR, lambda _: DECAY)
    return ours, torch_methods.make_optimizer(config, model)


def load(model, tensors):
    """Fills all parameters of a model."""
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    left, unknown = model.load_state_dict(tensors, strict=False)
    assert not unknown
    assert not {name for name, _ in model.named_parameters()} & set(left)


def trained(model):
    """The parameters that a step changes."""
    return {name: p.detach().numpy() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model):
    """Of the same."""
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.requires_grad}


def assert_close(ours, theirs, tolerance):
    """Every array to a tolerance relative to its norm, or to a thousandth of the largest."""
    assert ours.keys() == theirs.keys()
    floor = 1e-3 * max(np.linalg.norm(value) for value in theirs.values())
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        error = np.linalg.norm(ours[name] - value)
        assert error <= tolerance * max(np.linalg.norm(value), floor), f"{name}: {error}"
