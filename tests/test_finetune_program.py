"""Runs of one kind share their compiled functions, and find what they would have found alone."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest
import tiny

from ctssl_jax import finetune, finetune_program
from ctssl_jax.finetune_program import Recipe, make_program
from ctssl_jax.hosts import sharding
from ctssl_jax.methods import Supervised
from ctssl_jax.optim import OptimConfig
from ctssl_jax.optim.freezing import FreezeConfig

pytestmark = pytest.mark.usefixtures("tiny_encoder")


def smoke(phantom_path, **changes):
    """Of a subset that differs by seed and size, so that an epoch has as many steps as it likes."""
    config = importlib.import_module("configs.finetune_covid_ct").get_config("smoke")
    config.data.path, config.freeze.epochs = str(phantom_path), 0
    config.steps, config.validate_every = 6, 3
    return dataclasses.replace(config, **changes)


@pytest.fixture
def none_kept():
    finetune_program._program.cache_clear()


def test_runs_that_differ_by_seed_and_size_compile_once(tmp_path, phantom_path, none_kept):
    one = finetune.run(smoke(phantom_path, fraction=0.5), tmp_path / "one")
    finetune.run(smoke(phantom_path, fraction=0.8, seed=1, subset_seed=1), tmp_path / "other")
    kept = finetune_program._program.cache_info()
    assert (kept.misses, kept.hits) == (1, 1)

    def never(*_):
        raise AssertionError("traced again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supervised, "loss", never)
        patch.setattr(Supervised, "features", never)
        again = finetune.run(smoke(phantom_path, fraction=0.5), tmp_path / "again")
    assert again == one

    finetune_program._program.cache_clear()
    finetune.run(smoke(phantom_path, fraction=0.8, seed=1, subset_seed=1), tmp_path / "alone")
    found, alone = (
        (tmp_path / name / "predictions.csv").read_bytes() for name in ("other", "alone")
    )
    assert found == alone


def recipe(**changes):
    same = Recipe(
        Supervised(classes=2, view=tiny.view(64)),
        tiny.Intensity(),
        "hu",
        OptimConfig(),
        FreezeConfig(epochs=0),
        1.0,
    )
    return dataclasses.replace(same, **changes)


OTHERS = {
    "method": Supervised(classes=2, class_weights=(1.0, 2.0), view=tiny.view(64)),
    "intensity": tiny.Intensity(mean=(0.1,)),
    "kind": "grey8",
    "optim": OptimConfig(lr=0.5),
    "freeze": FreezeConfig(epochs=0, steps=3, double_every=2),
    "layer_decay": 0.5,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_whatever_a_recipe_says_makes_another_program(field, none_kept):
    mesh = sharding.make_mesh()
    one = make_program(recipe(), tiny.ENCODER, mesh)
    assert make_program(recipe(), tiny.ENCODER, mesh) is one
    assert make_program(recipe(**{field: OTHERS[field]}), tiny.ENCODER, mesh) is not one


def test_network_and_devices_make_another_program(none_kept):
    mesh = sharding.make_mesh()
    one = make_program(recipe(), tiny.ENCODER, mesh)
    half = tiny.TinyEncoder(dtype=jax.numpy.bfloat16)
    assert make_program(recipe(), half, mesh) is not one
    assert make_program(recipe(), tiny.ENCODER, sharding.make_mesh(jax.devices()[:2])) is not one


def test_a_config_that_is_changed_later_changes_no_program_that_was_made(none_kept):
    mesh, given = sharding.make_mesh(), recipe()
    one = make_program(given, tiny.ENCODER, mesh)
    given.method.classes = 5
    head = one.init(jax.random.key(0), None).params["head"]["linear"]["kernel"]
    assert np.shape(head)[-1] == 2
    assert make_program(given, tiny.ENCODER, mesh) is not one
    assert make_program(recipe(), tiny.ENCODER, mesh) is one
