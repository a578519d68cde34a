"""Classification of scans, nodules or whatever one label is of: bags of slices.

    python -m data_prep.folder --source=SCANS --labels=scans.csv --out=data/task
    python -m ctssl_jax.main --config=configs/finetune_cases.py --config.encoder_run=RUN

Without `encoder_run` it trains from scratch. A step sees `batch_size` cases of `method.slices`
slices each; validation and test see all slices. `method.pooling`: mean, max, top_k or attention.
The encoder is one of a pre-training's default or `:gpu`; `:laptop` goes with its `:laptop`.
:frozen: features of a frozen encoder, once, and then minutes; :demo and :smoke run on the phantom.
"""

import dataclasses

from ctssl_jax.config import FinetuneConfig
from ctssl_jax.methods import Cases
from ctssl_jax.optim.freezing import FreezeConfig
from ctssl_jax.recipes import downstream, machine, phantom


def get_config(preset: str = "") -> FinetuneConfig:
    """The configuration; presets: frozen, laptop, demo, smoke."""
    config = FinetuneConfig(task="cases", method=Cases(), batch_size=8)
    config.data.path = "data/task"
    config.method.view.hflip = 0.5
    match preset:
        case "":
            return downstream.as_meant(config)
        case "frozen":
            return frozen(downstream.as_meant(config))
        case "laptop":
            return laptop(downstream.as_meant(config))
        case "demo":
            return phantom.cases_demo(config)
        case "smoke":
            return phantom.cases_smoke(config)
    raise phantom.unknown_preset(preset, "frozen", "laptop", "demo", "smoke")


def frozen(config: FinetuneConfig) -> FinetuneConfig:
    """The encoder learns nothing, so that there is nothing to augment or to unfreeze."""
    method = config.method
    assert isinstance(method, Cases), "it is of this file"
    method.frozen, method.view.hflip = True, 0.0
    config.freeze, config.batch_size = FreezeConfig(epochs=0), 32
    config.optim.lr, config.steps, config.validate_every = 1e-3, 500, 20
    return config


def laptop(config: FinetuneConfig) -> FinetuneConfig:
    """The network and the view of a pre-training's `:laptop`, on a CPU."""
    method = config.method
    assert isinstance(method, Cases), "it is of this file"
    config.encoder.depth, config.data.canvas = machine.DEPTH, machine.SIZE
    # Eight slices of four scans are a pre-training's batch of 32; validation and test see all.
    method.view.size, method.slices, config.batch_size = machine.SIZE, 8, 4
    # Equal steps at every training size; at the 8 to 17 slices/s of two busy cores 400 are 13 to 27
    # minutes. Ten validations choose among them. A seventh of the steps only the head learns, as 10
    # of 70 epochs by default; then the encoder's rate rises tenfold within a fifth.
    config.steps, config.validate_every = 400, 40
    config.freeze = dataclasses.replace(config.freeze, steps=57, double_every=20)
    config.bn_images = 256  # a fifth of the time of the default, which is more than a step's share
    return config
