"""A loss that a user writes for one row, from its statistics: ``loss_fn(stats, *row_args) -> scalar``.

It is mapped over rows here, so it cannot mix them. Only the statistics that it reads are computed. Two functions of the same
code that refer to the same values, in closure, defaults or module, are one, so that a fresh lambda does not compile anew and
a changed number is not missed; arrays and tracers that it closes over become arguments, so that they get their gradients.

Not so inside ``jax.shard_map``, where types say over which mesh axes an array varies: what JAX traced of a function holds
for the types that it was traced with. There the function itself is called where the statistics are, and what it closes over
gets its gradients from JAX: ``apart`` from the rule that makes gradients in the forward pass, which would not see them.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._jax.versions import joint_axes
from .losses import Shared
from .reduce import keep, weighted_losses
from .state import RowStats, State, finalize

SIMPLE = (bool, int, float, complex, str, bytes, type(None), types.BuiltinFunctionType, np.dtype)
FIXED = ("jax", "jaxlib", "numpy", "ml_dtypes", "math", "builtins", "crossent_jax")  # their names keep their meaning


class RowLoss(NamedTuple):
    """A user's function and the key by which it is known; equal keys, equal functions."""

    function: Callable
    key: Any

    def __eq__(self, other) -> bool:
        return isinstance(other, RowLoss) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class Traced(NamedTuple):
    """A row loss ready to run: ``loss(stats, row_args, constants)``, the arrays it closed over, whether a later call can
    share its compilation, the statistics that it reads, and whether it is to be called ``apart``."""

    loss: RowLoss
    constants: tuple
    shareable: bool
    reads: frozenset[str]
    apart: bool = False


def trace(loss_fn: Callable, row_args: tuple, batch_axes: int, dtype, axes: frozenset[str] = frozenset()) -> Traced:
    """Look at a user's function once, on the shapes of one row. ``axes``: the mesh axes over which rows may vary."""
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of a row's statistics and row_args; got {loss_fn!r}.")
    number, index = jax.ShapeDtypeStruct((), dtype), jax.ShapeDtypeStruct((), jnp.int32)
    stats = RowStats._make([number] * 6 + [index])
    row = tuple(jax.ShapeDtypeStruct(x.shape[batch_axes:], x.dtype) for x in row_args)

    def fresh(*arguments):
        """JAX remembers what it traced of a function, and what the function refers to may have changed since."""
        return loss_fn(*arguments)

    jaxpr, out = jax.make_jaxpr(fresh, return_shape=True)(stats, *row)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(out)]
    if len(shapes) != 1 or shapes[0][0] != () or not jnp.issubdtype(shapes[0][1], jnp.floating):
        found = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in shapes) or "nothing"
        raise TypeError(
            f"loss_fn must return one floating scalar, the loss of one row; got {found}. It is written for one row: its "
            "statistics are scalars, and row_args come without their batch axes."
        )
    used = {id(v) for equation in jaxpr.jaxpr.eqns for v in equation.invars} | {id(v) for v in jaxpr.jaxpr.outvars}
    reads = frozenset(n for n, v in zip(RowStats._fields, jaxpr.jaxpr.invars, strict=False) if id(v) in used)
    key = function_key(loss_fn)
    if key is not None:
        return Traced(RowLoss(lambda stats, row, constants: loss_fn(stats, *row), key), (), True, reads)
    converted, constants = jax.closure_convert(fresh, stats, *row)
    if axes or joint_axes(constants):
        called = RowLoss(lambda stats, row, constants: loss_fn(stats, *row), fresh)
        return Traced(called, (), False, reads, apart=bool(constants))
    return Traced(
        RowLoss(lambda stats, row, constants: converted(stats, *row, *constants), converted), tuple(constants), False, reads
    )


def function_key(function: Any, above: tuple = ()) -> Any:
    """What a function is, by value: its code and everything simple that it refers to, in its closure, its defaults or its
    module; None if it refers to anything else. ``above``: the functions that refer to this one."""
    if isinstance(function, types.FunctionType):
        if function.__code__ in above:
            return function.__code__
        above = (*above, function.__code__)
        keys = tuple((name, function_key(value, above)) for name, value in _references(function))
        return None if any(key is None for _, key in keys) else (function.__code__, keys)
    fixed = isinstance(function, SIMPLE) or _is_fixed(function)
    return (type(function), function) if fixed and not _holds_anything(function) else None


def _holds_anything(value: Any) -> bool:
    """Methods and partial functions refer to an object or arguments, which may be anything."""
    owner = getattr(value, "__self__", None)
    return isinstance(value, functools.partial) or not (owner is None or isinstance(owner, types.ModuleType))


def _is_fixed(value: Any) -> bool:
    """A module, class or function object of a package whose names do not change meaning; a user's may hold anything."""
    if isinstance(value, types.ModuleType):
        home = value.__name__
    elif callable(value):
        home = value.__module__ if isinstance(value, type) else type(value).__module__
    else:
        return False
    return home.split(".")[0] in FIXED


def _references(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The names that a function may look up outside itself, and what they stand for now."""
    cells = zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True)
    defaults = [*enumerate(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    named = [(name, function.__globals__[name]) for name in _names(function.__code__) if name in function.__globals__]
    return [*cells, *((str(name), value) for name, value in defaults), *named]


def _names(code: types.CodeType) -> list[str]:
    """The names that a code and the functions written inside it look up by name."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


class UserLoss(NamedTuple):
    """The weighted losses of rows from their state: ``of_rows`` is (valid rows, row weights, row_args). ``apart``: called
    outside the rule that makes gradients in the forward pass."""

    loss: RowLoss
    apart: bool = False

    def __call__(self, state: State, of_rows, shared: Shared) -> Array:
        (valid, row_weights, row_args), (temperature, constants) = of_rows, shared
        stats = keep(valid, finalize(state, temperature=temperature, soft=False))
        known, batch_axes = stats.target_mass > 0, stats.lse.ndim
        stats = RowStats(*(jnp.zeros_like(stats.lse) if field is None else field for field in stats))
        row_args = tuple(_kept(valid, x) for x in row_args)
        one_row = self.loss.function
        for _ in range(batch_axes):
            one_row = jax.vmap(one_row, in_axes=(0, 0, None))
        loss = jnp.where(known, one_row(stats, row_args, constants).astype(stats.lse.dtype), jnp.nan)
        return weighted_losses(loss, valid, row_weights)


def _kept(valid, x: Array) -> Array:
    return x if valid is None else jnp.where(valid.reshape(*valid.shape, *[1] * (x.ndim - valid.ndim)), x, 0)
