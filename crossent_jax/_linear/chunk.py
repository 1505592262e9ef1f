"""One chunk of rows of a projection: its logits, its state, and what it adds to the gradients.

With dz = dL/dz from the same ``block_gradient`` that the losses of logits use,

    dx = dz W^T        dW = sum over chunks of x^T dz        db = sum over rows of dz

dW, db and every other sum over chunks and over devices are float32; dz is cast to the dtype of the product after the one-hot
was subtracted in float32. A row without cotangent enters x^T dz as 0, so that it adds nothing to dW even if its hidden state
is NaN.

On a CPU a plain chunk (``_row.plain``) keeps its float32 exponentials where its logits were, in passes over the whole
chunk, and its gradient is made a block of classes at a time, in the cache: a block's dz is used for both products and
dropped. A second exponential of each class costs more than all these passes: 0.36 ns on one core of an EPYC with AVX-512,
where a maximum and a sum take 0.13 and dz from the exponentials 0.1. A slice of the logits or of the head is a copy, 0.27 ns
a number. Milliseconds of value and gradient on that core, memory kept between calls (docs/on-a-cpu.md; jax 0.10.2; runs
differ by 5 %):

| (n, d, v) | state in blocks, exponentials twice | now | naive formula |
|---|---|---|---|
| float32 (1024, 64, 65536) | 384 | 349 | 445 |
| float32 (2048, 256, 32768) | 1293, 128 rows | 1149, 256 rows | 1146 |
| bfloat16 (4096, 64, 4096) | 62 | 43 | 87 |
| bfloat16 (1024, 64, 65536) | 259 | 219 | 389 |
| bfloat16 (2048, 256, 32768) | 746, 128 rows | 651, 256 rows | 1054 |

Relative to the label's logit instead of the maximum a chunk's gradient would spare a pass, and hold two arrays ((1024, 64,
65536) 64 MiB for 36): what a loop may write again takes no other array's place. A value, which keeps no exponentials, is
relative to it: (1024, 64, 65536) took 0.67 of the time before on two cores, (2048, 256, 32768) 0.98.

Other chunks on a CPU make their state in blocks of classes too, merged. Elsewhere all classes are one block. On a TPU, where
nothing but its exponential is read of a class (plain losses, z-loss, focal, Poly-1, class weights, masks; a trained hidden
state and head), the pass that adds the exponentials up keeps them, in the dtype of the products and with a mark at the
label, in place of the logits, and the compiler forms dz inside both products: a pass over the logits and an exponential
less. Otherwise dz is made once, from the logits, in that dtype. Model cycles, millions, of value and gradient at (8192,
2048, 131072) in bfloat16, chunks of 1024 rows unless said (benchmarks/results/aot.jsonl has the library itself):

| | v5e | v6e |
|---|---|---|
| dz once, from the logits | 169 | 74 |
| the exponentials kept | 149 | 64 |
| and relative to a guess, where the product gives them (``_by_guess``) | 125 | 53 |
| in chunks of 2048 rows, the default | 112 | 48 |
| the exponentials kept, relative to the maximum, the last chunk apart (``_linear.fused``) | 144 | 61 |
| three bare products, all rows at once | 103 | 35 |
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.differentiated import cotangents, is_asked, written_dtype, zeros
from .._jax.dtypes import statistics_dtype
from .._jax.pieces import Pieces, add, cut, read, scan, write, write_fresh
from .._jax.versions import is_split, to_varying, typed_like, varying_axes
from .._row.block import (
    Operands,
    Wanted,
    are_exponentials_enough,
    block_state,
    gradient_of_exponentials,
    is_soft,
    marked_exponentials,
    row_maximum,
    without_cotangent,
)
from .._row.labels import local_index
from .._row.plain import LARGEST, state_relative_to_label, state_relative_to_maximum
from .._row.state import NO_CLASS, Maybe, State, as_shift, merge
from ..backends.record import Backend
from .counted import most_of_mapped
from .cuts import Blocks
from .projection import (
    Layout,
    Projection,
    Rounded,
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

GUESSED_FROM = 128  # classes, of a TPU's tile
ALIGNED, PADDED_TO = 8, 128  # elements of 16 bits on a GPU: what its products need, a tile of them


class Plan(NamedTuple):
    """The static half of a fused call on one platform. Chunks run along the rows' last axis, ``axis``: ``chunk`` of it at a
    time, and all of the axis before it (if there is one), so that a batch axis split over devices stays where it is.
    ``exponentials``: whether they are kept in place of the logits where they may be; ``marked``: whether in the dtype of the
    products, the label marked by its sign; ``padded``: whether operands are; ``last_apart``: whether the last chunk is a
    program of its own; ``by_label``: whether the state of a chunk that keeps none is relative to the label's logit;
    ``by_guess``: whether that of any chunk is relative to the maximum of a few classes."""

    backend: Backend
    wanted: Wanted
    layout: Layout
    axis: int
    chunk: int
    blocks: Blocks
    exponentials: bool = False
    marked: bool = False
    padded: bool = False
    last_apart: bool = False
    by_label: bool = False
    by_guess: bool = False


class Plans(NamedTuple):
    """The plan on a CPU, on a GPU, and on any other platform.

    A GPU's products take nothing in: dz is an array for them, whatever it is made of. Kept exponentials would be one more
    (an H100, as compiled: (16384, 4096, 151936) in bfloat16 moves 132 GB for 122, (4096, 1024, 65536) in float32 holds 1032
    MiB for 536), and so would the last chunk's part of the head's gradient."""

    cpu: Plan
    gpu: Plan
    tpu: Plan


class Fused(NamedTuple):
    """The arrays of a fused call; ``operands.logits`` is None. Rows are (n,) or (outer, inner)."""

    projection: Projection
    operands: Operands


def by_platform(plans: Plans, function: Callable, fused: Fused, *arguments):
    """``function(plan, fused, *arguments)`` with the plan of the platform compiled for, or the last one where the type of
    the head says that its classes are split over devices."""
    if is_split(fused.projection.head, plans.tpu.layout.vocab_axis):
        return function(plans.tpu, fused, *arguments)
    on_cpu, on_gpu, elsewhere = (partial(function, plan) for plan in plans)
    return jax.lax.platform_dependent(fused, *arguments, cpu=on_cpu, cuda=on_gpu, rocm=on_gpu, default=elsewhere)


def wants_padding(fused: Fused) -> bool:
    """16-bit products of a GPU read 16 bytes at a time: for any other size XLA pads copies of head, dz and the
    head's gradient inside every chunk."""
    odd = any(size % ALIGNED for size in fused.projection.head.shape)
    return odd and product_dtype(fused.projection).itemsize == 2 and may_be_padded(fused)


