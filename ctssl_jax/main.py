"""The command: a config file, changes to it, and a run folder.

    python -m ctssl_jax.main --config=configs/spark.py:demo [--config.FIELD=VALUE] [--workdir=RUN]

Loads and validates the config and dispatches on its type. Repeating a command resumes its run.

Exit codes: 0 done; 2 usage or configuration, nothing written; 3 data; 4 diverged; 5 storage;
130 interrupted by Ctrl-C (repeat the command to go on from the last checkpoint).
"""

import dataclasses
import itertools
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from ctssl_jax import platform
from ctssl_jax.errors import ConfigError, UserError

INTERRUPTED = 130
PHANTOM = "data/phantom"  # as configs/phantom.py names it


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags; the overrides of the config are found in `argv`."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A file of configs/, with :PRESET if wanted.",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "The run folder; default: runs/CONFIG-PRESET.",
        flag_values=values,
    )


def parse(argv: list[str]) -> tuple[object, Path]:
    """The config and the run folder.

    Raises:
      ConfigError: an unknown flag or key, a value of the wrong type, no such file or preset.
    """
    file, _, preset = config_argument(argv).partition(":")
    if file and not Path(file).is_file():
        raise ConfigError(f"no config file {file}: run from the project's folder, or give its path")
    values = flags.FlagValues()
    define_flags(values, argv)
    try:
        rest = values(argv)
        config = values.config
        if config is not None:
            dataclasses.fields(config)  # where loading failed, this raises what went wrong
    except ConfigError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(_one_line(error)) from None
    if len(rest) > 1:
        raise ConfigError(f"unknown argument {rest[1]}: settings are given as --config.FIELD=VALUE")
    if config is None:
        raise ConfigError("no --config: give a file, for example --config=configs/spark.py:demo")
    stem = Path(file).stem + (f"-{preset}" if preset else "")
    return config, Path(values.workdir or Path("runs") / stem)


def config_argument(argv: list[str]) -> str:
    """What `--config` was given, or nothing."""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else following
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())


def dispatch(config: object, workdir: Path) -> None:
    """Runs what the config's type stands for."""
    # Imported late: a mistyped flag is answered at once, and JAX starts with its flags set.
    from ctssl_jax import evaluate, finetune, train
    from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig

    if not isinstance(config, PretrainConfig | FinetuneConfig | EvaluateConfig):
        raise ConfigError(f"config is a {type(config).__name__}: run it with launch.sweep")
    config.validate()
    provide_phantom(config.data.path)
    platform.enable_compilation_cache()
    if isinstance(config, PretrainConfig):
        train.run(config, workdir)
    elif isinstance(config, FinetuneConfig):
        finetune.run(config, workdir)
    else:
        evaluate.run(config, workdir)


def provide_phantom(path: str) -> None:
    """Makes the embedded phantom where the presets `:demo` and `:smoke` expect it."""
    if path == PHANTOM and not Path(path).exists():
        from data_prep import phantom

        print(f"preparing the embedded CT phantom in {path}", flush=True)
        phantom.prepare(Path(path))


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    platform.set_cpu_flags()
    platform.quiet_libraries()
    workdir = None
    try:
        config, workdir = parse(argv)
        dispatch(config, workdir)
    except UserError as error:
        print(f"ctssl_jax: {error}", file=sys.stderr)
        _mark_failed(workdir, error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print("ctssl_jax: interrupted; repeat the command to go on", file=sys.stderr)
        _mark_failed(workdir, INTERRUPTED)
        return INTERRUPTED
    return 0


def _mark_failed(workdir: Path | None, code: int) -> None:
    """Notes the failure in a run that had begun; a refused folder keeps its status."""
    status = workdir / "STATUS" if workdir else None
    if status and code not in (2, 3) and status.exists():
        status.write_text(f"failed:{code}\n")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv))
