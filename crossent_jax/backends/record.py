"""What a backend is: a record of functions, and the problem it may refuse."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .._row.block import Operands, Wanted
from .._row.state import State


class Problem(NamedTuple):
    """What a backend may refuse by. ``arrays``: dtypes and shapes, in words. ``logits``: the array, where logits are given
    to a loss of labels or of soft targets, and ``axis`` that of its classes (negative)."""

    function: str
    arrays: str
    axis_name: str | None
    logits: Any = None
    axis: int = -1


class Backend(NamedTuple):
    """``supports`` gives None or the reason for refusing. ``dense_gradient`` None: JAX differentiates ``dense_state``
    itself, in every mode."""

    name: str
    summary: str
    supports: Callable[[Problem], str | None]
    dense_state: Callable[[Wanted, Operands], State]
    dense_gradient: Callable[[Wanted, Operands, State, State], Operands] | None


def supports_everything(problem: Problem) -> str | None:
    """For backends that refuse nothing."""
    del problem
    return None
