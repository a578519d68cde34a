"""Run folders with weights nobody trained, as cheap as the tests of interop need them."""

import dataclasses
import json

import jax
import numpy as np

from configs import finetune_covid_ct, spark
from ctssl_jax.config_record import config_record
from ctssl_jax.methods.base import Start, init_encoder
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.recipes import phantom
from ctssl_jax.run import checkpoint

SPLITS = {
    name: {"slices": 8, "patients": 2, "series": 2, "labels": [4, 4]}
    for name in ("train", "val", "test")
}


def filled(tree, seed=0):
    """An abstract tree with numbers, none of which is 0 or 1 where that would hide it."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return np.float32(rng.standard_normal(leaf.shape) / np.sqrt(fan_in))
        low = 0.5 if name in ("scale", "var") else -0.5
        return np.float32(rng.uniform(low, low + 1, leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, tree)


def weights(depth, channels):
    """Of an encoder."""
    params, stats = filled(
        jax.eval_shape(
            lambda key: init_encoder(ResNet(depth=depth), key, 32, channels), jax.random.key(0)
        )
    )
    return Start({"encoder": params}, {"encoder": stats})


def write(folder, config, kind="hu"):
    """The JSON files of a finished run."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_record(config)))
    data = {
        "name": "phantom",
        "fingerprint": "0" * 64,
        "intensity": kind,
        "classes": ["no lesion", "lesion"],
        "splits": SPLITS,
        "audit": {"verdict": "pass"},
        "filter": None,
        "encoder_run": None,
    }
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "STATUS").write_text("done\n")


def pretrained(folder, depth=18, channels=1, kind="hu", **intensity):
    """A pre-training run of SparK."""
    config = spark.get_config("smoke")
    config.encoder.depth = depth
    config.intensity = dataclasses.replace(phantom.intensity(), channels=channels, **intensity)
    write(folder, config, kind)
    start = weights(depth, channels)
    checkpoint.save_start(folder, start)
    return start


def finetuned_config(**intensity):
    """The smoke preset with another canvas than the view, for the recipe's second resize."""
    config = finetune_covid_ct.get_config("smoke")
    config.data.canvas, config.method.view.size = 80, 64
    config.intensity = dataclasses.replace(config.intensity, **intensity)
    return config
