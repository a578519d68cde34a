"""The shared step and loop: devices, resume, progress, refusal of non-finite numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import compiler_options
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved
import tiny

from ctssl_jax import train
from ctssl_jax.errors import ConfigError, DivergedError, Preempted
from ctssl_jax.hosts import sharding
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.log import MetricWriter, read_metrics
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.run.checkpoint import load_encoder
from ctssl_jax.train import Due, fit

pytestmark = pytest.mark.usefixtures("one_device")

TINY_RUN = Path(__file__).parent / "distributed" / "tiny_run.py"
STEPS = 12
ONE_DEVICE = {**os.environ, "XLA_FLAGS": compiler_options.flags()}


def test_four_devices_give_the_loss_of_one():
    """Of SparK; of the other methods `tests/methods/test_contract.py`."""
    assert jax.device_count() == 4
    found = []
    for devices in (jax.devices(), jax.devices()[:1]):
        state, step = tiny.training(tiny.METHODS["spark"], STEPS)
        mesh = sharding.make_mesh(devices)
        state, key = sharding.replicate((state, jax.random.key(3)), mesh)
        batch = sharding.put_batch(tiny.host_batch(), mesh)
        state, metrics = sharding.jit_step(step, mesh)(state, batch, key)
        found.append((jax.device_get(metrics), jax.device_get(state.batch_stats)))
    (four, four_stats), (one, one_stats) = found
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), four_stats, one_stats)


def command(workdir: Path, phantom_path: Path, throttle: float = 0, **changes: int) -> list[str]:
    """A run of SparK as `ctssl_jax.main` makes it, of the tiny encoder."""
    ask = {"methods": ["spark"], "data": str(phantom_path), "steps": STEPS, "throttle": throttle}
    ask["changes"] = {"log_every": 3, "picture_every": 4, **changes}
    return [sys.executable, str(TINY_RUN), json.dumps(ask), f"--workdir={workdir}"]


def run(workdir: Path, phantom_path: Path) -> str:
    done = subprocess.run(
        command(workdir, phantom_path), capture_output=True, text=True, check=False, env=ONE_DEVICE
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def kill_after_a_checkpoint(workdir: Path, phantom_path: Path) -> None:
    argv = command(workdir, phantom_path, throttle=0.5)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=ONE_DEVICE)
    finished = workdir / "checkpoints" / "4" / "_CHECKPOINT_METADATA"
    deadline = time.monotonic() + 300
    while not finished.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished.exists()
    assert (workdir / "STATUS").read_text() == "running\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, phantom_path):
    """A run left alone, and what it said."""
    alone = tmp_path_factory.mktemp("runs") / "alone"
    return alone, run(alone, phantom_path)


@pytest.mark.slow
def test_resume_after_a_kill_is_bit_equal(runs, phantom_path, tmp_path):
    """Of two processes by default, `tests/distributed/test_runs.py`; of one that is interrupted,
    `tests/methods/test_contract.py`."""
    (alone, _), resumed = runs, tmp_path / "resumed"
    kill_after_a_checkpoint(resumed, phantom_path)
    assert "resumed at step" in run(resumed, phantom_path)
    jax.tree.map(
        np.testing.assert_array_equal, saved.state(alone, STEPS), saved.state(resumed, STEPS)
    )
    losses = [[row["loss"] for row in read_metrics(path)] for path in (alone, resumed)]
    assert losses[0] == losses[1]
    assert [row["step"] for row in read_metrics(resumed)] == [3, 6, 9, 12]


def test_run_folder_explains_itself(runs):
    alone, printed = runs
    assert (alone / "STATUS").read_text() == "done\n"
    environment = json.loads((alone / "env.json").read_text())
    assert {"jax", "commit", "device", "precision"} <= environment.keys()
    rows = read_metrics(alone)
    assert {"loss", "lr", "weight_decay", "grad_norm", "images_per_second"} <= rows[-1].keys()
    assert list((alone / "events").glob("events.*"))
    assert "compiling" in printed
    assert "img/s" in printed
    assert "eta" in printed
    assert max(map(len, printed.splitlines())) <= 160


def test_repeating_a_finished_run_changes_nothing(runs, phantom_path):
    alone, _ = runs
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*") if path.is_file()}
    assert "is done already" in run(alone, phantom_path)
    assert before == {path: path.stat().st_mtime_ns for path in alone.rglob("*") if path.is_file()}


def test_reconstructions_are_drawn_as_three_rows_of_slices(runs):
    from PIL import Image

    alone, _ = runs
    names = sorted(path.name for path in (alone / "figures").iterdir())
    assert names == [*(f"reconstruction_{step:07}.png" for step in (4, 8, 12)), "views.png"]
    picture = np.asarray(Image.open(alone / "figures" / names[2]))
    assert picture.shape == (3 * 64 + 2 * 2, 8 * 64 + 7 * 2)
    shown, masked = picture[:64, :64].astype(int), picture[66:130, :64].astype(int)
    assert 0.2 < np.mean(shown != masked) < 0.9  # half of four patches are hidden


def test_views_are_drawn_below_the_whole_slices(runs):
    from PIL import Image

    alone, _ = runs
    picture = np.asarray(Image.open(alone / "figures" / "views.png"))
    assert picture.shape == (2 * 64 + 2, 8 * 64 + 7 * 2)
    assert np.mean(picture[:64, :64] != picture[66:130, :64]) > 0.2


def test_no_path_is_written_into_the_run_folder(runs, phantom_path):
    alone, _ = runs
    for file in alone.rglob("*"):
        if file.is_file() and "checkpoints" not in file.parts:
            assert str(phantom_path).encode() not in file.read_bytes(), file.name


def test_encoder_is_handed_over_strictly(runs):
    alone, _ = runs
    params, stats = load_encoder(alone, tiny.ENCODER, 1)
    state = saved.state(alone, STEPS)
    jax.tree.map(np.testing.assert_array_equal, params, state["params"]["encoder"])
    jax.tree.map(np.testing.assert_array_equal, stats, state["batch_stats"]["encoder"])
    with pytest.raises(ConfigError, match=r"another shape: .* set config.encoder"):
        load_encoder(alone, ResNet(depth=18), 1)
    with pytest.raises(ConfigError, match=r"conv0/kernel is \(4, 4, 1, 4\) there"):
        load_encoder(alone, tiny.ENCODER, 3)


def test_another_config_is_refused_and_named(runs, phantom_path):
    alone, _ = runs
    argv = command(alone, phantom_path, seed=5)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=ONE_DEVICE)
    assert done.returncode == 2
    assert "made by another config (config.seed is 0 there and 5 here)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (alone / "STATUS").read_text() == "done\n"


class Stub:
    """A training step of plain numbers: its loss is taken from a list."""

    def __init__(self, losses, **gauges):
        self.losses, self.gauges = losses, gauges

    def __call__(self, state, batch, key):
        metrics = {"loss": self.losses[int(state.step)], "grad_norm": 1, "lr": 1, **self.gauges}
        return state.replace(step=state.step + 1), jax.tree.map(jnp.float32, metrics)


def fit_stub(
    tmp_path,
    losses,
    due=(),
    save=None,
    save_every=100,
    settings=None,
    supervisor=None,
    start=0,
    step=None,
    **gauges,
):
    settings = settings or {}
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = train.TrainState(jnp.int32(start), {}, {}, {}, ())
    batches = iter([{"image": np.zeros((1, 1, 1), np.int16)}] * len(losses))
    writer = MetricWriter(tmp_path)
    session = train.Session(
        mesh,
        writer,
        supervisor or Supervisor(),
        save or (lambda state, unfinished: None),
        settings.pop("unfinished", False),
    )
    pace = train.Pace(0, len(losses), 2.0, 1, log_every=4, save_every=save_every)
    try:
        return fit(state, step or Stub(losses, **gauges), batches, session, pace, due, **settings)
    finally:
        writer.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_the_run_names_its_step_and_is_never_saved(tmp_path, bad):
    saved = []
    losses = [1.0] * 8
    losses[5] = bad  # the loss of step 6
    with pytest.raises(DivergedError, match=r"^step 6: loss (nan|inf)"):
        fit_stub(
            tmp_path, losses, save=lambda state, _: saved.append(int(state.step)), save_every=2
        )
    assert saved == [2, 4]
    assert [row["step"] for row in read_metrics(tmp_path)] == [4]


def test_what_is_due_happens_when_it_should(tmp_path):
    calls = []
    due = [Due(3, lambda state, step: calls.append(step))]
    state = fit_stub(tmp_path, [1.0] * 7, due)
    assert int(state.step) == 7
    assert calls == [3, 6, 7]
    assert [row["step"] for row in read_metrics(tmp_path)] == [4, 7]


def test_a_run_is_not_quiet_for_longer_than_a_minute(tmp_path, monkeypatch, capsys):
    """However seldom it logs: a line, and nothing else."""
    monkeypatch.setattr(train, "QUIET_S", 0)
    monkeypatch.setattr(train, "WORTH_TELLING_S", 0)
    bad = [1.0, 1.0, float("nan"), 1.0, 1.0]
    with pytest.raises(DivergedError, match=r"^step 3: loss nan"):
        fit_stub(tmp_path, bad)  # as it is found without these lines: after step 4
    log = (tmp_path / "log.txt").read_text()
    assert [f"step {number}/5 ep" in log for number in (2, 3, 4)] == [True, True, False]
    assert read_metrics(tmp_path) == []
    assert capsys.readouterr().out.count(" img/s done about ") == 1


def test_a_planted_collapse_is_named_within_two_logged_lines(tmp_path):
    """`log_every` is 4, so it must stand there by step 8, once."""
    fit_stub(tmp_path, [1.0] * 16, embedding_std=0.01, effective_rank=1.0)
    log = (tmp_path / "log.txt").read_text()
    before, after = log.split("step 8/16")
    assert "WARNING" not in before
    assert "spread 0.01 of 1" in before
    assert log.count("WARNING: collapse: all embeddings are nearly equal") == 1
    assert "WARNING: collapse: all embeddings" in after.split("step 12/16")[0]


def test_rows_after_the_resumed_step_are_dropped_and_a_cut_row_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"st')
    MetricWriter(tmp_path, step=2).close()
    assert read_metrics(tmp_path) == [{"step": 2}]


class Signalled(Supervisor):
    """As if a signal had come at a certain batch: before it (`wait`), or while it is trained on."""

    def __init__(self, at, wait=False):
        super().__init__()
        self.at, self.wait, self.batches = at, wait, 0

    def next(self, items, alone):
        self.batches += 1
        if self.wait and self.batches == self.at:
            raise Preempted("pre-empted")
        return next(items)

    @property
    def asked(self):
        return not self.wait and self.batches >= self.at


@pytest.mark.parametrize(("wait", "last"), [(False, 5), (True, 4)])
def test_a_signal_saves_the_last_whole_step_and_stops(tmp_path, wait, last):
    saved, done = [], []
    with pytest.raises(Preempted):
        fit_stub(
            tmp_path,
            [1.0] * 9,
            due=[Due(3, lambda state, step: done.append(step))],
            save=lambda state, unfinished: saved.append((int(state.step), unfinished)),
            supervisor=Signalled(5, wait),
        )
    assert saved == [(last, False)]
    assert done == [3]


def test_a_bad_step_is_not_saved_at_a_signal_either(tmp_path):
    saved = []
    for wait in (False, True):
        with pytest.raises(DivergedError, match=r"^step 3"):
            fit_stub(
                tmp_path,
                [1.0, 1.0, float("nan"), 1.0, 1.0],
                save=lambda state, unfinished: saved.append(state),
                supervisor=Signalled(4, wait),
            )
    assert saved == []


def test_what_was_due_and_cut_short_is_done_again(tmp_path):
    def cut_short(state, step):
        raise Preempted("pre-empted")

    saved, done = [], []
    due = [Due(2, lambda state, step: done.append(("first", step))), Due(2, cut_short)]
    with pytest.raises(Preempted):
        fit_stub(tmp_path, [1.0] * 4, due, save=lambda state, unfinished: saved.append(unfinished))
    assert (saved, done) == ([True], [("first", 2)])

    done.clear()
    due = [Due(2, lambda state, step: done.append(step)), Due(3, lambda *_: done.append("no"))]
    fit_stub(tmp_path, [1.0] * 4, due[:1], settings={"unfinished": True}, start=2)
    assert done == [2, 4]  # what was due after step 2 comes first
    done.clear()
    fit_stub(tmp_path, [1.0] * 4, due[:1], start=2)
    assert done == [4]


def test_a_signal_counts_only_once_there_is_something_to_save(tmp_path):
    """Until the first step is done the supervisor itself ends the process."""
    seen = []
    supervisor = Supervisor()

    class Watching(Stub):
        def __call__(self, state, batch, key):
            seen.append(supervisor.resumable)
            return super().__call__(state, batch, key)

    fit_stub(tmp_path, [1.0] * 3, supervisor=supervisor, step=Watching([1.0] * 3))
    assert seen == [False, True, True]
