"""Frozen features of an encoder, scored by kNN and by a linear probe.

    python -m ctssl_jax.main --config=configs/evaluate.py --config.encoder_run=RUN \
        --config.data.path=DATASET --workdir=OUT

Without `encoder_run` the encoder is random: the baseline. Encoder and intensity are to be what the
pre-training run had: the defaults are those of configs/spark.py. Whole slices at 224 px.
:demo and :smoke run on the phantom.
"""

from ctssl_jax.config import EncoderConfig, EvaluateConfig
from ctssl_jax.data import DataConfig
from ctssl_jax.presets import PHANTOM
from ctssl_jax.recipes import phantom


def get_config(preset: str = "") -> EvaluateConfig:
    """The configuration; presets: demo, smoke."""
    config = EvaluateConfig(encoder=EncoderConfig(depth=50))
    config.data.path = "data/task"
    match preset:
        case "":
            return config
        case "demo" | "smoke":
            config.task, config.intensity = "phantom", phantom.intensity()
            config.data = DataConfig(path=PHANTOM, canvas=64)
            config.encoder, config.size = EncoderConfig(depth=18), 64
            if preset == "smoke":
                config.fraction, config.knn_k, config.linear_c = 0.5, (1, 5), (1e-3, 1e-1)
            return config
    raise phantom.unknown_preset(preset, "demo", "smoke")