def may_be_padded(fused: Fused) -> bool:
    """Not where an array of all rows and classes would have to be copied."""
    target, mask = fused.operands.target, fused.operands.class_mask
    return not is_soft(target) and (mask is None or mask.ndim == 1)


def padded(plan: Plan, fused: Fused) -> Fused:
    """With features of 0 and masked classes appended, once and outside the loop, where the plan says so."""
    if not plan.padded:
        return fused
    projection, operands = fused
    vocab_axis, features, classes = plan.layout.vocab_axis, plan.layout.feature_axis, classes_of(plan.layout, projection)
    bias = jnp.zeros(classes, plan.layout.logits_dtype) if projection.bias is None else projection.bias
    head = _lengthened(_lengthened(projection.head, vocab_axis, PADDED_TO), features, PADDED_TO)
    return Fused(
        Projection(_lengthened(projection.hidden, -1, PADDED_TO), head, _lengthened(bias, 0, PADDED_TO, -jnp.inf)),
        operands._replace(
            prior=None if operands.prior is None else _lengthened(operands.prior, 0, PADDED_TO),
            class_mask=None if operands.class_mask is None else _lengthened(operands.class_mask, 0, PADDED_TO, False),
        ),
    )


def _lengthened(x: Array, axis: int, multiple: int, value: float = 0) -> Array:
    width = [(0, 0)] * x.ndim
    width[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, width, constant_values=value)


