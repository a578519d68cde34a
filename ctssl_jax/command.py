"""The frame of every command: signals, one line for what went wrong, the exit code.

`run` is for a command that is one process and computes little; `execute` for a run, which several
processes may share, which signals stop, and which a watchdog ends. Exit codes: `ctssl_jax.errors`.
"""

import argparse
import contextlib
import errno
import faulthandler
import io
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ctssl_jax import files
from ctssl_jax.errors import (
    ConfigError,
    DeviceError,
    Interrupted,
    Preempted,
    StorageError,
    UserError,
    one_line,
    printable,
)
from ctssl_jax.hosts import distributed, platform
from ctssl_jax.hosts.roll_call import Lifeline
from ctssl_jax.hosts.signals import Supervisor, dump_stacks
from ctssl_jax.run import lock as run_lock

UNREAD = 128 + signal.SIGPIPE  # as the shell has it of a program that a closed pipe ends
OF_OTHERS = (argparse.ZERO_OR_MORE, argparse.PARSER, argparse.REMAINDER)  # another command's words
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class _Once(argparse.Action):
    """A flag with one value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """As argparse calls it; refuses another value than was given before."""
        assert isinstance(parser, Parser)
        first = parser.given.setdefault(self.dest, values)
        if option_string and first != values:
            parser.error(f"{option_string} is given twice, {first} and {values}: keep one")
        setattr(namespace, self.dest, values)


class List(argparse.Action):
    """A flag with a list between commas, which may be given several times."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """As argparse calls it; adds to what was given before."""
        assert isinstance(parser, Parser)
        earlier = parser.given.get(self.dest)
        parser.given[self.dest] = values if earlier is None else f"{earlier},{values}"
        setattr(namespace, self.dest, parser.given[self.dest])


class Parser(argparse.ArgumentParser):
    """Of a command's flags: written out in full, the description shown as it is written.

    A mistake is a `ConfigError`, which `run` shows as the one line that every error is. So is a
    flag that is given twice, with two values: argparse would keep the last; one of a list (`List`)
    adds them up. So is an empty value, since it mostly is a variable of the shell that is not set,
    and a number that is none. Where nothing is wanted, the flag is left out.
    """

    def __init__(self, **settings: Any):
        usual: dict[str, Any] = {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
        }
        super().__init__(**usual | settings)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)
        self.given: dict[str, Any] = {}  # the values on the command line, by their names

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it."""
        self.given = {}
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """As argparse calls it; raises `ConfigError`."""
        raise ConfigError(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """The value of a flag as it was given: argparse has nothing public that sees it."""
        name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
        if action.nargs not in OF_OTHERS and not all(word.strip() for word in arg_strings):
            raise ConfigError(
                f"{name} is empty, as a variable of the shell that is not set: give a value, or "
                "leave the flag out"
            )
        values = super()._get_values(action, arg_strings)
        if isinstance(values, float) and not math.isfinite(values):
            raise ConfigError(f"{name}={arg_strings[0]}: must be a finite number")
        return values


def run(name: str, work: Callable[[], int | None]) -> int:
    """Does the work of the command `name`; returns the exit code.

    What a user can mend is one line on stderr, `NAME: what is wrong`, without a traceback.
    """
    open_streams()
    try:
        code = work() or 0
        sys.stdout.flush()  # what is still to be written fails here, not while Python ends
        return code
    except BrokenPipeError:
        end_output()
        return UNREAD
    except UserError as error:
        print(f"{name}: {printable(error)}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.errno is None:
            raise
        of = f" ({error.filename})" if error.filename else ""
        told = printable(f"{error.strerror}{of}: mend it and repeat the command")
        print(f"{name}: {told}", file=sys.stderr, flush=True)
        return StorageError.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted: repeat the command to go on", file=sys.stderr, flush=True)
        return Interrupted.exit_code


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
    from ctssl_jax.flags import parse  # late: commands of other flags do without it

    platform.set_cpu_flags()
    platform.quiet_libraries()
    open_streams()
    with contextlib.suppress(OSError, ValueError):  # a stderr without a file, as under pytest
        faulthandler.enable()  # JAX aborts when a machine is lost; the stacks say where
    workdir, cluster, lifeline = None, None, None

    def leave(code: int) -> NoReturn:  # at once, in any thread
        mark_ended(workdir, code)
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
    except BrokenPipeError:
        end_output()
        mark_ended(workdir, UNREAD)
        if lifeline is not None:
            leave(UNREAD)
        return UNREAD
    except Exception as error:
        found = for_user(error, several=lifeline is not None)
        if found is None and lifeline is None:
            raise
        if found is None:
            traceback.print_exc()
            leave(UserError.exit_code)
        failure = found
    one_of_many = f" [process {cluster.process}/{cluster.processes}]" if cluster else ""
    print(f"{name}{one_of_many}: {printable(failure)}", file=sys.stderr, flush=True)
    mark_ended(workdir, failure.exit_code)
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

    from ctssl_jax.hosts import memory

    if isinstance(error, OSError) and error.errno is not None:
        of = "" if error.errno in DISK_ERRORS or not error.filename else f" ({error.filename})"
        return StorageError(
            f"{error.strerror}{of}: mend it and repeat the command, which goes on from the last "
            "checkpoint"
        )
    if isinstance(error, MemoryError):
        return ConfigError("this machine's memory is too small for this config: make it smaller")
    if isinstance(error, jax.errors.JaxRuntimeError):
        text = one_line(error)[:200]
        if "RESOURCE_EXHAUSTED" in text:
            return ConfigError(
                f"the devices' memory is too small for this config: {memory.what_helps()} ({text})"
            )
        if several:
            return DeviceError(f"the processes lost touch ({text}): repeat the command")
    return None


def open_streams() -> None:
    """What is said can be said: any text, and nowhere where the command was started without.

    Names that are no UTF-8 are shown with escapes, where Python would refuse to print them.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # else the first file that is opened would be taken for it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end_output() -> None:
    """Whoever read the output has read enough, as `head` has: what is left goes nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a stdout without a file, as under pytest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _part(lifeline: Lifeline) -> None:
    """Ends together with the other processes, which are all about to."""
    import jax

    lifeline.leave()
    jax.distributed.shutdown()


def mark_ended(workdir: Path | None, code: int) -> None:
    """Notes how a run ended that this process had begun; any other folder keeps its status.

    Whoever writes a run has its lock, from before there is a status until it is `done`.
    """
    if workdir is None or not run_lock.is_held(workdir):
        return
    from ctssl_jax.run import folder as run_folder  # late, but here by now

    words = {Preempted.exit_code: "preempted", Interrupted.exit_code: "interrupted"}
    with contextlib.suppress(OSError):  # a full disk, on which this is the least
        if (workdir / run_folder.STATUS).exists():
            files.write_text(workdir / run_folder.STATUS, words.get(code, f"failed:{code}") + "\n")


def end(code: int) -> NoReturn:
    """Ends the program; after a failure at once, for libraries to add nothing to the last line."""
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(0)
