"""Kernels of a TPU for given logits: the state in one reading, the gradient in one reading and one writing.

The mathematics is traced into the kernels: ``_row.block.block_state`` of a block of rows and classes, joined to what was
seen of these rows by ``_row.state.merge``, and ``_row.block.gradient_of_logits``. What is here is plumbing:

- The grid goes over blocks of rows and, for each, over blocks of classes; the state of the rows stays in fast memory.
- A class that is masked, or beyond the last one in the last block, has a logit of -inf in the kernel. Rows beyond the last
  one are made of whatever is there, and are not written.
- A column of numbers takes 128 lanes of memory. So numbers of rows are rows of one array in memory, and are turned into
  columns in the kernel.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from .._jax.versions import shape_varying_like
from .._row.block import Operands, Wanted, block_state, gradient_of_logits, is_soft
from .._row.state import NO_CLASS, Maybe, State, merge
from .block_sizes import Blocks

LANES, SUBLANES = 128, 8


class Call(NamedTuple):
    """What is static about a kernel. ``memory``: bytes of fast memory; ``interpret``: as ``pallas_call`` has it."""

    wanted: Wanted
    blocks: Blocks
    memory: int
    interpret: Any = False


class _Given(NamedTuple):
    """What a kernel reads: numbers of rows, then arrays of (rows, classes), of (1, classes) and a number."""

    of_rows: Maybe
    logits: Any
    target: Maybe
    class_mask: Maybe
    prior: Maybe
    temperature: Maybe


def state(call: Call, operands: Operands) -> State:
    """``block_state`` of operands whose last axis is that of the classes."""
    *batch, v = operands.logits.shape
    like, treedef = jax.tree.flatten(jax.eval_shape(partial(block_state, call.wanted), operands))
    given = _given(operands, ())

    def kernel(given, out, seen, columns):
        block = _block(call, v, given, columns)
        new = block_state(call.wanted, block)
        if new.argmax is not None:
            new = new._replace(argmax=jnp.where(new.argmax == NO_CLASS, NO_CLASS, new.argmax + _start(call)))

        def keep(state):
            for ref, field in zip(seen, jax.tree.leaves(state), strict=True):
                ref[...] = field[:, None]

        @pl.when(pl.program_id(1) == 0)
        def _():
            keep(new)

        @pl.when(pl.program_id(1) > 0)
        def _():
            keep(merge(treedef.unflatten([ref[:, 0] for ref in seen]), new, block.temperature))

        @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
        def _():
            out[...] = _as_rows([ref[...].astype(jnp.float32) for ref in seen])

    rows = call.blocks.rows
    scratch = [pltpu.VMEM((rows, 1), field.dtype) for field in like]
    shape = shape_varying_like((_padded(len(like)), given.logits.shape[0]), jnp.float32, given.logits)
    packed = _run(call, "state", kernel, given, shape, pl.BlockSpec((shape.shape[0], rows), lambda i, j: (0, i)), scratch)
    fields = [_as_number(row, field.dtype).reshape(batch) for row, field in zip(packed, like, strict=False)]
    return treedef.unflatten(fields)


def gradient(call: Call, operands: Operands, state: State, g: State) -> Array:
    """``gradient_of_logits``."""
    v = operands.logits.shape[-1]
    like, treedef = jax.tree.flatten((state._replace(argmax=None), g._replace(argmax=None)))
    given = _given(operands, like)

    def kernel(given, out, _, columns):
        block = _block(call, v, given, columns)
        first = 0 if is_soft(operands.target) else 1
        fields = [columns[:, first + k] for k in range(len(like))]
        out[...] = gradient_of_logits(call.wanted, block, *treedef.unflatten(fields)).astype(out.dtype)

    shape = shape_varying_like(given.logits.shape, given.logits.dtype, given.logits)
    return _run(call, "gradient", kernel, given, shape, _of_logits(call.blocks), []).reshape(operands.logits.shape)


def _given(operands: Operands, of_rows: Any) -> _Given:
    """The operands as a kernel reads them. Labels are numbers of rows, below 2**24, so exact in float32."""
    *_, v = operands.logits.shape
    soft = is_soft(operands.target)
    of_rows = [*([] if soft else [operands.target]), *of_rows]
    mask = operands.class_mask
    return _Given(
        of_rows=_packed([x.reshape(-1) for x in of_rows]) if of_rows else None,
        logits=operands.logits.reshape(-1, v),
        target=_readable(operands.target.reshape(-1, v)) if soft else None,
        class_mask=None if mask is None else mask.reshape(-1, v).astype(jnp.int8 if mask.ndim > 1 else jnp.int32),
        prior=None if operands.prior is None else operands.prior.reshape(1, v),
        temperature=None if operands.temperature is None else operands.temperature.reshape(1, 1),
    )


def _readable(x: Array) -> Array:
    """In a dtype of a TPU's vectors, of which float16 is none."""
    return x if x.dtype in (jnp.float32, jnp.bfloat16) else x.astype(jnp.float32)


