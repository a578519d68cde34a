"""Whole training steps in PyTorch, to measure ours against; `launch.benchmark` times them.

What a good PyTorch user would run on this machine's CPU: timm's ResNet, lightly's losses, and a
SparK of plain PyTorch (`torch_spark`). Weights are fresh, views are random numbers made once, the
learning rate stays at its peak. PyTorch is imported when a step is made, so that this package works
without it.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ctssl_jax.config import Precision, PretrainConfig
from ctssl_jax.errors import ConfigError

LIBRARIES = ("torch", "torchvision", "timm", "lightly")


class TorchStep(NamedTuple):
    """A training step and the size of what it trains.

    Attributes:
      run: does one step: forward, backward, optimizer, teacher and queue; returns the loss.
      parameters: that are trained.
    """

    run: Callable[[], float]
    parameters: int


def make_step(config: PretrainConfig, *, channels_last: bool = False, seed: int = 0) -> TorchStep:
    """The step of a config, in float32 on CPU.

    Args:
      config: what is about data, schedules and the form of computation is not looked at.
      channels_last: lay images and kernels out so in memory.
      seed: of PyTorch's global generator, from which weights, views and masks are drawn.

    Raises:
      ConfigError: PyTorch or a library of it is missing, or the config asks for what these steps
        do not have.
    """
    _check(config)
    import_libraries()
    import torch

    from launch.benchmark.torch import methods as torch_methods

    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(seed)
    model: Any = torch_methods.build(config)
    model.to(memory_format=layout)
    views = torch_methods.random_views(config, layout)
    optimizer = torch_methods.make_optimizer(config.optim, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(views)
        loss.backward()
        if config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(trained, config.optim.clip_norm)
        optimizer.step()
        model.after_update()
        return loss.item()

    return TorchStep(run, sum(parameter.numel() for parameter in trained))


def _check(config: PretrainConfig) -> None:
    """Raises `ConfigError` for what would change the work of a step and is not here."""
    asked = {
        "precision": (config.precision, Precision.FLOAT32),
        "accumulate": (config.accumulate, 1),
        "encoder.remat_stages": (config.encoder.remat_stages, 0),
    }
    for name, (value, known) in asked.items():
        if value != known:
            value, known = (getattr(x, "value", x) for x in (value, known))
            raise ConfigError(
                f"{name}={value}: PyTorch's steps have {name}={known} alone, set that"
            )


def import_libraries() -> None:
    """Imports what the steps are made of.

    Raises:
      ConfigError: one of the libraries is missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they import and no step uses
        for library in LIBRARIES:
            try:
                if library == "torchvision":
                    import_torchvision()
                else:
                    importlib.import_module(library)
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"{error.name} is missing: pip install -r requirements-oracles.txt"
                ) from None
        importlib.import_module("launch.benchmark.torch.methods")


@functools.cache  # what is returned must stay alive
def import_torchvision() -> Any:
    """Imports torchvision, also where its compiled operators do not fit this build of torch.

    timm and lightly import it for models and transforms that nothing here uses. Its import needs
    two operators to be declared; they still cannot be called.

    Returns:
      The declarations; None if there was no need for them.
    """
    try:
        importlib.import_module("torchvision")
        return None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    declarations = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declarations.define(f"{operator}(Tensor boxes, Tensor scores, float iou) -> Tensor")
    importlib.import_module("torchvision")
    return declarations
