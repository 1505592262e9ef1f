"""Losses of the matrix ``z = queries @ keys^T / temperature (+ bias)`` of a batch, which is never whole.

Rows of the matrix go through in chunks. With R_i and C_j the log-sum-exps of rows and columns, P_i and Q_j how many
positives they have, s_ij whether (i, j) is one, and a_i, b_j the weights of rows and columns,

    InfoNCE   sum_i a_i (R_i - sum_j s_ij z_ij / P_i) + sum_j b_j (C_j - sum_i s_ij z_ij / Q_j)
              d / dz_ij = a_i (exp(z_ij - R_i) - s_ij / P_i) + b_j (exp(z_ij - C_j) - s_ij / Q_j),
              exp(z_ij - R_i) = exp(z_ij - m_i) / sum_k exp(z_ik - m_i) with the row's largest element m_i
    sigmoid   sum_ij a_i softplus(-y_ij z_ij),  y_ij = 2 s_ij - 1
              d / dz_ij = -a_i y_ij sigmoid(-y_ij z_ij)

A column is complete only after the last row, so InfoNCE makes the matrix twice: for the log-sum-exps of both, and for the
gradients, four products in all where a whole matrix takes three. One-sided InfoNCE and the sigmoid loss need no column,
and make it once; so does InfoNCE of a small batch, whose matrix is one chunk. The gradients are made in the forward pass,
as both losses are sums; the backward pass multiplies them.

Over a mesh axis every shard gathers the keys, in their own dtype; their gradients are added up over shards in float32.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._dense.shards import jointly_varying
from .._jax.differentiated import cotangents, filled, is_asked, values_of, written_dtype
from .._jax.dtypes import statistics_dtype
from .._jax.pieces import cut, read, scan_rows, write_fresh
from .._jax.versions import joint_axes, to_varying
from .._row.state import Maybe, as_shift, log_of_sum
from .projection import (
    Layout,
    Projection,
    head_gradient,
    hidden_gradient,
    operands_of_product,
    piece_logits,
    product_dtype,
    rounded,
    transposed,
)


class BatchSpec(NamedTuple):
    """``loss``: "info_nce" (rows and columns), "info_nce_of_rows" or "sigmoid". ``axis_name``: the mesh axis over which
    queries and keys are split. ``chunk``: rows of the matrix at a time. ``paired``: whether column i alone is the positive
    of row i."""

    loss: str
    axis_name: str | None
    chunk: int
    paired: bool


class Batch(NamedTuple):
    """Queries (n, d) and keys (m, d); which of them belong together, by equal ids; which count (None: all). Where they are
    split over a mesh axis ``keys`` are the shard's own, ``key_ids`` and ``key_valid`` those of all shards."""

    queries: Any
    keys: Any
    temperature: Any
    bias: Maybe
    query_ids: Any
    key_ids: Any
    query_valid: Maybe
    key_valid: Maybe


class Weights(NamedTuple):
    """a and b of the module docstring, and how many positives rows and columns have, 1 for none."""

    row: Array
    column: Array
    row_positives: Array
    column_positives: Array


class Lines(NamedTuple):
    """Of rows or columns: the largest element m, and relative to it the sum of exponentials and the sum of positives; how
    many positives were seen."""

    maximum: Array
    exp_sum: Array
    positive_dot: Array
    positives: Array


