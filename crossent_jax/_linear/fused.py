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
differentiated (a frozen head, frozen hidden states) is skipped. On accelerators the last chunk is a program of its own, to
whose product a compiler joins the multiplication by the cotangent and the cast: the head's float32 gradient is written and
read once less. Ignored rows cost no product where rows may leave their places (``_linear.counted``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._dense.shards import jointly_varying, merge_shards
from .._dense.vjp import mapped_together
from .._jax.differentiated import as_shapes, filled, from_shapes, is_asked, is_primal, values_of, zeros
from .._jax.dtypes import statistics_dtype
from .._jax.versions import to_varying, varying_axes
from .._row.block import without_cotangent
from .._row.losses import Shared
from .._row.state import Maybe, State
from .chunk import (
    Fused,
    Needed,
    Plan,
    Plans,
    Sums,
    add_gradient,
    as_primals,
    by_platform,
    chunk_at,
    chunk_state,
    chunks_of,
    keeps_exponentials,
    no_gradient,
    padded,
    parts_of,
    perturbed,
    relative_to_larger_label,
    unpadded,
    with_exponentials,
)
from .counted import Masks, Walk, skipping, walk
from .projection import classes_of, product_dtype

# --- recompute: the state of every row -------------------------------------------------------------


def linear_state(plans: Plans, masks: Masks, fused: Fused) -> State:
    """The state of every row: the definition where the backend has no gradient of its own, else with the fused one."""
    if plans.cpu.backend.dense_gradient is None:
        plan = plans.cpu._replace(blocks=plans.tpu.blocks)
        return _states(plan, jointly_varying(_in_float32(fused)), None, jax.checkpoint)
    return _opaque_state(plans, masks, fused)


def _in_float32(fused: Fused) -> Fused:
    """Hidden and head cast once, so that the transpose is one cast: JAX adds the gradients of chunks and of devices in that
    dtype."""
    dtype = statistics_dtype(product_dtype(fused.projection))
    return fused._replace(projection=jax.tree.map(lambda x: x.astype(dtype), fused.projection))


def _states(plan: Plan, fused: Fused, mask: Maybe, wrap: Callable = lambda f: f) -> State:
    fused, way = padded(plan, fused), _way(plan, fused, mask)

    def step(carry, start, size, fresh):
        return carry, wrap(lambda: chunk_state(plan, chunk_at(plan, fused, way.piece(start, size))))()

    return way.back(way.run(step, ())[1])


def _way(plan: Plan, fused: Fused, mask: Maybe, **options: Any) -> Walk:
    return walk(chunks_of(plan, fused), plan.axis, mask, **options)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _opaque_state(plans: Plans, masks: Masks, fused: Fused) -> State:
    return _state_of(plans, masks, fused)


def _state_of(plans: Plans, masks: Masks, fused: Fused) -> State:
    def run(mask, fused):
        return by_platform(plans, _states, fused, mask)

    return mapped_together(skipping(run, masks.valid, jointly_varying(fused)))


def _state_forward(plans: Plans, masks: Masks, primals: Fused):
    masks, fused, needed = values_of(masks), values_of(primals), perturbed(primals)
    state = _state_of(plans, masks, fused)
    return state, (masks, fused, state, as_shapes(needed))


def _state_backward(plans: Plans, residuals, cotangents: State):
    masks, given, states, flags = residuals
    fused, needed, types = jointly_varying(given), from_shapes(flags), _types(given)
    g = _cotangents(cotangents, states)
    wanted = plans.cpu.wanted._replace(entropy=g.exp_dot is not None)
    plans = Plans(*(plan._replace(wanted=wanted, exponentials=False) for plan in plans))
    if g.prior_dot is None:
        fused = fused._replace(operands=fused.operands._replace(prior=None))
        needed = needed._replace(prior=False)

    def sums_of(plan, fused, states, g, mask):
        whole, fused = fused, padded(plan, fused)
        way = _way(plan, fused, mask, last_apart=plan.last_apart, sets_sums=plan.marked)

        def step(sums, start, size, fresh):
            piece = way.piece(start, size)
            here = chunk_at(plan, fused, piece)
            state, g_here = jax.tree.map(piece, (states, g))
            sums = sums._replace(head=way.so_far(sums.head, start))
            return add_gradient(plan, here, state, _of_fresh(fresh, g_here), sums, start, fresh), ()

        none = no_gradient(fused, needed, types)
        sums = way.run(step, none._replace(head=way.unset(none.head)))[0]
        return _back(way, unpadded(sums._replace(head=way.total(sums.head)), whole))

    def run(mask, *arrays):
        return by_platform(plans, sums_of, *arrays, mask)

    mask = None if masks.live is None or needed.target else ~without_cotangent(g)
    return None, as_primals(skipping(run, mask, fused, states, g), given)


def _types(arrays: Fused) -> Fused:
    """What a function may refer to that JAX keeps: no array of a trace."""
    return jax.eval_shape(lambda same: same, arrays)


def _back(way: Walk, sums: Sums) -> Sums:
    """The gradients of rows at their places. Rows keep theirs where targets are trained, whose gradients would be copied."""
    return sums._replace(hidden=way.back(sums.hidden))


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
    """The static half of a loss: ``losses(state, of_rows, shared)`` gives the weighted losses of rows from whole rows'
    states; ``axis_name``: the mesh axis over which the classes are split; ``soft``: whether rows have targets, not labels.
    Called with ``rows = (known, of_rows)``, of which the first is for the merge of the shards' states."""

    losses: Callable[[State, Any, Shared], Array]
    axis_name: str | None
    soft: bool

    def __call__(self, state: State, rows: Any, shared: Shared, classes: int) -> Array:
        known, of_rows = rows
        state = merge_shards(state, self.axis_name, classes, shared.temperature, soft=self.soft, known=known)
        return self.losses(state, of_rows, shared)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused_sum(plans: Plans, loss: Loss, masks: Masks, fused: Fused, rows: Any, shared: Shared) -> Array:
    """The sum of the losses of all rows. ``rows``: arrays with the rows' axes first, read with the rows; ``shared``: arrays
    that every row sees. Differentiable in every floating array."""
    return by_platform(plans, partial(_sum, loss), jointly_varying(fused), rows, shared, masks.live)


def _sum(loss: Loss, plan: Plan, fused: Fused, rows: Any, shared: Any, mask: Maybe) -> Array:
    classes, fused = classes_of(plan.layout, fused.projection), padded(plan, fused)
    way = _way(plan, fused, mask, shards=loss.axis_name)

    def step(carry, start, size, fresh):
        piece = way.piece(start, size)
        state = chunk_state(plan, chunk_at(plan, fused, piece))
        return carry, loss(state, jax.tree.map(piece, rows), shared, classes)

    return jnp.sum(way.run(step, ())[1])


def _sum_forward(plans: Plans, loss: Loss, masks: Masks, fused: Fused, rows: Any, shared: Any):
    given, needed = values_of(fused), perturbed(fused)
    mask = None if needed.target else values_of(masks.valid if _any_asked(rows) else masks.live)
    of_plan = partial(_sum_and_gradients, loss, needed, _types(given))

    def run(mask, *arrays):
        return by_platform(plans, of_plan, *arrays, mask)

    arrays = jointly_varying(given), values_of(rows), values_of(shared)
    total, sums, *gradients = skipping(run, mask, *arrays)
    return total, (filled(sums, parts_of(given)), *gradients, given)


def _sum_and_gradients(
    loss: Loss, needed: Needed, types: Fused, plan: Plan, fused: Fused, rows: Any, shared: Any, mask: Maybe
):
    """``(sum, gradients of the fused arrays, of rows, of shared)``; ``types``: of those fused before they varied alike."""
    classes, whole, fused = classes_of(plan.layout, fused.projection), fused, padded(plan, fused)
    plan = plan._replace(exponentials=keeps_exponentials(plan, fused, needed))
    if plan.exponentials:
        plan = plan._replace(blocks=plan.blocks._replace(state=None))  # they are those of whole rows
    way = _way(plan, fused, mask, last_apart=plan.last_apart, sets_sums=plan.marked, shards=loss.axis_name)

    def of_chunk(state, row, shared):
        return loss(relative_to_larger_label(state) if plan.by_guess else state, row, shared, classes)

    def step(carry, start, size, fresh):
        sums, shared_sums = carry
        piece = way.piece(start, size)
        here = chunk_at(plan, fused, piece)
        here, state = with_exponentials(plan, here) if plan.exponentials else (here, chunk_state(plan, here))
        row = jax.tree.map(piece, rows)
        losses, pull = _floating_vjp(of_chunk, state, row, shared)
        g, g_row, g_shared = pull(_of_fresh(fresh, to_varying(jnp.ones_like(losses), varying_axes(losses))))
        sums = add_gradient(plan, here, state, g, sums._replace(head=way.so_far(sums.head, start)), start, fresh)
        return (sums, jax.tree.map(jnp.add, shared_sums, g_shared)), (losses, g_row)

    no_sums = no_gradient(fused, needed, types, scaled_later=True)
    carry = no_sums._replace(head=way.unset(no_sums.head)), jax.tree.map(lambda x: zeros(x, x.dtype), _floating(shared))
    (sums, g_shared), (losses, g_rows) = way.run(step, carry)
    sums = unpadded(sums._replace(head=way.total(sums.head)), whole)
    return jnp.sum(losses), _back(way, sums), way.back(g_rows), g_shared


def _any_asked(rows: Any) -> bool:
    return any(map(is_asked, jax.tree.leaves(rows, is_leaf=is_primal)))


def _sum_backward(plans: Plans, loss: Loss, residuals, g):
    sums, g_rows, g_shared, given = residuals
    scaled = partial(jax.tree.map, lambda x: (g.astype(x.dtype) * x).astype(x.dtype))
    return None, as_primals(sums, given, g), scaled(g_rows), scaled(g_shared)


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
