"""One chunk of rows of a projection: its logits, its state, and what it adds to the gradients.

With dz = dL/dz from the same ``block_gradient`` that the losses of logits use,

    dx = dz W^T        dW = sum over chunks of x^T dz        db = sum over rows of dz

dW, db and every other sum over chunks and over devices are float32; dz is cast to the dtype of the product after the one-hot
was subtracted in float32. A row without cotangent enters x^T dz as 0, so that it adds nothing to dW even if its hidden state
is NaN.

On a CPU the classes of a large chunk are taken a block at a time, in the cache: the state is merged over blocks, and a
block's dz is used for both products and dropped. Milliseconds of value and gradient on two cores with 1 MiB of L2 each (jax
0.10.2, medians), by the float32 logits of a block; "whole" is all of a chunk:

| (n, d, v) | chunk | 1/2 MiB | 2 MiB | 4 MiB | whole | bare products |
|---|---|---|---|---|---|---|
| float32 (4096, 64, 4096) | 2 MiB | 36 | 24 | | 24 | 20 |
| float32 (2048, 64, 16384) | 8 MiB | 68 | 55 | 55 | 42 | 39 |
| float32 (1024, 64, 65536) | 32 MiB | 170 | 141 | 132 | 141 | 111 |
| float32 (1024, 256, 65536) | 32 MiB | 403 | 365 | 387 | 402 | 454 |
| bfloat16 (2048, 64, 16384) | 8 MiB | 60 | 43 | 40 | 37 | 32 |
| bfloat16 (1024, 64, 65536) | 32 MiB | 152 | 108 | 110 | 139 | 93 |
| bfloat16 (1024, 256, 65536) | 32 MiB | 297 | 252 | 247 | 301 | 363 |

Elsewhere all classes are one block, and dz is made once, in the dtype of the products: a compiler of TPUs forms it inside
both products if it may, which costs the exponential once more and, says its profiler, more cycles on v5e (fewer on v6e).
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.differentiated import cotangents, is_asked, written_dtype, zeros
from .._jax.dtypes import statistics_dtype
from .._jax.pieces import Pieces, add, cut, read, scan, write, write_fresh
from .._jax.versions import is_split, to_varying, typed_like, varying_axes
from .._row.block import Operands, Wanted, is_soft
from .._row.labels import local_index
from .._row.state import NO_CLASS, Maybe, State, merge
from ..backends.record import Backend
from .projection import (
    Layout,
    Projection,
    bias_gradient,
    classes_of,
    head_gradient,
    hidden_gradient,
    operands_of_product,
    piece_logits,
    product_dtype,
    rounded,
    transposed,
)


class Blocks(NamedTuple):
    """How many classes of a chunk are taken at a time, for its state and for its gradient."""

    state: int
    gradient: int


class Plan(NamedTuple):
    """The static half of a fused call. Chunks run along the rows' last axis, ``axis``: ``chunk`` of it at a time, and all of
    the axis before it (if there is one), so that a batch axis split over devices stays where it is. ``blocks``: those on a
    CPU."""

    backend: Backend
    wanted: Wanted
    layout: Layout
    axis: int
    chunk: int
    blocks: Blocks


class Fused(NamedTuple):
    """The arrays of a fused call; ``operands.logits`` is None. Rows are (n,) or (outer, inner)."""

    projection: Projection
    operands: Operands


def by_platform(plan: Plan, function: Callable, fused: Fused, *arguments):
    """``function(plan, fused, *arguments)`` with the plan's blocks on a CPU, and one block of all classes elsewhere, or
    where the type of the head says that its classes are split over devices."""
    if is_split(fused.projection.head, plan.layout.vocab_axis):
        return function(in_one_block(plan, fused), fused, *arguments)
    whole = partial(function, in_one_block(plan, fused))
    return jax.lax.platform_dependent(fused, *arguments, cpu=partial(function, plan), default=whole)


def in_one_block(plan: Plan, fused: Fused) -> Plan:
    """The plan with all classes in one block."""
    classes = classes_of(plan.layout, fused.projection)
    return plan._replace(blocks=Blocks(classes, classes))


def chunks_of(plan: Plan, fused: Fused) -> Pieces:
    """The rows' last axis, cut."""
    return cut(fused.projection.hidden.shape[plan.axis], plan.chunk)


