"""Rows that count, first: ignored rows cost no product.

Once, the rows are given an order in which those that count come first, and a loop runs over the chunks that hold any. A
chunk reads its rows where they are, by their indices; what belongs to rows is written one chunk after the other, and put
back where the rows are after the loop. The last chunk that runs is filled with ignored rows, which add nothing.

Value and gradient of a mean over the time of all rows in turn, by the part that is ignored, of single rows or of sequences
(jax 0.10.2, two cores of a CPU, medians of 7 ratios, which differ by 0.05 from run to run):

| (n, d, v) | none | 1/8 of rows | 1/8 of sequences | 1/2 of rows | 7/8 of rows | 7/8 of sequences |
|---|---|---|---|---|---|---|
| float32 (8192, 64, 16384) | 0.98 | 0.89 | 0.90 | 0.50 | 0.13 | 0.13 |
| float32 (16 * 512, 256, 16384) | 0.99 | 0.83 | 0.82 | 0.49 | 0.12 | 0.12 |
| bfloat16 (16 * 512, 256, 16384) | 0.95 | 0.87 | 0.85 | 0.51 | 0.13 | 0.14 |
| the second with hidden states put in order before the loop, a copy more | 0.93 | 0.86 | | | 0.13 | 0.14 |
| the second with chunks left out where no row counts, rows where they are | 0.97 | 0.96 | | | 0.95 | 0.13 |

With reduction "none" 1.00 to 1.01 and 0.13 for none and 7/8. A problem of 2**26 multiplications takes 1.03 to 1.05 where
all rows count; its loop of two chunks spares little. At (8192, 2048, 131072) in bfloat16, every row counted, a v5e takes
111 million model cycles for 112 and a v6e 46 for 48, and an H100 reads and writes the same 52.7 GB; their temporary memory
grows by 0, 0 and 27 MiB.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .._jax.pieces import Pieces, is_known, read, rows_at, scan_rows, write_fresh
from .._jax.row_blocks import several_devices
from .._jax.versions import explicit_sharding, is_local, joint_axes, to_varying, varying_axes
from .._row.block import Operands
from .._row.state import Maybe
from .projection import Projection

LEAST_WORK = 2**28  # multiplications of a product, n d v: with less the order may cost more than it spares


class Masks(NamedTuple):
    """Which rows count, None for all. ``valid``: those not ignored. ``live``: of these, those whose weight is not 0, since
    a weight of 0 has a gradient, for which its row must be seen. ``known``: those whose label is of a class, where the
    classes are split over devices that all know it (``_dense.shards.known_labels``)."""

    valid: Maybe = None
    live: Maybe = None
    known: Maybe = None


def spares(masks: Masks, projection: Projection, operands: Operands) -> bool:
    """Whether rows are to leave their places. Not where they may be split over devices, since that would move them from one
    to another (types do not show it), where masks differ between devices that have the same rows, and add up something in
    every chunk, or where a size is a symbol or small."""
    sizes = *projection.hidden.shape, *projection.head.shape
    if masks.live is None or not all(map(is_known, sizes)):
        return False
    alone = explicit_sharding(projection.hidden) is None and (is_local() or not several_devices())
    work = projection.hidden.size * projection.head.size // max(1, projection.hidden.shape[-1])
    return alone and work >= LEAST_WORK and joint_axes(masks) <= joint_axes((projection, operands))


def skipping(run: Callable, mask: Maybe, *arrays: Any) -> Any:
    """``run(mask, *arrays)``, which has the numbers of ``run(None, *arrays)``, and its derivative: nothing differentiates a
    loop of a length that is not known before (a gradient of a gradient)."""
    return run(None, *arrays) if mask is None else _skipping(run, mask, *arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _skipping(run: Callable, mask: Array, *arrays: Any) -> Any:
    return run(mask, *arrays)


@_skipping.defjvp
def _skipping_jvp(run, primals, tangents):
    return run(*primals), jax.jvp(partial(run, None), primals[1:], tangents[1:])[1]


class Order(NamedTuple):
    """``index``: the rows, those that count first. ``place``: where in that order each row is. ``count``: how many count."""

    index: Int[Array, " n"]
    place: Int[Array, " n"]
    count: Int[Array, ""]


class Walk(NamedTuple):
    """A way through chunks of rows: all in turn along ``axis``, or, of rows of one axis, those that count (``order``; None:
    all). ``last_apart``: as in :func:`scan_rows`. ``sets_sums``: whether, where there is an order, the first chunk sets the
    sums over chunks. ``shards``: the mesh axis whose devices go through together."""

    pieces: Pieces
    axis: int
    order: Order | None
    last_apart: bool
    sets_sums: bool
    shards: str | None

    def piece(self, start, size: int) -> Callable[[Array], Array]:
        """Takes the rows of a chunk from an array of all rows."""
        if self.order is None:
            return lambda x: read(x, start, size, self.axis)
        index = read(self.order.index, start, size, 0)
        return lambda x: rows_at(x, index)

    def run(self, step: Callable, carry: Any) -> tuple[Any, Any]:
        """:func:`scan_rows`; what belongs to rows is in the order of the walk, and 0 where no chunk came by."""
        if self.order is None:
            return scan_rows(self.pieces, step, carry, self.axis, self.last_apart)
        return _scan_first(self, self.order, step, carry)

    def back(self, tree: Any) -> Any:
        """What belongs to rows, where the rows are."""
        order = self.order
        return tree if order is None else jax.tree.map(lambda x: rows_at(x, order.place), tree)

    def unset(self, total: Maybe) -> Maybe:
        """Zeros for a sum over chunks, in memory that is not written before the first chunk sets it, where a compiler does
        that itself only for loops of known length (a v6e: 51 million model cycles without it, 46 with it)."""
        if total is None or not self.sets_sums:
            return total
        return to_varying(jax.lax.empty(total.shape, total.dtype), varying_axes(total))

    def so_far(self, total: Maybe, start) -> Maybe:
        """The sum before the chunk at ``start``."""
        return total if total is None or not self.sets_sums else jnp.where(start == 0, 0, total)

    def total(self, total: Maybe) -> Maybe:
        """The sum over all chunks, of which there may be none."""
        if total is None or not self.sets_sums:
            return total
        assert self.order is not None
        return jnp.where(self.order.count > 0, total, 0)


def walk(
    pieces: Pieces,
    axis: int,
    mask: Maybe,
    last_apart: bool = False,
    sets_sums: bool = False,
    shards: str | None = None,
) -> Walk:
    """Through the rows of a mask, or through all where it is None or they are one chunk."""
    order = None if mask is None or pieces.all == 1 else _order(mask)
    return Walk(pieces, axis, order, last_apart, sets_sums and order is not None, shards)


def _order(counts: Bool[Array, " n"]) -> Order:
    """By a scatter: a sort takes a CPU 5 times as long for 8192 rows, 40 times for a million."""
    row = jnp.arange(counts.size, dtype=jnp.int32)
    before = jnp.cumsum(counts, dtype=jnp.int32)
    place = jnp.where(counts, before - 1, before[-1] + row - before)
    index = jnp.zeros_like(place).at[place].set(row, mode="promise_in_bounds", unique_indices=True)
    return Order(index, place, before[-1])


def _scan_first(walk: Walk, order: Order, step: Callable, carry: Any) -> tuple[Any, Any]:
    """``last_apart``: one chunk runs even where no row counts."""
    size, count, rest = walk.pieces
    length = count * size + rest

    def at(carry, index):
        start = jnp.minimum(index * size, length - size)
        fresh = start + jnp.arange(size) >= index * size if rest else None
        return *step(carry, start, size, fresh), start, fresh

    def body(index, carries):
        carry, rows, start, fresh = at(carries[0], index)
        return carry, jax.tree.map(lambda x, part: write_fresh(x, part, start, 0, fresh), carries[1], rows)

    def nothing(x):
        return to_varying(jnp.zeros((length, *x.shape[1:]), x.dtype), varying_axes(x))

    carries = carry, jax.tree.map(nothing, jax.eval_shape(lambda: at(carry, jnp.int32(0))[1]))
    chunks = _chunks(walk, order)
    if not walk.last_apart:
        return jax.lax.fori_loop(0, chunks, body, carries)
    last = jnp.maximum(chunks - 1, 0)
    return body(last, jax.lax.fori_loop(0, last, body, carries))


def _chunks(walk: Walk, order: Order) -> Int[Array, ""]:
    """How many hold a row that counts: on any of the devices that go through together."""
    chunks = -(-order.count // walk.pieces.size)
    return most_of_mapped(chunks if walk.shards is None else jax.lax.pmax(chunks, walk.shards))


@jax.custom_batching.custom_vmap
def most_of_mapped(number: Int[Array, ""]) -> Int[Array, ""]:
    """The most of a mapped axis, so that a mapped loop has one length, and nothing chooses between states of it."""
    return number


@most_of_mapped.def_vmap
def _most_of_mapped(axis_size, is_mapped, number):
    return (most_of_mapped(jnp.max(number)) if is_mapped[0] else number), False
