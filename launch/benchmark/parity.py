"""Whether a device computes the training step of a config as the CPU does, which tests hold.

The golden numbers of tests/ hold the CPU's steps to the reference implementations. Here one step of
the same state, batch and key is made on the CPU in float32 and on the device in each precision, and
losses and gradient norms are set beside each other.
"""

import dataclasses
from typing import Any

import jax

from ctssl_jax.config import Precision, PretrainConfig
from ctssl_jax.errors import DeviceError
from ctssl_jax.hosts import sharding
from launch.benchmark.steps import KIND, SLICES, random_batch

COMPARED = ("loss", "grad_norm")


def measure(config: PretrainConfig) -> dict[str, dict[str, float]]:
    """By precision: relative differences of `COMPARED` to the CPU's step in float32.

    Raises:
      DeviceError: JAX was told to leave the CPU out.
    """
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        raise DeviceError(
            "parity wants the CPU, too: add it to JAX_PLATFORMS, as in cuda,cpu"
        ) from None
    expected = one_step(config, Precision.FLOAT32, cpu)
    device, rows = jax.devices()[0], {}
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        found = one_step(config, precision, device)
        rows[precision.value] = {
            name: abs(found[name] / expected[name] - 1) for name in COMPARED
        } | {"loss_there": found["loss"], "loss_cpu": expected["loss"]}
    return rows


def one_step(config: PretrainConfig, precision: Precision, device: jax.Device) -> dict[str, float]:
    """The metrics of the first step on one device."""
    from ctssl_jax.pretrain import make_program

    config = dataclasses.replace(config, precision=precision)
    with jax.default_device(device):
        program, mesh = make_program(config, SLICES, KIND), sharding.make_mesh([device])
        key = jax.random.key(config.seed)
        state = jax.jit(program.init, out_shardings=sharding.replicated(mesh))(key)
        batch = sharding.put_batch(random_batch(config), mesh)
        step: Any = sharding.jit_step(program.step, mesh)
        _, metrics = step(state, batch, sharding.replicate(key, mesh))
    return {name: float(metrics[name]) for name in COMPARED}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The differences as Markdown."""
    lines = [
        "| precision | loss | of the CPU's, apart | gradient norm, apart |",
        "|---|---|---|---|",
    ]
    for precision, row in rows.items():
        apart = " | ".join(f"{row[name]:.1e}" for name in COMPARED)
        lines.append(f"| {precision} | {row['loss_there']:.5f} | {apart} |")
    return "\n".join(lines)
