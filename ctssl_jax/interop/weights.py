"""What a run has to export: the weights, and all that is known of them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.interop.recipe import Recipe, of_run
from ctssl_jax.methods import Supervised
from ctssl_jax.methods.base import PyTree
from ctssl_jax.nn.resnet import ResNet, pool
from ctssl_jax.run import checkpoint
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run.encoder import TRAINED
from ctssl_jax.run.restore import read_fine_tuned

USED = {"EvaluateConfig": "encoder it evaluated", "PredictConfig": "network it applied"}
"""Folders with a config.json and no weights of their own, and what they did with those of a run."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a run has to export.

    Attributes:
      run: its folder.
      record: its config.json.
      data: its data.json; None of an imported encoder.
      recipe: what its network takes for input.
      params: of `encoder`, and of a classifier `head`.
      batch_stats: likewise.
      classes: of a classifier, in the order of its outputs.
      step: after which the weights were saved; None of chosen weights.
      method: of a classifier, which says how its head is applied.
    """

    run: Path
    record: dict[str, Any]
    data: dict[str, Any] | None
    recipe: Recipe
    params: PyTree
    batch_stats: PyTree
    classes: tuple[str, ...]
    step: int | None
    method: Supervised | None = None

    @property
    def depth(self) -> int:
        """Of the ResNet."""
        return self.record["config"]["encoder"]["depth"]

    def features(self, image: Float[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n d"]:
        """Of slices, in float32 and evaluation mode, whatever stands on them."""
        return dataclasses.replace(self, method=None).outputs(image)

    def outputs(self, image: Float[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n d"]:
        """Features, or a classifier's logits, in float32 and evaluation mode."""
        encoder = ResNet(depth=self.depth)

        def forward(params: PyTree, stats: PyTree, x: jax.Array) -> jax.Array:
            if self.method is not None:
                return self.method.logits(encoder, params, stats, x, train=False)[0]
            variables = {"params": params["encoder"], "batch_stats": stats["encoder"]}
            return pool(jnp.asarray(encoder.apply(variables, x, train=False)[-1]))

        with jax.default_matmul_precision("highest"):  # an accelerator would take fewer bits
            found = jax.jit(forward)(self.params, self.batch_stats, image.transpose(0, 2, 3, 1))
        return np.asarray(found, np.float32)


def read(run: Path) -> Weights:
    """The weights of a run: the chosen ones of fine-tuning, else the encoder as last saved.

    Raises:
      ConfigError: the run has no weights.
      DataError, StorageError: it cannot be read.
    """
    if not (run / "config.json").exists():
        raise DataError(f"no run at {run}: --run takes a run folder")
    record = run_folder.read_config(run)
    if record["type"] in USED:
        raise ConfigError(f"{run} trained nothing: give the run whose {USED[record['type']]}")
    trained = record["type"] in TRAINED  # an import alone has no data to tell of
    data = run_folder.read_json(run / "data.json") if trained else run_folder.read_data(run)
    recipe, config = of_run(record, data), record["config"]
    encoder, channels = ResNet(depth=config["encoder"]["depth"]), recipe.intensity.channels
    if record["type"] != "FinetuneConfig" or data is None:
        params, stats = checkpoint.load_encoder(run, encoder, channels)
        step = checkpoint.latest_step(run)
        return Weights(run, record, data, recipe, {"encoder": params}, {"encoder": stats}, (), step)
    found = read_fine_tuned(run)
    params, stats, method = found.params, found.batch_stats, found.config.method
    return Weights(run, record, data, recipe, params, stats, found.classes, None, method)
