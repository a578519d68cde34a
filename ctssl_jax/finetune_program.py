"""A labelled run as compiled functions, which the runs of a sweep share.

To trace and compile them takes longer than all steps of a small run. Runs that differ by seed,
data, fold, subset or the encoder's weights have the same: the functions know of none of these.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from ctssl_jax.augment import Intensity, IntensityKind
from ctssl_jax.hosts import sharding
from ctssl_jax.methods.base import TrainState
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.optim import OptimConfig, Schedule
from ctssl_jax.optim.freezing import FreezeConfig, finetune_optimizer, head_optimizer
from ctssl_jax.optim.layer_decay import scale_by_layer
from ctssl_jax.run import learning
from ctssl_jax.run.batch_statistics import Measure, make_measure
from ctssl_jax.run.prediction import Predictor, make_predictor
from ctssl_jax.train import Step, init_state, make_step

REMEMBERED = 8  # a sweep's next run is mostly like its last ones


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """All that the functions of a labelled run depend on, but for network and devices.

    Two that say the same are equal, whatever objects they are of.

    Attributes:
      method: with its classes and their weights.
      intensity, kind: of the slices.
      optim: of the head; the encoder's follows from `freeze`.
      freeze: as it is in effect, in steps alone.
      layer_decay: 1 where no layer learns slower than another.
    """

    method: Supervised
    intensity: Intensity
    kind: IntensityKind
    optim: OptimConfig
    freeze: FreezeConfig
    layer_decay: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Program(NamedTuple):
    """A labelled run, compiled when first called.

    Attributes:
      init: of a key, and of the weights to start from.
      places: where each array of the state lies.
      step: of training.
      predict: class probabilities.
      measure: BatchNorm's statistics for evaluation.
    """

    init: Callable[..., TrainState]
    places: TrainState
    step: Step
    predict: Predictor
    measure: Measure


def make_program(recipe: Recipe, encoder: ResNet, mesh: Mesh) -> Program:
    """The functions of a recipe; those of the last few are kept."""
    # A config may be changed after it was given.
    return _program(copy.deepcopy(recipe), encoder, mesh)


@functools.lru_cache(REMEMBERED)
def _program(recipe: Recipe, encoder: ResNet, mesh: Mesh) -> Program:
    method, view = recipe.method, recipe.method.view
    tx, head_lr = _optimizer(recipe, encoder)
    init = functools.partial(init_state, method, encoder, tx, recipe.intensity.channels)
    places = sharding.state_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    step = make_step(
        method,
        encoder,
        tx,
        recipe.intensity,
        recipe.kind,
        # No labelled method asks how far it is: one that did would learn nothing but NaN.
        total_steps=0,
        steps_per_epoch=math.nan,
        schedules={"lr": head_lr},
    )
    return Program(
        sharding.jit_init(init, places),
        places,
        sharding.jit_step(step, mesh, places),
        make_predictor(method, recipe.intensity, recipe.kind, encoder, mesh),
        make_measure(encoder, recipe.intensity, recipe.kind, view.size, view.interpolation),
    )


def _optimizer(recipe: Recipe, encoder: ResNet) -> tuple[optax.GradientTransformation, Schedule]:
    """Of the run, and the head's learning rate by step."""
    if learning.is_frozen(recipe.method):
        return head_optimizer(recipe.optim)
    tx, head_lr = finetune_optimizer(recipe.optim, recipe.freeze, steps_per_epoch=1)  # has none
    if recipe.layer_decay < 1:
        tx = optax.chain(tx, scale_by_layer(recipe.layer_decay, encoder.depth))
    return tx, head_lr
