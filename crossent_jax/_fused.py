"""Statistics and losses of rows whose logits are never whole: a loop over chunks of rows, in one of two schemes.

| scheme | products of a value and gradient | held between forward and backward | for |
|---|---|---|---|
| gradient in forward (:func:`fused_sum`) | 3 | the gradients | a sum of losses, when differentiated |
| recompute (:func:`linear_state`) | 4 | O(n) numbers | anything of each row |
| forward only (either, not differentiated) | 1 | nothing | evaluation |

A chunk's logits z = x W + b exist once, for the state (``_block``). With dz = dL/dz from the same ``block_gradient`` that
the losses of logits use, the gradients are

    dx = dz W^T        dW = sum over chunks of x^T dz        db = sum over rows of dz

dW, db and every other sum over chunks are float32; dz is cast to the dtype of the product, after the one-hot was subtracted
in float32.

On a CPU, dz is formed for a block of classes at a time, used for both products while it is in the cache, and dropped; so are
a block's part of the head and of dW. Milliseconds of value and gradient on two cores, jax 0.10.2, and temporaries in MiB:

| (n, d, v) | whole | blocks of 2048 | bare products |
|---|---|---|---|
| float32 (1024, 256, 65536) | 437, 96 | 359, 37 | 427, 96 |
| bfloat16 (1024, 1024, 16384) | 365, 132 | 299, 117 | 400, 136 |
| float32 (2048, 64, 16384) | 79, 12 | 87, 10 | 68, 12 |

Elsewhere all classes are one block: compilers of TPUs form dz inside the products, and on a GPU slices of the head would be
copies.

Gradient in forward: a sum of losses has one number as its cotangent, so the gradients for cotangent 1 can be computed while
the logits exist, and the backward pass multiplies them. ``jax.vjp`` of the losses of a chunk, as a function of its state,
gives the cotangents of the state; the loss is plain ``jax.numpy`` and no option of it is written here. What is not
differentiated (a frozen head, frozen hidden states) is skipped.

A row without cotangent gives 0 to dW even if its hidden state is NaN: it enters that product as 0.
"""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._block import Operands, Wanted, is_soft, statistics_dtype
from ._compat import is_split, to_varying, typed_like, varying_axes
from ._core import Maybe, State
from ._labels import local_index
from ._pieces import Pieces, add, cut, read, scan, write
from ._projection import (
    Layout,
    Projection,
    bias_gradient,
    classes_of,
    head_gradient,
    hidden_gradient,
    operands_of_product,
    piece_logits,
    product_dtype,
    transposed,
)
from ._sharding import merge_shards
from ._vjp import mapped_together
from .backends.record import Backend


class Plan(NamedTuple):
    """The static half of a fused call. Chunks run along the rows' last axis, ``axis``: ``chunk`` of it at a time, and all of
    the axis before it (if there is one), so that a batch axis split over devices stays where it is. ``block``: classes in a
    block of dz; all of them where the compiler forms dz inside the products."""

    backend: Backend
    wanted: Wanted
    layout: Layout
    axis: int
    chunk: int
    block: int


class Fused(NamedTuple):
    """The arrays of a fused call; ``operands.logits`` is None. Rows are (n,) or (outer, inner)."""

    projection: Projection
    operands: Operands


# --- recompute: the state of every row -------------------------------------------------------------


def linear_state(plan: Plan, fused: Fused) -> State:
    """The state of every row: the definition where the backend has no gradient of its own, else with the fused one."""
    if plan.backend.dense_gradient is None:
        return _states(plan, _in_float32(fused), jax.checkpoint)
    return _opaque_state(plan, fused)


def _in_float32(fused: Fused) -> Fused:
    """Hidden and head cast once, so that the transpose is one cast: JAX adds the chunks' gradients in that dtype."""
    dtype = statistics_dtype(product_dtype(fused.projection))
    return fused._replace(projection=jax.tree.map(lambda x: x.astype(dtype), fused.projection))


