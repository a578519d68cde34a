"""Who takes part in a run of several processes."""

import pytest

from ctssl_jax import flags
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts.cluster import TOKEN, Cluster, find_cluster

SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "gpu[017-019,044]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
}
GKE = {"TPU_WORKER_HOSTNAMES": "job-0.pods,job-1.pods,job-2.pods", "TPU_WORKER_ID": "1"}


def test_one_process_is_no_cluster():
    assert find_cluster(None, None, None, {}) is None
    assert find_cluster(None, None, None, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert (
        find_cluster(None, None, None, {"TPU_WORKER_HOSTNAMES": "me", "TPU_WORKER_ID": "0"}) is None
    )
    batch_script = {key: value for key, value in SLURM.items() if "STEP" not in key}
    assert find_cluster(None, None, None, batch_script) is None


def test_flags_come_first():
    assert find_cluster("a:1000", 2, 1, SLURM) == Cluster("a:1000", 2, 1)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[017-019,044]", "gpu017"),
        ("gpu[3,7]", "gpu3"),
        ("node-a,node-b", "node-a"),
        ("n1", "n1"),
        ("rack2-n[08-09].site,other", "rack2-n08"),
    ],
)
def test_slurm_step(nodes, host):
    found = find_cluster(None, None, None, {**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert (found.host, found.processes, found.process) == (host, 4, 2)
    assert found.port == 49152 + 2 * (1234567 % 4096)
    assert found.port % 2 == 0  # the next is the roll call's, and no other job's
    assert found.port < 65535 - 1


def test_slice_and_slices_on_gke():
    assert find_cluster(None, None, None, GKE) == Cluster("job-0.pods:8476", 3, 1)
    several = {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "first.pods:8080",
    }
    assert find_cluster(None, None, None, {**GKE, **several}) == Cluster("first.pods:8476", 6, 4)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("a:1000", 2, None), "--process is missing"),
        ((None, 2, 0), "--coordinator is missing"),
        (("a:1000", 2, 2), "--process=2 of --processes=2"),
        (("a", 2, 0), "--coordinator=a: give HOST:PORT"),
        (("a:65535", 2, 0), "give HOST:PORT"),
    ],
)
def test_flags_that_make_no_sense(flags, named):
    with pytest.raises(ConfigError, match=named):
        find_cluster(*flags, {})


def test_the_command_takes_the_flags():
    argv = ["main", "--config=configs/spark.py:smoke", "--coordinator=h:7000", "--processes=3"]
    command = flags.parse([*argv, "--process=2", "--start_timeout=7"])
    assert (command.cluster, command.start_timeout) == (Cluster("h:7000", 3, 2), 7.0)
    with pytest.raises(ConfigError, match="processes"):
        flags.parse([*argv[:3], "--processes=0", "--process=0"])


def test_all_processes_of_a_run_have_one_token_and_others_another():
    flags = ("10.0.0.1:9000", 4)
    tokens = {find_cluster(*flags, process, {}).token for process in range(4)}
    assert len(tokens) == 1
    for other in ({TOKEN: "secret"}, {"SLURM_JOB_ID": "7"}):
        assert find_cluster(*flags, 0, other).token not in tokens
    assert find_cluster("10.0.0.1:9002", 4, 0, {}).token not in tokens
    assert find_cluster(*flags[:1], 5, 0, {}).token in tokens  # for who counts wrong to be told
