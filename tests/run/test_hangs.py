"""Nothing hangs without a limit: the watchdog covers a run from its first look at the data on."""

import dataclasses
import threading

import pytest

from ctssl_jax import data, evaluate, finetune, main
from ctssl_jax.hosts import sharding
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.run import lock as run_lock

pytestmark = pytest.mark.usefixtures("tiny_encoder")
AFTER_S = 1.0


class Hanging(Exception):
    """Ends what hangs, once the watchdog has told."""


PLACES = {
    "opening pre-training data": ("pretraining", data, "open_dataset"),
    "opening labelled data": ("finetuning", data, "open_dataset"),
    "opening data of frozen features": ("evaluation", data, "open_dataset"),
    "reading labels": ("finetuning", data, "read_fields"),
    "training": ("pretraining", sharding, "put_batch"),
    "evaluation": ("evaluation", evaluate, "features"),
    "prediction": ("finetuning", finetune, "_test_once"),
}


@pytest.mark.parametrize("place", PLACES)
def test_hang_after_s_holds(configs, tmp_path, monkeypatch, capsys, place):
    kind, module, name = PLACES[place]
    told, codes = threading.Event(), []

    def hang(*_, **__):
        assert told.wait(60), "nobody noticed"
        raise Hanging

    def leave(code):
        codes.append(code)
        told.set()

    data.read_cases.cache_clear()  # what an earlier test read would not be read again
    monkeypatch.setattr(module, name, hang)
    limit = AFTER_S if name != "_test_once" else 5.0  # longer than a compilation before it
    config = dataclasses.replace(configs[kind], hang_after_s=limit)
    with pytest.raises(Hanging):
        main.run(config, tmp_path / "run", Supervisor(leave))
    run_lock.release(tmp_path / "run")
    assert codes[0] == 6
    assert "the run hangs" in capsys.readouterr().err
