"""From the rows of a projection to a fused call: how the rows are cut, and the way back to the caller's batch shape.

Chunks. A chunk's logits are float32 and live once, so their rows decide the memory of a call. By default they take at most
half of what the head's float32 gradient takes (``rows = d / 2``), but chunks have at least 128 rows (fewer make the products
slow) and 2**20 logits, and at most half of all rows. ``chunk_rows`` overrides.

Rows are seen as (outer, inner), ``inner`` being the last batch axis, and a chunk is a stretch of ``inner`` for all of
``outer``: of (batch, sequence) rows every chunk takes a stretch of every sequence, so a batch axis that is split over
devices needs no communication. Where that would make a chunk too large (long batch axes, short sequences), the rows are one
axis. Where the type of the hidden states says that their first axis is split over devices (Explicit meshes), ``outer`` is
the devices and ``inner`` the rows of each.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._dense.shards import merge_shards
from .._dense.vjp import without_dead_values
from .._jax.dtypes import statistics_dtype
from .._jax.pieces import cut, even_size, is_known
from .._jax.versions import devices_along, joint_axes, regrouped, varying_over
from .._row.block import Operands, Wanted, is_soft
from .._row.losses import Shared
from .._row.state import State
from ..backends import BACKENDS
from ..backends.record import Backend
from .chunk import Blocks, Fused, Plan
from .fused import Loss, fused_sum, linear_state
from .projection import Layout, Projection, product_dtype
from .spec import LinearSpec, Spec

LEAST_ROWS, LEAST_LOGITS = 128, 2**20  # of a chunk
# On a CPU: the logits of a chunk that stays in the cache, the logits of a block, the classes of a block.
MOST_IN_CACHE = 3 * 2**20
LEAST_BLOCK, MOST_BLOCK = 2**18, 2**19
MOST_CLASSES = 2**14


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


def default_rows(rows: Any, features: int, classes: Any) -> int:
    """Rows in a chunk by default; the module docstring has the budget. Of a symbolic number of rows at most so many."""
    most = max(features // 2, LEAST_ROWS, LEAST_LOGITS // max(1, classes) if is_known(classes) else 0)
    return max(1, min(most, rows // 2)) if is_known(rows) else most


def cut_rows(batch: tuple[Any, ...], features: int, classes: int, chunk_rows: int | None, devices: int = 1) -> Cut:
    """How the rows of a batch are cut, whose first axis is split over so many devices."""
    total, inner = math.prod(batch), batch[-1] if batch else 1
    outer = math.prod(batch[:-1])
    if devices > 1:
        outer, inner = devices, total // devices
    most = chunk_rows or default_rows(total, features, classes)
    if not is_known(total):
        return Cut(1, total, most)
    if outer > most and devices == 1:
        outer, inner = 1, total
    size = max(1, most // max(1, outer))
    return Cut(outer, inner, max(1, min(size, inner) if chunk_rows else even_size(inner, size)))


def devices_of_rows(hidden: Array) -> int:
    """Over how many devices the type of the hidden states says that their first axis is split, if that is one of rows."""
    return devices_along(hidden, 0) if hidden.ndim > 1 else 1


def cpu_blocks(rows: int, classes: int, itemsize: int, plain: bool) -> Blocks:
    """On a CPU (``_linear.chunk`` has the figures). A chunk that stays in the cache is one block where that needs no memory
    beside it: the state of a plain call (:func:`is_plain`), and its gradient unless products are of 16 bits, whose dz is a
    copy. Other blocks are so small a part of a chunk that what is held of them adds little to its memory.

    No block has more than 2**14 classes, for the sums of dz W^T: at 2 rows and 262139 classes, in ulp of the sum of absolute
    values, the worst of three inputs was 12 with jax 0.10.2 (12 in one block too) and 107 with jax 0.7.2, which adds the
    terms one after the other (780 in one block).
    """
    in_cache = plain and rows * classes <= MOST_IN_CACHE and classes <= MOST_CLASSES
    part = 8 if itemsize > 2 else 16
    logits = min(max(rows * classes // part, LEAST_BLOCK), MOST_BLOCK) // (1 if plain else 2)
    block = even_size(classes, min(logits // max(1, rows), MOST_CLASSES))
    return Blocks(classes if in_cache else block, classes if in_cache and itemsize > 2 else block)


def is_plain(wanted: Wanted, operands: Operands) -> bool:
    """Whether a state reads nothing but logits and labels, and is no more than a cross-entropy needs: XLA's CPU backend
    holds arrays of a block's size for anything else."""
    given = (wanted.softcap, operands.prior, operands.class_mask, operands.temperature)
    more = wanted.entropy or wanted.target_exp or wanted.argmax or is_soft(operands.target)
    return not more and all(x is None for x in given)


