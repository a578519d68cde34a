"""Which commands a run folder takes for its own: those whose numbers are its numbers."""

import pytest

from ctssl_jax import command
from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.config_record import config_record, digest
from ctssl_jax.errors import ConfigError
from ctssl_jax.run import folder
from ctssl_jax.run import lock as run_lock

DATA = {"fingerprint": "f", "filter": None, "encoder_run": None}


def made(path, record):
    folder.write_json(path / "config.json", record)
    folder.write_json(path / "data.json", DATA)
    return path


def test_a_record_from_when_more_fields_counted_is_still_the_runs(tmp_path):
    record = config_record(PretrainConfig())
    older = {**record["config"], "log_every": record["elastic"].pop("log_every")}
    older["probe"] = {**older["probe"], **record["elastic"].pop("probe")}
    values = {"type": record["type"], "config": older}
    run = made(tmp_path, {**values, "elastic": record["elastic"], "hash": digest(values)})
    ours = config_record(PretrainConfig(log_every=7))
    folder._require_same_run(run, ours, DATA)
    with pytest.raises(ConfigError, match=r"config\.seed is 0 there and 1 here"):
        folder._require_same_run(run, config_record(PretrainConfig(seed=1)), DATA)


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig, EvaluateConfig])
def test_what_is_changed_is_told_and_of_a_fresh_run_nothing(tmp_path, kind):
    assert folder._changed(tmp_path, config_record(kind())) == ""
    made(tmp_path, config_record(kind()))
    assert folder._changed(tmp_path, config_record(kind())) == ""
    line = folder._changed(tmp_path, config_record(kind(hang_after_s=7.0)))
    assert "config.hang_after_s is 1800.0 there and 7.0 here" in line


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_more_epochs_are_refused_with_the_reason_and_the_way(tmp_path, kind):
    made(tmp_path, config_record(kind()))
    with pytest.raises(ConfigError, match=r"epochs is .* schedules .*--config\.encoder_run"):
        folder._require_same_run(tmp_path, config_record(kind(epochs=kind().epochs * 2)), DATA)


def test_scores_on_another_dataset_than_before_are_refused(tmp_path):
    record = config_record(PretrainConfig())

    def part(probe):
        assert not folder._make_run(tmp_path, record, DATA | ({"probe": probe} if probe else {}))

    part(None)
    part("one")
    part(None)  # a part without a probe forgets nothing of it
    with pytest.raises(ConfigError, match="has scores of another dataset"):
        part("another")
    part("one")
    run_lock.release(tmp_path)


def test_a_folder_that_turns_out_to_be_anothers_keeps_its_status(tmp_path, monkeypatch):
    """It becomes one between the first look and the lock."""
    checks = iter([False, ConfigError("made by another config")])

    def look(*_):
        found = next(checks)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(folder, "_is_done", look)
    (tmp_path / "STATUS").write_text("running\n")
    with pytest.raises(ConfigError, match="made by another config"):
        folder._make_run(tmp_path, config_record(PretrainConfig()), DATA)
    assert not run_lock.is_held(tmp_path)
    command.mark_ended(tmp_path, ConfigError.exit_code)
    assert (tmp_path / "STATUS").read_text() == "running\n"
