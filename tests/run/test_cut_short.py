"""A start that is cut short is repeatable: every file operation of one is a point to end at.

A child process does what a run does before its first step, and ends at its n-th file operation, as
by SIGKILL, or finds the disk full from there on. The same start must then complete the folder.
"""

import contextlib
import errno
import os
import signal
import sys
import warnings

import pytest

from ctssl_jax import command
from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import leakage
from ctssl_jax.run import lock as run_lock
from ctssl_jax.run.checkpoint import BestWeights, Checkpoints
from ctssl_jax.run.opening import open_labelled, open_pretraining

pytestmark = pytest.mark.usefixtures("tiny_on_one_device")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link")
LIMIT = 80  # more file operations than a start has
KILLED, OTHER = 9, 1


@pytest.fixture
def starts(configs, monkeypatch):
    """What each kind of run does before its first step, as a function of the run folder."""
    monkeypatch.setattr(run_folder, "code_commit", lambda: None)
    pretraining = open_pretraining(configs["pretraining"])
    labelled = open_labelled(configs["finetuning"])

    def pretrain(workdir):
        run_folder.open_run(
            workdir, pretraining.config, pretraining.dataset, audit=pretraining.audit
        )
        leakage.write_seen(workdir, pretraining.dataset, "train", None)
        Checkpoints(workdir).close()
        run_folder.writer(workdir, 0).close()

    def finetune(workdir):
        run_folder.open_run(workdir, labelled.config, labelled.dataset, audit=labelled.audit)
        run_folder.write_subset(workdir, labelled.drawn.train.record(labelled.config))
        BestWeights(workdir).close()
        run_folder.writer(workdir, 0).close()

    return {"pretraining": pretrain, "finetuning": finetune}


def is_change(event, arguments):
    """Whether an audit event is an operation that changes a file system."""
    if event != "open":
        return event in CHANGES
    _, mode, flags = arguments
    writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(writing) if isinstance(flags, int) else any(c in str(mode) for c in "wax+")


def end_at(number, workdir, kind):
    """Ends this process, or fills its disk, at the n-th change below a folder."""
    state = {"left": number, "busy": False}

    def hook(event, arguments):
        if state["busy"] or not is_change(event, arguments):
            return
        if not str(arguments[0]).startswith(str(workdir)):
            return
        state["left"] -= 1
        if state["left"] >= 0:
            return
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        if kind == "torn" and event == "open":
            state["busy"] = True
            with contextlib.suppress(OSError), open(arguments[0], "ab") as file:
                file.write(b'{"ha')
        os._exit(KILLED)

    sys.addaudithook(hook)


def start_in_a_child(start, workdir, number, kind):
    """Its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks: the child computes nothing
        child = os.fork()
    if child:
        signal.alarm(60)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        signal.alarm(0)
        return code
    try:
        end_at(number, workdir, kind)
        start(workdir)
        os._exit(0)
    except Exception as error:
        told = command.for_user(error, several=False)  # as the command does
        os._exit(OTHER if told is None or "\n" in str(told) else told.exit_code)
    finally:
        os._exit(OTHER)


CASES = {
    ("killed", "pretraining"): (),
    ("torn", "finetuning"): (),
    ("full", "pretraining"): (),
    ("killed", "finetuning"): pytest.mark.slow,
    ("torn", "pretraining"): pytest.mark.slow,
    ("full", "finetuning"): pytest.mark.slow,
}


@pytest.mark.parametrize(
    ("kind", "name"), [pytest.param(*case, marks=marks) for case, marks in CASES.items()]
)
def test_a_start_that_is_cut_short_is_completed_by_the_same_command(starts, tmp_path, kind, name):
    start, wanted = starts[name], tmp_path / "whole"
    start(wanted)
    run_lock.release(wanted)
    expected = StorageError.exit_code if kind == "full" else KILLED
    for number in range(LIMIT):
        workdir = tmp_path / f"run{number}"
        code = start_in_a_child(start, workdir, number, kind)
        if code == 0:
            break
        assert code == expected, f"operation {number}"
        assert run_folder.read_status(workdir) in ("running", "unknown")
        start(workdir)  # the same command
        run_lock.release(workdir)
        assert names(workdir) == names(wanted)
        for file in ("config.json", "data.json", "STATUS", "seen.npy", "subset.json"):
            if (wanted / file).exists():
                assert (workdir / file).read_bytes() == (wanted / file).read_bytes()
    assert 10 < number < LIMIT - 1


def names(run):
    """Of the files, without what a time is in."""
    found = (path for path in run.rglob("*") if "tfevents" not in path.name)
    return sorted(str(path.relative_to(run)) for path in found)


def test_a_folder_of_other_things_is_refused(starts, tmp_path):
    (tmp_path / "thesis.docx").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and no run folder"):
        starts["pretraining"](tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]
