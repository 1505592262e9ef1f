"""How the rows of a projection are cut into chunks, term by term.

A chunk of R rows, of d features and v classes, costs beside its products of 6 R d v operations

- traffic: the head's float32 gradient is read and written, 8 d v bytes, and the head is read twice. Beside the 2 R d v
  operations of the product that makes it, this is hidden from ``R = 4 peak / bandwidth`` on: 960 rows on a TPU v5e, 2200
  on a v6e, 1200 on an H100, whatever d and v;
- memory: its logits, 4 R v bytes (2 where they are rounded to 16 bits), and the exponentials or derivatives that are kept
  of them for the products, 2 R v in 16 bits. The head's float32 gradient, 4 d v, is held beside them, but for one chunk. A
  TPU that makes exponentials in the product itself (``_linear.chunk``) writes no logits. What it keeps of up to d rows lies
  where the head's gradient will be written; of more rows it is held twice (as compiled).

So on accelerators a chunk has ``R = d / 2``, whose float32 logits take half of what the head's gradient takes, or as many as
its product writes ``WRITTEN_BYTES`` of, logits or else exponentials, whichever is more, and all rows are one chunk if they
may be. On a CPU a chunk has half as many rows as features, but at least as many as features up to 256, 128 rows and 2**20
logits, and at most half of all rows. (One core of an EPYC with AVX-512, d = 256 and v = 32768 in float32: the three products
of 128, 256 and 512 rows reach 91, 74 and 98; 100, 88 and 99; 104, 97 and 98 GFLOP/s, and the copies of the head's blocks and
the sums of its gradient are per chunk. With d = 64 more than 128 rows gained 1 to 2 % and took twice the memory.)
``chunk_rows`` or ``memory_budget`` override both.

Rows are seen as (outer, inner), ``inner`` being the last batch axis, and a chunk is a stretch of ``inner`` for all of
``outer``: of (batch, sequence) rows every chunk takes a stretch of every sequence, so a batch axis that is split over
devices needs no communication. Where that would make a chunk too large (long batch axes, short sequences), the rows are one
axis. Where the type of the hidden states says that their first axis is split over devices (Explicit meshes), ``outer`` is
the devices and ``inner`` the rows of each, and a chunk has so many rows of each device.
"""

import math
from typing import Any, NamedTuple

from .._jax.pieces import cut, equal_size, even_size, is_known
from .._jax.versions import sums_exponentials_at_once

LEAST_ROWS, FAST_ROWS, LEAST_LOGITS = 128, 256, 2**20  # of a chunk, on a CPU
WRITTEN_BYTES = 2**29  # of a chunk, elsewhere
TILE, CPU_TILE = 128, 16  # rows of a product of an accelerator, of a CPU
# On a CPU: the logits of a chunk that stays in the cache, the logits of a block, the classes of a block.
MOST_IN_CACHE = 3 * 2**20
LEAST_BLOCK, MOST_BLOCK = 2**18, 2**19
MOST_CLASSES = 2**14


class Blocks(NamedTuple):
    """How many classes of a chunk are taken at a time, for its state and for its gradient; None: all."""

    state: int | None
    gradient: int | None


WHOLE = Blocks(None, None)


class Sizes(NamedTuple):
    """What decides the size of a chunk: rows of one device (or a symbol), features, classes of one device; bytes of a logit,
    and of an element of the products; how many distributions of these classes there are; whether the product gives
    exponentials and no logits are written."""

    rows: Any
    features: int
    classes: Any
    logit_bytes: int = 4
    product_bytes: int = 2
    distributions: int = 1
    unwritten: bool = False

    @property
    def head_gradient(self) -> int:
        """Bytes in float32."""
        return 4 * self.distributions * self.features * self.classes

    @property
    def kept(self) -> int:
        """Bytes of a row that are kept for the products."""
        return self.distributions * self.classes * self.product_bytes

    @property
    def written(self) -> int:
        """Bytes of a row that the first product writes."""
        return self.kept if self.unwritten else self.distributions * self.classes * self.logit_bytes

    @property
    def row(self) -> int:
        """Bytes of a row in a chunk."""
        return self.written + self.kept


class Limits(NamedTuple):
    """What a caller asks for: the most rows in a chunk, or the most bytes beyond inputs and gradients; None: neither."""

    chunk_rows: int | None = None
    memory_budget: int | None = None


class Cut(NamedTuple):
    """Rows as (outer, inner), or (inner,) where ``outer`` is 1, and how many of ``inner`` make a chunk; ``inner`` may be a
    symbol."""

    outer: int
    inner: Any
    chunk: int

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of the rows."""
        return (self.inner,) if self.outer == 1 else (self.outer, self.inner)

    @property
    def rows(self) -> int:
        """Rows in a chunk."""
        return self.outer * self.chunk

    @property
    def chunks(self) -> Any:
        """How many there are."""
        return cut(self.inner, self.chunk).all


def rows_on_cpu(sizes: Sizes) -> int:
    """Rows in a chunk by default. Of a symbolic number of rows at most so many."""
    rows, classes, features = sizes.rows, sizes.classes, sizes.features // sizes.distributions
    by_features = max(features // 2, min(features, FAST_ROWS), LEAST_ROWS)
    most = max(by_features, LEAST_LOGITS // max(1, classes) if is_known(classes) else 0)
    return max(1, min(most, rows // 2)) if is_known(rows) else most


def rows_elsewhere(sizes: Sizes) -> int:
    """Rows in a chunk by default on an accelerator."""
    if not is_known(sizes.classes):
        return rows_on_cpu(sizes)
    return max(1, sizes.features // (2 * sizes.distributions), WRITTEN_BYTES // max(1, sizes.written))


def rows_in_chunk(sizes: Sizes, limits: Limits, on_cpu: bool) -> int:
    """The most rows in a chunk."""
    if limits.chunk_rows is not None:
        return limits.chunk_rows
    if limits.memory_budget is not None:
        return rows_within(limits.memory_budget, sizes)
    return rows_on_cpu(sizes) if on_cpu else rows_elsewhere(sizes)


def rows_within(budget: int, sizes: Sizes) -> int:
    """The most rows whose chunk fits into so many bytes, beside the head's float32 gradient unless a single chunk does."""
    if is_known(sizes.rows) and held(sizes, sizes.rows, chunks=1) <= budget:
        return max(1, sizes.rows)
    rows = (budget - sizes.head_gradient) // sizes.row
    if sizes.unwritten and rows >= 0:
        return max(rows, sizes.features)
    if rows < 1:
        least = sizes.head_gradient + sizes.row
        raise ValueError(
            f"memory_budget={budget} bytes is too small by {least - budget}: the head's float32 gradient takes "
            f"{sizes.head_gradient} and a chunk of one row {sizes.row}; pass at least {least}, or None to leave it to the "
            "library."
        )
    return rows


