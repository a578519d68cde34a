"""How the encoder of each arm starts: as the ledger says, whatever the preset."""

from pathlib import Path

import jax
import numpy as np
import pytest
from shipped import SHIPPED, load

from configs import ablation, evaluate
from ctssl_jax import methods
from ctssl_jax.config import EncoderConfig, EvaluateConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.methods.base import init_encoder
from ctssl_jax.nn.resnet import STRIDE

ROOT = Path(__file__).parents[1]
TASKS = ("covid_ct", "organsmnist", "hemorrhage")


def ledger():
    """The scale by arm, as the table of docs/deviations.md has it."""
    text = (ROOT / "docs" / "deviations.md").read_text()
    table = text.partition("## How each encoder starts")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line]
    return {row[0].split(" ")[0]: int(row[2][0]) for row in rows if row and row[-1][:1].isdigit()}


SCALE = ledger()


def shipped():
    """Every encoder that a config of any preset starts from fresh, with its arm in the ledger."""
    for file, preset in SHIPPED:
        config = load(file, preset)
        yield f"{file}:{preset}", type(config.method).__name__, config.encoder
    for preset in ("", "demo", "smoke"):
        yield f"evaluate:{preset}", "random", evaluate.get_config(preset).encoder
    for preset in (*TASKS, *(f"{task}_as_run" for task in TASKS), "demo", "smoke"):
        grid = ablation.get_config(preset)
        grid.frozen = True
        for cell in list(grid.cells())[:2]:
            arm = "random" if isinstance(cell.config, EvaluateConfig) else "Supervised"
            yield f"ablation:{preset}", arm, cell.config.encoder
    yield "a default", "SparK", PretrainConfig().encoder
    yield "a default", "Supervised", FinetuneConfig().encoder
    yield "a default", "random", EvaluateConfig().encoder


@pytest.mark.parametrize(
    ("arm", "encoder"), [pytest.param(arm, encoder, id=where) for where, arm, encoder in shipped()]
)
def test_every_arm_of_every_preset_starts_as_the_ledger_says(arm, encoder):
    assert encoder.zero_init_residual == (SCALE[arm] == 0)


def test_the_ledger_lists_every_method():
    listed = {name for name in vars(methods) if hasattr(getattr(methods, name), "loss")}
    assert {*listed, "random"} - {"Method"} == set(SCALE)


@pytest.mark.parametrize("method", [methods.SparK(), methods.MoCo(), methods.Supervised()])
def test_what_the_method_says_is_the_scale_of_the_network(method):
    config = EncoderConfig.of(method, depth=18)
    encoder = config.build(PretrainConfig().precision)
    params, _ = jax.jit(lambda key: init_encoder(encoder, key, STRIDE, 1))(jax.random.key(0))
    blocks = [params[name] for name in params if name.startswith("layer")]
    for block in blocks:
        scale = 0.0 if method.zero_init_residual else 1.0
        np.testing.assert_array_equal(np.asarray(block["bn2"]["scale"]), scale)
        np.testing.assert_array_equal(np.asarray(block["bn1"]["scale"]), 1.0)
    assert len(blocks) == 8
