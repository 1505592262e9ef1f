"""Rows of two distributions whose logits are products that are never whole: a loop over chunks of rows.

The student is a projection; the teacher is logits, another projection (of other features, over the same classes), or its top
k classes. Of a chunk, ``calls`` gives the losses and the gradients of both sides' logits while these exist; the products
with them are those of ``_linear.projection``.

| scheme | products of a side's value and gradient | held between forward and backward |
|---|---|---|
| a sum of losses, when differentiated | 3 | the gradients |
| losses of rows, when differentiated | 4 | nothing |
| either, when not | 1 | |

A side that is not differentiated (a frozen head, frozen hidden states, a stopped teacher) takes no products for it.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.differentiated import (
    as_shapes,
    cotangents,
    filled,
    from_shapes,
    is_asked,
    is_primal,
    values_of,
    written_dtype,
    zeros,
)
from .._jax.dtypes import statistics_dtype
from .._jax.pieces import cut, read, scan_rows, write_fresh
from .._jax.versions import is_split, to_varying, typed_like, varying_axes
from .._linear.projection import (
    Layout,
    Projection,
    bias_gradient,
    head_gradient,
    hidden_gradient,
    operands_of_product,
    piece_logits,
    product_dtype,
    rounded,
    transposed,
)
from .._row.state import Maybe
from ..backends import BACKENDS
from .calls import alike, losses_and_gradients, losses_of_pairs
from .loss import PairRows, PairSpec


class PairPlan(NamedTuple):
    """What is static about the loop: the layouts of student and teacher (None: no projection), the rows' axis that is cut
    (the last) and how much of it makes a chunk, on a CPU and elsewhere."""

    spec: PairSpec
    student: Layout
    teacher: Layout | None
    axis: int
    chunk: int
    elsewhere: int


class PairCall(NamedTuple):
    """The arrays. ``student``: a projection; ``teacher``: one, or None. ``rows.logits`` is None, and ``rows.teacher`` where
    the teacher is a projection."""

    student: Any
    teacher: Any
    class_mask: Any
    rows: PairRows


def linear_pair_losses(plan: PairPlan, call: PairCall) -> Array:
    """The weighted loss of each row."""
    if BACKENDS[plan.spec.backend].dense_gradient is None:
        return _plain(plan, call)
    return _losses(plan, call)


def linear_pair_sum(plan: PairPlan, call: PairCall) -> Array:
    """The sum of the weighted losses of all rows."""
    if BACKENDS[plan.spec.backend].dense_gradient is None:
        return jnp.sum(_plain(plan, call))
    return _sum(plan, call)


def _alike(plan: PairPlan, call: PairCall) -> PairCall:
    (student, teacher, class_mask), rows = alike(plan.spec.axis_name, tuple(call[:3]), call.rows)
    return PairCall(student, teacher, class_mask, rows)


def _by_platform(plan: PairPlan, function: Callable, call: PairCall, *arguments):
    """``function(plan, call, *arguments)`` with the chunks of the platform compiled for, or those of a CPU where the type of
    the head says that its classes are split over devices."""
    if is_split(call.student.head, plan.student.vocab_axis):
        return function(plan, call, *arguments)
    other = partial(function, plan._replace(chunk=plan.elsewhere))
    return jax.lax.platform_dependent(call, *arguments, cpu=partial(function, plan), default=other)


# --- a chunk ---------------------------------------------------------------------------------------


def _chunk_at(plan: PairPlan, call: PairCall, start, size: int) -> PairCall:
    def piece(x):
        return read(x, start, size, plan.axis)

    def rows_of(projection):
        return None if projection is None else projection._replace(hidden=piece(projection.hidden))

    mask = call.class_mask
    return PairCall(
        rows_of(call.student),
        rows_of(call.teacher),
        mask if mask is None or mask.ndim == 1 else piece(mask),
        jax.tree.map(piece, call.rows),
    )


def _with_logits(plan: PairPlan, here: PairCall) -> PairRows:
    teacher = here.rows.teacher if plan.teacher is None else piece_logits(plan.teacher, here.teacher)
    return here.rows._replace(logits=piece_logits(plan.student, here.student), teacher=teacher)


def _chunk_losses(plan: PairPlan, here: PairCall) -> Array:
    return losses_of_pairs(plan.spec, here.class_mask, _with_logits(plan, here))


def _forward_only(plan: PairPlan, call: PairCall, wrap: Callable = lambda f: f) -> Array:
    def step(carry, start, size, fresh):
        return carry, wrap(partial(_chunk_losses, plan))(_chunk_at(plan, call, start, size))

    return scan_rows(_pieces(plan, call), step, (), plan.axis)[1]


def _pieces(plan: PairPlan, call: PairCall):
    return cut(call.student.hidden.shape[plan.axis], plan.chunk)


def _plain(plan: PairPlan, call: PairCall) -> Array:
    """Sides in float32 from the start, so that JAX adds the gradients of chunks and devices in it; recomputed by chunks."""
    dtype = statistics_dtype(product_dtype(call.student))
    student, teacher = jax.tree.map(lambda x: x.astype(dtype), (call.student, call.teacher))
    call = _alike(plan, call._replace(student=student, teacher=teacher))
    student, teacher = call.student, call.teacher
    dead = _dead(call.rows, None)
    if dead is not None:
        student, teacher = (x and x._replace(hidden=_zeroed(dead, x.hidden)) for x in (student, teacher))
    return _forward_only(plan, call._replace(student=student, teacher=teacher), jax.checkpoint)


# --- gradients -------------------------------------------------------------------------------------


class OfSide(NamedTuple):
    """One thing for each array of a projection."""

    hidden: Maybe = None
    head: Maybe = None
    bias: Maybe = None


class Gradients(NamedTuple):
    """Gradients so far; None: not needed. Of a projection hidden, head and bias, of the rows one for each array of theirs.
    Heads and biases are added up in float32, the others written chunk by chunk (:func:`written_dtype`)."""

    student: OfSide
    teacher: OfSide
    rows: tuple


def _needed(primals: PairCall) -> Gradients:
    """Which are asked for, as truth values."""
    sides = [OfSide() if side is None else OfSide(*map(is_asked, side)) for side in primals[:2]]
    return Gradients(sides[0], sides[1], tuple(map(is_asked, jax.tree.leaves(primals.rows, is_leaf=is_primal))))


def _parts(call: PairCall) -> Gradients:
    """The arrays of which :class:`Gradients` holds the gradients."""
    sides = [OfSide() if side is None else OfSide(*side) for side in call[:2]]
    return Gradients(sides[0], sides[1], tuple(jax.tree.leaves(call.rows)))


def _no_gradient(needed: Gradients, call: PairCall, given: PairCall, scaled_later: bool) -> Gradients:
    wide = statistics_dtype(product_dtype(call.student))

    def added(asked, part):
        return zeros(part, wide) if asked else None

    def written(asked, part, primal):
        return zeros(part, written_dtype(part, primal, scaled_later)) if asked else None

    def of_side(asked, side, primals):
        hidden = written(asked.hidden, side.hidden, primals.hidden)
        return OfSide(hidden, added(asked.head, side.head), added(asked.bias, side.bias))

    parts, primals = _parts(call), _parts(given)
    return Gradients(
        of_side(needed.student, parts.student, primals.student),
        of_side(needed.teacher, parts.teacher, primals.teacher),
        tuple(map(written, needed.rows, parts.rows, primals.rows)),
    )


def _losses_and_gradients(plan: PairPlan, needed: Gradients, given: PairCall, g: Array | None) -> tuple[Array, Gradients]:
    """``(losses, gradients)`` for the cotangents ``g`` of the losses, None: 1, to be scaled later."""
    return _by_platform(plan, partial(_run, needed, given), _alike(plan, given), g)


def _run(needed: Gradients, given: PairCall, plan: PairPlan, call: PairCall, g: Array | None) -> tuple[Array, Gradients]:
    def step(sums, start, size, fresh):
        here = _chunk_at(plan, call, start, size)
        cotangent = None if g is None else read(g, start, size, plan.axis)
        losses, (dz, dw, of_rows) = _gradients_of_logits(plan, needed, here, cotangent, fresh)
        at, dead = (start, fresh), _dead(here.rows, cotangent)
        student = _add_products(plan, plan.student, here.student, dz, dead, sums.student, *at)
        teacher = _add_products(plan, plan.teacher, here.teacher, dw, dead, sums.teacher, *at)
        of_rows = tuple(
            None if part is None else write_fresh(x, part, start, plan.axis, fresh)
            for x, part in zip(sums.rows, of_rows, strict=True)
        )
        return Gradients(student, teacher, of_rows), losses

    sums, losses = scan_rows(_pieces(plan, call), step, _no_gradient(needed, call, given, g is None), plan.axis)
    return losses, sums


def _gradients_of_logits(plan: PairPlan, needed: Gradients, here: PairCall, g: Maybe, fresh: Maybe):
    """The losses of a chunk, and the gradients of both sides' logits and of the rows' arrays (None: not needed)."""
    rows = _with_logits(plan, here)
    if fresh is not None:
        g = _ones(plan, rows.logits) if g is None else g
        g = jnp.where(jnp.broadcast_to(fresh, g.shape), g, 0)
    own = [] if plan.teacher is None else [any(needed.teacher)]
    asked = [any(needed.student), *own, *needed.rows]  # in the order of the fields: logits, teacher, the others
    losses, (dz, *rest) = losses_and_gradients(plan.spec, asked, here.class_mask, rows, g)
    return losses, (dz, rest.pop(0) if own else None, rest)


def _ones(plan: PairPlan, logits: Array) -> Array:
    """Of the type of the losses, which vary over the axes of the logits but for the one that splits the classes."""
    ones = jnp.ones(logits.shape[:-1], logits.dtype)
    return typed_like(to_varying(ones, varying_axes(logits) - {plan.spec.axis_name}), jnp.max(logits, -1))


def _dead(rows: PairRows, cotangent: Maybe) -> Maybe:
    """Rows that add nothing: 0 * NaN of their hidden states must not reach a head."""
    dead = [] if rows.valid is None else [~rows.valid]
    dead += [x == 0 for x in (rows.row_weights, cotangent) if x is not None]
    return reduce(jnp.logical_or, dead) if dead else None


def _zeroed(dead: Array, hidden: Array) -> Array:
    return jnp.where(dead[..., None], 0, hidden)


def _add_products(plan: PairPlan, layout, here, dz, dead: Maybe, sums: OfSide, start, fresh) -> OfSide:
    """``sums`` with the products of the gradient of a side's logits."""
    if dz is None:
        return sums
    hidden, head = operands_of_product(here)
    hidden = hidden if dead is None else _zeroed(dead, hidden)
    of_logits = rounded(dz, hidden.dtype)
    to_hidden: Any = None
    if sums.hidden is not None:
        to_hidden = write_fresh(sums.hidden, hidden_gradient(layout, of_logits, here), start, plan.axis, fresh)
    return OfSide(
        to_hidden,
        None if sums.head is None else sums.head + head_gradient(layout, of_logits, transposed(hidden), head),
        None if sums.bias is None else sums.bias + bias_gradient(dz),
    )


