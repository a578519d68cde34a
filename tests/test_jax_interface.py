"""What the project uses of JAX exists, without a deprecation, in the version that runs.

Python 3.11 gets another version of JAX than later ones do, so this test is worth as much as the
Pythons that it runs on: `.ci/run` takes the newest it finds beside its own.
"""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("ctssl_jax", "data_prep", "launch", "configs", "tests")
# There is no other way to compile for a TPU that is not there.
NOT_STABLE = {"launch/compile_check": ["jax.experimental.topologies"]}
PRIVATE = ("jax.experimental", "jax.interpreters", "jax.lib", "jax.extend")


def names_of_jax(source: str) -> set[str]:
    """Every module and attribute of JAX that some code names, in full, such as `jax.lax.scan`."""
    tree, found, bound = ast.parse(source), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                if item.name.split(".")[0] == "jax":
                    found.add(item.name)
                    bound[item.asname or "jax"] = item.name if item.asname else "jax"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax":
            for item in node.names:
                found.add(f"{node.module}.{item.name}")
                bound[item.asname or item.name] = f"{node.module}.{item.name}"
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in bound:
            found.add(".".join((bound[node.id], *parts)))
    return found


def resolve(name: str) -> None:
    """Looks a name up as code would; raises where a part of it is missing or deprecated."""
    found, place = importlib.import_module("jax"), "jax"
    for part in name.split(".")[1:]:
        place = f"{place}.{part}"
        if not hasattr(found, part):
            try:
                found = importlib.import_module(place)
                continue
            except ImportError:
                if not isinstance(found, type(ast)):
                    return  # an attribute of an object, which only running it can tell
                raise
        found = getattr(found, part)


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_name_exists_and_is_not_deprecated():
    names = set().union(*(names_of_jax(path.read_text()) for path in files()))
    assert len(names) > 50  # that something was read
    for name in sorted(names):
        resolve(name)  # warnings are errors


def test_nothing_private_or_experimental_is_used():
    for path in files():
        place = path.relative_to(ROOT).as_posix()
        allowed = [
            name for start, names in NOT_STABLE.items() if place.startswith(start) for name in names
        ]
        for name in names_of_jax(path.read_text()):
            stable = not name.startswith(PRIVATE) and not any(
                part.startswith("_") for part in name.split(".")
            )
            assert stable or name.startswith(tuple(allowed)), f"{place}: {name}"


@pytest.mark.parametrize(
    "source",
    [
        "from jax.experimental.no_such_module import something",
        "import jax\njax.no_such_function(1)",
        "from jax import lax\nlax.no_such_function",
        "import jax.numpy as jnp\njnp.no_such_function",
    ],
)
def test_a_name_that_is_not_there_is_found(source):
    missing = max(names_of_jax(source))
    with pytest.raises((ImportError, AttributeError)):
        resolve(missing)
