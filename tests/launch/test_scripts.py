"""The shell scripts: their syntax, and the one list of exit codes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import AGAIN, LAUNCH, NEVER, ROOT, parse

from ctssl_jax import errors

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
NAMES = [path.name for path in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_bash_reads_it(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    found = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_what_is_called_stops_at_an_error_and_what_is_not_is_sourced(script):
    text = script.read_text()
    called = text.startswith("#!/usr/bin/env bash\n")
    assert called == ("\nset -euo pipefail\n" in text)
    assert called or re.match(r"# shellcheck shell=bash\n# Sourced by", text)
    assert bool(script.stat().st_mode & 0o100) == (called and script.suffix == ".sh")


@pytest.mark.parametrize("code", [0, *AGAIN, *NEVER])
def test_exit_codes_that_may_be_retried(code):
    command = f"source {LAUNCH / 'exit_codes.sh'}; may_retry {code}"
    assert (subprocess.run(["bash", "-c", command]).returncode == 0) == (code in AGAIN)


def test_no_mistake_of_the_user_is_retried():
    """Whatever errors.py comes to define: devices and pre-emption alone may be."""
    classes = [errors.UserError]
    for kind in classes:
        classes += kind.__subclasses__()
    codes = {kind.exit_code for kind in classes}
    assert codes & set(AGAIN) <= {6, 75}
    assert codes - set(AGAIN) <= set(NEVER)


def documented(page: str = "docs/launch.md") -> list[list[str]]:
    """The commands of a page, without settings before them."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


def runs(command: list[str]) -> list[str] | None:
    """Module and flags that a documented command starts; None if it starts no run."""
    match command:
        case ["python", "-m", "launch.local", *rest]:
            return ["ctssl_jax.main", *rest[rest.index("--") + 1 :]]
        case ["python", "-m", *rest] | ["launch/tpu_vm.sh", "run", *rest]:
            return rest
        case ["sbatch", _, "launch/slurm_pretrain.sbatch", *rest]:
            return ["ctssl_jax.main", *rest]
        case ["sbatch", _, "launch/slurm_sweep.sbatch", *rest]:
            return ["launch.sweep", *rest]
        case ["docker", "run", *rest]:
            return rest[rest.index("ctssl") + 1 :]
    return None


def test_documented_commands_have_flags_that_exist():
    started = [found for command in documented() if (found := runs(command))]
    assert len(started) == 7
    for module, *flags in started:
        parse(module, *flags)


def test_commands_that_reproduce_the_paper_have_flags_that_exist():
    commands = [command[2:] for command in documented("docs/reproduce.md")]
    training = [c for c in commands if c[0] in ("ctssl_jax.main", "launch.sweep")]
    assert (len(commands), len(training)) == (14, 8)
    for module, *flags in training:
        parse(module, *flags)
    for module, *flags in (command for command in commands if command not in training):
        known = subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT
        ).stdout
        assert all(flag.split("=")[0] in known for flag in flags if flag.startswith("--")), module


def test_documented_files_exist():
    words = {word for command in documented() for word in command}
    files = {word for word in words if word.startswith("launch/")}
    assert len(files) == 6
    assert all((ROOT / file).is_file() for file in files)