# --- a chunk of rows -------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Some rows of the matrix. ``z`` is -inf at keys that do not count, ``positive`` (s) false where either does not.
    ``valid``: rows that count and were not in an earlier chunk; None: all. ``on_diagonal``: whether nothing else is
    positive."""

    projection: Projection
    z: Array
    positive: Array
    valid: Maybe
    on_diagonal: bool = False


def _chunk_at(batch: Batch, start, size: int, fresh: Maybe) -> Chunk:
    def piece(x) -> Any:
        return None if x is None else read(x, start, size, 0)

    projection = Projection(piece(batch.queries), batch.keys)
    z = piece_logits(_layout(batch), projection) / batch.temperature
    z = z if batch.bias is None else z + batch.bias
    valid = piece(batch.query_valid)
    if fresh is not None:
        valid = fresh if valid is None else valid & fresh
    positive = piece(batch.query_ids)[:, None] == batch.key_ids[None]
    if valid is not None:
        positive &= valid[:, None]
    if batch.key_valid is not None:
        positive &= batch.key_valid[None]
        z = jnp.where(batch.key_valid[None], z, -jnp.inf)
    return Chunk(projection, z, positive, valid)


def _layout(batch: Batch) -> Layout:
    return Layout(0, str(dtype_of(batch)))


def dtype_of(batch: Batch):
    """Of the matrix."""
    return statistics_dtype(product_dtype(Projection(batch.queries, batch.keys)))


def _lines(chunk: Chunk, axis: int) -> Lines:
    """Of the chunk's rows (axis 1), or of its part of the columns (axis 0), in which rows that do not count are not."""
    z = chunk.z if axis == 1 or chunk.valid is None else jnp.where(chunk.valid[:, None], chunk.z, -jnp.inf)
    top = jnp.max(z, axis)
    d = z - jnp.expand_dims(as_shift(top), axis)
    of_positives = jnp.where(chunk.positive, d, 0)
    dot = jnp.diagonal(of_positives) if chunk.on_diagonal else jnp.sum(of_positives, axis)
    return Lines(top, jnp.sum(jnp.exp(d), axis), dot, jnp.sum(chunk.positive, axis, dtype=z.dtype))


def _rebased(lines: Lines, top: Array) -> Lines:
    """Relative to another, not smaller, element."""
    move = jnp.where(lines.maximum == -jnp.inf, 0, lines.maximum - as_shift(top))
    dot = lines.positive_dot + move * lines.positives
    return Lines(jnp.zeros_like(top), lines.exp_sum * jnp.exp(move), dot, lines.positives)


def _joined(a: Lines, b: Lines) -> Lines:
    top = jnp.maximum(a.maximum, b.maximum)
    return jax.tree.map(jnp.add, _rebased(a, top), _rebased(b, top))._replace(maximum=top)


def _over_shards(lines: Lines, axis_name: str | None) -> Lines:
    if axis_name is None:
        return lines
    top = jax.lax.pmax(lines.maximum, axis_name)
    return jax.tree.map(lambda x: jax.lax.psum(x, axis_name), _rebased(lines, top))._replace(maximum=top)


def _losses(lines: Lines, weights: Array, positives: Array) -> Array:
    """The weighted losses of lines; 0 for those of weight 0, whatever is in them."""
    return jnp.where(weights == 0, 0, weights * (log_of_sum(lines.exp_sum) - lines.positive_dot / positives))


# --- passes over the matrix ------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Of queries (their dtype), keys, temperature and bias (float32 sums). None: not needed."""

    queries: Maybe
    keys: Maybe
    temperature: Maybe
    bias: Maybe


def _pieces_of(spec: BatchSpec, batch: Batch):
    return cut(batch.queries.shape[0], spec.chunk)


def _all_lines(spec: BatchSpec, batch: Batch) -> tuple[Lines, Lines]:
    """``(rows, columns)``, the columns over all shards."""

    def step(columns, start, size, fresh):
        chunk = _chunk_at(batch, start, size, fresh)
        return _joined(columns, _lines(chunk, 0)), _lines(chunk, 1)

    nothing = _varying(batch, jnp.zeros(batch.keys.shape[0], dtype_of(batch)))
    none = Lines(nothing - jnp.inf, nothing, nothing, nothing)
    columns, rows = scan_rows(_pieces_of(spec, batch), step, none, 0)
    return rows, _over_shards(columns, spec.axis_name)


def _varying(batch: Batch, x: Array) -> Array:
    return to_varying(x, joint_axes(batch))