def cut_rows(batch: tuple[Any, ...], sizes: Sizes, limits: Limits, on_cpu: bool, devices: int = 1) -> Cut:
    """How the rows of a batch are cut, whose first axis is split over so many devices: in one shape on every platform."""
    total, inner = math.prod(batch), batch[-1] if batch else 1
    outer = math.prod(batch[:-1])
    if devices > 1:
        outer, inner = devices, total // devices
    everywhere = sizes._replace(unwritten=False)
    most = rows_in_chunk(everywhere if on_cpu else sizes, limits, on_cpu)
    if not is_known(total):
        return Cut(1, total, most)
    if devices == 1 and outer > min(rows_in_chunk(everywhere, limits, on_cpu) for on_cpu in (True, False)):
        outer, inner = 1, total
    size = most if devices > 1 else max(1, most // max(1, outer))
    if limits.chunk_rows:
        return Cut(outer, inner, max(1, min(size, inner)))
    return Cut(outer, inner, max(1, equal_size(inner, size, CPU_TILE) if on_cpu else aligned_size(inner, size)))


def aligned_size(length: int, size: int) -> int:
    """Like ``even_size``, of whole tiles: products of other sizes are slower (v5e: 1.25 times, 2736 rows for 2048)."""
    if size >= length or size < TILE:
        return even_size(length, size)
    size -= size % TILE
    for candidate in range(size, size // 2, -TILE):
        if length % candidate == 0:
            return candidate
    pieces = -(-length // size)
    return min(length, TILE * -(-length // (pieces * TILE)))


def lies_in_gradient(sizes: Sizes, rows: int) -> bool:
    """Whether what is kept of a chunk takes no more than the head's gradient, and the place of it."""
    return sizes.unwritten and rows <= sizes.features


def held(sizes: Sizes, rows: int, chunks: int) -> int:
    """Bytes beside inputs and gradients, with so many rows in a chunk."""
    if chunks == 1:
        return rows * sizes.row
    return sizes.head_gradient + (0 if lies_in_gradient(sizes, rows) else rows * sizes.row)


def rows_of_a_chunk(sizes: Sizes, cut: Cut) -> int:
    """On one device."""
    return min(sizes.rows, cut.chunk if cut.outer == 1 else cut.rows)


class Cost(NamedTuple):
    """Bytes of a value and gradient: what is held beyond inputs and gradients, what is read and written in the device's main
    memory, and the least that could be."""

    memory: int
    traffic: int
    least: int


def cost(sizes: Sizes, cut: Cut) -> Cost:
    """Of a sum of losses with both gradients: the head is read twice a chunk, its float32 gradient read and written once a
    chunk; logits are written once and read twice, for the maximum and for the sum, and so is what is kept of them."""
    n, d, v, item = sizes.rows, sizes.features, sizes.classes, sizes.product_bytes
    chunks = cut.chunks
    inputs = item * (n * d + d * v)
    logits = 3 * n * (sizes.kept if sizes.unwritten else sizes.row)
    head_gradient = 0 if chunks == 1 else 2 * chunks * sizes.head_gradient
    traffic = logits + head_gradient + 2 * chunks * item * d * v + item * d * v + 4 * item * n * d
    return Cost(held(sizes, rows_of_a_chunk(sizes, cut), chunks), traffic, 2 * inputs)


def cpu_blocks(rows: int, classes: int, itemsize: int, plain: bool) -> Blocks:
    """On a CPU (``_linear.chunk`` has the figures). The state of a plain call (``plain``) takes all classes at once, where
    that needs no memory beside the chunk. So does the gradient of a chunk that stays in the cache, unless products are of 16
    bits, whose dz is a copy. Other blocks are so small a part of a chunk that what is held of them adds little to its
    memory.

    No block has more than 2**14 classes, for the sums of dz W^T: at 2 rows and 262139 classes, in ulp of the sum of absolute
    values, the worst of three inputs was 12 with jax 0.10.2 (12 in one block too) and 107 with jax 0.7.2, which adds the
    terms one after the other (780 in one block).
    """
    in_cache = plain and rows * classes <= MOST_IN_CACHE and classes <= MOST_CLASSES
    part = 8 if itemsize > 2 else 16
    logits = min(max(rows * classes // part, LEAST_BLOCK), MOST_BLOCK) // (1 if plain else 2)
    block = even_size(classes, min(logits // max(1, rows), MOST_CLASSES))
    return Blocks(None if plain and sums_exponentials_at_once() else block, classes if in_cache and itemsize > 2 else block)