def _states(plan: Plan, fused: Fused, wrap: Callable = lambda f: f) -> State:
    def step(carry, start, size):
        return carry, wrap(lambda: _chunk(plan, fused, start, size)[1])()

    return scan(_chunks(plan, fused), step, (), plan.axis)[1]


def _chunk(plan: Plan, fused: Fused, start, size: int) -> tuple[Fused, State]:
    """The rows of a chunk, with their logits, and their state."""
    here = _with_logits(plan, _rows_at(plan, fused, start, size))
    return here, plan.backend.dense_state(plan.wanted, here.operands)


def _with_logits(plan: Plan, here: Fused) -> Fused:
    z = piece_logits(plan.layout, here.projection)
    return here._replace(operands=here.operands._replace(logits=z))


def _by_platform(plan: Plan, function: Callable, fused: Fused, *arguments):
    """``function(plan, fused, *arguments)`` with the plan's blocks on a CPU, and one block of all classes elsewhere, or where
    the type of the head says that its classes are split over devices."""
    whole = partial(function, plan._replace(block=classes_of(plan.layout, fused.projection)))
    if is_split(fused.projection.head, plan.layout.vocab_axis):
        return whole(fused, *arguments)
    return jax.lax.platform_dependent(fused, *arguments, cpu=partial(function, plan), default=whole)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _opaque_state(plan: Plan, fused: Fused) -> State:
    return mapped_together(_states(plan, fused))


def _state_forward(plan: Plan, primals: Fused):
    fused, needed = _values(primals), _perturbed(primals)
    state = mapped_together(_states(plan, fused))
    return state, (fused, state, needed)


def _state_backward(plan: Plan, residuals, cotangents: State):
    fused, states, needed = residuals
    g = _cotangents(cotangents, states)
    plan = plan._replace(wanted=plan.wanted._replace(entropy=g.exp_dot is not None))
    if g.prior_dot is None:
        fused = fused._replace(operands=fused.operands._replace(prior=None))
        needed = dataclasses.replace(needed, prior=False)

    def sums_of(plan, fused, states, g):
        def step(sums, start, size):
            here = _with_logits(plan, _rows_at(plan, fused, start, size))
            state, g_here = jax.tree.map(lambda field: read(field, start, size, plan.axis), (states, g))
            return _add_gradient(plan, here, state, g_here, sums, start), ()

        return scan(_chunks(plan, fused), step, _no_gradient(fused, needed), plan.axis)[0]

    return (_as_primals(_by_platform(plan, sums_of, fused, states, g), fused, 1),)


_opaque_state.defvjp(_state_forward, _state_backward, symbolic_zeros=True)


def _cotangents(cotangents: State, states: State) -> State:
    """None for the optional fields that JAX knows have no cotangent, so that their terms are left out; else arrays."""
    given = {name: None if _is_zero(g) else g for name, g in cotangents._asdict().items()}
    given |= {"maximum": None, "argmax": None}
    always = ["exp_sum", "target_dot", "target_mass"] + (["prior_mass"] if given["prior_dot"] is not None else [])
    zeros = {name: jnp.zeros_like(getattr(states, name)) for name in always if given[name] is None}
    return State(**given | zeros)


def _is_zero(cotangent) -> bool:
    return cotangent is None or isinstance(cotangent, jax.custom_derivatives.SymbolicZero)


# --- gradient in forward: a sum of losses ----------------------------------------------------------


