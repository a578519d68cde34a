"""Several processes as one run: their start, and what one of them does for all.

A machine that vanishes without closing its connections (see `roll_call`) is noticed by JAX, which
aborts (SIGABRT) after `HEARTBEAT_S`.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from ctssl_jax import errors
from ctssl_jax.errors import DeviceError, UserError
from ctssl_jax.hosts import platform
from ctssl_jax.hosts.cluster import Cluster
from ctssl_jax.hosts.roll_call import Lifeline, Relay

HEARTBEAT_S = 100


def join(cluster: Cluster, timeout: float, on_loss: Callable[[int], None]) -> Lifeline:
    """Meets the other processes, then starts JAX among them; call before JAX's first array.

    Args:
      cluster: all processes, and which is this.
      timeout: seconds to wait for the others.
      on_loss: called with an exit code, in a thread, when another process is gone.

    Raises:
      DeviceError: some did not come; the message says which.
      ConfigError: they disagree about how many they are.
    """
    import jax

    bind = cluster.coordinator if cluster.local else None
    if cluster.process == 0:
        try:
            relay = Relay(cluster, timeout)
            if relay.address and not cluster.local:
                bind = f"[{relay.address}]" if ":" in relay.address else relay.address
                bind = f"{bind}:{cluster.port}"
            relay.start()
        except OSError as error:
            raise DeviceError(
                f"port {cluster.port + 1} of {cluster.host} cannot be used ({error.strerror}): "
                "give another --coordinator"
            ) from None
    lifeline = Lifeline(cluster, timeout)
    lifeline.guard(on_loss)
    # Which step is saved before a pre-emption is agreed in `sharding.Votes`, for any signal; JAX's
    # own service would take SIGTERM over.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.processes,
        cluster.process,
        initialization_timeout=max(round(timeout), 10),
        heartbeat_timeout_seconds=HEARTBEAT_S,
        cluster_detection_method="deactivate",
        coordinator_bind_address=bind,
    )
    return lifeline


def require_devices() -> None:
    """Starts JAX's devices.

    Raises:
      DeviceError: there are none of the wanted kind, or nothing asks for the CPU and JAX uses no
        GPU, though one is there or JAX was installed for one.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where the plugin is not installed
        reason = " ".join(str(error).split())[:300] or "JAX finds none"
        raise DeviceError(
            f"no device ({reason}): see JAX_PLATFORMS, drivers and whether another process has them"
        ) from None
    asked = "cpu" in (getattr(jax.config, "jax_platforms", "") or "")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if jax.default_backend() != "cpu" or asked or hidden:
        return
    gpus, plugins = platform.gpus_of_nvidia(), platform.gpu_plugins()
    otherwise = "or set JAX_PLATFORMS=cpu in the environment to go without"
    if gpus and not plugins:
        raise DeviceError(
            f"{len(gpus)} NVIDIA GPUs are here and JAX uses none of them: pip install "
            f"'ctssl_jax[cuda]', {otherwise}"
        )
    if plugins:
        mend = (
            f"{len(gpus)} are here, whose driver may be too old (nvidia-smi says which it is)"
            if gpus
            else "hand one in (docker run --gpus=all, sbatch --gres=gpu:1)"
        )
        raise DeviceError(
            f"JAX for GPUs is installed ({', '.join(plugins)}) and reaches none: {mend}, "
            f"{otherwise}"
        )


def who() -> str:
    """This process among all, for its one line at the start."""
    import jax

    kind = jax.local_devices()[0].device_kind
    return (
        f"process {jax.process_index()}/{jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({kind})"
    )


def is_first() -> bool:
    """Whether this process writes the run folder and speaks for all."""
    import jax

    return jax.process_index() == 0


def say(line: str) -> None:
    """A line for people, once for all processes."""
    if is_first():
        print(line, flush=True)


def on_first(work: Callable[[], Any]) -> Any:
    """Does something on process 0 alone; every process gets its result, plain data, or its error.

    Raises:
      UserError: what `work` raised, on every process.
    """
    import jax
    import numpy as np

    from ctssl_jax.hosts import sharding

    if jax.process_count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": work()}
        except UserError as error:
            outcome = {"error": type(error).__name__, "message": str(error)}
    content = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    length = int(sharding.from_first(np.array([len(content)], np.int32))[0])
    content = sharding.from_first(content if is_first() else np.zeros(length, np.uint8))
    outcome = json.loads(content.tobytes())
    if "error" in outcome:
        raise getattr(errors, outcome["error"])(outcome["message"])
    return outcome["value"]
