"""What a run goes on from: by another topology, or with a part missing, it is its own or refused."""

import dataclasses

import jax
import pytest

from ctssl_jax import finetune
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import sharding
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import lock as run_lock
from ctssl_jax.run.budget import budget
from ctssl_jax.run.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("tiny_encoder")


class Killed(Exception):
    """In place of SIGKILL."""


def killed_after(step, config, workdir):
    """A fine-tuning that ends as soon as the checkpoint of a step is whole."""
    save = Checkpoints.save

    def save_and_end(checkpoints, state, unfinished=False):
        save(checkpoints, state, unfinished)
        if int(state.step) == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_end)
        with pytest.raises(Killed):
            finetune.run(config, workdir)
    run_lock.release(workdir)
    return workdir


def on_devices(patch, number):
    patch.setattr(sharding, "all_devices", lambda: jax.devices()[:number])


@pytest.mark.parametrize("items", [3, 6, 7, 100])
def test_a_step_is_of_as_many_slices_on_any_number_of_devices(configs, monkeypatch, items):
    config = configs["finetuning"]
    whole = budget(config, items)
    for number in (2, 4):
        on_devices(monkeypatch, number)
        assert budget(config, items) == whole
        used = len(sharding.devices_of(whole.batch_size))
        assert whole.batch_size % used == 0
        assert used == number or whole.batch_size % number
    monkeypatch.setattr(sharding, "is_alone", lambda: False)
    if whole.batch_size % 4:  # each process must have a share
        with pytest.raises(ConfigError, match=f"a batch of {items}, which does not divide over 4"):
            budget(config, items)


def test_a_small_subset_is_the_same_run_on_other_devices(configs, monkeypatch, tmp_path):
    config = dataclasses.replace(configs["finetuning"], count=3, epochs=4)
    wanted = finetune.run(config, tmp_path / "whole")
    workdir = killed_after(2, config, tmp_path / "run")
    on_devices(monkeypatch, 2)
    found = finetune.run(config, workdir)
    assert found["total_steps"] == wanted["total_steps"] == 4
    assert found["best_step"] == wanted["best_step"]
    assert found["test"]["auc"] == pytest.approx(wanted["test"]["auc"])
    log = (workdir / "log.txt").read_text()
    assert log.count("4 steps of 3 slices") == 2
    assert "1 x cpu (1 idle: so small a batch does not divide over them)" in log


def test_steps_of_another_size_are_not_steps_of_a_run(configs, tmp_path):
    config = dataclasses.replace(configs["finetuning"], count=3, epochs=4)
    workdir = killed_after(2, config, tmp_path / "run")
    data = run_folder.read_json(workdir / "data.json")
    assert data["batch_size"] == 3
    run_folder.write_json(workdir / "data.json", data | {"batch_size": 2})
    with pytest.raises(ConfigError, match="was made in steps of 2, which here are of 3"):
        finetune.run(config, workdir)