class Loss(NamedTuple):
    """The static half of a loss: ``losses(state, rows, shared)`` gives the weighted losses of rows from
    whole rows' states; ``axis_name``: the mesh axis over which the classes are split."""

    losses: Callable[[State, Any, Any], Array]
    axis_name: str | None

    def __call__(self, state: State, rows: Any, shared: Any, classes: int) -> Array:
        return self.losses(merge_shards(state, self.axis_name, classes), rows, shared)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused_sum(plan: Plan, loss: Loss, fused: Fused, rows: Any, shared: Any) -> Array:
    """The sum of the losses of all rows. ``rows``: arrays with the rows' axes first, read with the rows; ``shared``: arrays
    that every row sees. Differentiable in every floating array."""

    def step(carry, start, size):
        here, state = _chunk(plan, fused, start, size)
        row = jax.tree.map(lambda x: read(x, start, size, plan.axis), rows)
        return carry, loss(state, row, shared, classes_of(plan.layout, here.projection))

    return jnp.sum(scan(_chunks(plan, fused), step, (), plan.axis)[1])


def _sum_forward(plan: Plan, loss: Loss, fused: Fused, rows: Any, shared: Any):
    fused, needed = _values(fused), _perturbed(fused)
    plan = plan._replace(wanted=plan.wanted._replace(gradient_follows=True))
    total, *gradients = _by_platform(plan, partial(_sum_and_gradients, loss, needed), fused, _values(rows), _values(shared))
    return total, (*gradients, jax.tree.map(lambda x: DType(x.dtype), fused))


def _sum_and_gradients(loss: Loss, needed: "Needed", plan: Plan, fused: Fused, rows: Any, shared: Any):
    """``(sum, gradients of the fused arrays, of rows, of shared)``."""
    classes = classes_of(plan.layout, fused.projection)

    def step(carry, start, size):
        sums, shared_sums = carry
        here, state = _chunk(plan, fused, start, size)
        row = jax.tree.map(lambda x: read(x, start, size, plan.axis), rows)
        losses, pull = _floating_vjp(lambda *args: loss(*args, classes), state, row, shared)
        g, g_row, g_shared = pull(to_varying(jnp.ones_like(losses), varying_axes(losses)))
        sums = _add_gradient(plan, here, state, g, sums, start)
        return (sums, jax.tree.map(jnp.add, shared_sums, g_shared)), (losses, g_row)

    carry = _no_gradient(fused, needed), jax.tree.map(lambda x: _zeros(x, x.dtype), _floating(shared))
    (sums, g_shared), (losses, g_rows) = scan(_chunks(plan, fused), step, carry, plan.axis)
    return jnp.sum(losses), sums, g_rows, g_shared


def _sum_backward(plan: Plan, loss: Loss, residuals, g):
    sums, g_rows, g_shared, types = residuals
    scaled = partial(jax.tree.map, lambda x: (g.astype(x.dtype) * x).astype(x.dtype))
    return _as_primals(sums, types, g), scaled(g_rows), scaled(g_shared)


fused_sum.defvjp(_sum_forward, _sum_backward, symbolic_zeros=True)


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


# --- the gradient of a chunk, and its sums ---------------------------------------------------------


class Sums(NamedTuple):
    """Gradients so far; None: not needed. ``hidden`` and ``target`` are written chunk by chunk in their own dtype, the
    others are added up in float32."""

    hidden: Maybe
    head: Maybe
    bias: Maybe
    target: Maybe
    prior: Maybe
    temperature: Maybe


def _parts(fused: Fused) -> Sums:
    """The arrays that :class:`Sums` holds the gradients of."""
    operands = fused.operands
    return Sums(*fused.projection, operands.target, operands.prior, operands.temperature)


def _no_gradient(fused: Fused, needed: "Needed") -> Sums:
    kept = Sums("hidden", "head", "bias", "target", "prior", "temperature")
    dtype = statistics_dtype(product_dtype(fused.projection))

    def start(name, part):
        if part is None or not getattr(needed, name):
            return None
        return _zeros(part, part.dtype if name in ("hidden", "target") else dtype)

    return jax.tree.map(start, kept, _parts(fused), is_leaf=lambda x: x is None)


