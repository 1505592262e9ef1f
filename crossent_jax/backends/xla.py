"""The shared mathematics compiled by XLA, with the hand-written gradient: any platform, any shape, reverse mode.

Residuals are the operands and O(n) numbers; the backward pass recomputes the exponentials instead of keeping them, but for
plain float32 rows on a CPU, whose exponentials stand in the logits' place (``_row.plain``).
"""

from .._row.block import block_gradient, block_state
from .record import Backend, supports_everything

XLA = Backend(
    name="xla",
    summary="compiled by XLA on every platform, hand-written gradient, no forward mode (jvp, jacfwd, linearize)",
    supports=supports_everything,
    dense_state=block_state,
    dense_gradient=block_gradient,
)
