"""Settings of JAX's platforms that must be made before, or once, JAX starts."""

import importlib.metadata
import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

# XLA's CPU backend hands single convolutions to a library path that was measured three times slower
# here (whole SparK step, ResNet-50 at 224 px). An unknown flag aborts the process, hence the list.
CPU_CONVOLUTION_FLAG = (
    "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
)
JAXLIBS_WITH_FLAG = ("0.10.2", "0.11.2")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
DEVICE_FILES = Path("/dev")
MALLOC_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def gpus_of_nvidia() -> list[str]:
    """The GPUs whose driver runs here, as device files, whatever JAX knows of them."""
    return sorted(path.name for path in DEVICE_FILES.glob("nvidia[0-9]*"))


def gpu_plugins() -> list[str]:
    """What JAX has been given for GPUs, such as xla_cuda12."""
    found = importlib.metadata.entry_points(group="jax_plugins")
    return sorted(one.name for one in found if one.name.startswith(("xla_cuda", "xla_rocm")))


def use_huge_pages() -> None:
    """Starts the program anew with huge pages for malloc, where Linux gives them to who asks.

    XLA takes a step's temporaries from malloc and gives them back, every step: in pages of 4 KiB a
    quarter of a million faults a gigabyte, up to a fifth of a step on CPU. glibc reads the setting
    when a process begins, so this comes first in a program,
    before imports that would be made twice. `GLIBC_TUNABLES=glibc.malloc.hugetlb=0`
    in the environment prevents it.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or not sys.executable or "glibc.malloc.hugetlb" in tunables:
        return
    try:
        asked_for = "[madvise]" in HUGE_PAGES.read_text()
    except OSError:
        return
    if asked_for:
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{MALLOC_HUGE_PAGES}".strip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def set_cpu_flags() -> None:
    """Adds the CPU convolution flag to `XLA_FLAGS`; call before JAX makes its first array."""
    flags = os.environ.get("XLA_FLAGS", "")
    known = importlib.metadata.version("jaxlib") in JAXLIBS_WITH_FLAG
    if known and "xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_CONVOLUTION_FLAG}".strip()


def quiet_libraries() -> None:
    """Leaves of the libraries' output what is wrong and is not said otherwise.

    Orbax narrates each restore as a warning. What fails in its threads it logs and raises again
    where one waits for them (`checkpoint` does): the tracebacks would say it over and over.
    """
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("orbax."):
            shown(args)

    threading.excepthook = show
    unraisable = sys.unraisablehook

    def show_ours(args: Any) -> None:
        # Tensorstore, which has no other frame, says so that Orbax has given up a save.
        trace = args.exc_traceback
        if trace is None or trace.tb_frame.f_code.co_name != "call_soon_threadsafe":
            unraisable(args)

    sys.unraisablehook = show_ours


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk between processes, unless the environment says where."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            given = os.environ.get("XDG_CACHE_HOME")
            cache = Path(given or Path.home() / ".cache") / "ctssl_jax" / "xla"
            cache.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # no home, or none to write in: it goes without
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
