"""MoCo v2 pre-training (He et al. 2020, Chen et al. 2020) on CT slices, as in Wolf et al. 2023.

    python -m ctssl_jax.main --config=configs/moco.py --config.data.path=DATASET --workdir=RUN

Default: the original's recipe (facebookresearch/moco README, MoCo v2, 800 epochs) on CT: ResNet-50
at 224 px, one channel, a fixed HU window. Sets of fewer than 131,072 slices need a smaller queue.
:as_run: the paper's released command, quirks included (batch 128, temperature 0.07, linear head, no
shuffle). :laptop and :gpu are for data of your own on one
machine; :demo and :smoke run on the phantom.
"""

import dataclasses
from typing import Any

from ctssl_jax.config import EncoderConfig, Precision, PretrainConfig
from ctssl_jax.methods import MoCo
from ctssl_jax.optim import Clock, OptimConfig, OptimizerName
from ctssl_jax.recipes import contrastive, machine, phantom


def optim(**numbers: Any) -> OptimConfig:
    """SGD with decay on everything and a cosine without warm-up, as the original."""
    config = OptimConfig(
        name=OptimizerName.SGD,
        lr=0.03,
        warmup_epochs=0.0,
        final=0.0,
        weight_decay=1e-4,
        weight_decay_end=1e-4,
        exclude_1d=False,
        clip_norm=0.0,
    )
    return dataclasses.replace(config, **numbers)


def get_config(preset: str = "") -> PretrainConfig:
    """The configuration; presets: as_run, laptop, gpu, demo, smoke."""
    original = contrastive.jittered(0.4, count=2)
    config = PretrainConfig(
        batch_size=256,
        epochs=800.0,
        encoder=EncoderConfig.of(MoCo()),
        method=MoCo(view=contrastive.view(scale=(0.2, 1.0), **original)),
        optim=optim(),
        precision=Precision.BFLOAT16,
    )
    config.optim.lr_batch = config.batch_size
    match preset:
        case "":
            return config
        case "as_run":
            config.batch_size = 128
            # moco2_module.py: softmax_temperature 0.07; README: no --use_mlp; one GPU: no shuffle
            config.method = MoCo(
                temperature=0.07,
                hidden=0,
                bn_groups=1,
                mask_own=False,
                view=contrastive.paper_view(count=2),
            )
            config.optim = optim(lr=0.03 * 128 / 256, lr_batch=128)
            config.optim.clock, config.optim.cosine_epochs = Clock.EPOCH, 800.0
            return contrastive.as_run(config)
        case "laptop":
            # A queue of 1,024 is a fifth of 5,000 slices; momentum and rate are those of :demo.
            small = contrastive.view(machine.SIZE, scale=(0.2, 1.0), **original)
            method = MoCo(queue_size=1024, momentum=0.99, bn_groups=4, hidden=512, view=small)
            return machine.laptop(config, method, optim(lr=0.06))
        case "gpu":
            assert isinstance(config.method, MoCo), "it is of this file"
            config.method.queue_size = 4096  # a fifth of 20,000 slices
            return machine.gpu(config, batch_size=256)
        case "demo":
            small = contrastive.view(64, scale=(0.3, 1.0), blur_sigma=(0.1, 0.6), **original)
            method = MoCo(queue_size=256, momentum=0.99, bn_groups=4, hidden=512, view=small)
            return phantom.pretrain_demo(method, optim(lr=0.06, warmup_epochs=1.0))
        case "smoke":
            tiny = contrastive.view(32, scale=(0.3, 1.0), **original)
            method = MoCo(queue_size=16, momentum=0.99, bn_groups=2, hidden=32, view=tiny)
            return phantom.pretrain_smoke(method, optim(lr=0.03))
    raise phantom.unknown_preset(preset, "as_run", "laptop", "gpu", "demo", "smoke")
