"""What the device does at best: matrix products a second, and bytes that it moves."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SIDES = {"cpu": 1024}  # of the matrices; of other devices `SIDE`
SIDE = 8192
REPEATS = 10


def measure() -> dict[str, float]:
    """TFLOP/s of matrix products in bfloat16 and float32, GB/s read and written by a copy."""
    side = SIDES.get(jax.default_backend(), SIDE)
    found = {}
    for precision in ("bfloat16", "float32"):
        x = jnp.full((side, side), 0.5, precision)
        seconds = timed(jax.jit(jnp.matmul), x, x)
        found[f"tflops_{precision}"] = 2 * side**3 / seconds / 1e12
    x = jnp.zeros((side, side, 4), jnp.float32)
    seconds = timed(jax.jit(lambda x: x + 1), x)
    return {**found, "copied_gb_per_second": 2 * x.nbytes / seconds / 1e9}


def timed(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Median seconds of a call, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def table(found: dict[str, float]) -> str:
    """As Markdown."""
    lines = ["| at best | |", "|---|---|"]
    lines += [f"| {name} | {value:,.2f} |" for name, value in found.items()]
    return "\n".join(lines)