def _zeros(like: Array, dtype) -> Array:
    """Zeros of the shape, varying axes and explicit sharding of an array."""
    return typed_like(to_varying(jnp.zeros(like.shape, dtype), varying_axes(like)), like)


def _add_gradient(plan: Plan, here: Fused, state: State, g: State, sums: Sums, start) -> Sums:
    """``sums`` with the gradients of the chunk that begins at row ``start``, from the cotangents ``g`` of its state."""
    if all(part is None for part in sums):
        return sums
    layout, vocab_axis = plan.layout, plan.layout.vocab_axis
    hidden, _ = operands_of_product(here.projection)
    features = transposed(_without_dead_rows(plan.wanted, hidden, g))
    dx = None if sums.hidden is None else _zeros(hidden, state.exp_sum.dtype)
    dt = None if sums.target is None else _zeros(here.operands.target, sums.target.dtype)

    def step(carry, first, classes):
        sums, dx, dt = carry
        block = _classes_at(plan, here, first, classes)
        gradient = plan.backend.dense_gradient(plan.wanted, block.operands, state, g)
        dz = gradient.logits
        sums = sums._replace(
            head=_added(sums.head, lambda: head_gradient(layout, dz, features, block.projection.head), first, vocab_axis),
            bias=_added(sums.bias, lambda: bias_gradient(dz), first, 0),
            prior=_added(sums.prior, lambda: gradient.prior, first, 0),
            temperature=None if sums.temperature is None else sums.temperature + gradient.temperature,
        )
        dx = None if dx is None else dx + hidden_gradient(layout, dz, block.projection)
        dt = None if dt is None else write(dt, gradient.target, first, plan.axis + 1)
        return (sums, dx, dt), ()

    (sums, dx, dt), _ = scan(cut(classes_of(layout, here.projection), plan.block), step, (sums, dx, dt), 0)
    return sums._replace(
        hidden=None if dx is None else write(sums.hidden, dx, start, plan.axis),
        target=None if dt is None else write(sums.target, dt, start, plan.axis),
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

    def piece(x, axis=-1):
        return None if x is None else read(x, first, classes, axis % x.ndim)

    target = operands.target
    return Fused(
        Projection(projection.hidden, piece(projection.head, plan.layout.vocab_axis), piece(projection.bias)),
        operands._replace(
            logits=piece(operands.logits),
            target=piece(target) if is_soft(target) else local_index(target, first, classes),
            prior=piece(operands.prior),
            class_mask=piece(operands.class_mask),
        ),
    )


def _as_primals(sums: Sums, types: Fused, scale) -> Fused:
    """The cotangents of the arrays, each in the dtype of its primal."""

    def cast(total, primal):
        if total is None:
            return None
        return (scale * total.astype(jnp.promote_types(total.dtype, jnp.float32))).astype(primal.dtype)

    s = jax.tree.map(cast, sums, _parts(types), is_leaf=lambda x: x is None)
    return Fused(
        Projection(s.hidden, s.head, s.bias),
        Operands(logits=None, target=s.target, prior=s.prior, class_mask=None, temperature=s.temperature),
    )


def _chunks(plan: Plan, fused: Fused) -> Pieces:
    return cut(fused.projection.hidden.shape[plan.axis], plan.chunk)


# --- which arrays are differentiated ---------------------------------------------------------------


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Needed:
    """Whether the gradient of each array of :class:`Sums` is asked for."""

    hidden: bool
    head: bool
    bias: bool
    target: bool
    prior: bool
    temperature: bool


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DType:
    """The dtype of an array, as a leafless tree."""

    dtype: Any


def _is_primal(x) -> bool:
    return hasattr(x, "perturbed")


def _values(primals):
    return jax.tree.map(lambda x: x.value, primals, is_leaf=_is_primal)


def _perturbed(primals: Fused) -> Needed:
    return Needed(*(_is_primal(x) and x.perturbed and jnp.issubdtype(x.value.dtype, jnp.floating) for x in _parts(primals)))
