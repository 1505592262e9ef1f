"""Plain JAX without a custom rule: every transform works (jvp, linearize, jacfwd, hessian), at the cost of memory.

This is the definition that other backends are tested against, and the remedy wherever JAX refuses forward mode.
"""

from .._block import block_state
from .record import Backend, supports_everything

REFERENCE = Backend(
    name="reference",
    summary="plain JAX, every transform including forward mode, more memory",
    supports=supports_everything,
    dense_state=block_state,
    dense_gradient=None,
)
