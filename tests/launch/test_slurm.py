"""The sbatch scripts, with srun, scontrol and squeue that write down what they are asked."""

import signal
import subprocess
import time

import pytest
from recipes import AGAIN, LAUNCH, NEVER, ROOT, Fakes, parse

from launch.sweep.__main__ import Flags

PRETRAIN, SWEEP = LAUNCH / "slurm_pretrain.sbatch", LAUNCH / "slurm_sweep.sbatch"
FLAGS = {
    PRETRAIN: ["--config=configs/spark.py", "--config.data.path=a b", "--workdir=RUN"],
    SWEEP: [
        "--config=configs/ablation.py:covid_ct",
        "--config.base.data.path=a b",
        "--config.seeds=(0,1,2)",
        "--workdir=OUT",
    ],
}
ARRAY = {"SLURM_ARRAY_JOB_ID": 70, "SLURM_ARRAY_TASK_ID": 3}
ENVIRONMENT = {
    PRETRAIN: {"SLURM_JOB_ID": 70, "SLURM_CPUS_PER_TASK": 32},
    # An array's last task has the array's own number: requeueing that would requeue all.
    SWEEP: {"SLURM_JOB_ID": 70, "SLURM_CPUS_PER_TASK": 8, **ARRAY},
}
JOB = {PRETRAIN: "70", SWEEP: "70_3"}
scripts = pytest.mark.parametrize("script", [PRETRAIN, SWEEP], ids=["pretrain", "sweep"])


@pytest.fixture
def fakes(tmp_path):
    fakes = Fakes(tmp_path)
    fakes.add("srun", 'exit "$(next code 0)"')
    fakes.add("squeue", "next state RUNNING")
    fakes.add("scontrol")
    return fakes


def run(fakes, script, **environment):
    return fakes.run("bash", script, *FLAGS[script], **ENVIRONMENT[script], **environment)


def headers(script) -> dict[str, str]:
    """The #SBATCH lines, of which Slurm reads those before the first command."""
    found = {}
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH ").partition("=")
            assert name not in found
            found[name] = value
        elif line and not line.startswith("#"):
            break
    assert script.read_text().count("#SBATCH ") == len(found)
    return found


@scripts
def test_headers(script):
    found = headers(script)
    assert set(found) <= {
        *("--job-name", "--array", "--nodes", "--ntasks-per-node", "--gpus-per-node"),
        *("--cpus-per-task", "--time", "--signal", "--requeue", "--open-mode", "--output"),
    }
    assert found["--ntasks-per-node"] == "1"  # one process drives all GPUs of a node
    name, _, seconds = found["--signal"].partition("@")
    assert name in ("TERM", "USR1")  # B:… would reach the shell only
    assert 120 <= int(seconds) <= 65535
    assert "--requeue" in found
    assert found["--open-mode"] == "append"
    assert int(found["--time"].split(":")[0]) * 3600 > 2 * int(seconds)
    assert ("%a" in found["--output"]) == ("--array" in found)


@scripts
def test_step_is_the_command_with_flags_that_exist(fakes, script):
    assert run(fakes, script).returncode == 0
    (call,) = fakes.calls("srun")
    at = call.index("-m")
    assert "--kill-on-bad-exit=0" in call[:at]  # the others are saving
    assert f"--cpus-per-task={ENVIRONMENT[script]['SLURM_CPUS_PER_TASK']}" in call[:at]
    assert call[at - 2 : at] == [".venv/bin/python", "-u"]
    module, *flags = call[at + 1 :]
    assert flags[: len(FLAGS[script])] == FLAGS[script]
    if script == SWEEP:
        own, (_, *flags) = Flags().parse([module, *flags])
        assert own.cell == 3
    values = parse(module, *flags)
    if script == SWEEP:
        assert values.config.base.data.path == "a b"
        assert list(values.config.cells())[own.cell].name.endswith("-seed0")


@scripts
@pytest.mark.parametrize("code", [0, *AGAIN, *NEVER])
def test_job_is_requeued_where_that_may_help(fakes, script, code):
    fakes.answers("code", code)
    assert run(fakes, script, SLURM_RESTART_COUNT=2).returncode == code
    requeued = [["scontrol", "requeue", JOB[script]]] if code in AGAIN else []
    assert fakes.calls("scontrol") == requeued
    assert len(fakes.calls("srun")) == 1


@pytest.mark.parametrize(("restarts", "requeued"), [(1, 1), (2, 0), (3, 0)])
def test_restarts_are_limited(fakes, restarts, requeued):
    fakes.answers("code", 75)
    found = run(fakes, PRETRAIN, SLURM_RESTART_COUNT=restarts, MAX_RESTARTS=2)
    assert found.returncode == 75
    assert len(fakes.calls("scontrol")) == requeued
    assert ("not requeued" in found.stderr) == (not requeued)


def test_job_that_slurm_takes_down_is_left_to_it(fakes):
    fakes.answers("code", 75)
    fakes.answers("state", "COMPLETING")
    assert run(fakes, PRETRAIN).returncode == 75
    assert fakes.calls("squeue")[0][-2:] == ["--jobs=70", "--format=%T"]
    assert not fakes.calls("scontrol")


def test_cancelled_job_stays_cancelled(fakes):
    """Scancel's SIGTERM reaches the shell too, which must not go on to requeue."""
    fakes.add("srun", "exec sleep 2")
    environment = {**fakes.environment, "SLURM_JOB_ID": "70"}
    with subprocess.Popen(["bash", PRETRAIN, *FLAGS[PRETRAIN]], cwd=ROOT, env=environment) as shell:
        while not fakes.calls("srun"):
            time.sleep(0.02)
        shell.terminate()
        assert shell.wait(timeout=5) == -signal.SIGTERM
    assert not fakes.calls("scontrol")
