"""Which commands a run folder takes for its own: those whose numbers are its numbers."""

import pytest

from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.config_record import config_record, digest
from ctssl_jax.errors import ConfigError
from ctssl_jax.run import folder

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
