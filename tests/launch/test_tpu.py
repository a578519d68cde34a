"""The TPU VM scripts, with a gcloud that writes down what it is asked, and a worker's metadata."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from recipes import AGAIN, LAUNCH, NEVER, ROOT, Fakes, parse

SCRIPT, WORKER = LAUNCH / "tpu_vm.sh", LAUNCH / "tpu_worker.sh"
NAMED = {"TPU_NAME": "slice", "ZONE": "zone", "POLL_S": 0}
# As `gcloud compute tpus … --help` of version 528 lists them; --project and --quiet go everywhere.
GCLOUD_FLAGS = {
    "queued-resources create": {"node-id", "accelerator-type", "runtime-version", "spot", "zone"},
    "queued-resources describe": {"zone", "format"},
    "queued-resources delete": {"zone", "force"},
    "tpu-vm describe": {"zone", "format"},
    "tpu-vm scp": {"zone", "worker"},
    "tpu-vm ssh": {"zone", "worker", "command"},
}
TRAIN = ["ctssl_jax.main", "--config=configs/spark.py", "--config.data.path=a b", "--workdir=W"]


@pytest.fixture
def fakes(tmp_path):
    fakes = Fakes(tmp_path)
    fakes.add(
        "gcloud",
        """case "$*" in
          *"queued-resources describe"*) next queue ACTIVE ;;
          *"tpu-vm describe"*) next node READY ;;
          *"tpu_worker.sh run"*) exit "$(next codes 0)" ;;
        esac""",
    )
    return fakes


def tpu(fakes, *arguments, **environment):
    return fakes.run(SCRIPT, *arguments, **{**NAMED, **environment})


def steps(fakes) -> list[str]:
    """What gcloud was asked, in short."""
    found = []
    for call in fakes.calls("gcloud"):
        command = next((word for word in call if word.startswith("--command=")), "")
        found.append(" ".join(call[3:5]) + (" run" if "tpu_worker.sh run" in command else ""))
    return found


def check_flags(call: list[str]) -> None:
    """Fails where gcloud does not know the sub-command or a flag."""
    assert call[:3] == ["gcloud", "compute", "tpus"]
    known = GCLOUD_FLAGS[" ".join(call[3:5])] | {"project", "quiet"}
    flags = {word[2:].partition("=")[0] for word in call if word.startswith("--")}
    assert flags <= known
    assert "zone" in flags
    assert call[5].partition(":")[0] == "slice" or call[6].startswith("slice:")


@pytest.mark.parametrize("arguments", [["create"], ["stop"], ["delete"], ["run", *TRAIN]])
def test_dry_run_prints_what_would_be_done(fakes, arguments):
    dry = tpu(fakes, "--dry_run", *arguments)
    assert not fakes.calls()
    tpu(fakes, *arguments)
    # `create` then waits, with `describe`
    assert [shlex.split(line) for line in dry.stdout.splitlines()] == fakes.calls()[:1]


def test_dry_run_of_all_that_ask(fakes):
    for arguments in (["setup"], ["status"]):
        dry = tpu(fakes, "--dry_run", *arguments)
        assert dry.returncode == 0, dry.stderr
        for line in dry.stdout.splitlines():
            check_flags(shlex.split(line))
    assert not fakes.calls()


def test_create_asks_for_a_spot_slice_and_waits_for_it(fakes):
    fakes.answers("queue", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    assert tpu(fakes, "create", PROJECT="mine").returncode == 0
    create, *waits = fakes.calls()
    assert create[3:6] == ["queued-resources", "create", "slice"]
    wanted = {"--spot", "--node-id=slice", "--zone=zone", "--project=mine"}
    assert wanted < set(create)
    assert len(waits) == 3
    for call in fakes.calls():
        check_flags(call)


def test_create_on_demand(fakes):
    tpu(fakes, "create", SPOT=0, ACCELERATOR="v6e-16", RUNTIME="v2-alpha-tpuv6e")
    (create, *_) = fakes.calls()
    assert "--spot" not in create
    assert {"--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e"} < set(create)
    assert not any(word.startswith("--project") for word in create)


def test_request_that_fails_is_an_error_of_devices(fakes):
    fakes.answers("queue", "PROVISIONING", "FAILED")
    found = tpu(fakes, "create")
    assert found.returncode == 6
    assert "ended as FAILED" in found.stderr


def test_setup_carries_the_last_commit_to_all_workers(fakes):
    assert tpu(fakes, "setup", STORE="1.2.3.4:/export").returncode == 0
    copy, unpack, install = fakes.calls()
    for call in (copy, unpack, install):
        check_flags(call)
        assert "--worker=all" in call
    assert copy[6] == "slice:ctssl_jax.tar.gz"
    assert not Path(copy[5]).exists()  # nothing is left here
    assert "STORE=1.2.3.4:/export" in install[-2]
    assert "launch/tpu_worker.sh setup" in install[-2]


def test_arguments_reach_the_worker_as_they_are(fakes, tmp_path):
    nasty = ["a b", "'", '"', "$(touch hit)", "`id`", "*", "(3,)", "", "ü", "x;y", "a\\b"]
    tpu(fakes, "run", *TRAIN, *nasty)
    (call,) = [call for call in fakes.calls() if "ssh" in call]
    check_flags(call)
    command = next(word for word in call if word.startswith("--command=")).partition("=")[2]
    home = tmp_path / "home"
    (home / "ctssl_jax/launch").mkdir(parents=True)
    worker = home / "ctssl_jax/launch/tpu_worker.sh"
    worker.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    worker.chmod(0o755)
    said = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert said.stdout.splitlines() == ["run", *TRAIN, *nasty]
    assert not list(tmp_path.rglob("hit"))


@pytest.mark.parametrize(
    ("code", "node"),
    [*((code, "READY") for code in (0, *NEVER)), *((code, "PREEMPTED") for code in (2, 3, 4, 5))],
)
def test_run_ends_with_the_code_of_the_run(fakes, code, node):
    fakes.answers("codes", code, 0)
    fakes.answers("node", node)
    assert tpu(fakes, "run", *TRAIN).returncode == code
    assert steps(fakes).count("tpu-vm ssh run") == 1


@pytest.mark.parametrize("code", [*AGAIN, 255])
def test_run_goes_on_where_that_may_help(fakes, code):
    fakes.answers("codes", code, code, 0)
    assert tpu(fakes, "run", *TRAIN).returncode == 0
    assert steps(fakes) == [*2 * ["tpu-vm ssh run", "tpu-vm describe"], "tpu-vm ssh run"]


@pytest.mark.parametrize("code", [75, 255, 1])
def test_slice_that_was_taken_away_is_made_again(fakes, code):
    fakes.answers("codes", code, 0)
    fakes.answers("node", "PREEMPTED")
    assert tpu(fakes, "run", *TRAIN).returncode == 0
    assert steps(fakes) == [
        "tpu-vm ssh run",
        "tpu-vm describe",
        "queued-resources delete",
        "queued-resources create",
        "queued-resources describe",
        *("tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"),
        "tpu-vm ssh run",
    ]
    for call in fakes.calls():
        check_flags(call)


def test_restarts_are_limited(fakes):
    fakes.answers("codes", *10 * [75])
    assert tpu(fakes, "run", *TRAIN, MAX_RESTARTS=2).returncode == 75
    assert steps(fakes).count("tpu-vm ssh run") == 3


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {}, "give create, setup"),
        (["fly"], {}, "give create, setup"),
        (["on_workers", "reboot"], {}, "give create, setup"),  # its functions are not commands
        (["create"], {"ZONE": ""}, "set ZONE"),
        (["create"], {"TPU_NAME": ""}, "set TPU_NAME"),
        (["run"], {}, "give a module"),
    ],
)
def test_mistakes_are_one_line(fakes, arguments, environment, said):
    found = tpu(fakes, *arguments, **environment)
    assert found.returncode == 2
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    assert not fakes.calls()


@pytest.fixture
def worker(tmp_path):
    """Calls the worker's script; its Python writes down its arguments."""
    fakes = Fakes(tmp_path)
    fakes.add("curl", 'cat "$FAKES/${!###*/}"')
    fakes.add(
        "python",
        """echo "step 1"
        if [[ -e $FAKES/wait ]]; then exec -a "$0" sleep 20; fi
        exit "$(next codes 0)\"""",
    )
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "bin/python").rename(tmp_path / "venv/bin/python")
    fakes.environment |= {
        "VENV": str(tmp_path / "venv"),
        "PID_FILE": str(tmp_path / "pid"),
        "LOG": str(tmp_path / "log"),
        "POLL_S": "0.1",
        "STOP_S": "5",
    }
    fakes.answers("agent-worker-number", 1)
    return fakes


