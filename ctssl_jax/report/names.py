"""What arms are called: the methods name themselves, and the report reads it without importing JAX.

A method's class says in the first line of its docstring what it holds: "Hyperparameters of NAME".
An arm is called after the class that it is the lower case of; other arms keep their own word.
"""

import ast
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

SCRATCH, SPARK = "scratch", "spark"
RANDOM = "random"  # of frozen features, in place of scratch
OTHERS = {SCRATCH: "From scratch", "pretrained": "Pre-trained"}
"""Arms that are no method of ours."""
PAPER_ORDER = (SCRATCH, SPARK, "moco", "swav", "byol")
"""The arms of the paper come first, in its order; the others follow by their names."""
LONGEST = 40


@cache
def known_arms() -> dict[str, str]:
    """Arm to name, in the order of the page."""
    found = dict(OTHERS)
    for path in sorted((files("ctssl_jax") / "methods").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".py"):
            found |= _named_in(path.read_text(encoding="utf-8"))
    order = [*PAPER_ORDER, *sorted(found.keys() - set(PAPER_ORDER))]
    return {arm: found[arm] for arm in order if arm in found}


def arm_name(arm: str) -> str:
    """An arm as people call it."""
    return known_arms().get(arm, arm[:LONGEST])


def arm_order(arm: str) -> tuple[int, str]:
    """Sorts the paper's arms first and unknown ones last."""
    known = list(known_arms())
    return (known.index(arm) if arm in known else len(known), arm)


def subject(arm: str, pretrainings: int) -> str:
    """An arm as the subject of a sentence: a method, or the one encoder that stands for it."""
    if arm == SCRATCH:
        return "training from scratch"
    return f"this {arm_name(arm)} encoder" if pretrainings == 1 else arm_name(arm)


def stands_on(arm: str, pretrainings: int) -> str:
    """What an arm stands on, as tables and legends say it; nothing of scratch."""
    if arm == SCRATCH or not pretrainings:
        return ""
    return "one encoder" if pretrainings == 1 else f"{pretrainings} pre-trainings"


def listed(words: Iterable[str]) -> str:
    """Words as a list in a sentence: one, two and three."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def _named_in(source: str) -> dict[str, str]:
    """The methods of a file: lower case of the class to its name."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            said = re.match(r"Hyperparameters of ([^;.,]+)[;.,]", ast.get_docstring(node) or "")
            if said:
                found[node.name.lower()] = said[1]
    return found
