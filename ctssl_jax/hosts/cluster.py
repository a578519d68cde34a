"""Who takes part in a run of several processes: as flags say, or Slurm, or GKE."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping

from ctssl_jax.errors import ConfigError

TOKEN = "CTSSL_JAX_RUN_TOKEN"
PORT = 8476  # of JAX's coordination service where nothing else is said; the roll call's is the next


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process's place among all.

    Attributes:
      coordinator: host:port of process 0; the next port is used too.
      processes: how many there are.
      process: the number of this one, from 0.
      token: which all processes of the run show each other; see `run_token`.
    """

    coordinator: str
    processes: int
    process: int
    token: str = dataclasses.field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65535):
            raise ConfigError(f"--coordinator={self.coordinator}: give HOST:PORT of process 0")
        if not 0 <= self.process < self.processes:
            raise ConfigError(
                f"--process={self.process} of --processes={self.processes}: they count from 0"
            )

    @property
    def host(self) -> str:
        """Of the coordinator."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """JAX's."""
        return int(self.coordinator.rpartition(":")[2])

    @property
    def local(self) -> bool:
        """Whether all of it is on this machine's loopback interface."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def find_cluster(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str],
) -> Cluster | None:
    """The cluster of the flags, else of Slurm, else of a TPU slice on GKE; None for one process.

    Raises:
      ConfigError: some of the three flags without the others, or values that make no sense.
    """
    found = _find(coordinator, processes, process, environment)
    return found and dataclasses.replace(found, token=run_token(found, environment))


def run_token(cluster: Cluster, environment: Mapping[str, str]) -> str:
    """What tells the processes of a run from others that come to its port.

    A secret where `CTSSL_JAX_RUN_TOKEN` gives one to all of them, as `launch.local` does; else what
    they all know of the run, which keeps away other runs and strangers, not who knows it too.
    """
    known = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    parts = [environment.get(TOKEN, ""), cluster.coordinator, *known]
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _find(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str],
) -> Cluster | None:
    if coordinator is not None and processes is not None and process is not None:
        return Cluster(coordinator, processes, process)
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    absent = [name for name, value in flags.items() if value is None]
    if len(absent) < len(flags):
        raise ConfigError(
            f"--{absent[0]} is missing: several processes need --coordinator, --processes and "
            "--process"
        )
    return _slurm(environment) or _tpu_slice(environment)


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A step of several tasks, as `srun` starts it. (sbatch's own shell is no step.)"""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(name in environment for name in names):
        return None
    job, nodes, tasks, task = (environment[name] for name in names)
    if int(tasks) < 2:
        return None
    # node[003-007,9],other -> node003
    first = re.match(r"([^,\[]+)(?:\[([^,\]-]+))?", nodes)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes}: no node in it; give --coordinator")
    host = first[1] + (first[2] or "")
    # Jobs that share a node must not meet at one port: an even one for each of 4,096 jobs.
    return Cluster(f"{host}:{49152 + 2 * (int(job) % 4096)}", int(tasks), int(task))


def _tpu_slice(environment: Mapping[str, str]) -> Cluster | None:
    """A slice, or several of them (MEGASCALE), as GKE describes it to its pods."""
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * slices < 2 or "TPU_WORKER_ID" not in environment:
        return None
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    worker = int(environment["TPU_WORKER_ID"])
    worker += len(hosts) * int(environment.get("MEGASCALE_SLICE_ID") or 0)
    return Cluster(f"{first.partition(':')[0]}:{PORT}", len(hosts) * slices, worker)