@pytest.mark.parametrize(
    "endpoints", ["10.0.0.2,10.0.0.3", "a:0:10.0.0.2,b:1:10.0.0.3"], ids=["new", "old"]
)
def test_worker_takes_its_place_from_the_metadata(worker, endpoints):
    worker.answers("worker-network-endpoints", endpoints)
    found = worker.run(WORKER, "run", *TRAIN)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "step 1\n"
    for call in worker.calls("curl"):
        assert "Metadata-Flavor: Google" in call
    (call,) = worker.calls("python")
    assert call[1:3] == ["-u", "-m"]
    assert call[3 : 3 + len(TRAIN)] == TRAIN
    values = parse(*call[3:])
    assert (values.coordinator, values.processes, values.process) == ("10.0.0.2:8476", 2, 1)


def test_only_worker_needs_no_flags(worker):
    worker.answers("worker-network-endpoints", "10.0.0.2")
    assert worker.run(WORKER, "run", *TRAIN).returncode == 0
    (call,) = worker.calls("python")
    assert call[3:] == TRAIN


@pytest.mark.parametrize("code", [3, 75, 134])
def test_exit_code_comes_through_and_the_log_is_kept(worker, code):
    worker.answers("worker-network-endpoints", "10.0.0.2")
    worker.answers("codes", 0, code)
    assert worker.run(WORKER, "run", *TRAIN).returncode == 0
    found = worker.run(WORKER, "run", *TRAIN)
    assert found.returncode == code
    assert found.stdout == "step 1\n"  # of this run alone
    assert (worker.folder / "log").read_text() == 2 * "step 1\n"


