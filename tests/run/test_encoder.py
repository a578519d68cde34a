"""An encoder is known by its weights: the same config with other weights is another encoder."""

import dataclasses
import json
import shutil

import jax
import pytest
import tiny

from ctssl_jax import evaluate, finetune
from ctssl_jax.ablation import AblationConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import Start
from ctssl_jax.report.runs import read_run
from ctssl_jax.report.words import leakage
from ctssl_jax.run import checkpoint, encoder
from ctssl_jax.run import folder as run_folder
from launch.sweep import __main__ as sweep
from launch.sweep import folder

pytestmark = pytest.mark.usefixtures("tiny_encoder")


def trained_on(run):
    """The same run after more training: the same config, other weights."""
    params, stats = checkpoint.load_encoder(run, tiny.ENCODER, 1)
    params = jax.tree.map(lambda leaf: leaf * 1.5, params)
    shutil.rmtree(run / "checkpoints")
    checkpoint.save_start(run, Start({"encoder": params}, {"encoder": stats}))


@pytest.fixture
def pretraining(runs, tmp_path):
    return shutil.copytree(runs["pretraining"], tmp_path / "pretraining")


def test_its_sum_is_of_the_weights_alone(pretraining):
    before = encoder.weights_digest(str(pretraining))
    params, stats = checkpoint.load_encoder(pretraining, tiny.ENCODER, 1)
    shutil.rmtree(pretraining / "checkpoints")
    checkpoint.save_start(pretraining, Start({"encoder": params}, {"encoder": stats}))
    assert encoder.weights_digest(str(pretraining)) == before  # as an import, at another step
    trained_on(pretraining)
    assert encoder.weights_digest(str(pretraining)) != before
    assert encoder.weights_digest("") is None


def test_an_older_checkpoint_without_sums_has_the_same(pretraining):
    before = encoder.weights_digest(str(pretraining))
    meta = checkpoint.latest(pretraining) / "meta" / "metadata"
    meta.write_text(json.dumps({"format": 2, "next_index": 4}))
    encoder._digest.cache_clear()
    assert encoder.weights_digest(str(pretraining)) == before


def test_results_say_which_weights(runs, pretraining):
    known = {"weights_sha256": encoder.weights_digest(str(pretraining)), "step": 4}
    for name in ("finetuning", "evaluation"):
        found = run_folder.read_results(runs[name])
        assert found["encoder"] == {**known, "status": "done"}


@pytest.mark.parametrize("status", ["running\n", "failed:4\n", "preempted\n", ""])
def test_an_unfinished_run_is_refused_and_marked_where_it_is_accepted(
    runs, configs, pretraining, tmp_path, status
):
    (pretraining / "STATUS").write_text(status)
    of = {"encoder_run": str(pretraining)}
    for name, run in (("finetuning", finetune.run), ("evaluation", evaluate.run)):
        with pytest.raises(ConfigError, match="is not finished") as raised:
            run(dataclasses.replace(configs[name], **of), tmp_path / "run")
        assert "--config.accept_unfinished=true" in str(raised.value)
        assert not (tmp_path / "run").exists()
    if status == "running\n":
        config = dataclasses.replace(configs["finetuning"], **of, accept_unfinished=True)
        found = finetune.run(config, tmp_path / "run")
        assert (found["encoder"]["status"], found["encoder"]["accepted"]) == ("running", True)
        assert leakage(read_run(tmp_path / "run").results) == "encoder of an unfinished run"


def test_a_run_that_lost_its_status_is_no_import(configs, pretraining, tmp_path):
    (pretraining / "STATUS").unlink()
    config = dataclasses.replace(configs["finetuning"], encoder_run=str(pretraining))
    with pytest.raises(ConfigError, match="is not finished"):
        finetune.run(config, tmp_path / "run")
    record = run_folder.read_json(pretraining / "config.json")
    run_folder.write_json(pretraining / "config.json", record | {"type": "ImportedEncoder"})
    assert encoder.require_finished(str(pretraining), False)["status"] == "unknown"


def test_a_run_does_not_go_on_from_other_weights(runs, configs, pretraining):
    trained_on(pretraining)
    for name, run in (("finetuning", finetune.run), ("evaluation", evaluate.run)):
        before = (runs[name] / "results.json").read_bytes()
        config = dataclasses.replace(configs[name], encoder_run=str(pretraining))
        with pytest.raises(ConfigError, match="other weights of encoder_run"):
            run(config, runs[name])
        assert (runs[name] / "results.json").read_bytes() == before


def test_cells_whose_encoder_has_changed_are_run_anew(configs, pretraining, tmp_path, capsys):
    grid = AblationConfig(
        base=configs["finetuning"],
        base_config="configs/finetune_covid_ct.py:smoke",
        encoders=(str(pretraining),),
        scratch=False,
        frozen=False,
        fractions=(1.0,),
        seeds=(0,),
    )
    (cell,) = grid.cells()
    made = tmp_path / "grid" / cell.name
    own = sweep.Flags().parse(["sweep"])[0]

    def start():
        sweep.run(own, grid, tmp_path / "grid", sweep.Supervisor())
        return run_folder.read_results(made)

    first = start()
    assert start() == first
    trained_on(pretraining)
    assert folder.state(cell, tmp_path / "grid") == folder.CHANGED
    capsys.readouterr()
    second = start()
    assert "the encoder has changed: anew" in capsys.readouterr().out
    assert second["encoder"]["weights_sha256"] != first["encoder"]["weights_sha256"]
    assert second["config_hash"] == first["config_hash"]
    (old,) = (tmp_path / "grid" / folder.ASIDE).iterdir()
    assert run_folder.read_results(old) == first  # nothing lost
    assert (tmp_path / "grid" / "results.csv").read_text().count(cell.name) == 1