# --- its logits and its state ----------------------------------------------------------------------


def chunk_at(plan: Plan, fused: Fused, start, size: int) -> Fused:
    """The rows of the chunk that begins at ``start``, with their logits."""
    here = _rows_at(plan, fused, start, size)
    return here._replace(operands=here.operands._replace(logits=piece_logits(plan.layout, here.projection)))


def chunk_state(plan: Plan, here: Fused) -> State:
    """The state of a chunk's rows."""
    blocks = cut(classes_of(plan.layout, here.projection), plan.blocks.state)
    if blocks.all == 1:
        return plan.backend.dense_state(plan.wanted, here.operands)

    def state_of(first, classes):
        state = plan.backend.dense_state(plan.wanted, _classes_at(plan, here, first, classes).operands)
        if state.argmax is None:
            return state
        return state._replace(argmax=jnp.where(state.argmax == NO_CLASS, NO_CLASS, state.argmax + first))

    def step(state, first, classes):
        return merge(state, state_of(first, classes), here.operands.temperature)

    nothing = _no_class(jax.eval_shape(lambda: state_of(0, blocks.size)), here.projection.hidden)
    return scan(blocks, step, nothing)


def _no_class(shapes: State, like: Array) -> State:
    """The identity of ``merge``: the state of a block without unmasked classes."""
    start = {"maximum": -jnp.inf, "argmax": NO_CLASS}
    row = jnp.zeros_like(like[..., 0], jnp.float32)

    def field(name, shape):
        if shape is None:
            return None
        full = jnp.full(shape.shape, start.get(name, 0), shape.dtype)
        return typed_like(to_varying(full, varying_axes(row)), row)

    return State._make(field(name, shape) for name, shape in shapes._asdict().items())


def _rows_at(plan: Plan, fused: Fused, start, size: int) -> Fused:
    def piece(x):
        return read(x, start, size, plan.axis)

    projection, operands = fused
    mask = operands.class_mask
    return Fused(
        projection._replace(hidden=piece(projection.hidden)),
        operands._replace(target=piece(operands.target), class_mask=mask if mask is None or mask.ndim == 1 else piece(mask)),
    )


def _classes_at(plan: Plan, here: Fused, first, classes: int) -> Fused:
    projection, operands = here
    if classes == classes_of(plan.layout, projection):
        return here

    def piece(x):
        return None if x is None else read(x, first, classes, x.ndim - 1)

    target = operands.target
    return Fused(
        Projection(projection.hidden, read(projection.head, first, classes, plan.layout.vocab_axis), piece(projection.bias)),
        operands._replace(
            logits=piece(operands.logits),
            target=piece(target) if is_soft(target) else local_index(target, first, classes),
            prior=piece(operands.prior),
            class_mask=piece(operands.class_mask),
        ),
    )


# --- what it adds to the gradients -----------------------------------------------------------------


class Sums(NamedTuple):
    """Gradients so far; None: not needed. ``hidden`` and ``target`` are written chunk by chunk (:func:`written_dtype`), the
    others are added up in float32."""

    hidden: Maybe
    head: Maybe
    bias: Maybe
    target: Maybe
    prior: Maybe
    temperature: Maybe


def parts_of(fused: Fused) -> Sums:
    """The arrays that :class:`Sums` holds the gradients of."""
    operands = fused.operands
    return Sums(*fused.projection, operands.target, operands.prior, operands.temperature)


