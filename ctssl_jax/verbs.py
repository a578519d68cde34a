"""Commands by verb: what there is, and how a verb is handed over to its module.

A verb runs its module as `python -m` does, so that there is one way to do a thing. The modules are
named, not imported: those of other packages lie above this one. Starts without JAX.
"""

import ast
import difflib
import pkgutil
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ctssl_jax import command
from ctssl_jax.errors import ConfigError


class Verb(NamedTuple):
    """What a verb stands for.

    Attributes:
      module: that is run.
      title: what it does, in one line.
      words: that come before what is typed.
    """

    module: str
    title: str
    words: tuple[str, ...] = ()


def commands_in(package: str, folder: Path) -> dict[str, Verb]:
    """The modules of a package that are commands, with the first lines of their docstrings.

    Args:
      package: its name.
      folder: where it lies.
    """
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        own = folder / module.name / "__main__.py" if module.ispkg else folder / f"{module.name}.py"
        text = own.read_text(encoding="utf-8") if own.exists() else ""
        if module.name != "__main__" and 'if __name__ == "__main__"' in text:
            told = ast.get_docstring(ast.parse(text)) or ""
            line = told.partition("\n")[0].partition(": `python")[0].removesuffix(".")
            found[module.name] = Verb(f"{package}.{module.name}", line)
    return found


def main(name: str, usage: str, verbs: Mapping[str, Verb], argv: Sequence[str]) -> int:
    """Runs the module of the verb `argv[1]` with the words after it, as `python -m` would.

    Args:
      name: of the command, before its errors.
      usage: above the list of verbs, which is shown without a verb and with `--help`.
      verbs: all, by what is typed.
      argv: the command line, as `sys.argv`.

    Returns:
      The exit code, where the module has not ended the program itself.
    """

    def show() -> None:
        width = max(map(len, verbs))
        lines = (f"  {verb:<{width}}  {known.title}" for verb, known in verbs.items())
        print("\n".join([usage, "", *lines]))

    def check() -> None:
        if argv[1] not in verbs:
            close = difflib.get_close_matches(argv[1], verbs, 1)
            mend = f"did you mean {close[0]}?" if close else f"there are {', '.join(verbs)}"
            raise ConfigError(f"no command {argv[1]}: {mend}")

    if len(argv) < 2 or argv[1] in ("--help", "-h"):
        return command.run(name, show)
    if code := command.run(name, check):
        return code
    module, _, words = verbs[argv[1]]
    sys.argv = [argv[0], *words, *argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0
