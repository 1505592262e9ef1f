"""Which backend runs, and why not the others.

The choice depends on the problem alone. What depends on the platform compiled for is decided by
``jax.lax.platform_dependent`` inside a backend, so it follows the lowering and not the process.
"""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from ..backends import BACKENDS
from ..backends.record import Backend, Problem


class Decision(NamedTuple):
    """The outcome of one choice: the problem, the backend, what there is to say of each backend, the scheme of a fused
    linear loss (None where the logits are given), and what ``sharded`` moves (None without it)."""

    problem: Problem
    backend: str
    reasons: tuple[tuple[str, str], ...]
    scheme: str | None = None
    sharded: Any = None

    def __str__(self) -> str:
        function, arrays, axis_name = self.problem[:3]
        mesh = f", classes sharded over mesh axis {axis_name!r}" if axis_name else ""
        lines = [f"{function} on {arrays}{mesh}: {self.backend}"]
        lines += [f"  {line}" for line in str(self.sharded).splitlines()] if self.sharded else []
        lines += [f"  scheme: {self.scheme}"] if self.scheme else []
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.reasons])


_recorders: ContextVar[tuple[list[Decision], ...]] = ContextVar("recorders", default=())  # of this thread, outer ones first

_sharded: ContextVar[Callable[[], Any]] = ContextVar("sharded", default=lambda: None)  # what moves around the choices made


def select(
    problem: Problem, implementation: str | None, scheme: Callable[[Backend], str | None] = lambda backend: None
) -> Backend:
    """The backend named, or the first of the table that supports the problem. ``scheme`` says how it will run."""
    if implementation is not None and not (isinstance(implementation, str) and implementation in BACKENDS):
        names = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"implementation must be None (automatic) or one of {names}; got {implementation!r}.")
    refusals = {name: backend.supports(problem) for name, backend in BACKENDS.items()}
    if implementation is not None and refusals[implementation] is not None:
        raise ValueError(f"implementation={implementation!r} cannot run this problem: {refusals[implementation]}")
    chosen = implementation or next(name for name, refusal in refusals.items() if refusal is None)
    for decisions in _recorders.get():
        decision = _decision(problem, chosen, implementation, refusals)
        decisions.append(decision._replace(scheme=scheme(BACKENDS[chosen]), sharded=_sharded.get()()))
    return BACKENDS[chosen]


def _decision(problem: Problem, chosen: str, asked: str | None, refusals: dict[str, str | None]) -> Decision:
    def reason(name: str) -> str:
        if name == chosen:
            return f"chosen{' by implementation=' if asked else ''}: {BACKENDS[name].summary}"
        passed_over = "able, not asked for" if asked else "able, lower preference"
        return refusals[name] or f"{passed_over}: {BACKENDS[name].summary}"

    return Decision(problem, chosen, tuple((name, reason(name)) for name in BACKENDS))


@contextmanager
def inside_sharded(movement: Callable[[], Any]):
    """Decisions made meanwhile have this, whose text they print: the movement of arrays around them."""
    before = _sharded.set(movement)
    try:
        yield
    finally:
        _sharded.reset(before)


@contextmanager
def _recording():
    decisions: list[Decision] = []
    before = _recorders.set((*_recorders.get(), decisions))
    try:
        yield decisions
    finally:
        _recorders.reset(before)


def explain(function, *args, **kwargs) -> tuple[Decision, ...]:
    """Which backend every loss inside ``function(*args, **kwargs)`` would use, and why not the others.

    The function is traced on shapes, nothing runs. A jitted function is unwrapped first; a loss inside an inner ``jax.jit``
    that was traced before is not seen again (clear with ``jax.clear_caches()``).

    Args:
        function: one of this library's losses, or any function that calls them.
        args, kwargs: its arguments; arrays or ``jax.ShapeDtypeStruct``.

    Returns:
        One :class:`Decision` per loss met, but for contrastive ones, which have no backends; ``print`` shows the
        reasons. Of a loss of ``sharded`` the arrays are those of one device, and ``Decision.sharded`` has what moves
        between devices, with bytes, if all gradients are taken.

    Raises:
        Whatever ``function`` raises for these arguments.

    Example:
        >>> import jax, jax.numpy as jnp, crossent_jax
        >>> logits, labels = jax.ShapeDtypeStruct((8, 10), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
        >>> print(crossent_jax.explain(crossent_jax.cross_entropy, logits, labels)[0].backend)
        xla
    """
    function = getattr(function, "__wrapped__", function) if hasattr(function, "lower") else function
    static = {name: value for name, value in kwargs.items() if not _is_array(value)}
    arrays = {name: value for name, value in kwargs.items() if _is_array(value)}
    with _recording() as decisions:
        jax.eval_shape(lambda a, k: function(*a, **k, **static), args, arrays)
    return tuple(decisions)


def _is_array(value) -> bool:
    return all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(value)) and bool(jax.tree.leaves(value))
