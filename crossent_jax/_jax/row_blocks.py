"""Rows a few at a time: a block of rows that stays in a CPU's cache, in place of passes over memory.

A loop has a price: slices are copied in, results are set to 0 first and written by one thread. It is paid back where whole
arrays would leave the cache, or be fresh pages of memory at each call. Value and gradient over the time of the log_softmax
formula (jax 0.10.2, two cores of a Xeon with AMX); MiB are those of one float32 array:

| (n, v) | MiB | KL whole | KL in blocks | Jensen-Shannon whole | Jensen-Shannon in blocks |
|---|---|---|---|---|---|
| float32 (2048, 257) | 2 | | | 0.86 | 1.14 |
| float32 (4096, 257), (1000, 1000) | 4 | 0.81 | 1.04 | 0.85 | 1.05 |
| float32 (8192, 257) | 8 | 0.71 | 0.92 | 0.80 | 0.54 |
| float32 (16384, 257) | 16 | 0.85 | 0.71 | | |
| bfloat16 (4096, 257) | 4 | 0.55 | 0.50 | 0.36 | 0.35 |
| bfloat16 (8192, 257) | 8 | 0.37 | 0.32 | 0.62 | 0.38 |

The KL divergence holds two arrays beside its gradient, the others five. Losses of labels by the same rule, value and
gradient over that of all rows at once, (4096, 4099) and (512, 32768), jax 0.10.2 on two cores of an EPYC (AVX2): label
smoothing 0.76 and 0.63 in float32, 0.52 and 0.53 in bfloat16; every option together 0.68 and 0.66, 0.57 and 0.32. At
(1024, 1000), where a loop would cost 1.0 to 1.5 times as much, the rows stay whole.

Not with several devices: the compiler may have split the rows over them, which types do not show, and would gather them. Nor
where the number of rows is a symbol, of which nobody knows whether it is large.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .pieces import is_known, read, write
from .versions import explicit_sharding, varying_axes

BLOCK_BYTES = 2**20  # of the float32 logits of a block
HELD_BYTES = 11 * 2**18  # of all float32 arrays that a block holds: larger blocks are 5 % faster, but hold 5 MiB
WHOLE_BYTES = 24 * 2**20  # of all arrays that are held where rows go through at once


def by_rows(function: Callable, shared: Any, rows: Any, once: Any, logits: jax.Array, held: int) -> Any:
    """``results, sums = function(shared, rows, once)``: numbers of each row, and sums over all rows; on a CPU, where the
    arrays held would be large, of a block of rows after another. See :func:`in_blocks` and :func:`over_blocks`."""
    if not in_blocks(logits, held):
        return function(shared, rows, once)
    by_blocks = partial(over_blocks, function, logits.shape, held)
    return jax.lax.platform_dependent(shared, rows, once, cpu=by_blocks, default=function)


def in_blocks(logits: jax.Array, held: int) -> bool:
    """Whether the rows of ``logits``, whose classes are last, go through in more than one block. ``held``: how many float32
    arrays of their size XLA's CPU backend would hold otherwise, beside the converted ones of 16-bit logits."""
    if held == 0 or not on_one_device(logits):
        return False
    converted = 2 if logits.dtype.itemsize == 2 else 0
    return 4 * (held + converted) * logits.size > WHOLE_BYTES and logits.size > logits.shape[-1]


def on_one_device(logits: jax.Array) -> bool:
    """Whether all rows, a number of them, are surely on one device."""
    split = explicit_sharding(logits) is not None or varying_axes(logits) or several_devices()
    return not split and is_known(logits.size)


def several_devices() -> bool:
    """Whether the process has more than one."""
    return jax.device_count() > 1


def over_blocks(function: Callable, shape: tuple[Any, ...], held: int, shared: Any, rows: Any, once: Any) -> Any:
    """:func:`by_rows`, in blocks. ``shape`` is that of the logits; arrays of ``rows`` and ``once``, and those of ``shared``
    of the logits' rank, begin with its axes of rows. Blocks are as equal as can be, and the first one overlaps the last two,
    which write its rows anew: one program. There ``once`` is 0, so that no row is added to the sums twice."""
    *batch, classes = shape
    leaves, treedef = jax.tree.flatten(shared)
    of_rows = [leaf if leaf.ndim == len(shape) else None for leaf in leaves]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), (of_rows, rows, once))

    def of_block(of_rows, rows, once):
        whole = [leaf if own is None else own for leaf, own in zip(leaves, of_rows, strict=True)]
        return function(treedef.unflatten(whole), rows, once)

    block_bytes = min(BLOCK_BYTES, HELD_BYTES // held)
    results, sums = _loop(of_block, flat, max(1, block_bytes // (4 * classes)))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results), sums


def _loop(function: Callable, arrays: tuple[Any, Any, Any], most: int) -> Any:
    """``function(of_rows, rows, once)`` of blocks of at most so many rows. Each row's result depends on that row alone."""
    length = jax.tree.leaves(arrays)[0].shape[0]
    count = -(-length // most)
    size = -(-length // count)
    overlap = count * size - length

    def block_at(index):
        start = jnp.where(index == 0, length - size, (index - 1) * size)
        of_rows, rows, once = jax.tree.map(lambda x: read(x, start, size, 0), arrays)
        own = (index > 0) | (jnp.arange(size) >= overlap)
        once = jax.tree.map(lambda x: jnp.where(own.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), once)
        return start, *function(of_rows, rows, once)

    def step(index, carry):
        start, *block = block_at(index)
        results = jax.tree.map(lambda whole, part: write(whole, part, start, 0), carry[0], block[0])
        return results, jax.tree.map(jnp.add, carry[1], block[1])

    _, results, sums = jax.eval_shape(block_at, 0)
    results = jax.tree.map(lambda x: jnp.zeros((length, *x.shape[1:]), x.dtype), results)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
    return jax.lax.fori_loop(0, count, step, (results, sums))