def _row_losses(spec: BatchSpec, chunk: Chunk, lines: Lines | None, row: Array, positives: Array):
    """``(the weighted losses of the chunk's rows, their lines)``, which are made where they are not known."""
    if spec.loss != "sigmoid":
        lines = _lines(chunk, 1) if lines is None else lines
        return _losses(lines, row, positives), lines
    each = jnp.where(chunk.z == -jnp.inf, 0, jax.nn.softplus(jnp.where(chunk.positive, -chunk.z, chunk.z)))
    return jnp.where(row == 0, 0, row * jnp.sum(each, -1)), None


def _dz(
    spec: BatchSpec, chunk: Chunk, rows: Lines | None, row, row_positives, weights: Weights, columns: Lines | None
) -> Array:
    """The module docstring's derivative."""
    z, positive = chunk.z, chunk.positive
    if spec.loss == "sigmoid":
        dz = row[:, None] * jnp.where(positive, -jax.nn.sigmoid(-z), jax.nn.sigmoid(z))
    else:
        assert rows is not None, "InfoNCE has lines"
        dz = _softmax(z, rows, row, 1)
        share = (row / row_positives)[:, None]
        if columns is not None:
            dz += _softmax(z, columns, weights.column, 0)
            share = share + (weights.column / weights.column_positives)[None]
        dz -= jnp.where(positive, share, 0)
    dz = jnp.where(z == -jnp.inf, 0, dz)
    return dz if chunk.valid is None else jnp.where(chunk.valid[:, None], dz, 0)


def _softmax(z: Array, lines: Lines, weights: Array, axis: int) -> Array:
    """Of the lines along ``axis``, times their weights."""
    scale = weights / jnp.where(lines.exp_sum == 0, 1, lines.exp_sum)
    return jnp.exp(z - jnp.expand_dims(as_shift(lines.maximum), axis)) * jnp.expand_dims(scale, axis)


class Known(NamedTuple):
    """The lines that a pass before has found out, or None."""

    rows: Any = None
    columns: Any = None


def _pass(
    spec: BatchSpec, batch: Batch, weights: Weights, known: Known, needed: Gradients, given: Batch
) -> tuple[Array, Gradients]:
    """``(the losses of rows, the gradients)``; the gradients are those of columns too if these are known. ``given``: the
    batch before it was made whole."""

    def step(sums, start, size, fresh):
        chunk = _chunk_at(batch, start, size, fresh)
        lines, row, positives = jax.tree.map(
            lambda x: read(x, start, size, 0), (known.rows, weights.row, weights.row_positives)
        )
        losses, lines = _row_losses(spec, chunk, lines, row, positives)
        if any(needed):
            dz = _dz(spec, chunk, lines, row, positives, weights, known.columns)
            sums = _add(batch, sums, chunk, dz, start, fresh)
        return sums, losses

    sums, losses = scan_rows(_pieces_of(spec, batch), step, _no_gradient(batch, needed, given), 0)
    return losses, sums


def _at_once(spec: BatchSpec, batch: Batch, weights: Weights, needed: Gradients, given: Batch) -> tuple[Array, Gradients]:
    """``(InfoNCE, the gradients)`` of a batch whose rows are one chunk: products and exponentials are made once."""
    chunk = _chunk_at(batch, 0, batch.queries.shape[0], None)._replace(on_diagonal=spec.paired and spec.axis_name is None)
    rows, columns = _lines(chunk, 1), _over_shards(_lines(chunk, 0), spec.axis_name)
    dz = _dz(spec, chunk, rows, weights.row, weights.row_positives, weights, columns)
    gradients = _add(batch, _no_gradient(batch, needed, given), chunk, dz, 0, None)
    return _of_lines(spec, weights, rows, columns), gradients


def _no_gradient(batch: Batch, needed: Gradients, given: Batch) -> Gradients:
    """Zeros for what is needed."""
    dtype = dtype_of(batch)

    def start(asked, like, dtype):
        return _varying(batch, jnp.zeros(like.shape, dtype)) if asked else None

    return Gradients(
        start(needed.queries, batch.queries, written_dtype(batch.queries, given.queries, scaled_later=True)),
        start(needed.keys, batch.keys, dtype),
        start(needed.temperature, batch.temperature, dtype),
        start(needed.bias, batch.bias, dtype),
    )


