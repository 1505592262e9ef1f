"""Given logits on a CPU: a block of rows after another, where XLA would write arrays of the logits' size to memory.

Its CPU backend gives a maximum and a sum of exponentials to a library, which writes nothing. It cannot where there is a
select (masked classes), a hyperbolic tangent (a soft cap), float16, a row of more than 32768 classes, or a second sum over
the classes: each of these writes an array or two. The gradient is elementwise and writes itself alone, all rows at once;
what is summed over the rows beside it (for the temperature, the class weights) is a pass of its own, in blocks.

Milliseconds of the maximum and the sum of exponentials of (512, 50257), two cores, jax 0.10.2: float32 65 with all rows at
once and 17 in blocks, bfloat16 66 and 18; of (512, 32768), which the library takes, 6.6 and 6.9.

The library takes parts of long rows too, and deals rows out to the cores, but gives a few hundred of them to one. So a plain
float32 state of few or of long rows is that of their parts, merged. Two cores of an EPYC with AVX-512, memory kept, time of
the value over that in blocks: 0.59 at (256, 50257), 0.54 at (128, 65536), 0.65 at (64, 131072), 0.58 at (2048, 50257); from
512 rows of up to 32768 classes on, 1.02 to 1.04.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._jax.row_blocks import by_rows, in_blocks, over_blocks
from .._jax.versions import sums_exponentials_at_once
from .._row.block import Operands, Wanted, is_plain, is_soft
from .._row.labels import local_index
from .._row.state import State, rebase
from ..backends.record import Backend

LONGEST_ROW, SHORTEST_PART = 32768, 512  # classes
MANY_ROWS = 512


def state_by_rows(backend: Backend, wanted: Wanted, operands: Operands) -> State:
    """The backend's state."""
    parts = _parts_of_a_row(wanted, operands)
    if parts > 1:
        of_parts = partial(_state_of_parts, backend, wanted, parts)
        whole = partial(backend.dense_state, wanted)
        return jax.lax.platform_dependent(operands, cpu=of_parts, default=whole)

    def state_of(shared, rows, _):
        return backend.dense_state(wanted, Operands(*rows, *shared)), None

    rows, shared = operands[:2], operands[2:]
    return by_rows(state_of, shared, rows, None, operands.logits, _held_by_state(wanted, operands))[0]


def _parts_of_a_row(wanted: Wanted, operands: Operands) -> int:
    """Into how many equal parts a CPU cuts a row's classes: the fewest that make many rows, none too long; 1 where the rows
    are many and short, the classes have no such divisor, the exponentials become the gradient in place, or parts of 16-bit
    rows would be converted first (48 MiB at (64, 131072))."""
    logits = operands.logits
    possible = wanted.axis == -1 and is_plain(wanted, operands) and not wanted.gradient_follows
    if not possible or logits.dtype.itemsize <= 2 or not in_blocks(logits, 1) or not sums_exponentials_at_once():
        return 1
    classes = logits.shape[-1]
    rows = logits.size // classes
    if rows >= MANY_ROWS and classes <= LONGEST_ROW:
        return 1
    least = max(-(-MANY_ROWS // rows), -(-classes // LONGEST_ROW))
    return next((k for k in range(least, classes // SHORTEST_PART + 1) if classes % k == 0), 1)


def _state_of_parts(backend: Backend, wanted: Wanted, parts: int, operands: Operands) -> State:
    """The state of each part as a row of its own, joined."""
    logits, labels = operands[:2]
    classes = logits.shape[-1] // parts
    index, first = jnp.broadcast_arrays(labels.reshape(-1, 1), classes * jnp.arange(parts, dtype=labels.dtype)[None])
    own = local_index(index, first, classes).reshape(-1)
    state = backend.dense_state(wanted, Operands(logits.reshape(-1, classes), own))
    state = jax.tree.map(lambda field: field.reshape(*labels.shape, parts), state)
    maximum = jnp.max(state.maximum, -1)
    shared = jnp.broadcast_to(maximum[..., None], state.maximum.shape)
    joined = jax.tree.map(lambda field: jnp.sum(field, -1), rebase(state, shared, None))
    return joined._replace(maximum=maximum)


def gradient_by_rows(backend: Backend, wanted: Wanted, operands: Operands, state: State, g: State) -> Operands:
    """The backend's gradient."""
    gradient_by_backend = backend.dense_gradient
    assert gradient_by_backend is not None, "JAX differentiates this backend"

    def gradient_of(shared, rows, g):
        return gradient_by_backend(wanted, Operands(*rows[0], *shared), rows[1], g)

    def sums_of(shared, rows, g):
        gradient = gradient_of(shared, rows, g)
        return None, (gradient.prior, gradient.temperature)

    def elementwise_and_sums(*given):
        _, (prior, temperature) = over_blocks(sums_of, operands.logits.shape, held, *given)
        return gradient_of(*given)._replace(prior=prior, temperature=temperature)

    given = operands[2:], (operands[:2], state), g
    held = _held_by_sums(wanted, operands)
    if not in_blocks(operands.logits, held):
        return gradient_of(*given)
    return jax.lax.platform_dependent(*given, cpu=elementwise_and_sums, default=gradient_of)


def _held_by_state(wanted: Wanted, operands: Operands) -> int:
    """How many float32 arrays of the logits' size XLA's CPU backend holds."""
    if wanted.axis != -1:
        return 0
    logits = operands.logits
    if wanted.entropy or operands.prior is not None or is_soft(operands.target):
        return 2
    if operands.class_mask is not None:
        return 1
    if wanted.gradient_follows and logits.dtype.itemsize > 2:  # whose exponentials become the gradient in place
        return 0
    return int(wanted.softcap is not None or logits.dtype == "float16" or logits.shape[-1] > LONGEST_ROW)


def _held_by_sums(wanted: Wanted, operands: Operands) -> int:
    """Of the gradient; arrays of the logits' size that are summed over their rows."""
    return 2 if wanted.axis == -1 and not (operands.prior is None and operands.temperature is None) else 0
