"""SimCLR pre-training (Chen et al. 2020) on CT slices; not in Wolf et al. 2023.

    python -m ctssl_jax.main --config=configs/simclr.py --config.data.path=DATASET --workdir=RUN

Default: the original's recipe (§2.2, appendix B; lr 0.3 * batch / 256, LARS without BatchNorm and
biases) at batch 512, without its colour operations. :laptop and :gpu are for data of your own on
one machine; :demo and :smoke run on the phantom. There is no :as_run, for nobody ran it there.
"""

from ctssl_jax.config import EncoderConfig, Precision, PretrainConfig
from ctssl_jax.methods import SimCLR
from ctssl_jax.optim import OptimConfig, OptimizerName
from ctssl_jax.recipes import contrastive, machine, phantom


def optim(name: OptimizerName, lr: float, warmup_epochs: float = 10.0) -> OptimConfig:
    """An optimizer that leaves BatchNorm and biases out of decay and trust ratio."""
    return OptimConfig(
        name=name,
        lr=lr,
        warmup_epochs=warmup_epochs,
        warmup_start=0.0,
        final=0.0,
        weight_decay=1e-6,
        weight_decay_end=1e-6,
        eps=1e-8,
        clip_norm=0.0,
    )


def get_config(preset: str = "") -> PretrainConfig:
    """The configuration; presets: laptop, gpu, demo, smoke."""
    original = contrastive.jittered(0.8, count=2)
    config = PretrainConfig(
        batch_size=512,
        epochs=800.0,
        encoder=EncoderConfig.of(SimCLR()),
        method=SimCLR(view=contrastive.view(scale=(0.08, 1.0), **original)),
        optim=optim(OptimizerName.LARS, lr=0.3 * 512 / 256),
        precision=Precision.BFLOAT16,
    )
    config.optim.lr_batch = config.batch_size
    match preset:
        case "":
            return config
        case "laptop":
            # Twice the batch of the others, for its negatives come from it.
            small = contrastive.view(machine.SIZE, scale=(0.08, 1.0), **original)
            adamw = optim(OptimizerName.ADAMW, 1e-3)
            return machine.laptop(config, SimCLR(hidden=512, view=small), adamw, batch_size=64)
        case "gpu":
            return machine.gpu(config, batch_size=128)  # as BYOL, whose views are as many
        case "demo":
            # With jitter of 0.8 and temperature 0.1 it stays at chance for so few steps.
            mild = contrastive.jittered(0.4, count=2, blur_sigma=(0.1, 0.6))
            small = contrastive.view(64, scale=(0.3, 1.0), **mild)
            method = SimCLR(hidden=512, temperature=0.2, view=small)
            return phantom.pretrain_demo(method, optim(OptimizerName.ADAMW, 1e-3, 1.0))
        case "smoke":
            method = SimCLR(hidden=32, view=contrastive.view(32, scale=(0.3, 1.0), **original))
            return phantom.pretrain_smoke(method, optim(OptimizerName.ADAMW, 1e-3))
    raise phantom.unknown_preset(preset, "laptop", "gpu", "demo", "smoke")
