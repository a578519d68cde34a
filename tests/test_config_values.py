"""Every field of every config with values of no use: one line that names it, or a run that can be.

The pairs are made from the configs themselves, so that a new field is among them.
"""

import copy
import dataclasses
import json
import math

import jax
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError
from tiny import ENCODER, METHODS

from ctssl_jax import pretrain
from ctssl_jax.ablation import AblationConfig
from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.config_record import config_record, first_difference
from ctssl_jax.data import DataConfig
from ctssl_jax.errors import UserError, printable
from ctssl_jax.optim.freezing import finetune_optimizer
from ctssl_jax.run.budget import budget

NUMBERS = (0, -1, 1, 3, 10**24, -(2**31) - 1, 0.5, 1e300, math.nan, math.inf, -math.inf)
OTHERS = (
    None,
    True,
    "",
    "a b",
    "../up",
    "$(reboot)",
    "=1+1",
    "-x",
    "x\x1b[31m",
    "x\n",
    "\0",
    "\udcff",
)
TUPLES = ((), (1,), (1.0, 2.0), (2.0, 1.0), (1, 2, 3), (math.nan, 1.0), (10**24,), ("a", "b"))
TUPLES += (tuple(range(2000)), [1.0, 2.0], ((1,), 2))
VALUES = (*NUMBERS, *OTHERS, *TUPLES, "x" * 5000, {}, object)


OF = dict.fromkeys(("moco", "swav", "byol", "simclr"), "method.")  # the rest is as SparK's


def fields(config, prefix=""):
    """Of a config and all its parts: the part, the field's name, the whole name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        yield config, field.name, prefix + field.name


def configs():
    data = {"data": DataConfig(path="nowhere", canvas=64), "batch_size": 8}
    small = {
        name: PretrainConfig(method=copy.deepcopy(method), **data)
        for name, method in METHODS.items()
    }
    base = FinetuneConfig(**data)
    grid = AblationConfig(base=base, base_config="configs/finetune_covid_ct.py")
    return {
        **small,
        "finetune": base,
        "evaluate": EvaluateConfig(data=data["data"]),
        "ablation": grid,
    }


def use(config):
    """What is made of a config before anything is read or computed."""
    config.validate()
    if isinstance(config, AblationConfig):
        assert len([cell.name for cell in config.cells()]) < 100_000
        return
    record = config_record(config)
    json.dumps(record)
    first_difference(record["config"], {})
    if isinstance(config, PretrainConfig):
        config.method.validate_run(config.microbatch, 1000)
        program = pretrain.make_program(config, 1000, "hu")
        assert program.total_steps >= 1
    elif isinstance(config, FinetuneConfig):
        plan = budget(config, 100)
        finetune_optimizer(config.optim, plan.freeze, plan.steps_per_epoch)


@pytest.mark.parametrize("name", list(configs()))
def test_each_field_takes_a_value_or_names_it_in_one_line(name, monkeypatch):
    from ctssl_jax.config import EncoderConfig
    from ctssl_jax.hosts import sharding

    monkeypatch.setattr(EncoderConfig, "build", lambda self, precision: ENCODER)
    monkeypatch.setattr(sharding, "all_devices", lambda: jax.devices()[:1])
    wrong, refused, tried = [], 0, 0
    of, sound = OF.get(name, ""), configs()[name]
    for number, (_, field, whole) in enumerate(fields(sound)):
        if not whole.startswith(of) or (name == "ablation" and whole.startswith("base")):
            continue
        for value in VALUES:
            config = copy.deepcopy(sound)
            parts = [part for part, *_ in fields(config)]
            before = getattr(parts[number], field)
            if dataclasses.is_dataclass(before):
                continue  # no flag sets a whole part
            setattr(parts[number], field, value)
            tried += 1
            try:
                use(config)
            except UserError as error:
                refused += 1
                text = printable(error)
                if (
                    field.split("_")[-1].rstrip("s") not in text
                    or text != str(error)
                    or len(text) > 400
                ):
                    wrong.append((whole, repr(value)[:40], text[:200]))
            except Exception as error:
                if isinstance(error, (TypeCheckError, BeartypeCallHintViolation)):
                    continue  # an integer or list, of which flags make a float or tuple
                wrong.append((whole, repr(value)[:40], repr(error)[:200]))
    assert not wrong, f"{len(wrong)} of {tried}: {wrong[:12]}"
    assert refused > tried / 3


@pytest.mark.parametrize(
    "name", ["covid ct", "../../etc", "$(reboot)", "a/b", "=cmd", "-rf", "a;b"]
)
def test_what_becomes_a_folder_or_a_word_of_a_shell_is_a_name(name):
    for config in (FinetuneConfig(task=name), EvaluateConfig(arm=name)):
        with pytest.raises(UserError, match="is a name"):
            config.validate()
    grid = configs()["ablation"]
    grid.encoders = (f"{name}=runs/spark",)
    with pytest.raises(UserError):
        grid.validate()


def test_the_number_of_folds_takes_no_memory():
    grid = configs()["ablation"]
    grid.folds = 2**31 - 1
    with pytest.raises(UserError, match="folds=2147483647"):
        grid.validate()


def test_an_attribute_that_is_no_field_is_refused_wherever_it_is_set():
    for kind in (PretrainConfig, FinetuneConfig, EvaluateConfig):
        config = kind()
        config.optim_ = 7
        with pytest.raises(UserError, match=f"optim_ is no field of {kind.__name__}"):
            config.validate()
        config = kind()
        config.data.pathh = "x"
        with pytest.raises(UserError, match=r"data.pathh is no field .*: did you mean data.path\?"):
            config.validate()


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig, EvaluateConfig])
def test_seeds_below_zero_are_refused(kind):
    for field in dataclasses.fields(kind):
        if field.name.endswith(("seed", "seeds")):
            value = -1 if field.type in (int, "int") else (0, -1)
            with pytest.raises(UserError, match=rf"{field.name}=.*: must be 0 or more"):
                dataclasses.replace(kind(), **{field.name: value}).validate()


@pytest.mark.parametrize(
    "changes", [{"picture_every": -1}, {"display_window_hu": (100.0, 100.0)}], ids=str
)
def test_pictures_that_cannot_be_are_refused(changes):
    with pytest.raises(UserError, match=f"{next(iter(changes))}=.*: must be"):
        dataclasses.replace(PretrainConfig(), **changes).validate()
