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

from .._jax.pieces import is_known
from .._jax.row_blocks import BLOCK_BYTES, over_blocks, several_devices
from .._row.block import Operands, Wanted, block_gradient, block_state
from .._row.state import State
from .record import Backend, supports_everything

LONGEST_ROW = 32768


def _state(wanted: Wanted, operands: Operands) -> State:
    if not _spills(wanted, operands):
        return block_state(wanted, operands)
    whole, by_blocks = partial(block_state, wanted), partial(_state_by_blocks, wanted)
    return jax.lax.platform_dependent(operands, cpu=by_blocks, default=whole)


def _spills(wanted: Wanted, operands: Operands) -> bool:
    logits = operands.logits
    if wanted.axis != -1 or not is_known(logits.size):
        return False
    if logits.shape[-1] <= LONGEST_ROW or 4 * logits.size <= BLOCK_BYTES:
        return False
    becomes_gradient = wanted.gradient_follows and logits.dtype.itemsize > 2
    return not becomes_gradient and not several_devices()


def _state_by_blocks(wanted: Wanted, operands: Operands) -> State:
    """The states of blocks of rows, one after another."""
    *batch, classes = operands.logits.shape
    mask = operands.class_mask
    shared = mask is None or mask.ndim == 1
    each = operands.logits, operands.target, None if shared else mask
    each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), each)

    def state_of(block):
        logits, target, own = block
        return block_state(wanted, operands._replace(logits=logits, target=target, class_mask=mask if shared else own))

    return jax.tree.map(lambda field: field.reshape(batch), over_blocks(state_of, each, classes))


XLA = Backend(
    name="xla",
    summary="compiled by XLA on every platform, hand-written gradient, no forward mode (jvp, jacfwd, linearize)",
    supports=supports_everything,
    dense_state=_state,
    dense_gradient=block_gradient,
)
