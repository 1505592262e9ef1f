"""Rows a few at a time: a block of rows that stays in a CPU's cache, in place of passes over memory.

Not with several devices: the compiler may have split the rows over them, which types do not show, and would gather them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._compat import explicit_sharding, varying_axes
from ._pieces import read, write

BLOCK_BYTES = 2**20  # of the float32 logits of a block


def in_blocks(logits: jax.Array) -> bool:
    """Whether the rows of ``logits``, whose classes are last, go through in more than one block."""
    if explicit_sharding(logits) is not None or varying_axes(logits) or several_devices():
        return False
    return 4 * logits.size > BLOCK_BYTES and logits.size > logits.shape[-1]


def several_devices() -> bool:
    """Whether the process has more than one."""
    return jax.device_count() > 1


def over_blocks(function: Callable, rows: Any, classes: int) -> Any:
    """``function(rows)``, whose results have the rows' axis first, a block after another. Blocks are as equal as can be, and
    the last one, whose start slices clamp, overlaps its neighbour: one program. Each row's result depends on that row alone.
    """
    length = jax.tree.leaves(rows)[0].shape[0]
    count = -(-length // max(1, BLOCK_BYTES // (4 * classes)))
    size = -(-length // count)
    if count == 1:
        return function(rows)

    def block_at(start):
        return function(jax.tree.map(lambda x: read(x, start, size, 0), rows))

    def step(index, results):
        start = index * size
        return jax.tree.map(lambda whole, part: write(whole, part, start, 0), results, block_at(start))

    empty = jax.tree.map(lambda x: jnp.zeros((length, *x.shape[1:]), x.dtype), jax.eval_shape(block_at, 0))
    return jax.lax.fori_loop(0, count, step, empty)
