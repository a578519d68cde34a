"""Options of XLA under which the tests compile: most of their time is compilation.

Without LLVM's optimisations and fused emitters it takes a third, and small programs run hardly
slower. Float32 is rounded otherwise than in a user's program; `make smoke`, the demo and float32 of
the golden test compile as users do.
"""

import importlib.metadata

OPTIONS: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
# Other versions do not know it, and a process that is given an unknown flag aborts.
if importlib.metadata.version("jaxlib") == "0.10.2":
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())


def flags(devices: int = 1) -> str:
    """`XLA_FLAGS` of a process with so many fake devices."""
    return f"{FLAGS} --xla_force_host_platform_device_count={devices}"