def unpadded(sums: "Sums", fused: Fused) -> "Sums":
    """The gradients of what was not appended."""

    def cut_to(gradient, part):
        if gradient is None or gradient.shape == part.shape:
            return gradient
        return jax.lax.slice(gradient, [0] * part.ndim, part.shape)

    return Sums(*(cut_to(gradient, part) for gradient, part in zip(sums, parts_of(fused), strict=True)))


def chunks_of(plan: Plan, fused: Fused) -> Pieces:
    """The rows' last axis, cut."""
    return cut(fused.projection.hidden.shape[plan.axis], plan.chunk)


# --- its logits and its state ----------------------------------------------------------------------


def chunk_at(plan: Plan, fused: Fused, piece: Callable[[Array], Array]) -> Fused:
    """The rows of a chunk, with their logits; ``piece`` takes them from an array of all rows."""
    return _with_logits(plan, _rows_at(fused, piece))


def chunk_state(plan: Plan, here: Fused) -> State:
    """The state of a chunk's rows."""
    if plan.by_guess:
        return relative_to_larger_label(_by_guess(plan, False, _without_logits(here))[0])
    blocks = _cut_classes(plan, here, plan.blocks.state)
    if blocks.all == 1 and plan.by_label:
        return state_relative_to_label(plan.wanted, here.operands, keep=False)[0]
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


def _cut_classes(plan: Plan, here: Fused, size: int | None) -> Pieces:
    classes = classes_of(plan.layout, here.projection)
    return cut(classes, size or classes)


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


def _rows_at(fused: Fused, piece: Callable[[Array], Array]) -> Fused:
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


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_guess(plan: Plan, keep: bool, here: Fused) -> tuple[State, Maybe]:
    """The state relative to the maximum of a few classes, and the marked exponentials if they are kept. That maximum is
    known before the logits are, so that their product gives exponentials and sums, and none is written. Any shift serves a
    state; this one belongs to a class, so no sum is less than 1. Where the sum of a row is not within ``LARGEST`` (a logit
    41 nats above those classes, NaN, no class), the chunk is done again relative to its maximum, with two more products, in
    a loop of one turn or none."""

    def again(carry):
        out, unfit = carry
        same, _ = jax.lax.optimization_barrier((here, out))  # products of its own, which a compiler does not share
        maximum = row_maximum(plan.wanted, _with_logits(plan, same).operands)
        same, maximum = jax.lax.optimization_barrier((same, maximum))
        return _relative_to(plan, keep, maximum, same), unfit & False

    few = _classes_at(plan, here, 0, min(GUESSED_FROM, classes_of(plan.layout, here.projection)))
    guess = as_shift(row_maximum(plan.wanted, _with_logits(plan, few).operands))
    out = _relative_to(plan, keep, guess, here)
    unfit = most_of_mapped(~jnp.all((out[0].exp_sum > 1 / LARGEST) & (out[0].exp_sum < LARGEST)))
    return jax.lax.while_loop(lambda carry: carry[1], again, (out, unfit))[0]


@_by_guess.defjvp
def _by_guess_jvp(plan, keep, primals, tangents):
    """Nothing differentiates a loop of unknown length, and the shift has no derivative."""
    out = _by_guess(plan, keep, *primals)
    return out, jax.jvp(partial(_relative_to, plan, keep, out[0].maximum), primals, tangents)[1]


def _relative_to(plan: Plan, keep: bool, shift: Array, here: Fused) -> tuple[State, Maybe]:
    here = _with_logits(plan, here)
    state = block_state(plan.wanted, here.operands, shift)
    return _with_marked(plan, here, state) if keep else (state, None)


def relative_to_larger_label(state: State) -> State:
    """A state by guess relative to the label's logit where that is larger. The loss of a confident row is then one small
    number; before, it is the difference of two of up to 41, which round to 2e-6."""
    above = jax.lax.stop_gradient(jnp.where(state.target_dot > 0, state.target_dot, 0))
    return state._replace(
        maximum=state.maximum + above, exp_sum=jnp.exp(-above) * state.exp_sum, target_dot=state.target_dot - above
    )


def _with_logits(plan: Plan, here: Fused) -> Fused:
    return here._replace(operands=here.operands._replace(logits=piece_logits(plan.layout, here.projection)))


def _without_logits(here: Fused) -> Fused:
    return here._replace(operands=here.operands._replace(logits=None))


