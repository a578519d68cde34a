"""Four fake CPU devices and one compilation cache for the whole suite, before JAX starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

from ctssl_jax import platform

platform.set_cpu_flags()

import jax

platform.enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
