"""Names and paths as file systems have them: each works, or ends in one line."""

import os
import subprocess
import sys

import pytest

from ctssl_jax import command, flags, main
from ctssl_jax.data import open_dataset
from ctssl_jax.errors import ConfigError, DataError, UserError, printable
from ctssl_jax.hosts import platform

LONG = "x" * 300
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def one_line(capsys):
    """What a command says of a name that will not do, as one line."""

    def told(*argv):
        code = main.main(["main", "--config=configs/spark.py:smoke", *argv])
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.isascii() or said.isprintable()
        return code, said

    return told


@pytest.mark.parametrize("name", [LONG, NOT_UTF8, "a\x1b[31mb"])
def test_a_name_of_a_dataset(one_line, tmp_path, name):
    code, said = one_line(f"--config.data.path={tmp_path / name}", f"--workdir={tmp_path / 'run'}")
    assert code in (2, 3, 5)
    assert "\x1b" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [LONG, NOT_UTF8, "a\0b"])
def test_a_name_of_a_run(one_line, tmp_path, phantom_path, name):
    code, said = one_line(f"--config.data.path={phantom_path}", f"--workdir={tmp_path / name}")
    assert code in (2, 5)
    assert "workdir" in said or "too long" in said


def test_a_dataset_at_a_path_that_is_no_utf8_is_refused(tmp_path, phantom_path):
    place = tmp_path / NOT_UTF8
    place.symlink_to(phantom_path)
    with pytest.raises(DataError, match="give a path in UTF-8"):
        open_dataset(place)


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null", ""])
def test_a_home_that_cannot_be_written(home, monkeypatch):
    monkeypatch.setenv("HOME", home)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir("/proc")
    platform.enable_compilation_cache()


@pytest.mark.parametrize(
    "text", ["\x1b[2Jgone", "a\rb", "two\nlines", "\x9b31m", "\u202etxt", "bell\a"]
)
def test_no_message_acts_on_a_terminal(capsys, text):
    def fail():
        raise DataError(f"no file {text}")

    assert command.run("name", fail) == 3
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert printable("Größe 3×3 – schön") == "Größe 3×3 – schön"


def test_what_the_system_refuses_is_a_line(capsys, tmp_path):
    assert command.run("name", lambda: (tmp_path / "nowhere" / "file").read_text()) == 5
    assert capsys.readouterr().err.startswith("name: No such file or directory (")


def test_names_that_are_no_utf8_are_printed(tmp_path):
    script = (
        "import os; from ctssl_jax import command; "
        "command.run('name', lambda: print(os.fsdecode(b'caf\\xe9')))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"caf\\udce9\n")


def test_a_run_folder_has_a_name(tmp_path):
    with pytest.raises(ConfigError, match="UTF-8"):
        flags.parse(["main", "--config=configs/spark.py:smoke", f"--workdir={NOT_UTF8}"])
    assert issubclass(ConfigError, UserError)