# --- what it adds to the gradients -----------------------------------------------------------------


def keeps_exponentials(plan: Plan, fused: Fused, needed: "Needed") -> bool:
    """Whether the gradient of a chunk is made from its exponentials: where these are enough, and rounded to no fewer
    exponents than they have (float16 has)."""
    others = needed._replace(hidden=False, head=False)
    possible = not any(others) and not (plan.marked and product_dtype(fused.projection) == jnp.float16)
    return plan.exponentials and possible and are_exponentials_enough(plan.wanted, fused.operands)


def with_exponentials(plan: Plan, here: Fused) -> tuple[Fused, State]:
    """The chunk with its exponentials in place of its logits, and the state of these."""
    if not plan.marked:
        state, kept = state_relative_to_maximum(plan.wanted, here.operands)
    elif plan.by_guess:
        state, kept = _by_guess(plan, True, _without_logits(here))
    else:
        state, kept = _with_marked(plan, here, chunk_state(plan, here))
    return here._replace(operands=here.operands._replace(logits=kept)), state


def _with_marked(plan: Plan, here: Fused, state: State) -> tuple[State, Array]:
    """Held together, so that one pass over the logits makes both."""
    kept = marked_exponentials(plan.wanted, here.operands, state).astype(product_dtype(here.projection))
    return jax.lax.optimization_barrier((state, kept))


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
    are 0 where a row is not ``fresh``. Its logits are exponentials where the plan says so."""
    if all(part is None for part in sums):
        return sums
    layout, vocab_axis = plan.layout, plan.layout.vocab_axis
    hidden, _ = operands_of_product(here.projection)
    features = transposed(_without_dead_rows(plan.wanted, hidden, g))
    dx = None if sums.hidden is None else zeros(hidden, state.exp_sum.dtype)
    dt = None if sums.target is None else zeros(here.operands.target, sums.target.dtype)

    def step(carry, first, classes):
        sums, dx, dt = carry
        block = _classes_at(plan, here, first, classes)
        gradient, dz = _gradient(plan, block.operands, state, g, features.dtype)
        sums = sums._replace(
            head=_added(sums.head, lambda: head_gradient(layout, dz, features, block.projection.head), first, vocab_axis),
            bias=_added(sums.bias, lambda: bias_gradient(gradient.logits), first, 0),
            prior=_added(sums.prior, lambda: gradient.prior, first, 0),
            temperature=None if sums.temperature is None else sums.temperature + gradient.temperature,
        )
        dx = None if dx is None else dx + hidden_gradient(layout, dz, block.projection)
        dt = None if dt is None else write(dt, gradient.target, first, plan.axis + 1)
        return sums, dx, dt

    sums, dx, dt = scan(_cut_classes(plan, here, plan.blocks.gradient), step, (sums, dx, dt))
    return sums._replace(
        hidden=None if dx is None else write_fresh(sums.hidden, dx, start, plan.axis, fresh),
        target=None if dt is None else write_fresh(sums.target, dt, start, plan.axis, fresh),
    )


def _gradient(plan: Plan, operands: Operands, state: State, g: State, dtype) -> tuple[Operands, Rounded]:
    """The gradients of the operands, and that of the logits in the dtype of the products."""
    if plan.exponentials:
        dz = gradient_of_exponentials(plan.wanted, operands, state, g, plan.marked)
        return operands._replace(logits=dz), Rounded(dz.astype(dtype)) if plan.marked else rounded(dz, dtype)
    assert plan.backend.dense_gradient is not None, "JAX differentiates this backend"
    gradient = plan.backend.dense_gradient(plan.wanted, operands, state, g)
    return gradient, rounded(gradient.logits, dtype)


def _added(total: Maybe, part: Callable[[], Array], start, axis: int) -> Maybe:
    return None if total is None else add(total, part(), start, axis)


def _without_dead_rows(wanted: Wanted, hidden: Array, g: State) -> Array:
    """0 for the rows that have no cotangent: their dz is 0, and 0 * NaN must not reach the head's gradient."""
    if not wanted.rows_may_drop:
        return hidden
    return jnp.where(without_cotangent(g)[..., None], 0, hidden)


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
