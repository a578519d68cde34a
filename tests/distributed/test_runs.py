"""Runs of real processes: one result on any topology, and what becomes of them when they are hit.

Two processes of four fake devices each, on the loopback interface. The encoder is tiny, the rest is
what a user runs (`tiny_run.py`).
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
import saved
from processes import rows, tiny
from tiny import METHODS

from ctssl_jax.log import read_metrics


def checkpoints(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def losses(run):
    return [(row["step"], row["loss"]) for row in read_metrics(run) if "loss" in row]


def assert_same_end(run, other, step):
    jax.tree.map(np.testing.assert_array_equal, saved.state(run, step), saved.state(other, step))
    assert losses(run) == losses(other)
    assert rows(run) == rows(other)


def complete(run, ask, **where):
    group = tiny(run, ask, **where)
    assert set(group.end()) == {0}, group.text
    assert (run / "STATUS").read_text() == "done\n"
    return group


@pytest.fixture(scope="module")
def ask(phantom_path):
    return {"methods": ["moco"], "data": str(phantom_path), "steps": 12}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, ask):
    """What is left alone, on two processes."""
    run = tmp_path_factory.mktemp("alone") / "run"
    return run, complete(run, ask)


@pytest.mark.parametrize(
    ("methods", "others"),
    [(["moco"], ["two"]), pytest.param(list(METHODS), ["eight", "two"], marks=pytest.mark.slow)],
)
def test_one_device_eight_devices_and_two_processes_are_one(tmp_path, ask, methods, others):
    """Twenty steps of SGD. In float64: in float32 a ReLU that one rounding decides moves all later
    steps, of SwAV by 2e-3 in one of three tries, which says nothing about devices."""
    once = {"checkpoint_every": 20}
    asked = {**ask, "methods": methods, "steps": 20, "float64": True, "changes": once}
    places = {"one": (1, 1), "eight": (1, 8), "two": (2, 4)}
    for name in ("one", *others):
        processes, devices = places[name]
        group = tiny(tmp_path / name, asked, processes, devices, {"JAX_ENABLE_X64": "1"})
        assert set(group.end(900)) == {0}, group.text
    for method in methods:
        runs = {n: tmp_path / n / (method if len(methods) > 1 else "") for n in places}
        one = saved.state(runs["one"], 20)
        for name in others:
            for ours, theirs in zip(losses(runs[name]), losses(runs["one"]), strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5)
            other = saved.state(runs[name], 20)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), other, one
            )
    for name in others:
        assert rows(tmp_path / name) == rows(tmp_path / "one")


def test_one_line_for_each_process_and_one_voice(alone):
    run, group = alone
    for i in (0, 1):
        assert f"process {i}/2: 4 of 8 devices (cpu)\n" in group.lines[i]
    # Gloo's threads write their lines in pieces and at once: in any order, but each piece whole.
    pieces = ("[Gloo]", "Rank", "is connected to", "peer ranks", ".", "is :", "Expected number of")
    words = "|".join(map(re.escape, (*pieces, "connected")))
    gloo = re.compile(rf"({words}|\d|\s)*")
    others = [line for line in group.lines[1] if not gloo.fullmatch(line)]
    assert others == ["process 1/2: 4 of 8 devices (cpu)\n"]
    assert "done: 12 steps" in group.text
    assert json.loads((run / "env.json").read_text())["process_count"] == 2


def hit(run, ask, phase, step, number, *victims, seconds=3, **where):
    """Sends a signal to some processes, or all, while they are in a phase; their exit codes."""
    group = tiny(run, {**ask, "pause": [phase, step, seconds]}, **where)
    for i in range(len(group.children)):
        group.wait_for(f"PHASE {phase}", i)
    run.with_suffix(".paused").touch()
    group.signal(number, *victims)
    return group, group.end()


def test_a_run_that_is_preempted_then_killed_ends_bit_equal(tmp_path, ask, alone):
    """A signal to one process saves one step on all; a killed process ends the other at once."""
    run = tmp_path / "run"
    group, codes = hit(run, ask, "training", 3, signal.SIGUSR1, 1)
    assert codes == [75, 75], group.text
    assert (run / "STATUS").read_text() == "preempted\n"
    (*_, last) = checkpoints(run)
    assert 3 <= last < 8

    run.with_suffix(".paused").unlink()
    group = tiny(run, {**ask, "pause": ["training", 10, 60]})
    for i in (0, 1):
        group.wait_for("PHASE training", i)
    assert f"resumed at step {last}\n" in group.text
    run.with_suffix(".paused").touch()
    began = time.monotonic()
    group.signal(signal.SIGKILL, 1)
    assert group.end() == [6, -9], group.text
    assert time.monotonic() - began < 20  # JAX by itself waits for 100 s of silence
    assert "ctssl_jax [process 0/2]: process 1 is gone: this one ends too\n" in group.lines[0]
    assert "Current thread" in group.text  # what each thread of the survivor was doing
    assert (run / "STATUS").read_text() == "failed:6\n"

    complete(run, ask)
    assert_same_end(run, alone[0], 12)


PHASES = [("compilation", 1), ("data", 6), ("training", 6), ("saving", 4)]


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(), (0,), (1,)], ids=["all", "first", "other"])
@pytest.mark.parametrize(("phase", "step"), PHASES, ids=[phase for phase, _ in PHASES])
def test_a_signal_in_each_phase_of_pretraining(tmp_path, ask, alone, phase, step, victims):
    run = tmp_path / "run"
    group, codes = hit(run, ask, phase, step, signal.SIGTERM, *victims)
    assert codes == [75, 75], group.text
    assert checkpoints(run) if phase != "compilation" else not checkpoints(run)
    complete(run, ask)
    assert_same_end(run, alone[0], 12)


@pytest.mark.slow
def test_a_signal_during_validation_leaves_it_to_be_done_again(tmp_path, ask):
    """Four batches of validation: the vote about the signal is read before they are over."""
    ask = {**ask, "methods": ["finetune"], "evaluation_batch": 2}
    where = {"devices": 1}
    complete(tmp_path / "alone", ask, **where)
    run = tmp_path / "run"
    group, codes = hit(run, ask, "evaluation", 8, signal.SIGTERM, 1, **where)
    assert codes == [75, 75], group.text
    assert checkpoints(run) == [8]
    meta = json.loads((run / "checkpoints" / "8" / "meta" / "metadata").read_text())
    assert meta["unfinished"] is True
    complete(run, ask, **where)
    results = [
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "alone", run)
    ]
    assert results[0] == results[1]
    assert_same_end(run, tmp_path / "alone", 12)
    assert read_without_time(run) == read_without_time(tmp_path / "alone")


def read_without_time(run):
    timed = ("images_per_second", "input_wait", "elapsed_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(run)]


@pytest.mark.slow
def test_other_numbers_of_processes_keep_the_order_and_the_loss(tmp_path, ask, alone):
    """Two processes, then one with one device, then two again."""
    run = tmp_path / "run"
    _, codes = hit(run, ask, "training", 3, signal.SIGTERM)
    assert codes == [75, 75]
    run.with_suffix(".paused").unlink()
    _, codes = hit(run, ask, "training", 7, signal.SIGTERM, processes=1, devices=1)
    assert codes == [75]
    complete(run, ask)
    ours, theirs = losses(run), losses(alone[0])
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert rows(run) == rows(alone[0])


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path, ask):
    """SIGKILL of one process or of both, 20 times in the life of one run."""
    rng = random.Random(0)
    ask = {**ask, "steps": 800, "changes": {"log_every": 10, "checkpoint_every": 10}}
    run, steps = tmp_path / "run", []
    complete(tmp_path / "alone", ask)
    for _ in range(20):
        group = tiny(run, {**ask, "throttle": 0.15})
        if rng.random() < 0.75:  # else during start-up and compilation
            group.wait_for("first step done")
        time.sleep(rng.uniform(0, 10))
        victims = rng.choice([(0,), (1,), (0, 1)])
        assert group.children[0].poll() is None, group.text
        group.signal(signal.SIGKILL, *victims)
        codes = group.end()
        assert all(codes[i] == -9 for i in victims), codes
        steps += checkpoints(run)[-1:] if (run / "checkpoints").exists() else []
    assert len(set(steps)) > 5, steps  # it went on between them
    complete(run, ask)
    jax.tree.map(
        np.testing.assert_array_equal, saved.state(run, 800), saved.state(tmp_path / "alone", 800)
    )
    assert losses(run) == losses(tmp_path / "alone")


# Exit codes, each by a command of one process (6 and 75 also above; 2 and 3 in test_main.py).


def test_ctrl_c_saves_and_ends_with_130(tmp_path, ask):
    run = tmp_path / "run"
    group, codes = hit(run, ask, "data", 6, signal.SIGINT, seconds=60, processes=1)
    assert codes == [130], group.text
    assert "interrupted; repeat the command to go on" in group.text
    assert (run / "STATUS").read_text() == "interrupted\n"
    assert checkpoints(run)[-1] == 5  # the wait for the batch of step 6 was cut short


@pytest.mark.slow  # in one process: tests/run/test_hangs.py
def test_a_hang_is_ended_with_the_stacks_and_6(tmp_path, ask):
    changes = {"changes": {"hang_after_s": 20.0}, "pause": ["training", 6, 600]}
    group = tiny(tmp_path / "run", {**ask, **changes}, processes=1)
    assert group.end() == [6], group.text
    assert "no step for" in group.text
    assert "in pause" in group.text  # the stack of the main thread
    assert (tmp_path / "run" / "STATUS").read_text() == "failed:6\n"


def test_divergence_ends_with_4_and_keeps_the_last_good_checkpoint(tmp_path, ask):
    group = tiny(tmp_path / "run", {**ask, "blow_up": 6}, processes=1)
    assert group.end() == [4], group.text
    assert checkpoints(tmp_path / "run") == [4]
    assert (tmp_path / "run" / "STATUS").read_text() == "failed:4\n"


def test_data_that_one_process_lacks_ends_all_with_3(tmp_path, ask):
    group = tiny(tmp_path / "run", {**ask, "data_of": {"1": str(tmp_path / "nothing")}})
    assert group.end() == [3, 3], group.text
    assert "ctssl_jax [process 1/2]: " in group.text
    assert "no such dataset" in group.text


def test_processes_with_different_configs_are_refused(tmp_path, ask):
    group = tiny(tmp_path / "run", {**ask, "steps_of": {"1": 16}})
    assert group.end() == [2, 2], group.text
    assert "process 0 has another config" in group.text


def test_no_device_of_the_wanted_kind_ends_with_6(tmp_path, ask):
    group = tiny(tmp_path / "run", ask, processes=1, env={"JAX_PLATFORMS": "cuda"})
    assert group.end() == [6], group.text
    assert "ctssl_jax: no device (" in group.text
    assert "Traceback" not in group.text


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_with_5_and_the_run_goes_on_once_there_is_room(
    small_disk, tmp_path, ask, alone
):
    run = small_disk / "run"
    group = tiny(run, {**ask, "fill": [str(small_disk), 6]}, processes=1, devices=8)
    assert group.end() == [5], group.text
    # What meets the full disk first is not fixed.
    assert "Traceback" not in group.text
    (said,) = [line for line in group.lines[0] if line.startswith("ctssl_jax: ")]
    assert "no space left on" in said.lower()
    assert checkpoints(run) == [4]
    (small_disk / "filler").unlink()
    again = complete(run, ask, processes=1, devices=8)
    assert "resumed at step 4" in again.text
    assert losses(run)[-1][0] == 12


@pytest.mark.slow  # in one process: tests/run/test_damage.py
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_kept(tmp_path, ask, alone):
    run = tmp_path / "run"
    shutil.copytree(alone[0], run)
    (run / "STATUS").write_text("running\n")
    for file in (run / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    group = tiny(run, ask, processes=1, devices=8)
    assert group.end() == [5], group.text
    assert "checkpoint of step 12 cannot be restored" in group.text
    assert "checkpoints/12 of the run" in group.text
    assert "Traceback" not in group.text
    assert checkpoints(run) == [8, 12]
    shutil.rmtree(run / "checkpoints" / "12")
    leftover = run / "checkpoints" / "12.orbax-checkpoint-tmp"
    leftover.mkdir()
    (run / "config.tmp").write_text("{")
    assert "resumed at step 8" in complete(run, ask, processes=1, devices=8).text
    assert not leftover.exists()
    assert not (run / "config.tmp").exists()
    assert os.listdir(run / "checkpoints")
