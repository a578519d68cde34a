import importlib
import io
import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ctssl_jax.errors import ConfigError, DataError, DeviceError, Interrupted
from ctssl_jax.hosts import platform, sharding
from launch import measuring
from launch.benchmark import __main__ as benchmark
from launch.benchmark import compare, parts, reading, startup, steps, worker

SPARK = "--config=configs/spark.py:smoke"
TINY = [SPARK, "--config.batch_size=4", "--config.method.view.size=64"]


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config("smoke")


def test_the_timed_step_is_one_of_training(monkeypatch):
    config = config_of("spark")
    # Nothing is compiled here, so that there is nothing to tell the compiler.
    monkeypatch.setattr(sharding, "jit_init", lambda init, places: init)

    def run():
        step, state, batch, key = steps.prepare(config)
        return state, *step(state, batch, key)

    before, after, metrics = jax.eval_shape(run)
    assert {"loss", "grad_norm", "lr", "weight_decay"} <= metrics.keys()
    assert jax.tree.map(lambda x: x.shape, before) == jax.tree.map(lambda x: x.shape, after)
    batch = steps.random_batch(config)
    assert batch["image"].shape == (8, 64, 64)
    assert batch["image"].min() < -1000
    assert batch["image"].max() > 1000


@pytest.mark.parametrize("name", ["spark", "moco", "swav", "byol"])
def test_without_augmentation_all_views_of_a_resolution_are_the_slice(name):
    config = steps.without_augmentation(config_of(name))
    sizes = [(group.count, group.size) for group in config_of(name).method.views]
    assert [(group.count, group.size) for group in config.method.views] == sizes
    batch = jax.tree.map(jnp.asarray, steps.random_batch(config))
    for group in steps.views(config, jax.random.key(0), batch):
        np.testing.assert_allclose(group, np.broadcast_to(group[:1], group.shape), atol=1e-5)
        assert np.std(group) > 0.1


def test_the_step_of_a_fine_tuning_is_that_of_its_method_and_optimizer():
    config = config_of("finetune_organsmnist")
    step = measuring.step_of(config)
    assert (step.method.classes, step.method.view) == (2, config.method.view)
    assert (step.encoder, step.optim, step.batch_size) == (
        config.encoder,
        config.optim,
        config.batch_size,
    )
    step.validate()
    assert measuring.step_of(step) is step
    for name, words in (("finetune_cases", "Cases: of fine-tunings"), ("evaluate", "EvaluateC")):
        with pytest.raises(ConfigError, match=words):
            measuring.step_of(config_of(name))


def part(run):
    return parts.Part(run, 2e9)