def test_worker_without_metadata_does_not_run(worker):
    found = worker.run(WORKER, "run", *TRAIN)
    assert found.returncode != 0
    assert not worker.calls("python")


def test_run_outlives_its_connection_and_the_next_one_ends_it(worker):
    worker.answers("worker-network-endpoints", "10.0.0.2")
    worker.answers("wait")
    first = subprocess.Popen(
        [WORKER, "run", *TRAIN], env=worker.environment, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "step 1\n"
    pid = int((worker.folder / "pid").read_text())
    first.stdout.close()
    assert worker.run(WORKER, "status").stdout == "running\n"
    (worker.folder / "wait").unlink()
    assert worker.run(WORKER, "run", *TRAIN).returncode == 0
    assert first.wait(timeout=5) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.run(WORKER, "status").stdout == "not running\n"
    assert worker.run(WORKER, "stop").returncode == 0


def test_stop_leaves_a_stranger_with_the_same_number_alone(worker):
    with subprocess.Popen(["sleep", "20"]) as stranger:
        (worker.folder / "pid").write_text(f"{stranger.pid}\n")
        assert worker.run(WORKER, "stop").returncode == 0
        time.sleep(0.1)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("store", ["", "1.2.3.4:/export"])
def test_setup_installs_the_pins_and_mounts_the_store(worker, store):
    bin = worker.folder / "venv/bin"
    worker.add("pip")
    (worker.folder / "bin/pip").rename(bin / "pip")
    for name in ("sudo", "python3.11"):
        worker.add(name)
    worker.add("mountpoint", "exit 1")
    assert worker.run(WORKER, "setup", STORE=store, MOUNT="/store").returncode == 0
    (pip,) = worker.calls("pip")
    assert pip[-4:] == ["-c", "requirements.txt", "-e", ".[report,tpu]"]
    mounts = [call[1:] for call in worker.calls("sudo") if call[1] == "mount"]
    assert mounts == ([["mount", "-t", "nfs", store, "/store"]] if store else [])


def test_worker_is_asked_for_something_it_knows(worker):
    found = worker.run(WORKER, "metadata", "x")
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert not worker.calls()


def test_archive_of_the_last_commit_holds_what_the_workers_need():
    files = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert {"launch/tpu_worker.sh", "requirements.txt", "pyproject.toml"} <= set(files)
