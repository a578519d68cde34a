"""What a run goes on from: on other devices or with a part missing, it is its own or refused."""

import dataclasses
import shutil

import jax
import pytest
import tiny

from ctssl_jax import finetune
from ctssl_jax.errors import ConfigError, StorageError
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


@pytest.fixture(scope="module")
def killed(configs, tmp_path_factory):
    """A fine-tuning that was killed after each of its steps that is saved: one epoch, or all."""
    place = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        tiny.patch_runs(patch)
        return {
            step: killed_after(step, configs["finetuning"], place / str(step)) for step in (4, 8)
        }


LOSSES = {
    "best": lambda run: shutil.rmtree(run / "best"),
    "meta": lambda run: shutil.rmtree(next((run / "best").glob("*/meta"))),
    "{}": lambda run: next((run / "best").glob("*/meta/metadata")).write_text("{}"),
}


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("lost", ["best", "meta", "{}"])
def test_a_best_epoch_that_is_lost_is_told(configs, killed, tmp_path, step, lost):
    run = shutil.copytree(killed[step], tmp_path / "run")
    LOSSES[lost](run)
    with pytest.raises(StorageError, match="delete the run folder and repeat") as raised:
        finetune.run(configs["finetuning"], run)
    run_lock.release(run)
    assert "\n" not in str(raised.value)
    assert f"{run}: best" in str(raised.value)


def test_a_checkpoint_without_its_meta_is_told(configs, killed, tmp_path):
    run = shutil.copytree(killed[4], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4" / "meta")
    with pytest.raises(StorageError, match="remove the folder checkpoints/4"):
        finetune.run(configs["finetuning"], run)
    run_lock.release(run)


def test_a_run_that_lost_its_config_is_resumed_by_no_other(configs, killed, tmp_path):
    run = shutil.copytree(killed[4], tmp_path / "run")
    (run / "config.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = dataclasses.replace(configs["finetuning"], seed=5)
    for config in (configs["finetuning"], other):
        with pytest.raises(ConfigError, match=r"not empty and no run folder \(no config.json\)"):
            finetune.run(config, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("names", [["notes.tmp"], ["metrics.jsonl"], ["data.json"], ["env.json"]])
def test_files_of_others_beside_a_lock_of_theirs_are_left_alone(configs, tmp_path, names):
    for name in ("lock", *names):
        (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match="not empty and no run folder"):
        finetune.run(configs["finetuning"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", *names}
    assert {path.read_text() for path in tmp_path.iterdir()} == {'{"mine": 1}'}