def test_parts_take_turns_and_the_run_after_the_pause_is_not_counted():
    order = []
    seconds = parts.interleave(
        {name: part(lambda name=name: order.append(name)) for name in ("a", "b")}, repeats=3
    )
    assert order == ["a", "a", "b", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert min(seconds["a"]) >= 0


def test_summary_is_of_medians():
    seconds = {"augmentation": [0.1, 0.2, 9.0], parts.STEP: [0.5, 0.8, 1.0]}
    rows = parts.summary({name: part(None) for name in seconds}, seconds, batch_size=40)
    assert rows["augmentation"] == pytest.approx(
        {
            "ms_per_batch": 200,
            "ms_min": 100,
            "ms_max": 9000,
            "images_per_second": 200,
            "share_of_step": 0.25,
            "flops": 2e9,
        }
    )
    assert rows[parts.STEP]["share_of_step"] == 1
    line = next(line for line in parts.table(rows).splitlines() if "augmentation" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["augmentation", "200.0", "100.0", "9,000.0", "200.0", "25.0%", "2.00"]


def test_a_breakdown_names_the_parts_of_a_method():
    """By shapes alone: compiling them all is what the command is for."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.patch_runs(patch)
        patch.setattr(parts, "compiled", lambda run, *args: jax.eval_shape(run, *args))
        patch.setattr(parts, "whole_step", lambda config: None)
        assert list(parts.breakdown(config_of("spark"))) == [
            *("augmentation", "loss and gradients", "- encoder", "- densification"),
            *("- densification and decoder", "optimizer", "training step"),
        ]


class State(flax.struct.PyTreeNode):
    params: jax.Array


@pytest.fixture
def quick_step(monkeypatch):
    """A step that compiles at once; what the command leaves behind in a process stays out."""

    def prepare(config):
        step = jax.jit(lambda state, batch, key: (state, {"loss": state.params + 1.0}))
        state = State(jnp.zeros(3))
        return steps.Prepared(step, state, steps.random_batch(config), jax.random.key(0))

    for module in (parts, reading, worker):
        monkeypatch.setattr(module, "prepare", prepare)
    monkeypatch.setattr(platform, "quiet_libraries", lambda: None)


def test_command_prints_a_table_and_writes_numbers_and_a_picture(quick_step, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "speed.json"
    argv = ["benchmark", "augment", SPARK, "--repeats=2", f"--out={out}", "--config.batch_size=4"]
    assert benchmark.command(argv) == 0
    printed = capsys.readouterr().out
    assert "cpu" in printed
    assert "batch 4" in printed
    assert "| augmentation |" in printed
    found = json.loads(out.read_text())
    assert found["config"]["config"]["batch_size"] == 4
    assert {"device", "jax", "commit", "device_count"} <= found["environment"].keys()
    assert found["rows"].keys() == {"augmentation", "training step"}
    assert [len(values) for values in found["seconds"].values()] == [2, 2]
    row = found["rows"]["augmentation"]
    assert row["ms_per_batch"] == pytest.approx(1e3 * np.median(found["seconds"]["augmentation"]))
    assert row["images_per_second"] == pytest.approx(4e3 / row["ms_per_batch"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_reading_is_timed_without_and_beside_the_step(quick_step, phantom_path):
    config = config_of("spark")
    config.data.path = str(phantom_path)
    found, seconds = reading.measure(config, repeats=2)
    assert found.keys() == seconds.keys() == {reading.READING, parts.STEP}
    assert min(seconds[reading.READING]) > 0


def test_variants_are_settings_or_pytorch():
    found = compare.variants(["method.sparse=masked,seed=1", "torch:channels_last"])
    assert found == [
        ("ours", "ours", ()),
        (
            "method.sparse=masked,seed=1",
            "ours",
            ("--config.method.sparse=masked", "--config.seed=1"),
        ),
        ("torch:channels_last", "torch:channels_last", ()),
    ]
    with pytest.raises(ConfigError, match="--against=tensorflow"):
        compare.variants(["tensorflow"])


def test_a_ratio_is_of_the_steps_of_a_round_and_quoted_by_medians():
    facts = [{"start_seconds": 1.0, "peak_bytes": peak, "flops": 3e9} for peak in (1, 2, 6)]
    found = {
        "ours": compare.Measured(facts, [[1.0, 10.0, 100.0], [1.0, 1.0, 1.0], [1.0, 1.0, 9.0]]),
        "torch": compare.Measured(facts, [[2.0, 20.0, 100.0], [4.0, 4.0, 4.0], [1.0, 1.0, 1.0]]),
    }
    rows = compare.summary(found, batch_size=8)
    assert rows["torch"]["ratio"] == 0.5
    assert (rows["torch"]["ratio_low"], rows["torch"]["ratio_high"]) == (0.25, 1.0)
    assert rows["ours"]["ratio"] == 1
    assert rows["ours"]["ms"] == 1000
    assert rows["torch"]["peak_bytes"] == 2
    line = compare.table(rows).splitlines()[-1]
    assert "| 0.50 (0.25–1.00) | 3.0 |" in line


def test_workers_take_turns_in_changing_order(monkeypatch):
    order = []

    class Worker:
        def __init__(self, variant, arguments):
            self.name = variant.name

        def start(self):
            self.facts = {"of": self.name}

        def step(self):
            order.append(self.name)
            return 0.5

        def end(self):
            self.facts["ended"] = True

        def close(self):
            order.append("closed")

    monkeypatch.setattr(compare, "Worker", Worker)
    variants = [compare.Variant(name, "ours") for name in ("a", "b")]
    found = compare.measure(variants, [], rounds=2, starts=2)
    assert order == ["a", "b", "b", "a", "closed", "closed"] * 2
    assert found["b"].seconds == [[0.5, 0.5]] * 2
    assert found["a"].facts == [{"of": "a", "ended": True}] * 2


def test_a_worker_that_ends_by_itself_is_named(capfd):
    """A real process, which refuses its config."""
    variant = compare.Variant("wrong", "ours", ("--config.nothing=1",))
    with (
        pytest.raises(DeviceError, match="the process of wrong ended"),
        compare.working([variant], [SPARK]),
    ):
        pass
    assert "nothing" in capfd.readouterr().err


def test_a_worker_answers_line_by_line(quick_step):
    answers = io.StringIO()
    worker.serve("ours", config_of("spark"), io.StringIO("step\nstep\nend\nstep\n"), answers)
    facts, *seconds, end = map(json.loads, answers.getvalue().splitlines())
    assert {"parameters", "flops", "temporary_bytes", "start_seconds"} == facts.keys()
    assert [list(one) for one in seconds] == [["seconds"], ["seconds"]]
    assert end["peak_bytes"] is None or end["peak_bytes"] > 1e7


def test_the_peak_can_be_forgotten():
    if worker.peak_bytes() is None:
        pytest.skip("no VmHWM on this system")
    block = np.ones(100_000_000, np.uint8)
    high = worker.peak_bytes()
    del block
    worker.forget_peak()
    assert worker.peak_bytes() < high - 50_000_000


@pytest.mark.slow
def test_a_start_is_watched_until_its_first_step(phantom_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    arguments = [*TINY, f"--config.data.path={phantom_path}", "--config.picture_every=0"]
    found = startup.measure(arguments, repeats=1)
    assert found.keys() == {"cold", "warm"}
    for (run,) in found.values():
        assert 0 < run["first line"] <= run["model built"] < run["first step"]
    assert "| warm |" in startup.table(found)


def test_a_start_that_fails_is_an_error(tmp_path, capfd):
    with pytest.raises(DataError, match="before its first step"):
        startup.measure([SPARK, f"--config.data.path={tmp_path}"], repeats=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "PART"),
        (["nothing", SPARK], "'nothing'"),
        (["augment"], "no --config"),
        (["augment", SPARK, "--repeats=0"], "--repeats=0"),
        (["augment", SPARK, "--repeats=many"], "'many'"),
        (["augment", SPARK, "--repeat=3"], "repeat"),
        (["augment", SPARK, "--against=torch"], "--against=torch"),
        (["compare", SPARK, "--against=jaxx"], "--against=jaxx"),
        (["compare", SPARK, "--starts=0"], "--starts=0"),
        (["augment", SPARK, "--out=nowhere/at/all.json"], "nowhere/at/all.json"),
        (["augment", SPARK, "--config.nothing=1"], "nothing"),
        (["augment", SPARK, "--config.batch_size=-4"], "batch_size=-4"),
        (["augment", SPARK, "--config.batch_size=6"], "batch_size=6"),  # on four devices
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
    assert benchmark.command(["benchmark", "augment", SPARK]) == Interrupted.exit_code
    assert "interrupted" in capsys.readouterr().err