def describe(backend: Backend, linear: LinearSpec, projection: Projection, reduction: str) -> str:
    """The scheme of a call, for ``explain``."""
    *batch, features = projection.hidden.shape
    classes, devices = projection.head.shape[linear.vocab_axis], devices_of_rows(projection.hidden)
    rows = cut_rows(tuple(batch), features, classes, linear.chunk_rows, devices)
    chunks = f"{rows.chunks} chunk{'' if rows.chunks == 1 else 's'} of at most {rows.rows} rows"
    if backend.dense_gradient is None:
        return f"chunks recomputed by JAX, any transform, {chunks}"
    if reduction == "none":
        return f"recompute: 4 products when differentiated (1 if not), O(rows) numbers kept, {chunks}"
    return f"gradient in forward: 3 products when differentiated (1 if not), the gradients kept, {chunks}"


def projection_state(spec: Spec, wanted: Wanted, projection: Projection, operands: Operands, live) -> State:
    """The state of whole rows, joined over the shards of ``spec.axis_name``: of the batch's shape."""
    batch = projection.hidden.shape[:-1]
    plan, fused = _fused(spec, wanted, projection, operands, live)
    state = linear_state(plan, fused)
    state = jax.tree.map(lambda field: regrouped(field, field.ndim, batch, projection.hidden), state)
    return merge_shards(state, spec.axis_name, projection.head.shape[plan.layout.vocab_axis], operands.temperature)


def projection_sum(
    spec: Spec, wanted: Wanted, projection: Projection, operands: Operands, live, losses, of_rows: Any, shared: Shared
) -> Array:
    """The sum of the losses of all rows: ``losses(state, of_rows, shared)`` of whole rows, of any batch shape."""
    plan, fused = _fused(spec, wanted, projection, operands, live)
    rows, batch_axes = fused.projection.hidden.shape[:-1], projection.hidden.ndim - 1
    of_rows = jax.tree.map(lambda x: regrouped(x, batch_axes, rows, projection.hidden), of_rows)
    shared = jax.tree.map(lambda x: jnp.asarray(x, plan_dtype(projection)), shared)
    if plan.backend.dense_gradient is None:
        state, classes = linear_state(plan, fused), _classes(plan, fused)
        return losses(merge_shards(state, spec.axis_name, classes, shared.temperature), of_rows, shared)
    of_rows, shared = _varying_like(fused, (of_rows, shared), spec.axis_name)
    return fused_sum(plan, Loss(losses, spec.axis_name), fused, of_rows, shared)


def plan_dtype(projection: Projection) -> jnp.dtype:
    """Of statistics and sums."""
    return statistics_dtype(product_dtype(projection))


def _classes(plan: Plan, fused: Fused) -> int:
    return fused.projection.head.shape[plan.layout.vocab_axis]


def _fused(spec: Spec, wanted: Wanted, projection: Projection, operands: Operands, live) -> tuple[Plan, Fused]:
    """The plan, and the arrays with rows as (outer, inner)."""
    linear, hidden, batch = spec.linear, projection.hidden, projection.hidden.shape[:-1]
    assert linear is not None, "a projection comes with a linear spec"
    classes = projection.head.shape[linear.vocab_axis]
    rows = cut_rows(batch, hidden.shape[-1], classes, linear.chunk_rows, devices_of_rows(hidden))
    backend = BACKENDS[spec.backend]
    if backend.dense_gradient is None and live is not None:
        hidden = without_dead_values(hidden, live, -1)

    def reshaped(x):
        return regrouped(x, len(batch), rows.shape, projection.hidden)

    mask, target = operands.class_mask, operands.target
    if is_soft(target) and backend.dense_gradient is None and live is not None:
        target = without_dead_values(target, live, -1)
    operands = operands._replace(
        target=reshaped(target), class_mask=mask if mask is None or mask.ndim == 1 else reshaped(mask)
    )
    layout = Layout(linear.vocab_axis, linear.logits_dtype or str(plan_dtype(projection)))
    blocks = cpu_blocks(rows.rows, classes, product_dtype(projection).itemsize, is_plain(wanted, operands))
    plan = Plan(backend, wanted, layout, len(rows.shape) - 1, rows.chunk, blocks)
    return plan, Fused(projection._replace(hidden=reshaped(hidden)), operands)


def _varying_like(fused: Fused, tree: Any, axis_name: str | None) -> Any:
    """What the losses read besides the state, cast to the mesh axes over which the losses vary: those of any operand but the
    one over which the classes are split, whose shards are joined before."""
    return varying_over(joint_axes((fused, tree)) - {axis_name}, tree)
