import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax import platform, sharding
from ctssl_jax.errors import Interrupted
from launch import benchmark

CONFIG = "--config=configs/spark.py:smoke"


def test_the_timed_step_is_one_of_training():
    config = importlib.import_module("configs.spark").get_config("smoke")
    batch = benchmark._random_batch(config)

    def run(key, batch):
        step, state = benchmark._training_step(config, sharding.make_mesh())
        return state, *step(state, batch, key)

    before, after, metrics = jax.eval_shape(run, jax.random.key(0), batch)
    assert {"loss", "grad_norm", "lr", "weight_decay"} <= metrics.keys()
    assert jax.tree.map(lambda x: x.shape, before) == jax.tree.map(lambda x: x.shape, after)
    assert batch["image"].shape == (8, 64, 64)
    assert batch["image"].min() < -1000
    assert batch["image"].max() > 1000


def test_runs_take_turns_and_the_compiling_one_is_not_counted():
    order = []
    seconds = benchmark.interleave(
        {name: lambda name=name: order.append(name) for name in ("a", "b")}, repeats=3
    )
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert min(seconds["a"]) >= 0


def test_summary_is_of_medians():
    seconds = {"augmentation": [0.1, 0.2, 9.0], benchmark.STEP: [0.5, 0.8, 1.0]}
    rows = benchmark.summary(seconds, batch_size=40)
    assert rows["augmentation"] == pytest.approx(
        {
            "ms_per_batch": 200,
            "ms_min": 100,
            "ms_max": 9000,
            "images_per_second": 200,
            "share_of_step": 0.25,
        }
    )
    assert rows[benchmark.STEP]["share_of_step"] == 1
    line = next(line for line in benchmark.table(rows).splitlines() if "augmentation" in line)
    assert line.split() == ["augmentation", "200.00", "100.00", "9000.00", "200.0", "25.0%"]


@pytest.fixture
def quick_step(monkeypatch):
    """A step that compiles at once; what the command leaves behind in a process stays out."""
    monkeypatch.setattr(
        benchmark,
        "_training_step",
        lambda config, mesh: (lambda s, b, k: (s + 1, {}), jnp.int32(0)),
    )
    monkeypatch.setattr(platform, "quiet_libraries", lambda: None)


def test_command_prints_a_table_and_writes_the_file(quick_step, tmp_path, capsys):
    out = tmp_path / "speed.json"
    argv = ["benchmark", "augment", CONFIG, "--repeats=2", f"--out={out}", "--config.batch_size=4"]
    assert benchmark.command(argv) == 0
    printed = capsys.readouterr().out
    assert "cpu" in printed
    assert "batch 4, canvas 64" in printed
    assert "augmentation" in printed
    found = json.loads(out.read_text())
    assert found["config"]["config"]["batch_size"] == 4
    assert {"device", "jax", "commit", "device_count"} <= found["environment"].keys()
    assert found["rows"].keys() == {"augmentation", "training step"}
    assert [len(values) for values in found["seconds"].values()] == [2, 2]
    row = found["rows"]["augmentation"]
    assert row["ms_per_batch"] == pytest.approx(1e3 * np.median(found["seconds"]["augmentation"]))
    assert row["images_per_second"] == pytest.approx(4e3 / row["ms_per_batch"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "part"),
        (["nothing", CONFIG], "'nothing'"),
        (["augment"], "no --config"),
        (["augment", CONFIG, "--repeats=0"], "--repeats=0"),
        (["augment", CONFIG, "--repeats=many"], "'many'"),
        (["augment", CONFIG, "--repeat=3"], "repeat"),
        (["augment", CONFIG, "--out=nowhere/at/all.json"], "nowhere/at/all.json"),
        (["augment", CONFIG, "--config.nothing=1"], "nothing"),
        (["augment", CONFIG, "--config.batch_size=-4"], "batch_size=-4"),
        (["augment", CONFIG, "--config.batch_size=6"], "batch_size=6"),  # on four devices
        (["augment", "--config=configs/ablation.py"], "AblationConfig"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(quick_step, capsys, arguments, words):
    assert benchmark.command(["benchmark", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("launch.benchmark: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_interrupt_is_answered(quick_step, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", interrupt)
    assert benchmark.command(["benchmark", "augment", CONFIG]) == Interrupted.exit_code
    assert "interrupted" in capsys.readouterr().err
