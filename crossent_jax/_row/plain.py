"""Plain rows on a CPU: nothing is read but logits and labels, and few passes are made over the classes.

Any number serves as the shift of a state (``_row.state``). The label's logit is known before the row is read:

    nll = log sum_j exp(z_j - z_y),    dL/dz_j = g (exp(z_j - z_y) / sum_k exp(z_k - z_y) - [j = y])

so the pass for the maximum is spared. The label is one of the summands: nothing is lost of a small loss, and the sum is at
most v exp(nll). A row without label is taken relative to class 0; where that logit or the label's is -inf, to 0. Where the
sum of any row is not within 2**-60 and 2**60 (a loss above 41 nats, NaN), all rows are done again relative to their maxima;
the square of its inverse, in second derivatives, is a normal number within them. That is a loop of one turn or none: a
``lax.cond`` would be both of its branches under ``vmap``. What rounds is z_j - z_y, to half an ulp of at most 41: 5e-8 of
such an nll, as relative to the maximum, and 2e-6 of the row's probabilities, where that had 3e-7.

The sums are taken of parts of rows. XLA's CPU backend gives a maximum and a sum of exponentials to a library, which deals
rows out to the cores, but gives a few hundred of them to one, and takes no row of more than 32768 classes.

Milliseconds relative to the maximum and to the label, float32, two cores of an EPYC with AVX-512, memory kept between
calls (docs/on-a-cpu.md), jax 0.10.2: value (65536, 128) 5.6 and 3.7, (8192, 257) 0.85 and 0.75; value and gradient (65536,
128) 8.1 and 4.7, (8192, 257) 1.31 and 0.93, (2048, 1000) 1.26 and 0.81. Nanoseconds an element of a sum of exponentials of
(512, 50257) whole and in 29 parts: float32 0.96 and 0.34, bfloat16 1.02 and 0.57; of (64, 131072) in 8 parts 0.65 and 0.35,
0.61 and 0.60.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.dtypes import statistics_dtype
from .._jax.row_blocks import on_one_device
from .._jax.versions import sums_exponentials_at_once
from .block import Operands, Wanted, is_plain, label_fields
from .labels import label_value
from .state import Maybe, State, as_shift

LARGEST = 2.0**60  # sum of exponentials; the least is its inverse
LEAST_SIZE = 2**16  # logits that are taken relative to their labels
LONGEST_ROW, SHORTEST_PART, MANY_ROWS = 32768, 512, 512  # classes, classes, rows


def may_spare_maximum(wanted: Wanted, operands: Operands) -> bool:
    """Whether the rows are such that a CPU may take them relative to their labels, and enough of them."""
    logits = operands.logits
    possible = wanted.axis == -1 and is_plain(wanted, operands) and on_one_device(logits)
    return possible and logits.size >= LEAST_SIZE


def state_relative_to_label(wanted: Wanted, operands: Operands, keep: bool) -> tuple[State, Maybe]:
    """The state of plain rows, and the exponentials if they are to be kept."""
    logits = operands.logits
    label = label_value(jax.lax.stop_gradient(logits), operands.target, -1).astype(statistics_dtype(logits.dtype))
    shift, exp_sum, e = _shifted(keep, logits, jnp.where(label == -jnp.inf, 0, label))
    return _state(wanted, operands, shift, exp_sum), e


def state_relative_to_maximum(wanted: Wanted, operands: Operands) -> tuple[State, Array]:
    """The state of plain rows, and the exponentials, which may take the place of the logits."""
    maximum = _maximum(jax.lax.stop_gradient(operands.logits))
    exp_sum, e = _sums(True, operands.logits, as_shift(maximum))
    return _state(wanted, operands, maximum, exp_sum), e


def _state(wanted: Wanted, operands: Operands, shift: Array, exp_sum: Array) -> State:
    target_dot, target_mass = label_fields(wanted, operands, shift)
    return State(shift, exp_sum, None, target_dot, target_mass, None, None, None, None, None)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shifted(keep: bool, logits: Array, guess: Array) -> tuple[Array, Array, Maybe]:
    """``(shift, sum_j e_j, e)`` with ``e_j = exp(z_j - shift)``. The shift is ``guess``, or the maximum where that does not
    do for every row; it has no derivative."""
    exp_sum, e = _sums(keep, logits, guess)

    def again(carry):
        same, _ = jax.lax.optimization_barrier((logits, carry[1]))  # else XLA converts 16-bit logits before the loop
        maximum = _maximum(same)
        return maximum, *_sums(keep, same, as_shift(maximum)), jnp.zeros_like(carry[3])

    unfit = ~jnp.all((exp_sum > 1 / LARGEST) & (exp_sum < LARGEST))
    return jax.lax.while_loop(lambda carry: carry[3], again, (guess, exp_sum, e, unfit))[:3]


@_shifted.defjvp
def _shifted_jvp(keep, primals, tangents):
    shift, exp_sum, e = _shifted(keep, *primals)
    known = jnp.exp(primals[0].astype(shift.dtype) - as_shift(shift)[..., None]) if e is None else e
    de = known * tangents[0].astype(shift.dtype)
    return (shift, exp_sum, e), (jnp.zeros_like(shift), jnp.sum(de, -1), None if e is None else de)


def _sums(keep: bool, logits: Array, shift: Array) -> tuple[Array, Maybe]:
    """``(sum_j e_j, e)``. Exponentials that are kept are made in the logits' shape, to take their place; others in that of
    the sum, to be added up unwritten."""
    if keep:
        e = jnp.exp(logits.astype(shift.dtype) - shift[..., None])
        return _of_rows(jnp.sum, e), e
    count = parts_of_a_row(logits)
    of_parts = shift if count == 1 else jnp.repeat(shift.reshape(-1), count, total_repeat_length=count * shift.size)
    e = jnp.exp(_parts(logits).astype(shift.dtype) - of_parts[..., None])
    return _of_parts(jnp.sum, e, logits), None


def _maximum(logits: Array) -> Array:
    return _of_rows(jnp.max, logits).astype(statistics_dtype(logits.dtype))


def _of_rows(reduction: Callable, x: Array) -> Array:
    return _of_parts(reduction, _parts(x), x)


def _of_parts(reduction: Callable, parts: Array, x: Array) -> Array:
    """``parts``: of the shape of those of ``x``."""
    count, each = parts_of_a_row(x), reduction(parts, -1)
    return each if count == 1 else reduction(each.reshape(*x.shape[:-1], count), -1)


def _parts(x: Array) -> Array:
    """The parts of rows as rows, which XLA's library takes in half the time of a third axis."""
    count = parts_of_a_row(x)
    return x if count == 1 else x.reshape(-1, x.shape[-1] // count)


def parts_of_a_row(x: Array) -> int:
    """Into how many equal parts the classes of a row are cut for its sums: the fewest that make many rows, none too long; 1
    where the rows are many and short, may be on several devices, or the classes have no such divisor."""
    *batch, classes = x.shape
    rows = math.prod(batch)
    if not (sums_exponentials_at_once() and on_one_device(x)) or (rows >= MANY_ROWS and classes <= LONGEST_ROW):
        return 1
    least = max(-(-MANY_ROWS // max(1, rows)), -(-classes // LONGEST_ROW))
    return next((k for k in range(least, classes // SHORTEST_PART + 1) if classes % k == 0), 1)
