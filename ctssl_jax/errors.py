"""What can go wrong for a user, each kind with its exit code.

The message of every `UserError` is one line: what is wrong, where, and what to do about it. `main`
and the commands of `data_prep` print it to stderr without a traceback and exit with `exit_code`.
This module imports nothing, so that data preparation can use it without JAX.
"""


class UserError(Exception):
    """A problem that the user can mend; `str(error)` is the line to show."""

    exit_code = 1


class ConfigError(UserError):
    """Usage or configuration is wrong; nothing was written."""

    exit_code = 2


class DataError(UserError):
    """A dataset is missing, empty, unreadable or does not fit the configuration."""

    exit_code = 3


class DivergedError(UserError):
    """Training met a non-finite loss; the last good checkpoint is kept."""

    exit_code = 4


class StorageError(UserError):
    """A checkpoint or folder cannot be read or written."""

    exit_code = 5


class DeviceError(UserError):
    """No device, a process that is missing or gone, or a run that hangs; trying again may help."""

    exit_code = 6


class Preempted(UserError):
    """The scheduler wants the machine back; what was done is saved. EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


class Interrupted(Preempted):
    """The same, by Ctrl-C."""

    exit_code = 130


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error.args[0] if error.args else error).split())


def printable(message: object) -> str:
    """A message in which what would act on a terminal, or break its line, is written out.

    >>> printable("no file \\x1b[31mred")
    'no file \\\\x1b[31mred'
    """
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
        for c in str(message)
    )
