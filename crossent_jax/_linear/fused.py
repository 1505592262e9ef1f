"""Statistics and losses of rows whose logits are never whole: a loop over chunks of rows, in one of two schemes.

| scheme | products of a value and gradient | held between forward and backward | for |
|---|---|---|---|
| gradient in forward (:func:`fused_sum`) | 3 | the gradients | a sum of losses, when differentiated |
| recompute (:func:`linear_state`) | 4 | O(n) numbers | anything of each row |
| forward only (either, not differentiated) | 1 | nothing | evaluation |

A chunk's logits exist once; ``_linear.chunk`` has its state and its gradient.

Gradient in forward: a sum of losses has one number as its cotangent, so the gradients for cotangent 1 can be computed while
the logits exist, and the backward pass multiplies them. ``jax.vjp`` of the losses of a chunk, as a function of its state,
gives the cotangents of the state; the loss is plain ``jax.numpy`` and no option of it is written here. What is not
differentiated (a frozen head, frozen hidden states) is skipped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._dense.shards import jointly_varying, merge_shards
from .._dense.vjp import mapped_together
from .._jax.differentiated import as_shapes, filled, from_shapes, values_of, zeros
from .._jax.dtypes import statistics_dtype
from .._jax.pieces import read, scan_rows
from .._jax.versions import to_varying, varying_axes
from .._row.losses import Shared
from .._row.state import State
from .chunk import (
    Fused,
    Needed,
    Plan,
    add_gradient,
    as_primals,
    by_platform,
    chunk_at,
    chunk_state,
    chunks_of,
    in_one_block,
    no_gradient,
    parts_of,
    perturbed,
)
from .projection import classes_of, product_dtype

# --- recompute: the state of every row -------------------------------------------------------------


def linear_state(plan: Plan, fused: Fused) -> State:
    """The state of every row: the definition where the backend has no gradient of its own, else with the fused one."""
    if plan.backend.dense_gradient is None:
        return _states(in_one_block(plan, fused), jointly_varying(_in_float32(fused)), jax.checkpoint)
    return _opaque_state(plan, fused)


def _in_float32(fused: Fused) -> Fused:
    """Hidden and head cast once, so that the transpose is one cast: JAX adds the gradients of chunks and of devices in that
    dtype."""
    dtype = statistics_dtype(product_dtype(fused.projection))
    return fused._replace(projection=jax.tree.map(lambda x: x.astype(dtype), fused.projection))


def _states(plan: Plan, fused: Fused, wrap: Callable = lambda f: f) -> State:
    def step(carry, start, size, fresh):
        return carry, wrap(lambda: chunk_state(plan, chunk_at(plan, fused, start, size)))()

    return scan_rows(chunks_of(plan, fused), step, (), plan.axis)[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _opaque_state(plan: Plan, fused: Fused) -> State:
    return mapped_together(by_platform(plan, _states, jointly_varying(fused)))


def _state_forward(plan: Plan, primals: Fused):
    fused, needed = values_of(primals), perturbed(primals)
    state = mapped_together(by_platform(plan, _states, jointly_varying(fused)))
    return state, (fused, state, as_shapes(needed))


def _state_backward(plan: Plan, residuals, cotangents: State):
    given, states, flags = residuals
    fused, needed = jointly_varying(given), from_shapes(flags)
    g = _cotangents(cotangents, states)
    plan = plan._replace(wanted=plan.wanted._replace(entropy=g.exp_dot is not None))
    if g.prior_dot is None:
        fused = fused._replace(operands=fused.operands._replace(prior=None))
        needed = needed._replace(prior=False)

    def sums_of(plan, fused, states, g):
        def step(sums, start, size, fresh):
            here = chunk_at(plan, fused, start, size)
            state, g_here = jax.tree.map(lambda field: read(field, start, size, plan.axis), (states, g))
            g_here = _of_fresh(fresh, g_here)
            return add_gradient(plan, here, state, g_here, sums, start, fresh), ()

        return scan_rows(chunks_of(plan, fused), step, no_gradient(fused, needed, given), plan.axis)[0]

    return (as_primals(by_platform(plan, sums_of, fused, states, g), given),)


_opaque_state.defvjp(_state_forward, _state_backward, symbolic_zeros=True)


def _cotangents(cotangents: State, states: State) -> State:
    """None for the optional fields that JAX knows have no cotangent, so that their terms are left out; else arrays."""
    given = {name: None if _is_zero(g) else g for name, g in cotangents._asdict().items()}
    given |= {"maximum": None, "argmax": None}
    always = ["exp_sum", "target_dot", "target_mass"] + (["prior_mass"] if given["prior_dot"] is not None else [])
    nothing = {name: jnp.zeros_like(getattr(states, name)) for name in always if given[name] is None}
    return State._make((given | nothing).values())


def _is_zero(cotangent) -> bool:
    return cotangent is None or isinstance(cotangent, jax.custom_derivatives.SymbolicZero)


# --- gradient in forward: a sum of losses ----------------------------------------------------------


class Loss(NamedTuple):
    """The static half of a loss: ``losses(state, rows, shared)`` gives the weighted losses of rows from whole rows' states;
    ``axis_name``: the mesh axis over which the classes are split."""

    losses: Callable[[State, Any, Shared], Array]
    axis_name: str | None

    def __call__(self, state: State, rows: Any, shared: Shared, classes: int) -> Array:
        return self.losses(merge_shards(state, self.axis_name, classes, shared.temperature), rows, shared)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused_sum(plan: Plan, loss: Loss, fused: Fused, rows: Any, shared: Shared) -> Array:
    """The sum of the losses of all rows. ``rows``: arrays with the rows' axes first, read with the rows; ``shared``: arrays
    that every row sees. Differentiable in every floating array."""
    return by_platform(plan, partial(_sum, loss), jointly_varying(fused), rows, shared)


def _sum(loss: Loss, plan: Plan, fused: Fused, rows: Any, shared: Any) -> Array:
    def step(carry, start, size, fresh):
        here = chunk_at(plan, fused, start, size)
        row = jax.tree.map(lambda x: read(x, start, size, plan.axis), rows)
        return carry, loss(chunk_state(plan, here), row, shared, classes_of(plan.layout, here.projection))

    return jnp.sum(scan_rows(chunks_of(plan, fused), step, (), plan.axis)[1])


def _sum_forward(plan: Plan, loss: Loss, fused: Fused, rows: Any, shared: Any):
    given = values_of(fused)
    run = partial(_sum_and_gradients, loss, perturbed(fused), given)
    total, sums, *gradients = by_platform(plan, run, jointly_varying(given), values_of(rows), values_of(shared))
    return total, (filled(sums, parts_of(given)), *gradients, given)


def _sum_and_gradients(loss: Loss, needed: Needed, given: Fused, plan: Plan, fused: Fused, rows: Any, shared: Any):
    """``(sum, gradients of the fused arrays, of rows, of shared)``; ``given``: the fused arrays before they varied alike."""
    classes = classes_of(plan.layout, fused.projection)

    def step(carry, start, size, fresh):
        sums, shared_sums = carry
        here = chunk_at(plan, fused, start, size)
        state = chunk_state(plan, here)
        row = jax.tree.map(lambda x: read(x, start, size, plan.axis), rows)
        losses, pull = _floating_vjp(lambda *inputs: loss(*inputs, classes=classes), state, row, shared)
        g, g_row, g_shared = pull(_of_fresh(fresh, to_varying(jnp.ones_like(losses), varying_axes(losses))))
        sums = add_gradient(plan, here, state, g, sums, start, fresh)
        return (sums, jax.tree.map(jnp.add, shared_sums, g_shared)), (losses, g_row)

    no_sums = no_gradient(fused, needed, given, scaled_later=True)
    carry = no_sums, jax.tree.map(lambda x: zeros(x, x.dtype), _floating(shared))
    (sums, g_shared), (losses, g_rows) = scan_rows(chunks_of(plan, fused), step, carry, plan.axis)
    return jnp.sum(losses), sums, g_rows, g_shared


def _sum_backward(plan: Plan, loss: Loss, residuals, g):
    sums, g_rows, g_shared, given = residuals
    scaled = partial(jax.tree.map, lambda x: (g.astype(x.dtype) * x).astype(x.dtype))
    return as_primals(sums, given, g), scaled(g_rows), scaled(g_shared)


fused_sum.defvjp(_sum_forward, _sum_backward, symbolic_zeros=True)


def _of_fresh(fresh: Array | None, tree: Any) -> Any:
    """Cotangents with 0 for the rows that an earlier chunk has counted."""
    return tree if fresh is None else jax.tree.map(lambda g: jnp.where(jnp.broadcast_to(fresh, g.shape), g, 0), tree)


def _floating_vjp(function, *arguments):
    """``jax.vjp`` with respect to the floating leaves; the pullback gives None for the others."""
    leaves, treedef = jax.tree.flatten(arguments)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def of_floats(*given):
        rest = iter(given)
        return function(*treedef.unflatten([next(rest) if f else leaf for f, leaf in zip(floats, leaves, strict=True)]))

    out, pull = jax.vjp(of_floats, *(leaf for f, leaf in zip(floats, leaves, strict=True) if f))

    def pull_all(cotangent):
        rest = iter(pull(cotangent))
        return treedef.unflatten([next(rest) if f else None for f in floats])

    return out, pull_all


def _floating(tree):
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, tree)
