"""The lock of a run folder: one writer, and nothing left of it when its process is gone."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctssl_jax import command
from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import lock as run_lock

HOLD = (
    "import sys; from pathlib import Path; from ctssl_jax.run import lock as run_lock; "
    "run_lock.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=Path(__file__).parents[2], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, holder):
    with pytest.raises(ConfigError, match="another run is writing this folder") as raised:
        run_lock.take(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert f"process {holder.pid}, since 20" in str(raised.value)
    assert "\n" not in str(raised.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run_lock.take(tmp_path)
    run_lock.release(tmp_path)


def test_a_run_is_refused_before_it_touches_anything(tmp_path, holder):
    (tmp_path / "env.json.1.tmp").write_text("the other's")
    with pytest.raises(ConfigError, match="another run is writing this folder"):
        run_folder._make_run(tmp_path, {}, {})
    assert {path.name for path in tmp_path.iterdir()} == {"env.json.1.tmp", run_lock.NAME}


def test_the_status_of_anothers_run_is_left_alone(tmp_path, holder):
    (tmp_path / "STATUS").write_text("running\n")
    command.mark_ended(tmp_path, StorageError.exit_code)
    assert (tmp_path / "STATUS").read_text() == "running\n"
    holder.kill()
    holder.wait()
    command.mark_ended(tmp_path, StorageError.exit_code)
    assert (tmp_path / "STATUS").read_text() == "running\n"  # nor is it ours now
    run_lock.take(tmp_path)
    command.mark_ended(tmp_path, StorageError.exit_code)
    assert (tmp_path / "STATUS").read_text() == "failed:5\n"
    run_folder.set_status(tmp_path, "done")
    command.mark_ended(tmp_path, StorageError.exit_code)  # as a signal after the end might
    assert (tmp_path / "STATUS").read_text() == "done\n"


def test_one_process_may_take_it_again_and_give_it_back(tmp_path):
    run_lock.take(tmp_path)
    run_lock.take(tmp_path / ".." / tmp_path.name)
    with open(tmp_path / run_lock.NAME) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run_lock.release(tmp_path)
    assert (tmp_path / run_lock.NAME).read_bytes() == b""  # nobody has it
    with open(tmp_path / run_lock.NAME) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_child_that_outlives_the_run_keeps_no_lock(tmp_path):
    ready, write = os.pipe()
    code = (
        "import os, sys, time; from pathlib import Path; "
        "from ctssl_jax.run import lock as run_lock; "
        "run_lock.take(Path(sys.argv[1])); pid = os.fork(); "
        "pid or (os.write(int(sys.argv[2]), b'x'), time.sleep(60)); "
        "os.write(int(sys.argv[2]), f'{pid}'.encode()) and time.sleep(1)"
    )
    words = [sys.executable, "-c", code, str(tmp_path), str(write)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(words, cwd=root, pass_fds=[write], start_new_session=True) as process:
        os.close(write)
        told = os.read(ready, 20)
        while b"x" not in told or len(told) < 2:  # the child's word, and the parent's
            told += os.read(ready, 20)
        child = int(told.replace(b"x", b""))
        process.kill()
    try:
        os.kill(child, 0)
        run_lock.take(tmp_path)
        run_lock.release(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(ready)


def test_storage_without_locks_is_told_and_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run_lock.take(tmp_path)
    assert "knows no locks" in capsys.readouterr().err
    run_lock.release(tmp_path)


def test_a_report_is_written_by_one_process_and_leaves_no_lock(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ctssl_jax.run import lock as run_lock\n"
        "with run_lock.alone(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=Path(__file__).parents[2], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {process.pid}"), run_lock.alone(tmp_path):
            pass
        process.kill()
        process.wait()
        with run_lock.alone(tmp_path):
            assert list(tmp_path.iterdir()) == []