def _of_logits(blocks: Blocks) -> pl.BlockSpec:
    return pl.BlockSpec(blocks, lambda i, j: (i, j))


def _specs(blocks: Blocks, given: _Given) -> list[pl.BlockSpec]:
    of_classes = pl.BlockSpec((1, blocks.classes), lambda i, j: (0, j))
    whole = _of_logits(blocks)
    specs = _Given(
        of_rows=None if given.of_rows is None else pl.BlockSpec((given.of_rows.shape[0], blocks.rows), lambda i, j: (0, i)),
        logits=whole,
        target=whole,
        class_mask=None if given.class_mask is None else (of_classes if given.class_mask.shape[0] == 1 else whole),
        prior=of_classes,
        temperature=pl.BlockSpec(memory_space=pltpu.SMEM),
    )
    return [spec for spec, array in zip(specs, given, strict=True) if array is not None]


def _run(call: Call, name: str, kernel, given: _Given, shape, out_spec, scratch) -> Array:
    arrays, treedef = jax.tree.flatten(given)
    (n, v), blocks = given.logits.shape, call.blocks

    def with_columns(*refs):
        inputs, out, (*own, columns) = refs[: len(arrays)], refs[len(arrays)], refs[len(arrays) + 1 :]
        given = treedef.unflatten(inputs)
        if given.of_rows is not None:

            @pl.when(pl.program_id(1) == 0)
            def _():
                columns[...] = _as_columns(given.of_rows[...])

        kernel(given, out, own, columns)

    return pl.pallas_call(
        with_columns,
        grid=(pl.cdiv(n, blocks.rows), pl.cdiv(v, blocks.classes)),
        in_specs=_specs(blocks, given),
        out_specs=out_spec,
        out_shape=shape,
        scratch_shapes=[*scratch, pltpu.VMEM((blocks.rows, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=call.memory),
        interpret=call.interpret,
        name=f"crossent_{name}",
    )(*arrays)


def _start(call: Call) -> Array:
    """The first class of this step."""
    return pl.program_id(1) * call.blocks.classes


def _block(call: Call, v: int, given: _Given, columns) -> Operands:
    """The operands of this step, in float32."""
    size, start = call.blocks.classes, _start(call)
    left = None if v % size == 0 else v - start  # classes from this step on
    if given.target is None:
        label = columns[:, 0].astype(jnp.int32) - start
        target = jnp.where((label >= 0) & (label < size), label, -1)
    else:
        target = _before(left, given.target[...].astype(jnp.float32), 0.0)
    logits = given.logits[...].astype(jnp.float32)
    if given.class_mask is not None:
        allowed = jnp.broadcast_to(given.class_mask[...].astype(jnp.int32), logits.shape) != 0
        logits = jnp.where(allowed, logits, -jnp.inf)
    return Operands(
        logits=_before(left, logits, -jnp.inf),
        target=target,
        prior=None if given.prior is None else _before(left, given.prior[...], 0.0)[0],
        temperature=None if given.temperature is None else given.temperature[0, 0],
    )


def _before(left: Maybe, x: Array, beyond: float) -> Array:
    """``x`` of the classes that are left, and ``beyond`` after them."""
    return x if left is None else jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < left, x, beyond)


def _padded(count: int) -> int:
    return -(-count // SUBLANES) * SUBLANES


def _packed(arrays: list[Array]) -> Array:
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
