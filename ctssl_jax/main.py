"""The command: a config file, changes to it, and a run folder.

    python -m ctssl_jax.main --config=configs/spark.py:demo [--config.FIELD=VALUE] [--workdir=RUN]

Loads and validates the config and dispatches on its type. Repeating a command resumes its run.

Several processes make one run with `--coordinator=HOST:PORT --processes=N --process=I`, or by
themselves in a Slurm step and on a TPU slice of GKE.

Exit codes: 0 done; 2 usage or configuration, nothing written; 3 data; 4 diverged; 5 storage;
6 devices: none, a process missing or gone, a run that hangs; 75 pre-empted and 130 interrupted by
Ctrl-C, what was done is saved (repeat the command to go on).
"""

import contextlib
import dataclasses
import errno
import faulthandler
import itertools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags
from ml_collections import config_flags

from ctssl_jax.errors import (
    ConfigError,
    DeviceError,
    Interrupted,
    Preempted,
    StorageError,
    UserError,
)
from ctssl_jax.hosts import distributed, platform
from ctssl_jax.hosts.cluster import Cluster, find_cluster
from ctssl_jax.hosts.roll_call import Lifeline
from ctssl_jax.hosts.signals import Supervisor, dump_stacks
from ctssl_jax.run import lock as run_lock

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
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
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, for a run of several processes; the next port is used too.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "processes", None, "How many processes there are.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "process", None, "The number of this one, from 0.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "start_timeout",
        300.0,
        "Seconds to wait until all processes have started.",
        lower_bound=0.0,
        flag_values=values,
    )


class Command(NamedTuple):
    """What the flags say.

    Attributes:
      config: of a file in `configs`, with its changes.
      workdir: the run folder.
      cluster: the processes of the run; None: this one alone.
      start_timeout: seconds in which they must have met.
    """

    config: object
    workdir: Path
    cluster: Cluster | None
    start_timeout: float


def parse(argv: list[str]) -> Command:
    """Reads the flags, and the environment for what launches several processes.

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
    workdir = Path(values.workdir or Path("runs") / stem)
    cluster = find_cluster(values.coordinator, values.processes, values.process, os.environ)
    return Command(config, workdir, cluster, values.start_timeout)


def config_argument(argv: list[str]) -> str:
    """What `--config` was given, or nothing."""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else following
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())


def dispatch(config: object, workdir: Path, supervisor: Supervisor) -> None:
    """Runs what the config's type stands for."""
    # Imported late: a mistyped flag is answered at once, and JAX starts with its flags set.
    from ctssl_jax import evaluate, finetune, pretrain
    from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig

    if not isinstance(config, PretrainConfig | FinetuneConfig | EvaluateConfig):
        raise ConfigError(f"config is a {type(config).__name__}: run it with launch.sweep")
    config.validate()
    provide_phantom(config.data.path)
    if isinstance(config, PretrainConfig):
        pretrain.run(config, workdir, supervisor)
    elif isinstance(config, FinetuneConfig):
        finetune.run(config, workdir, supervisor)
    else:
        evaluate.run(config, workdir)


def provide_phantom(path: str) -> None:
    """Makes the embedded phantom where the presets `:demo` and `:smoke` expect it."""
    if path == PHANTOM:
        distributed.on_first(prepare_phantom)


def prepare_phantom() -> None:
    """Makes the embedded phantom if it is not there; does not start JAX."""
    if not Path(PHANTOM).exists():
        from data_prep.phantom import source as phantom

        print(f"preparing the embedded CT phantom in {PHANTOM}", flush=True)
        phantom.prepare(Path(PHANTOM))


def execute(
    argv: list[str],
    work: Callable[[object, Path, Supervisor], None],
    name: str = "ctssl_jax",
    devices: bool = True,
) -> int:
    """Runs a command of one or several processes, to its end or to an exit code.

    Args:
      argv: the command line, as `sys.argv`.
      work: gets the config, the run folder and the supervisor.
      name: of the command, before its error messages.
      devices: whether `work` computes; else they are left to others.
    """
    platform.set_cpu_flags()
    platform.quiet_libraries()
    with contextlib.suppress(OSError, ValueError):  # a stderr without a file, as under pytest
        faulthandler.enable()  # JAX aborts when a machine is lost; the stacks say where
    workdir, cluster, lifeline = None, None, None

    def leave(code: int) -> NoReturn:  # at once, in any thread
        mark_ended(workdir, cluster, code)
        if lifeline is not None:
            lifeline.fail(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def lost(code: int) -> None:
        if code == DeviceError.exit_code:
            dump_stacks()
        leave(code)

    supervisor = Supervisor(leave)
    try:
        with supervisor.listen():
            config, workdir, cluster, timeout = parse(argv)
            if cluster is not None and not devices:
                raise ConfigError("this command is one process: start it without --processes")
            if cluster is not None:
                lifeline = distributed.join(cluster, timeout, lost)
            if devices:
                distributed.require_devices()
                platform.enable_compilation_cache()
            if cluster is not None:
                print(distributed.who(), flush=True)
            work(config, workdir, supervisor)
            if lifeline is not None:
                _part(lifeline)
        return 0
    except Exception as error:
        found = for_user(error, several=lifeline is not None)
        if found is None and lifeline is None:
            raise
        if found is None:
            traceback.print_exc()
            leave(UserError.exit_code)
        failure = found
    one_of_many = f" [process {cluster.process}/{cluster.processes}]" if cluster else ""
    print(f"{name}{one_of_many}: {failure}", file=sys.stderr, flush=True)
    mark_ended(workdir, cluster, failure.exit_code)
    if lifeline is not None:
        if not isinstance(failure, Preempted):
            leave(failure.exit_code)
        _part(lifeline)  # all have saved the same step and end so
    return failure.exit_code


def for_user(error: Exception, several: bool) -> UserError | None:
    """The line for an error that is the user's to mend; None for one that is ours."""
    if isinstance(error, UserError):
        return error
    import jax  # late: a mistyped flag is answered at once

    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return StorageError(
            f"{error.strerror}: mend it and repeat the command, which goes on from the last "
            "checkpoint"
        )
    if isinstance(error, jax.errors.JaxRuntimeError):
        text = _one_line(error)[:200]
        if "RESOURCE_EXHAUSTED" in text:
            return ConfigError(
                "the devices' memory is too small for this config: set encoder.remat_stages, "
                f"accumulate or shard_state, or a smaller batch_size ({text})"
            )
        if several:
            return DeviceError(f"the processes lost touch ({text}): repeat the command")
    return None


def _part(lifeline: Lifeline) -> None:
    """Ends together with the other processes, which are all about to."""
    import jax

    lifeline.leave()
    jax.distributed.shutdown()


def mark_ended(workdir: Path | None, cluster: Cluster | None, code: int) -> None:
    """Notes how a run ended that had begun; a refused folder, or another's, keeps its status."""
    if cluster is not None and cluster.process != 0:
        return
    if workdir is None:
        return
    status = workdir / "STATUS"
    words = {Preempted.exit_code: "preempted", Interrupted.exit_code: "interrupted"}
    with contextlib.suppress(OSError):  # a full disk, on which this is the least
        if code not in (2, 3) and status.exists() and run_lock.is_free(workdir):
            status.write_text(words.get(code, f"failed:{code}") + "\n")


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return execute(argv, dispatch)


def end(code: int) -> NoReturn:
    """Ends the program; after a failure at once, for libraries to add nothing to the last line."""
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(0)


if __name__ == "__main__":
    platform.use_huge_pages()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    end(main(sys.argv))
