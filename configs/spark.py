"""SparK pre-training (Tian et al. 2023) on CT slices, as in Wolf et al. 2023.

    python -m ctssl_jax.main --config=configs/spark.py --config.data.path=DATASET --workdir=RUN

Default: the recipe as meant. ResNet-50 at 224 px, one channel, a fixed HU window, the learning rate
rule of the reference (2e-4 * batch / 256, keyu-tian/SparK@a63e386) and bfloat16.
:as_run: the paper's released command, quirks included (batch 32, three channels, each slice scaled
by its own minimum and maximum, ImageNet statistics, fp32). :laptop and :gpu are for data of your
own on one machine; :demo and :smoke run on the phantom.
"""

from ctssl_jax.augment import Intensity, IntensityMode, ViewGroup
from ctssl_jax.config import EncoderConfig, Precision, PretrainConfig
from ctssl_jax.methods import SparK
from ctssl_jax.optim import OptimConfig
from ctssl_jax.recipes import machine, phantom


def get_config(preset: str = "") -> PretrainConfig:
    """The configuration; presets: as_run, laptop, gpu, demo, smoke."""
    batch_size = 512
    config = PretrainConfig(
        batch_size=batch_size,
        epochs=1600.0,
        # recipe: drop_path_rate 0.05 for ResNet-50 (keyu-tian/SparK@a63e386 models/__init__.py)
        encoder=EncoderConfig.of(SparK(), drop_path_rate=0.05),
        optim=OptimConfig(lr=2e-4 * batch_size / 256, lr_batch=batch_size),
        precision=Precision.BFLOAT16,
    )
    match preset:
        case "":
            return config
        case "as_run":
            config.batch_size = 32
            config.optim.lr, config.optim.lr_batch = 2e-4 * 32 / 256, 32
            config.precision = Precision.FLOAT32
            config.intensity = Intensity(
                mode=IntensityMode.SLICE_MIN_MAX,
                channels=3,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            )
            return config
        case "laptop":
            # The decoder of :demo, twice as wide: at 768 it is most of the step. LAMB moves a layer
            # by at most `lr` of its length a step: 1e-3 over 7,800 steps lets it go four lengths,
            # where the recipe's rule, 2.5e-5, would stop at a tenth of one.
            method = SparK(decoder_width=256, view=ViewGroup(size=machine.SIZE))
            return machine.laptop(config, method, OptimConfig(lr=1e-3))
        case "gpu":
            return machine.gpu(config, batch_size=128)
        case "demo":
            method = SparK(decoder_width=128, view=ViewGroup(size=96))
            return phantom.pretrain_demo(method, OptimConfig(lr=2e-3, warmup_epochs=1.0))
        case "smoke":
            method = SparK(decoder_width=32, view=ViewGroup(size=64))
            return phantom.pretrain_smoke(method, OptimConfig(lr=2e-3))
    raise phantom.unknown_preset(preset, "as_run", "laptop", "gpu", "demo", "smoke")
