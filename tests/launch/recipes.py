"""What the tests of the launch scripts share: fake commands, and which command lines are known."""

import importlib.util
import os
import subprocess
from pathlib import Path

from absl import flags

from ctssl_jax import flags as run_flags

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
# What a scheduler may answer by the same command again (docs/runs.md), and what it must not.
AGAIN = (6, 75, 134, 137, 138, 143)
NEVER = (1, 2, 3, 4, 5, 130)

FAKE = """#!/usr/bin/env bash
{ printf '%s\\t' "$(basename "$0")" "$@"; echo; } >>"$RECORD"
# The next line of file $1, for as long as there is one; else $2.
next() {
  local line=$2
  if [[ -s $FAKES/$1 ]]; then
    line=$(head -n 1 "$FAKES/$1")
    sed -i 1d "$FAKES/$1"
  fi
  echo "$line"
}
"""


class Fakes:
    """Commands that write down their arguments, first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.record = folder / "record"
        (folder / "bin").mkdir()
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "FAKES": str(folder),
        }

    def add(self, name: str, body: str = "") -> None:
        """A command `name` that goes on with `body`, which may call `next FILE DEFAULT`."""
        path = self.folder / "bin" / name
        path.write_text(FAKE + body)
        path.chmod(0o755)

    def answers(self, name: str, *lines: object) -> None:
        """What `next` gives, one after the other."""
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def run(self, *command: object, cwd: Path = ROOT, **environment: object):
        """Runs a script; environment variables beside."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**self.environment, **{k: str(v) for k, v in environment.items()}},
            capture_output=True,
            text=True,
            timeout=20,
        )

    def calls(self, name: str = "") -> list[list[str]]:
        """The recorded commands as words, of one name or all."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        words = [line.rstrip("\t").split("\t") for line in lines]
        return [call for call in words if not name or call[0] == name]


def parse(module: str, *arguments: str) -> flags.FlagValues:
    """The flags of `python -m MODULE ARGUMENTS`; fails where one is unknown or a value is wrong."""
    assert importlib.util.find_spec(module), module
    values, argv = flags.FlagValues(), [module, *arguments]
    run_flags.define_flags(values, argv)
    assert values(argv) == [module]
    assert values.config is not None
    return values
