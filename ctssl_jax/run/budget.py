"""How long a labelled run trains, and what it does when: all in steps."""

import math
from typing import NamedTuple

from ctssl_jax.config import FinetuneConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import sharding
from ctssl_jax.optim.freezing import FreezeConfig


class Budget(NamedTuple):
    """Numbers of one run.

    Attributes:
      batch_size: of the config, cut to the training subset, on however many devices: what a step
        is does not depend on them.
      steps_per_epoch: passes over the subset are counted in these.
      total_steps: at most; `patience` may end the run before.
      validate_every: steps between validations; the last step has one in any case.
      frozen_steps: in which the convolutions rest.
      freeze: as it is in effect, in steps: from scratch nothing rests unless `freeze.scratch` says
        so.
    """

    batch_size: int
    steps_per_epoch: int
    total_steps: int
    validate_every: int
    frozen_steps: int
    freeze: FreezeConfig

    def validation(self, step: int) -> int:
        """The number, from 1, of the validation after `step`: the epoch, where each has one."""
        return math.ceil(step / self.validate_every)

    def epoch(self, step: int) -> float | int:
        """Passes over the training subset after `step`."""
        whole, rest = divmod(step, self.steps_per_epoch)
        return round(step / self.steps_per_epoch, 3) if rest else whole


def budget(config: FinetuneConfig, items: int) -> Budget:
    """What a config means on a training subset of so many slices or cases, whichever it learns.

    Raises:
      ConfigError: the batch does not divide over the devices, or training ends before the
        convolutions join in.
    """
    sharding.check_batch(config.batch_size)
    batch_size = min(config.batch_size, items)
    sharding.devices_of(batch_size)
    steps_per_epoch = math.ceil(items / batch_size)
    total_steps = config.steps or config.epochs * steps_per_epoch
    frozen = config.encoder_run or config.freeze.scratch
    freeze = config.freeze if frozen else FreezeConfig(epochs=0)
    frozen_steps = freeze.frozen_steps(steps_per_epoch)
    if frozen_steps >= total_steps:
        raise ConfigError(
            f"the convolutions rest for {frozen_steps} steps of {total_steps}: set freeze.steps "
            "(or freeze.epochs) so that they join in before the end"
        )
    every = config.validate_every or steps_per_epoch
    in_steps = freeze.in_steps(steps_per_epoch)
    return Budget(batch_size, steps_per_epoch, total_steps, every, frozen_steps, in_steps)
