"""Memory that a compiled program takes on each device, and the memory that is there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

GIB = 2**30
# What the process takes beside the step on a CPU, where both share the memory: of `:laptop` SparK's
# took 1.9 GiB where the compiler told 0.7, MoCo's 1.7 where it told 0.6.
PROCESS = 1.2 * GIB
# Of a container: of cgroups, version 2 and 1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def needed(program: Any) -> int | None:
    """Bytes that a compiled program takes on each device, by its compiler; None where it is silent.

    Arguments, results and temporaries; what lies in the same memory counts once.
    """
    told = program.memory_analysis()
    if told is None:
        return None
    results = told.output_size_in_bytes - told.alias_size_in_bytes
    return int(told.argument_size_in_bytes + results + told.temp_size_in_bytes)


def there() -> int | None:
    """Bytes that this process may use on each of its devices; None where that is not known."""
    known = jax.local_devices()[0].memory_stats()
    if known and "bytes_limit" in known:
        return int(known["bytes_limit"])
    if jax.default_backend() != "cpu":
        return None
    return _of_host() // jax.local_device_count()


def what_helps() -> str:
    """Which settings make a step smaller on the devices at hand."""
    pretraining = "for a pre-training also accumulate"
    # The CPU's compiler computes the kernels' gradients last, so that recomputing saves 6 % there.
    if jax.default_backend() == "cpu":
        return f"set a smaller batch_size; {pretraining}"
    return f"set encoder.remat_stages or a smaller batch_size; {pretraining} and shard_state"


def in_words(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """What a function needs beside what there is, for people; a warning where it is too much.

    Args:
      function: that `jax.jit` gave, which is compiled here, once for all; of others nothing is
        known.
      arguments: as it will be called.
    """
    if not isinstance(function, jax.stages.Wrapped):
        return []
    need, have = needed(function.lower(*arguments).compile()), there()
    if need is None:
        return []
    if jax.default_backend() == "cpu":
        need += round(PROCESS / jax.local_device_count())
    of = "" if have is None else f" of {have / GIB:.1f} GiB there"
    lines = [f"memory needed, about: {need / GIB:.1f} GiB{of}, on each device"]
    if have is not None and need > have:
        lines.append(f"WARNING: that is more than there is: stop, and {what_helps()}")
    return lines


def _of_host() -> int:
    """Bytes of this machine, or of the container that the process is in."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in LIMITS:
        try:
            have = min(have, int(Path(path).read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return have
