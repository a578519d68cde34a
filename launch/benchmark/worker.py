"""One training step in a process of its own, done when asked for: the other end of `compare`.

    python -m launch.benchmark.worker {ours | torch | torch:channels_last} --config=...

Writes one line of JSON for each line it reads: facts about the step once it is compiled and warm,
then the seconds of a step for each `step`, then the memory for `end`.
"""

import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from ctssl_jax import flags
from ctssl_jax.config import PretrainConfig
from ctssl_jax.hosts import platform
from launch import measuring
from launch.benchmark.steps import compile_step, flops, prepare, without_augmentation

WARM_STEPS = 2


def serve(kind: str, config: PretrainConfig, requests: TextIO, answers: TextIO) -> None:
    """Prepares the step and answers until the requests end."""

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    began = time.perf_counter()
    run, facts = ours(config) if kind == "ours" else torch(config, kind)
    for _ in range(WARM_STEPS):
        run()
    answer({**facts, "start_seconds": time.perf_counter() - began})
    forget_peak()
    for request in requests:
        if request.strip() == "end":
            break
        run()  # not timed: after a pause it pays for memory that the system took back
        began = time.perf_counter()
        run()
        answer({"seconds": time.perf_counter() - began})
    answer({"peak_bytes": peak_bytes()})


def ours(config: PretrainConfig) -> tuple[Callable[[], None], dict[str, Any]]:
    """Our step, waited for, and what its compiler says of it."""
    import jax

    prepared = prepare(without_augmentation(config))
    parameters = sum(x.size for x in jax.tree.leaves(prepared.state.params))
    run, program = compile_step(prepared)
    memory = program.memory_analysis()
    return run, {
        "parameters": parameters,
        "flops": flops(program),
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }


def torch(config: PretrainConfig, kind: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """PyTorch's step."""
    from launch.benchmark.torch.steps import make_step

    made = make_step(config, channels_last=kind.endswith(":channels_last"))

    def run() -> None:
        made.run()

    return run, {"parameters": made.parameters}


def forget_peak() -> None:
    """Lets the peak be that of what follows: compiling takes memory that training does not."""
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed, unless told
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:  # not Linux, or not allowed: then it is that of the whole process
        pass


def peak_bytes() -> int | None:
    """The largest resident memory of the process since `forget_peak`."""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    platform.set_cpu_flags()
    platform.quiet_libraries()
    platform.enable_compilation_cache()
    config = measuring.step_of(flags.parse([sys.argv[0], *arguments]).config)
    serve(kind, config, sys.stdin, answers)
