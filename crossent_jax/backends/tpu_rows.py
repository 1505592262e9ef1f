"""Passes of a TPU's kernel over rows of given arrays: one folds the classes of each row into numbers, the other writes a
number for each class.

What is computed of a block of rows and classes is the caller's: functions that are traced into the kernel. What is here is
plumbing:

- The grid goes over blocks of rows and, for each, over blocks of classes; what is known of the rows stays in fast memory.
- The last blocks hold whatever is in memory beyond the last row and class: ``Block.before`` tells the classes, and rows
  beyond the last one are not written.
- A column of numbers takes 128 lanes of memory. So numbers of rows are rows of one array in memory, and are turned into
  columns in the kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from .._jax.versions import shape_varying_like
from .._row.state import NO_CLASS, Maybe
from .block_sizes import Blocks

LANES, SUBLANES = 128, 8


class Call(NamedTuple):
    """What is static about a kernel. ``memory``: bytes of fast memory; ``interpret``: as ``pallas_call`` has it."""

    blocks: Blocks
    memory: int
    interpret: Any = False


class Read(NamedTuple):
    """What a kernel reads, and what it is of: "rows", (n,), which it gets in float32; "whole", (n, v); "classes", (v,) in 32
    bits; or "call", a number."""

    of: str
    array: Array


class Block(NamedTuple):
    """A step's part of a tree of :class:`Read`, of which it has the arrays: (rows,), (rows, classes), (1, classes), and
    numbers. ``start``: its first class; ``left``: how many there are from it on, None where a block is never too long."""

    given: Any
    start: Array
    left: Maybe

    def before(self, x: Array, beyond: float) -> Array:
        """``x`` of the classes that there are, and ``beyond`` after them."""
        if self.left is None:
            return x
        return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < self.left, x, beyond)


def folded(call: Call, name: str, given: Any, dtypes: Sequence[Any], of_block: Callable, joined: Callable) -> list[Array]:
    """Numbers of rows, of these dtypes: ``of_block(block)`` gives a list of those of a block's classes, and
    ``joined(block, before, new)`` joins them to those of the blocks before. Integers are below 2**24, or ``NO_CLASS``."""

    def kernel(read, outs, seen):
        block = read()
        new = of_block(block)

        def keep(fields):
            for ref, field in zip(seen, fields, strict=True):
                ref[...] = field[:, None]

        @pl.when(pl.program_id(1) == 0)
        def _():
            keep(new)

        @pl.when(pl.program_id(1) > 0)
        def _():
            keep(joined(block, [ref[:, 0] for ref in seen], new))

        @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
        def _():
            outs[0][...] = _as_rows([ref[...].astype(jnp.float32) for ref in seen])

    like, size = _whole(given), call.blocks.rows
    scratch = [pltpu.VMEM((size, 1), dtype) for dtype in dtypes]
    shape = shape_varying_like((_padded(len(dtypes)), like.shape[0]), jnp.float32, like)
    spec = pl.BlockSpec((shape.shape[0], size), lambda i, j: (0, i))
    (packed,) = _run(call, name, kernel, given, [shape], [spec], scratch)
    return [_as_number(row, dtype) for row, dtype in zip(packed, dtypes, strict=False)]


def mapped(call: Call, name: str, given: Any, dtypes: Sequence[Any], of_block: Callable) -> Sequence[Array]:
    """Arrays (n, v) of these dtypes: ``of_block(block)`` gives a list of a block's."""

    def kernel(read, outs, _):
        for out, x in zip(outs, of_block(read()), strict=True):
            out[...] = x.astype(out.dtype)

    like = _whole(given)
    shapes = [shape_varying_like(like.shape, dtype, like) for dtype in dtypes]
    return _run(call, name, kernel, given, shapes, [_spec(call.blocks, "whole")] * len(shapes), [])


def _is_read(x: Any) -> bool:
    return isinstance(x, Read)


def _whole(given: Any) -> Array:
    """The first array (n, v)."""
    return next(x.array for x in jax.tree.leaves(given, is_leaf=_is_read) if x.of == "whole")


def _run(call: Call, name: str, kernel: Callable, given: Any, shapes, specs, scratch) -> Sequence[Array]:
    """``kernel(read, outputs, own scratch)``; ``read()`` gives the step's :class:`Block`."""
    reads, treedef = jax.tree.flatten(given, is_leaf=_is_read)
    numbers = [x.array for x in reads if x.of == "rows"]
    others = [x for x in reads if x.of != "rows"]
    arrays = [*([_packed(numbers)] if numbers else []), *map(_as_matrix, others)]
    (n, v), blocks = _whole(given).shape, call.blocks

    def with_columns(*refs):
        inputs, outs = list(refs[: len(arrays)]), refs[len(arrays) : len(arrays) + len(shapes)]
        *own, columns = refs[len(arrays) + len(shapes) :]
        if numbers:
            packed = inputs.pop(0)

            @pl.when(pl.program_id(1) == 0)
            def _():
                columns[...] = _as_columns(packed[...])

        def read() -> Block:
            of_rows, rest = iter(range(len(numbers))), iter(inputs)
            found = [columns[:, next(of_rows)] if x.of == "rows" else _value(x.of, next(rest)) for x in reads]
            start = pl.program_id(1) * blocks.classes
            return Block(treedef.unflatten(found), start, None if v % blocks.classes == 0 else v - start)

        kernel(read, outs, own)

    of_packed = [pl.BlockSpec((arrays[0].shape[0], blocks.rows), lambda i, j: (0, i))] if numbers else []
    return pl.pallas_call(
        with_columns,
        grid=(pl.cdiv(n, blocks.rows), pl.cdiv(v, blocks.classes)),
        in_specs=[*of_packed, *(_spec(blocks, x.of) for x in others)],
        out_specs=specs,
        out_shape=shapes,
        scratch_shapes=[*scratch, pltpu.VMEM((blocks.rows, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=call.memory),
        interpret=call.interpret,
        name=f"crossent_{name}",
    )(*arrays)


def _as_matrix(x: Read) -> Array:
    return x.array if x.of == "whole" else x.array.reshape(1, -1)


def _value(of: str, ref) -> Array:
    return ref[0, 0] if of == "call" else ref[...]


def _spec(blocks: Blocks, of: str) -> pl.BlockSpec:
    return {
        "whole": pl.BlockSpec(blocks, lambda i, j: (i, j)),
        "classes": pl.BlockSpec((1, blocks.classes), lambda i, j: (0, j)),
        "call": pl.BlockSpec(memory_space=pltpu.SMEM),
    }[of]


def _padded(count: int) -> int:
    return -(-count // SUBLANES) * SUBLANES


def _packed(arrays: Sequence[Array]) -> Array:
    """Arrays of numbers of rows as rows of one, of eight at least."""
    rows = [x.astype(jnp.float32) for x in arrays]
    return jnp.stack(rows + [jnp.zeros_like(rows[0])] * (_padded(len(rows)) - len(rows)))


def _as_columns(rows: Array) -> Array:
    count, length = rows.shape
    return jnp.concatenate([rows, jnp.zeros((LANES - count, length), rows.dtype)]).T


def _as_rows(columns: list[Array]) -> Array:
    length = columns[0].shape[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, (length, LANES), 1)
    joined = jnp.zeros((length, LANES), jnp.float32)
    for k, column in enumerate(columns):
        joined = jnp.where(lane == k, column, joined)
    return joined.T[: _padded(len(columns))]


def _as_number(row: Array, dtype) -> Array:
    return row if dtype == row.dtype else jnp.where(row < 2**24, row.astype(dtype), NO_CLASS)
