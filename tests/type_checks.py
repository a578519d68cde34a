"""Run-time checks of types: of shapes where there are arrays, by beartype alone elsewhere.

jaxtyping's import hook wraps every function, so that the sizes of its arrays can be compared. That
takes some 40 microseconds a call, and of the millions of calls of a test run few have an array.
"""

from collections.abc import Callable
from typing import Any, get_args

import beartype
import jaxtyping

_with_shapes = jaxtyping.jaxtyped


def check_shapes_of_arrays_alone() -> None:
    """The import hook, which looks its decorator up by name, finds this one from now on."""
    jaxtyping.jaxtyped = _checked


def _checked(*, typechecker: Callable) -> Callable:
    with_shapes = _with_shapes(typechecker=typechecker)

    def check(made: Any) -> Any:
        hints = getattr(made, "__annotations__", None)
        plain = callable(made) and not isinstance(made, type)
        if plain and hints is not None and not any(map(_has_array, hints.values())):
            return beartype.beartype(made)
        return with_shapes(made)

    return check


def _has_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return isinstance(hint, str) or any(map(_has_array, get_args(hint)))
