"""Given logits on a TPU: the state in one reading, the gradient in one reading and one writing (``tpu_kernels.py``).

XLA reads the logits twice for the state of a plain row, and three times with every option. Asked for by its name,
``implementation="pallas_tpu"``: the kernels are compiled for every generation and run in Pallas's interpreter; they never
ran on a TPU.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._jax.pieces import is_known
from .._jax.row_blocks import on_one_device
from .._jax.versions import is_local
from .._row.block import Operands, Wanted, block_gradient, block_state, is_plain, is_soft
from .._row.state import State
from .block_sizes import block_sizes, fast_memory
from .record import Backend, Problem

LANES = 128
ROWS_OF_A_TILE = {"float32": 8, "bfloat16": 16}  # and the dtypes that a TPU's vectors have
MOST_CLASSES = 2**24  # whose indices are float32 numbers


def refusal(problem: Problem) -> str | None:
    """Why the kernels do not take a problem, or None."""
    z: Any = problem.logits
    if z is None:
        return "its kernels take given logits and their labels or soft targets"
    if str(z.dtype) not in ROWS_OF_A_TILE:
        return f"a TPU's kernels compute float32 and bfloat16 logits, not {z.dtype}"
    if jnp.result_type(float) == jnp.float64:
        return "with jax_enable_x64 a kernel's constants have 64 bits, which a TPU's vectors have not"
    if problem.axis != -1:
        return "its kernels want the classes on the last axis"
    if not is_known(z.size) or z.size == 0 or z.shape[-1] > MOST_CLASSES:
        return f"its kernels want a known number of rows and at most 2**24 classes, got {list(z.shape)}"
    if z.size // z.shape[-1] < LANES:
        return f"its kernels take {LANES} rows at a time, got {z.size // z.shape[-1]}"
    if z.ndim > 2 and z.shape[-2] % ROWS_OF_A_TILE[str(z.dtype)]:
        return f"to join the batch axes of {list(z.shape)} a TPU would copy the logits: make them (rows, classes)"
    if not (on_one_device(z) or is_local()):
        return "with several devices the compiler would gather the logits for a kernel: call it inside jax.shard_map"
    return None


def dense_state(wanted: Wanted, operands: Operands) -> State:
    """On a TPU by a kernel, elsewhere by XLA."""
    from .tpu_kernels import state  # Pallas takes a while to import

    by_kernel = partial(state, _call(wanted, operands, written=0), wanted)
    return jax.lax.platform_dependent(operands, tpu=by_kernel, default=partial(block_state, wanted))


def dense_gradient(wanted: Wanted, operands: Operands, state: State, g: State) -> Operands:
    """That of the logits by a kernel. What is summed over rows, and the gradient of soft targets, is XLA's own, which leaves
    out what nobody asks for."""
    from .tpu_kernels import gradient

    call = _call(wanted, operands, written=operands.logits.dtype.itemsize)

    def by_kernel(operands, state, g):
        of_logits = gradient(call, wanted, operands, state, g)
        return block_gradient(wanted, operands, state, g)._replace(logits=of_logits)

    return jax.lax.platform_dependent(operands, state, g, tpu=by_kernel, default=partial(block_gradient, wanted))


def _call(wanted: Wanted, operands: Operands, written: int):
    """``written``: bytes for each class of a row."""
    from .tpu_rows import Call

    logits, target, mask = operands.logits, operands.target, operands.class_mask
    read = [logits, *([target] if is_soft(target) else []), *([] if mask is None or mask.ndim == 1 else [mask])]
    of_a_class, memory = written + sum(x.dtype.itemsize for x in read), fast_memory()
    return Call(block_sizes(logits.shape[-1], of_a_class, is_plain(wanted, operands), memory), memory)


PALLAS_TPU = Backend(
    name="pallas_tpu",
    summary="kernels of a TPU for given logits, XLA elsewhere; hand-written gradient, no forward mode",
    supports=refusal,
    dense_state=dense_state,
    dense_gradient=dense_gradient,
)