def no_gradient(fused: Fused, needed: "Needed", primals: Fused, scaled_later: bool = False) -> Sums:
    """Zeros for what is needed of the gradients of ``primals``."""
    kept = Sums("hidden", "head", "bias", "target", "prior", "temperature")
    dtype = statistics_dtype(product_dtype(fused.projection))

    def start(name, part, primal):
        if part is None or not getattr(needed, name):
            return None
        return zeros(part, written_dtype(part, primal, scaled_later) if name in ("hidden", "target") else dtype)

    return jax.tree.map(start, kept, parts_of(fused), parts_of(primals), is_leaf=lambda x: x is None)


def add_gradient(plan: Plan, here: Fused, state: State, g: State, sums: Sums, start, fresh) -> Sums:
    """``sums`` with the gradients of the chunk that begins at row ``start``, from the cotangents ``g`` of its state, which
    are 0 where a row is not ``fresh``."""
    if all(part is None for part in sums):
        return sums
    layout, vocab_axis, gradient_of = plan.layout, plan.layout.vocab_axis, plan.backend.dense_gradient
    assert gradient_of is not None, "JAX differentiates this backend"
    hidden, _ = operands_of_product(here.projection)
    features = transposed(_without_dead_rows(plan.wanted, hidden, g))
    dx = None if sums.hidden is None else zeros(hidden, state.exp_sum.dtype)
    dt = None if sums.target is None else zeros(here.operands.target, sums.target.dtype)

    def step(carry, first, classes):
        sums, dx, dt = carry
        block = _classes_at(plan, here, first, classes)
        gradient = gradient_of(plan.wanted, block.operands, state, g)
        dz = rounded(gradient.logits, features.dtype)
        sums = sums._replace(
            head=_added(sums.head, lambda: head_gradient(layout, dz, features, block.projection.head), first, vocab_axis),
            bias=_added(sums.bias, lambda: bias_gradient(gradient.logits), first, 0),
            prior=_added(sums.prior, lambda: gradient.prior, first, 0),
            temperature=None if sums.temperature is None else sums.temperature + gradient.temperature,
        )
        dx = None if dx is None else dx + hidden_gradient(layout, dz, block.projection)
        dt = None if dt is None else write(dt, gradient.target, first, plan.axis + 1)
        return sums, dx, dt

    sums, dx, dt = scan(cut(classes_of(layout, here.projection), plan.blocks.gradient), step, (sums, dx, dt))
    return sums._replace(
        hidden=None if dx is None else write_fresh(sums.hidden, dx, start, plan.axis, fresh),
        target=None if dt is None else write_fresh(sums.target, dt, start, plan.axis, fresh),
    )


def _added(total: Maybe, part: Callable[[], Array], start, axis: int) -> Maybe:
    return None if total is None else add(total, part(), start, axis)


def _without_dead_rows(wanted: Wanted, hidden: Array, g: State) -> Array:
    """0 for the rows that have no cotangent: their dz is 0, and 0 * NaN must not reach the head's gradient."""
    if not wanted.rows_may_drop:
        return hidden
    fields = [g.exp_sum, g.exp_dot, g.target_dot, g.target_exp, g.prior_dot]
    dead = reduce(jnp.logical_and, [field == 0 for field in fields if field is not None])
    return jnp.where(dead[..., None], 0, hidden)


def as_primals(sums: Sums, fused: Fused, scale=None) -> Fused:
    """The cotangents of the arrays, each in the dtype of its primal; 0 where no gradient was needed."""
    s = cotangents(sums, parts_of(fused), scale)
    return Fused(
        Projection(s.hidden, s.head, s.bias),
        Operands(logits=None, target=s.target, prior=s.prior, class_mask=None, temperature=s.temperature),
    )


class Needed(NamedTuple):
    """Whether the gradient of each array of :class:`Sums` is asked for."""

    hidden: bool
    head: bool
    bias: bool
    target: bool
    prior: bool
    temperature: bool


def perturbed(primals: Fused) -> Needed:
    """Which gradients a ``custom_vjp`` with symbolic zeros is asked for."""
    return Needed(*map(is_asked, parts_of(primals)))
