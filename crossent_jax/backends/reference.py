"""Plain JAX without a custom rule: every transform works (jvp, linearize, jacfwd, hessian), at the cost of memory.

This is the definition that other backends are tested against, and the remedy wherever JAX refuses forward mode.
"""

from .._jax.dtypes import statistics_dtype
from .._row.block import Operands, Wanted, block_state, is_soft
from .._row.state import State
from .record import Backend, supports_everything


def _state(wanted: Wanted, operands: Operands) -> State:
    """Everything after one cast, so that its transpose is one cast: gradients add up in float32."""
    dtype = statistics_dtype(operands.logits.dtype)
    target = operands.target.astype(dtype) if is_soft(operands.target) else operands.target
    wanted = wanted._replace(differentiated_by_jax=True)
    return block_state(wanted, operands._replace(logits=operands.logits.astype(dtype), target=target))


REFERENCE = Backend(
    name="reference",
    summary="plain JAX, every transform including forward mode, more memory",
    supports=supports_everything,
    dense_state=_state,
    dense_gradient=None,
)
