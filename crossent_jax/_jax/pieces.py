"""An axis cut into pieces, so that nothing is padded: what does not fill a piece is a shorter one (classes), or the last
piece overlaps its neighbour (rows).

A length may be a symbol (``jax.export`` of any number of rows), which compares with no number: such an axis has pieces of at
most the size asked for, and the last one, of which at least one element is new, overlaps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from .halves import bits, by_bits, from_bits, is_half, narrowed
from .versions import joint_axes, varying_axes


def is_known(length: Any) -> bool:
    """Whether a length is a number, and no symbol."""
    return isinstance(length, int)


class Pieces(NamedTuple):
    """``count`` pieces of ``size`` and one of ``rest`` (0: none). Integers or symbols."""

    size: Any
    count: Any
    rest: Any

    @property
    def all(self) -> Any:
        """How many pieces there are."""
        return self.count + (self.rest > 0 if is_known(self.rest) else 1)


def cut(length: Any, size: int) -> Pieces:
    """An axis of ``length`` in pieces of ``size``, or one piece where it is not longer than that."""
    if not is_known(length):
        most = jax.core.min_dim(length, size)
        count = (length - 1) // most
        return Pieces(most, count, length - count * most)
    if length <= size:
        return Pieces(length, 1, 0)
    return Pieces(size, length // size, length % size)


def even_size(length: Any, size: int) -> int:
    """A size near, and at most, ``size`` that leaves no rest or a long one, so that no piece is a sliver: the largest
    divisor of ``length`` above ``size / 2``, or else the size of pieces as equal as can be."""
    if not is_known(length):
        return size
    size = max(1, min(size, length))
    for candidate in range(size, size // 2, -1):
        if length % candidate == 0:
            return candidate
    return equal_size(length, size)


def equal_size(length: Any, size: int, multiple: int = 1) -> int:
    """The size, of at most ``size``, of pieces as equal as can be, a multiple of ``multiple`` where that leaves as many: for
    pieces of which the last may overlap its neighbour."""
    if not is_known(length):
        return size
    size = max(1, min(size, length))
    equal = max(1, -(-length // -(-length // size)) if length else 1)
    return min(size, multiple * -(-equal // multiple))


def scan(pieces: Pieces, step: Callable, carry: Any) -> Any:
    """``carry = step(carry, start, size)`` for each piece in turn, the rest in a program of its own."""
    if pieces.count == 1:
        carry = step(carry, 0, pieces.size)
    else:
        carry = jax.lax.fori_loop(0, pieces.count, lambda i, carry: step(carry, i * pieces.size, pieces.size), carry)
    if not pieces.rest:
        return carry
    start = jnp.int32(pieces.count * pieces.size)
    carry, start = jax.lax.optimization_barrier((carry, start))  # so that its buffers are free when the rest begins
    return step(carry, start, pieces.rest)


def scan_rows(pieces: Pieces, step: Callable, carry: Any, axis: int, last_apart: bool = False) -> tuple[Any, Any]:
    """``carry, rows = step(carry, start, size, fresh)`` for each piece in turn; the ``rows`` of all joined along ``axis``.

    Where the pieces leave a rest, the last one begins early and overlaps its neighbour: one program, one buffer. ``fresh``
    is False for what has been seen before (None: all is fresh); its ``rows`` are dropped here, its sums are the step's care.

    ``last_apart``: the last piece is a program of its own after the loop, so that a compiler may join to it what is done
    with the carry afterwards. Two times the program: not where compilers are slow.
    """
    size, count, rest = pieces
    if pieces.all == 1:
        return step(carry, 0, size, None)

    def body(carry, index):
        if is_known(rest) and not rest:
            return step(carry, index * size, size, None)
        start = jnp.minimum(index * size, (count - 1) * size + rest)
        return step(carry, start, size, start + jnp.arange(size) >= index * size)

    if not (last_apart and is_known(rest)):
        carry, stacked = jax.lax.scan(body, carry, jnp.arange(pieces.all))
        return carry, jax.tree.map(lambda x: _joined(x, axis, rest), stacked)
    starts = size * jnp.arange(pieces.all - 1)
    carry, stacked = jax.lax.scan(lambda carry, start: step(carry, start, size, None), carry, starts)
    carry, last = body(carry, _after(jnp.asarray(pieces.all - 1, int), carry, stacked))
    return carry, jax.tree.map(lambda x, y: _joined(jnp.concatenate([x, y[None]]), axis, rest), stacked, last)


def _after(index: jax.Array, carry: Any, rows: Any) -> jax.Array:
    """``index`` when the loop is over and its memory free. A barrier makes all that it holds together vary over the same
    mesh axes, and so the pieces read at ``index``: over those of the rows, where there are any, and no others."""
    axes = joint_axes(rows if jax.tree.leaves(rows) else carry)
    alike = [x for x in jax.tree.leaves((carry, rows)) if varying_axes(x) <= axes]
    return jax.lax.optimization_barrier((index, alike))[0]


def _joined(stacked: jax.Array, axis: int, rest: Any) -> jax.Array:
    """Pieces stacked along a new first axis as one array; of the last, the ``rest`` at its end (0: all of it)."""
    if not is_known(rest) or rest:
        last = jax.lax.slice_in_dim(stacked[-1], stacked.shape[axis + 1] - rest, None, axis=axis)
        return jnp.concatenate([_joined(stacked[:-1], axis, 0), last], axis)
    count, *shape = stacked.shape
    shape[axis] *= count
    return jnp.moveaxis(stacked, 0, axis).reshape(shape)


def read(x: jax.Array, start, size: int, axis: int) -> jax.Array:
    """The piece of ``x`` that begins at ``start``."""
    if isinstance(start, int):
        return jax.lax.slice_in_dim(x, start, start + size, axis=axis)

    def slice_of(x, start):
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis, allow_negative_indices=False)

    def slice_of_bits(x, start):
        x, start = jax.lax.optimization_barrier((x, start))  # else XLA makes the bits of all of x, before the loop
        return from_bits(slice_of(bits(x), start), x.dtype)

    return _by_dtype(slice_of, slice_of_bits, x, start)


def rows_at(x: jax.Array, index: jax.Array) -> jax.Array:
    """The rows of ``x`` at indices, none of which is out of range."""

    def gathered(x, index):
        return jnp.asarray(x).at[index].get(mode="promise_in_bounds")

    def gathered_bits(x, index):
        x, index = jax.lax.optimization_barrier((x, index))
        return from_bits(gathered(bits(x), index), x.dtype)

    return _by_dtype(gathered, gathered_bits, x, index)


def write(x: jax.Array, piece: jax.Array, start, axis: int) -> jax.Array:
    """``x`` with the piece at ``start`` replaced, in place inside a loop."""
    if piece.shape == x.shape:
        return narrowed(piece, x.dtype)

    def update(x, piece, start):
        return jax.lax.dynamic_update_slice_in_dim(x, piece, start, axis, allow_negative_indices=False)

    def update_bits(x, piece, start):
        return from_bits(update(bits(x), bits(piece), start), x.dtype)

    return _by_dtype(update, update_bits, x, narrowed(piece, x.dtype), start)


def _by_dtype(function: Callable, of_bits: Callable, x: jax.Array, *rest) -> jax.Array:
    return by_bits(function, of_bits, x, *rest) if is_half(x.dtype) else function(x, *rest)


def write_fresh(x: jax.Array, piece: jax.Array, start, axis: int, fresh: jax.Array | None) -> jax.Array:
    """:func:`write`, but only what is fresh."""
    if fresh is not None:
        kept = fresh.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        piece = jnp.where(kept, narrowed(piece, x.dtype), read(x, start, piece.shape[axis], axis))
    return write(x, piece, start, axis)


def add(x: jax.Array, piece: jax.Array, start, axis: int) -> jax.Array:
    """``x`` with the piece added at ``start``."""
    if piece.shape == x.shape:
        return x + piece
    return write(x, read(x, start, piece.shape[axis], axis) + piece, start, axis)
