"""SwAV pre-training (Caron et al. 2020) on CT slices, as in Wolf et al. 2023.

    python -m ctssl_jax.main --config=configs/swav.py --config.data.path=DATASET --workdir=RUN

Default: the original's recipe for batches of 256 (facebookresearch/swav README: lr 0.6, a queue of
3,840 from epoch 15, no warm-up) with the 500 prototypes that the paper gave CT: ResNet-50, crops of
2 x 224 and 6 x 96 px, one channel, a fixed HU window.
:as_run: the paper's released command, quirks included (a learning rate that oscillates every 1,580
steps, prototypes frozen for 313 epochs, no queue). :laptop and :gpu are for data of your own on one
machine; :demo and :smoke run on the phantom.
"""

import dataclasses
from typing import Any

from ctssl_jax.config import EncoderConfig, Precision, PretrainConfig
from ctssl_jax.methods import SwAV
from ctssl_jax.optim import Clock, OptimConfig, OptimizerName
from ctssl_jax.recipes import contrastive, machine, phantom


def optim(**numbers: Any) -> OptimConfig:
    """LARS with decay and trust ratio on everything, as the original (apex LARC)."""
    config = OptimConfig(
        name=OptimizerName.LARS,
        lr=0.6,
        warmup_epochs=0.0,
        final=0.001,
        weight_decay=1e-6,
        weight_decay_end=1e-6,
        exclude_1d=False,
        eps=1e-8,
        clip_norm=0.0,
    )
    return dataclasses.replace(config, **numbers)


def get_config(preset: str = "") -> PretrainConfig:
    """The configuration; presets: as_run, laptop, gpu, demo, smoke."""
    original = contrastive.jittered(0.8)
    config = PretrainConfig(
        batch_size=256,
        epochs=800.0,
        encoder=EncoderConfig.of(SwAV()),
        method=SwAV(
            view=contrastive.view(count=2, scale=(0.14, 1.0), **original),
            small_view=contrastive.view(96, count=6, scale=(0.05, 0.14), **original),
        ),
        optim=optim(),
        precision=Precision.BFLOAT16,
    )
    config.optim.lr_batch = config.batch_size
    match preset:
        case "":
            return config
        case "as_run":
            # multicropdataset.py, swav_module_lidc.py: milder jitter, large crops, no flips
            paper = contrastive.jittered(0.4, hflip=0.0)
            config.batch_size = 128
            config.method = SwAV(
                frozen_epochs=313.0,
                queue_size=0,
                view=contrastive.view(count=2, scale=(0.9, 1.0), **paper),
                small_view=contrastive.view(96, count=6, scale=(0.1, 0.33), **paper),
            )
            # the released code took steps for epochs: warm-up of 10 steps, cosine of 790
            config.optim = optim(
                lr=0.15,
                lr_batch=128,
                final=0.0,
                clock=Clock.STEP_AS_EPOCH,
                warmup_epochs=10.0,
                warmup_start=0.0,
                cosine_epochs=800.0,
            )
            return contrastive.as_run(config)
        case "laptop":
            method = SwAV(
                prototypes=100,  # three for each slice of a batch, as :demo has one
                hidden=512,  # of :demo; the original has 2,048, for maps four times as wide
                queue_size=960,  # thirty batches, as the original's 3,840 are fifteen
                view=contrastive.view(machine.SIZE, count=2, scale=(0.14, 1.0), **original),
                small_view=contrastive.view(64, count=4, scale=(0.05, 0.14), **original),
            )
            adamw = OptimizerName.ADAMW
            return machine.laptop(config, method, optim(name=adamw, lr=1e-3))
        case "gpu":
            return machine.gpu(config, batch_size=128)
        case "demo":
            small = contrastive.jittered(0.4, blur_sigma=(0.1, 0.6))
            method = SwAV(
                prototypes=32,
                hidden=512,
                frozen_epochs=0.5,
                queue_size=0,  # so early, embeddings of past batches are of another network
                view=contrastive.view(64, count=2, scale=(0.3, 1.0), **small),
                small_view=contrastive.view(32, count=4, scale=(0.1, 0.3), **small),
            )
            adamw = OptimizerName.ADAMW
            return phantom.pretrain_demo(method, optim(name=adamw, lr=1e-3, warmup_epochs=1.0))
        case "smoke":
            method = SwAV(
                prototypes=8,
                hidden=32,
                queue_size=16,
                queue_epoch=0.1,
                frozen_epochs=0.05,
                view=contrastive.view(64, count=2, scale=(0.3, 1.0), **original),
                small_view=contrastive.view(32, count=2, scale=(0.1, 0.3), **original),
            )
            adamw = OptimizerName.ADAMW
            return phantom.pretrain_smoke(method, optim(name=adamw, lr=1e-3))
    raise phantom.unknown_preset(preset, "as_run", "laptop", "gpu", "demo", "smoke")
