"""Given logits on a CPU: a block of rows after another, where XLA would write arrays of the logits' size to memory.

Its CPU backend gives a maximum and a sum of exponentials to a library, which writes nothing. It cannot where there is a
select (masked classes), a hyperbolic tangent (a soft cap), float16, a row of more than 32768 classes, or a second sum over
the classes: each of these writes an array or two. The gradient is elementwise and writes itself alone, all rows at once;
what is summed over the rows beside it (for the temperature, the class weights) is a pass of its own, in blocks.

Milliseconds of the maximum and the sum of exponentials of (512, 50257), two cores, jax 0.10.2: float32 65 with all rows at
once and 17 in blocks, bfloat16 66 and 18; of (512, 32768), which the library takes, 6.6 and 6.9.

Plain rows need no maximum, and a plain float32 row's exponentials become its gradient (``_row.plain``).
"""

from functools import partial

import jax

from .._jax.row_blocks import by_rows, in_blocks, over_blocks
from .._row.block import Operands, Wanted, gradient_of_exponentials, is_soft
from .._row.plain import LONGEST_ROW, may_spare_maximum, parts_of_a_row, state_relative_to_label
from .._row.state import State
from ..backends.record import Backend


def state_by_rows(backend: Backend, wanted: Wanted, operands: Operands) -> State:
    """The backend's state."""

    def state_of(shared, rows, _):
        return _state(backend, wanted, Operands(*rows, *shared)), None

    rows, shared = operands[:2], operands[2:]
    return by_rows(state_of, shared, rows, None, operands.logits, _held_by_state(wanted, operands))[0]


def _state(backend: Backend, wanted: Wanted, operands: Operands) -> State:
    whole = partial(backend.dense_state, wanted)
    if not may_spare_maximum(wanted, operands):
        return whole(operands)
    by_label = partial(state_relative_to_label, wanted, keep=False)
    return jax.lax.platform_dependent(operands, cpu=lambda operands: by_label(operands)[0], default=whole)


def keeps_exponentials(wanted: Wanted, operands: Operands) -> bool:
    """Whether a CPU keeps a plain row's exponentials for the gradient, which takes their place; those of 16-bit logits would
    be twice their size. Only where it is the default: an eager gradient is two programs, and another platform's second one
    would take the first one's exponentials for logits."""
    possible = operands.logits.dtype.itemsize > 2 and may_spare_maximum(wanted, operands)
    return possible and jax.default_backend() == "cpu"


def state_and_exponentials(backend: Backend, wanted: Wanted, operands: Operands) -> tuple[State, Operands]:
    """The state, and the operands whose logits on a CPU are the exponentials."""

    def by_label(operands):
        state, e = state_relative_to_label(wanted, operands, keep=True)
        return state, operands._replace(logits=e)

    def whole(operands):
        return backend.dense_state(wanted, operands), operands

    return jax.lax.platform_dependent(operands, cpu=by_label, default=whole)


def gradient_by_rows(backend: Backend, wanted: Wanted, operands: Operands, state: State, g: State) -> Operands:
    """The backend's gradient, from the operands of :func:`state_and_exponentials` where exponentials are kept."""
    gradient_by_backend = backend.dense_gradient
    assert gradient_by_backend is not None, "JAX differentiates this backend"
    if keeps_exponentials(wanted, operands):
        whole = partial(gradient_by_backend, wanted)
        return jax.lax.platform_dependent(operands, state, g, cpu=partial(_of_exponentials, wanted), default=whole)

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


def _of_exponentials(wanted: Wanted, operands: Operands, state: State, g: State) -> Operands:
    return Operands(gradient_of_exponentials(wanted, operands, state, g, marked=False), None)


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
    is_long = logits.shape[-1] > LONGEST_ROW and not (may_spare_maximum(wanted, operands) and parts_of_a_row(logits) > 1)
    return int(wanted.softcap is not None or logits.dtype == "float16" or is_long)


def _held_by_sums(wanted: Wanted, operands: Operands) -> int:
    """Of the gradient; arrays of the logits' size that are summed over their rows."""
    return 2 if wanted.axis == -1 and not (operands.prior is None and operands.temperature is None) else 0