def _add(batch: Batch, sums: Gradients, chunk: Chunk, dz: Array, start, fresh) -> Gradients:
    """With the chunk's part: ``dz / T`` times the keys and the queries, ``-sum dz z / T`` and ``sum dz``."""
    layout, (queries, keys) = _layout(batch), operands_of_product(chunk.projection)
    scaled = rounded(dz / batch.temperature, queries.dtype)
    to_queries: Any = None
    if sums.queries is not None:
        to_queries = write_fresh(sums.queries, hidden_gradient(layout, scaled, chunk.projection), start, 0, fresh)
    to_keys: Any = None
    if sums.keys is not None:
        to_keys = sums.keys + head_gradient(layout, scaled, transposed(queries), keys)
    mapped = chunk.z if batch.bias is None else chunk.z - batch.bias
    to_temperature: Any = None
    if sums.temperature is not None:
        to_temperature = sums.temperature - jnp.sum(dz * jnp.where(dz == 0, 0, mapped)) / batch.temperature
    return Gradients(
        to_queries,
        to_keys,
        to_temperature,
        None if sums.bias is None else sums.bias + jnp.sum(dz),
    )


# --- the loss --------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def batch_loss(spec: BatchSpec, batch: Batch, weights: Weights) -> Array:
    """The weighted losses of this shard's rows, and of its share of the columns: add up over shards."""
    whole = _whole(spec, batch)
    if spec.loss != "info_nce":
        return jnp.sum(_pass(spec, whole, weights, Known(), Gradients(*[False] * 4), batch)[0])
    return _of_lines(spec, weights, *_all_lines(spec, whole))


def _whole(spec: BatchSpec, batch: Batch) -> Batch:
    """With the keys of all shards."""
    return jointly_varying(batch._replace(keys=gathered(batch.keys, spec.axis_name)))


def gathered(x: Any, axis_name: str | None) -> Any:
    """The parts of all shards, one after the other."""
    return x if x is None or axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _own_part(x: Any, axis_name: str | None) -> Any:
    """The shard's own part of the sum over shards."""
    return x if x is None or axis_name is None else jax.lax.psum_scatter(x, axis_name, tiled=True)


def _of_lines(spec: BatchSpec, weights: Weights, rows: Lines, columns: Lines) -> Array:
    of_columns = jnp.sum(_losses(columns, weights.column, weights.column_positives))
    shards = 1 if spec.axis_name is None else jax.lax.axis_size(spec.axis_name)
    return jnp.sum(_losses(rows, weights.row, weights.row_positives)) + of_columns / shards


def _forward(spec: BatchSpec, primals: Batch, primal_weights: Weights):
    given, weights = values_of((primals, primal_weights))
    needed = Gradients._make(map(is_asked, primals[:4]))
    batch = _whole(spec, given)
    if spec.loss == "info_nce" and _pieces_of(spec, batch).all == 1:
        value, gradients = _at_once(spec, batch, weights, needed, given)
    elif spec.loss == "info_nce":
        rows, columns = _all_lines(spec, batch)
        value = _of_lines(spec, weights, rows, columns)
        _, gradients = _pass(spec, batch, weights, Known(rows, columns), needed, given)
    else:
        losses, gradients = _pass(spec, batch, weights, Known(), needed, given)
        value = jnp.sum(losses)
    gradients = gradients._replace(keys=_own_part(gradients.keys, spec.axis_name))
    return value, (filled(gradients, Gradients(*given[:4])), given, weights)


def _backward(spec: BatchSpec, residuals, g: Array):
    kept, given, weights = residuals
    found = cotangents(kept, Gradients(*given[:4]), g)
    return Batch._make([*found, None, None, None, None]), jax.tree.map(jnp.zeros_like, weights)


batch_loss.defvjp(_forward, _backward, symbolic_zeros=True)
