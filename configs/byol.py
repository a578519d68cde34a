"""BYOL pre-training (Grill et al. 2020) on CT slices, as in Wolf et al. 2023.

    python -m ctssl_jax.main --config=configs/byol.py --config.data.path=DATASET --workdir=RUN

Default: the original's recipe (paper §3.3, appendix B; lr 0.2 * batch / 256, LARS without BatchNorm
and biases) at batch 512: ResNet-50 at 224 px, one channel, a fixed HU window. The second view's
solarisation is left out: inverted HU mean nothing.
:as_run: the paper's released code, quirks included (Adam, batch 64, a learning rate and a target
momentum that go to and fro). :laptop and :gpu are for data of your own on one
machine; :demo and :smoke run on the phantom.
"""

import dataclasses
from typing import Any

from ctssl_jax.augment import Interpolation
from ctssl_jax.config import EncoderConfig, Precision, PretrainConfig
from ctssl_jax.methods import BYOL
from ctssl_jax.methods.byol import TauSchedule
from ctssl_jax.optim import Clock, OptimConfig, OptimizerName
from ctssl_jax.recipes import contrastive, machine, phantom


def optim(**numbers: Any) -> OptimConfig:
    """LARS that leaves BatchNorm and biases alone, as the original."""
    config = OptimConfig(
        name=OptimizerName.LARS,
        lr=0.2 * 512 / 256,
        warmup_epochs=10.0,
        warmup_start=0.0,
        final=0.0,
        weight_decay=1.5e-6,
        weight_decay_end=1.5e-6,
        eps=1e-8,
        clip_norm=0.0,
    )
    return dataclasses.replace(config, **numbers)


def views(size: int = 224, low: float = 0.08, **numbers: Any) -> dict[str, Any]:
    """The two views, of which the first is always blurred and the second seldom."""
    both = {"scale": (low, 1.0), "interpolation": Interpolation.BICUBIC, **numbers}
    return {
        "view": contrastive.view(size, **contrastive.jittered(0.4, **both, blur=1.0)),
        "other_view": contrastive.view(size, **contrastive.jittered(0.4, **both, blur=0.1)),
    }


def get_config(preset: str = "") -> PretrainConfig:
    """The configuration; presets: as_run, laptop, gpu, demo, smoke."""
    config = PretrainConfig(
        batch_size=512,
        epochs=1000.0,
        encoder=EncoderConfig.of(BYOL()),
        method=BYOL(**views()),
        optim=optim(),
        precision=Precision.BFLOAT16,
    )
    config.optim.lr_batch = config.batch_size
    match preset:
        case "":
            return config
        case "as_run":
            config.batch_size = 64
            config.epochs = 78.5  # max_steps 300,000 at 3,820 steps an epoch
            config.method = BYOL(
                tau_schedule=TauSchedule.TWO_EPOCHS,
                view=contrastive.paper_view(),
                other_view=contrastive.paper_view(),
            )
            config.optim = optim(
                name=OptimizerName.ADAM,
                lr=1e-3,
                b2=0.999,
                exclude_1d=False,
                clock=Clock.EPOCH,
                cosine_epochs=100.0,  # hard-coded in byol_module.py:172
            )
            return contrastive.as_run(config)
        case "laptop":
            # A target of so short a run must move faster: momentum and heads are those of :demo.
            method = BYOL(tau=0.97, hidden=512, features=128, **views(machine.SIZE))
            return machine.laptop(config, method, optim(name=OptimizerName.ADAMW, lr=1e-3))
        case "gpu":
            return machine.gpu(config, batch_size=128)
        case "demo":
            small = views(64, low=0.3, blur_sigma=(0.1, 0.6))
            method = BYOL(tau=0.97, hidden=512, features=128, **small)
            adamw = OptimizerName.ADAMW
            return phantom.pretrain_demo(method, optim(name=adamw, lr=1e-3, warmup_epochs=1.0))
        case "smoke":
            method = BYOL(tau=0.97, hidden=32, features=16, **views(32, low=0.3))
            adamw = OptimizerName.ADAMW
            return phantom.pretrain_smoke(method, optim(name=adamw, lr=1e-3))
    raise phantom.unknown_preset(preset, "as_run", "laptop", "gpu", "demo", "smoke")