def _as_primals(gradients: Gradients, call: PairCall, scale: Maybe = None) -> PairCall:
    """The cotangents of the arrays, each in the dtype of its primal; 0 where none was needed."""
    given = cotangents(gradients, _parts(call), scale)
    student, teacher = (None if side is None else Projection(*of) for side, of in zip(call[:2], given[:2], strict=True))
    return PairCall(student, teacher, None, jax.tree.structure(call.rows).unflatten(given.rows))


# --- a sum of losses: gradients in the forward pass ------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(plan: PairPlan, call: PairCall) -> Array:
    return jnp.sum(_by_platform(plan, _forward_only, _alike(plan, call)))


def _sum_forward(plan: PairPlan, primals: PairCall):
    call = values_of(primals)
    losses, gradients = _losses_and_gradients(plan, _needed(primals), call, None)
    return jnp.sum(losses), (filled(gradients, _parts(call)), call)


def _sum_backward(plan: PairPlan, residuals, g: Array):
    gradients, call = residuals
    return (_as_primals(gradients, call, g),)


_sum.defvjp(_sum_forward, _sum_backward, symbolic_zeros=True)


# --- losses of rows: recomputed in the backward pass -----------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(plan: PairPlan, call: PairCall) -> Array:
    return _by_platform(plan, _forward_only, _alike(plan, call))


def _losses_forward(plan: PairPlan, primals: PairCall):
    call = values_of(primals)
    return _by_platform(plan, _forward_only, _alike(plan, call)), (call, as_shapes(_needed(primals)))


def _losses_backward(plan: PairPlan, residuals, g: Array):
    call, flags = residuals
    _, gradients = _losses_and_gradients(plan, from_shapes(flags), call, g)
    return (_as_primals(gradients, call),)


_losses.defvjp(_losses_forward, _losses_backward, symbolic_zeros=True)
