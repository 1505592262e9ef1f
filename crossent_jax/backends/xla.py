"""The shared mathematics compiled by XLA, with the hand-written gradient: any platform, any shape, reverse mode.

Residuals are the operands and O(n) numbers; the backward pass recomputes the exponentials instead of keeping them.

On a CPU, rows longer than 32768 classes are taken a few at a time. XLA's reductions there write the exponentials of such
rows to memory, all of them, before they add them up; a block of rows stays in the cache. Milliseconds on two cores, jax
0.10.2:

| maximum and sum of exponentials | all rows at once | blocks of rows |
|---|---|---|
| float32 (512, 50257) | 65 | 17 |
| bfloat16 (512, 50257) | 66 | 18 |
| float32 (512, 32768) | 6.6 | 6.9 |

Not where a float32 gradient follows: the exponentials are written once anyway and become the gradient in place. Nor where
there are several devices: the compiler may have split the rows over them, which types do not show, and would gather them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .._block import Operands, Wanted, block_gradient, block_state
from .._core import State
from .record import Backend, supports_everything

LONGEST_ROW = 32768
BLOCK_BYTES = 2 * 2**20  # of the exponentials of a block


def _state(wanted: Wanted, operands: Operands) -> State:
    if not _spills(wanted, operands):
        return block_state(wanted, operands)
    whole, by_blocks = partial(block_state, wanted), partial(_state_by_blocks, wanted)
    return jax.lax.platform_dependent(operands, cpu=by_blocks, default=whole)


def _spills(wanted: Wanted, operands: Operands) -> bool:
    logits = operands.logits
    if wanted.axis != -1 or logits.shape[-1] <= LONGEST_ROW or 4 * logits.size <= BLOCK_BYTES:
        return False
    becomes_gradient = wanted.gradient_follows and logits.dtype.itemsize > 2
    return not becomes_gradient and not _several_devices()


def _several_devices() -> bool:
    return jax.device_count() > 1


def _state_by_blocks(wanted: Wanted, operands: Operands) -> State:
    """The states of blocks of rows, one after another, and of the rows that are left."""
    *batch, classes = operands.logits.shape
    rows = _each_row(lambda x: x.reshape(-1, *x.shape[len(batch) :]), operands)
    size = max(1, BLOCK_BYTES // (4 * classes))
    blocks, rest = divmod(rows.logits.shape[0], size)

    def state_from(start):
        here, start = jax.lax.optimization_barrier((rows, start))  # else XLA converts all of a 16-bit array before the loop
        return block_state(wanted, _each_row(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), here))

    parts = [jax.tree.map(jnp.ravel, jax.lax.map(state_from, size * jnp.arange(blocks)))]
    if rest:
        parts.append(block_state(wanted, _each_row(lambda x: x[-rest:], rows)))
    return jax.tree.map(lambda *fields: jnp.concatenate(fields).reshape(batch), *parts)


def _each_row(function, operands: Operands) -> Operands:
    """The function of every operand that has rows: not the prior, the temperature, or one mask for all rows."""
    mask = operands.class_mask
    if mask is not None and mask.ndim == operands.logits.ndim:
        mask = function(mask)
    return operands._replace(logits=function(operands.logits), target=function(operands.target), class_mask=mask)


XLA = Backend(
    name="xla",
    summary="compiled by XLA on every platform, hand-written gradient, no forward mode (jvp, jacfwd, linearize)",
    supports=supports_everything,
    dense_state=_state,
    dense_gradient=block_gradient,
)
