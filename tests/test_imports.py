"""Imports run one way, late ones and those for type checkers too: so the listing tells the design.

`ROOMS` is the order: a file imports its own room and those further down, never one above, and no
two files import each other, however far around. What two rooms need belongs into a room below both.
"""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "launch",
    "configs",
    "data_prep",
    "ctssl_jax.__main__",
    "ctssl_jax.main",
    "ctssl_jax.verbs",
    "ctssl_jax.config_help",
    "ctssl_jax.predict",
    "ctssl_jax.interop",
    "ctssl_jax.report",
    "ctssl_jax.ablation",
    "ctssl_jax.recipes",
    "ctssl_jax.command",
    "ctssl_jax.flags",
    "ctssl_jax.pretrain",
    "ctssl_jax.finetune",
    "ctssl_jax.evaluate",
    "ctssl_jax.finetune_program",
    "ctssl_jax.train",
    "ctssl_jax.frozen",
    "ctssl_jax.run",
    "ctssl_jax.config_record",
    "ctssl_jax.config",
    "ctssl_jax.data",
    "ctssl_jax.hosts",
    "ctssl_jax.methods",
    "ctssl_jax.optim",
    "ctssl_jax.nn",
    "ctssl_jax.augment",
    "ctssl_jax.log",
    "ctssl_jax.scores",
    "ctssl_jax.dataset",
    "ctssl_jax.statistics",
    "ctssl_jax.presets",
    "ctssl_jax.config_values",
    "ctssl_jax.files",
    "ctssl_jax.errors",
    "ctssl_jax",
)
# Where one room lies above another and must not know it all the same.
STRANGERS = {
    "ctssl_jax.methods": ("ctssl_jax.data", "ctssl_jax.run", "ctssl_jax.hosts", "ctssl_jax.frozen"),
    "configs": ("data_prep",),
    "ctssl_jax.report": ("ctssl_jax.data", "ctssl_jax.train", "ctssl_jax.methods"),
}
HEAVY = ("torch", "torch._C", "scipy.stats", "matplotlib", "pandas", "sklearn", "tensorflow")
WITHOUT_JAX = ("ctssl_jax.dataset", "ctssl_jax.statistics", "ctssl_jax.report", "data_prep")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for package in ("launch", "configs", "data_prep", "ctssl_jax")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(source: str) -> set[str]:
    """Modules of the project that some code imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written out in full"
            for item in node.names:
                full = f"{node.module}.{item.name}"
                found.add(full if full in MODULES else node.module)
    return found & MODULES.keys()


GRAPH = {name: imported(path.read_text()) for name, path in MODULES.items()}


def room(name: str) -> str:
    return max((r for r in ROOMS if name == r or name.startswith(f"{r}.")), key=len)


def wrong(name: str, other: str) -> bool:
    mine, theirs = room(name), room(other)
    return ROOMS.index(theirs) < ROOMS.index(mine) or theirs in STRANGERS.get(mine, ())


def test_imports_run_down():
    assert len(GRAPH) > 150
    assert not [f"{a} -> {b}" for a, others in GRAPH.items() for b in others if wrong(a, b)]


def test_the_table_for_contributors_has_this_order():
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `")]
    words = [word for cell in cells for word in re.findall("`([^`]+)`", cell)]
    names = [word.removesuffix("/").removesuffix(".py") for word in words]
    told = [name if name in ROOMS else f"ctssl_jax.{name}" for name in names]
    assert told == [name for name in ROOMS if name != "ctssl_jax"]


def test_no_imports_run_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"{error.args[1]}")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ctssl_jax.methods.moco", "from ctssl_jax import data"),
        ("ctssl_jax.nn.resnet", "def late():\n    import ctssl_jax.run.checkpoint"),
        ("ctssl_jax.dataset.leaks", "if TYPE_CHECKING:\n    from data_prep import audit"),
        ("ctssl_jax.report.page", "from ctssl_jax.train import fit"),
        ("data_prep.folder", "from launch import local"),
    ],
)
def test_an_import_against_the_order_is_seen(name, source):
    assert any(wrong(name, other) for other in imported(source))


def test_what_needs_no_jax_starts_without_it():
    names = [name for name in MODULES if room(name) in WITHOUT_JAX and "__main__" not in name]
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_starts_without_the_libraries_that_it_has_no_use_for(tmp_path):
    """Each is a second or more of every start; tensorboardX brings PyTorch where there is one."""
    (tmp_path / "run").mkdir()
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from ctssl_jax import evaluate, finetune, log, pretrain\n"
        "log.MetricWriter(Path(sys.argv[1])).close()\n"
        f"there = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not there, there\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
