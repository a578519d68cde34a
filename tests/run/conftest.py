"""Tiny runs as the commands make them, once for all tests here, which damage copies of them."""

import dataclasses
import functools

import pytest

OPTIM = {"lr": 0.003, "clip_norm": 0.0, "warmup_epochs": 0.0}
OPTIM |= {"weight_decay": 0.0, "weight_decay_end": 0.0}


@pytest.fixture(scope="session")
def tiny_modules():
    """`tests/tiny.py`."""
    import tiny

    return tiny


@pytest.fixture(scope="session")
def use_tiny(tiny_modules):
    """A function of a `MonkeyPatch`: every config builds the tiny encoder, on one device."""
    return functools.partial(_patch, tiny_modules)


@pytest.fixture
def tiny_on_one_device(use_tiny, monkeypatch):
    """Runs of a test are of the tiny encoder, on one device."""
    use_tiny(monkeypatch)


def _patch(tiny, patch):
    import jax

    from ctssl_jax.config import EncoderConfig
    from ctssl_jax.hosts import sharding

    patch.setattr(EncoderConfig, "build", lambda self, precision: tiny.ENCODER)
    patch.setattr(sharding, "all_devices", lambda: jax.devices()[:1])


@pytest.fixture(scope="session")
def configs(tiny_modules, phantom_path):
    """A pre-training, a fine-tuning and an evaluation of a few steps each."""
    from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig
    from ctssl_jax.data import DataConfig
    from ctssl_jax.methods import Supervised
    from ctssl_jax.optim import OptimConfig, OptimizerName
    from ctssl_jax.optim.freezing import FreezeConfig

    data = DataConfig(path=str(phantom_path), canvas=64)
    pretraining = PretrainConfig(
        batch_size=8,
        epochs=1.0,  # four steps of 32 slices
        data=data,
        method=tiny_modules.METHODS["simclr"],
        optim=OptimConfig(name=OptimizerName.SGD, **OPTIM),
        log_every=1,
        checkpoint_every=2,
        picture_every=0,
    )
    finetuning = FinetuneConfig(
        task="tiny",
        batch_size=8,
        epochs=2,
        bn_images=0,
        data=data,
        method=Supervised(view=tiny_modules.view(64)),
        freeze=FreezeConfig(epochs=0),
        checkpoint_every_epochs=1,
    )
    evaluation = EvaluateConfig(task="tiny", data=data, size=64, knn_k=(1, 5), linear_c=(1.0,))
    return {"pretraining": pretraining, "finetuning": finetuning, "evaluation": evaluation}


@pytest.fixture(scope="session")
def runs(use_tiny, configs, tmp_path_factory):
    """Finished runs by kind; those on labels are of the pre-training's encoder."""
    from ctssl_jax import evaluate, finetune, pretrain

    place = tmp_path_factory.mktemp("tiny")
    made = {name: place / name for name in configs}
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        pretrain.run(configs["pretraining"], made["pretraining"])
        of = {"encoder_run": str(made["pretraining"])}
        finetune.run(dataclasses.replace(configs["finetuning"], **of), made["finetuning"])
        evaluate.run(dataclasses.replace(configs["evaluation"], **of), made["evaluation"])
    return made
