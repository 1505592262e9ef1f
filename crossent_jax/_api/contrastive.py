"""Contrastive losses of a batch of pairs: the public functions, thin over ``_linear.batch_matrix``."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .. import guards
from .._dense.shards import sum_over
from .._jax.pieces import even_size, is_known
from .._jax.versions import joint_axes, mesh_axes, on_axis, varying_over
from .._linear.batch_matrix import Batch, BatchSpec, Weights, batch_loss, dtype_of, gathered
from .._linear.cuts import LEAST_LOGITS, Sizes, rows_on_cpu
from . import checks
from .forward_mode import NO_WAY_OUT, forward_mode_hint


@forward_mode_hint(NO_WAY_OUT)
def info_nce(
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: float | Array,
    symmetric: bool = True,
    query_ids: ArrayLike | None = None,
    key_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
    chunk_rows: int | None = None,
    axis_name: str | None = None,
) -> Array:
    """InfoNCE, the contrastive cross-entropy of queries against keys, without the matrix of the batch.

    With ``z_ij = queries_i . keys_j / temperature`` and P(i) the keys that are positive for query i, the mean over queries
    of

        log sum_j exp z_ij - 1/|P(i)| sum_{j in P(i)} z_ij

    and, if ``symmetric``, the mean of it and of the same with queries and keys exchanged (CLIP). Without ids the positive of
    query i is key i. With ids it is every key of the same id (supervised contrastive). Queries without a positive, and in
    the other direction keys, are in no mean; as negatives they count.

    Args:
        queries: floating ``(n, d)``. Nothing is normalised: for cosines divide by the norms first.
        keys: floating ``(m, d)``. Without ids m is n; or, if not ``symmetric``, at least n, those after n being negatives.
        temperature: above 0; a scalar array is differentiable (``exp(-log_scale)`` for CLIP's logit scale).
        symmetric: whether keys look for queries too.
        query_ids, key_ids: integer ``(n,)`` and ``(m,)``, both or neither.
        where: boolean ``(n,)``, for n = m: pairs that take part. The others are not negatives either.
        chunk_rows: static; the most rows of the matrix that exist at once. None: without ``axis_name`` all of at most 2**20
            elements; else max(128, min(d, 256), d / 2, 2**20 / m) rows, and at most half of them.
        axis_name: inside ``jax.shard_map``, the mesh axis over which both queries and keys are split. Every device gathers
            the keys (m d numbers), takes its own rows of the matrix, and shares the columns' sums (m numbers). The result is
            the loss of the whole batch, the same on every device. Ids are global; without them pairs are matched across the
            axis, and n = m on every device.

    Returns:
        Nats, a scalar, float32 (float64 for float64); 0 if there is no positive. Gradients in the arguments' dtypes. A
        differentiated symmetric loss takes four matrix products (three where all rows are one chunk), a one-sided one
        three; the largest intermediate has ``chunk_rows`` times m entries.

    Raises:
        TypeError, ValueError: for shapes or dtypes that do not fit, one of the ids alone, and Python numbers out of range.
            TypeError by JAX under forward mode.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> images, texts = jnp.eye(3), jnp.eye(3)
        >>> print(f"{crossent_jax.info_nce(images, texts, temperature=0.5):.4f}")
        0.2395
        >>> same = jnp.array([0, 0, 1])
        >>> print(f"{crossent_jax.info_nce(images, texts, temperature=0.5, query_ids=same, key_ids=same):.4f}")
        0.9062

    Sources: van den Oord et al. 2018 (https://arxiv.org/abs/1807.03748), eq. 4; Radford et al. 2021 (CLIP,
    https://arxiv.org/abs/2103.00020), section 2.3; Khosla et al. 2020 (https://arxiv.org/abs/2004.11362), eq. 2.
    """
    symmetric = checks.flag("symmetric", symmetric)
    batch = _batch("info_nce", queries, keys, temperature, None, query_ids, key_ids, where, symmetric)
    return _loss(_spec("info_nce" if symmetric else "info_nce_of_rows", batch, chunk_rows, axis_name), batch)


@forward_mode_hint(NO_WAY_OUT)
def sigmoid_contrastive(
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: float | Array,
    bias: float | Array = 0.0,
    query_ids: ArrayLike | None = None,
    key_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
    chunk_rows: int | None = None,
    axis_name: str | None = None,
) -> Array:
    """Sigmoid contrastive loss (SigLIP): every pair is a yes/no decision. Without the matrix of the batch.

    With ``z_ij = queries_i . keys_j / temperature + bias`` and y_ij = 1 for positives, -1 for others,
    ``-1/n sum_ij log sigmoid(y_ij z_ij)``, n the number of queries that take part.

    Args:
        queries, keys, query_ids, key_ids, where, chunk_rows, axis_name: as in :func:`info_nce` (not symmetric).
        temperature: above 0; SigLIP's ``t`` is ``1 / temperature``. An array is differentiable.
        bias: a number or a scalar array, differentiable.

    Returns:
        Nats, a scalar, float32 (float64 for float64). Three matrix products when differentiated.

    Raises:
        TypeError, ValueError: as :func:`info_nce`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> print(f"{crossent_jax.sigmoid_contrastive(jnp.eye(2), jnp.eye(2), temperature=0.1, bias=-10.0):.4f}")
        0.6932

    Source: Zhai et al. 2023 (https://arxiv.org/abs/2303.15343), section 3.2.
    """
    batch = _batch("sigmoid_contrastive", queries, keys, temperature, bias, query_ids, key_ids, where, False)
    return _loss(_spec("sigmoid", batch, chunk_rows, axis_name), batch)


def _batch(function: str, queries, keys, temperature, bias, query_ids, key_ids, where, symmetric: bool) -> Batch:
    queries, keys = checks.vectors("queries", queries), checks.vectors("keys", keys)
    (n, d), m = queries.shape, keys.shape[0]
    if keys.shape[1] != d:
        raise ValueError(f"queries and keys must have the same features; got shapes {queries.shape} and {keys.shape}.")
    if (query_ids is None) != (key_ids is None):
        raise ValueError("query_ids and key_ids come together: a query's positives are the keys of its id.")
    if query_ids is None and (m != n if symmetric else m < n):
        demand = "as many keys as queries" if symmetric else "at least as many keys as queries"
        raise ValueError(f"without ids {function} needs {demand}, pair by pair; got {m} keys for {n} queries. Pass ids.")
    if query_ids is not None:
        query_ids, key_ids = checks.renumbered(query_ids, key_ids)
        query_ids, key_ids = checks.ids("query_ids", query_ids, n), checks.ids("key_ids", key_ids, m)
    if where is not None and n != m:
        raise ValueError(f"where is for pairs: as many keys as queries; got {m} keys for {n} queries.")
    where = checks.where(where, (n,), (n, m))
    temperature = checks.scalar("temperature", temperature, low=0.0, above=True, off=None)
    bias = None if bias is None else checks.scalar("bias", bias, off=None)
    if guards.enabled():
        _check_values(queries, keys, where, temperature, bias)
    return Batch(queries, keys, temperature, bias, query_ids, key_ids, where, where)


def _check_values(queries: Array, keys: Array, where, temperature, bias) -> None:
    for name, x in (("queries", queries), ("keys", keys)):
        finite = jnp.isfinite(x)
        guards.require(name, x, finite if where is None else finite | ~where[:, None], "finite numbers")
    guards.require_between("temperature", temperature, 0.0, jnp.inf, above=True)
    guards.require_finite("bias", bias)


def _spec(loss: str, batch: Batch, chunk_rows, axis_name) -> BatchSpec:
    (n, d), m = batch.queries.shape, batch.keys.shape[0]
    small = axis_name is None and is_known(n) and is_known(m) and n * m <= LEAST_LOGITS
    chunk = checks.chunk_rows(chunk_rows) or (n if small else even_size(n, rows_on_cpu(Sizes(n, d, m))))
    axis_name = checks.axis_name(axis_name)
    checks.split_over(axis_name, "the batch", queries=batch.queries, keys=batch.keys)
    return BatchSpec(loss, axis_name, chunk, paired=batch.query_ids is None)


@partial(jax.jit, static_argnums=0)
def _loss(spec: BatchSpec, batch: Batch) -> Array:
    """Where the type of the queries says that they are split over devices (Explicit meshes), as if by ``axis_name``."""
    mesh, names = mesh_axes(batch.queries, 0)
    if spec.axis_name is not None or len(names) != 1:
        return _loss_here(spec, batch)
    (axis_name,) = names
    of_rows = batch._replace(temperature=None, bias=None)
    rows = jax.tree.map(lambda x: on_axis(x, axis_name), of_rows)
    here = partial(_loss_here, spec._replace(axis_name=axis_name))
    specs = jax.tree.map(lambda _: jax.P(axis_name), of_rows)
    specs = specs._replace(temperature=jax.P(), bias=None if batch.bias is None else jax.P())
    batch = rows._replace(temperature=batch.temperature, bias=batch.bias)
    wrapped = jax.shard_map(here, mesh=mesh, in_specs=(specs,), out_specs=jax.P())
    return wrapped(batch)


def _loss_here(spec: BatchSpec, batch: Batch) -> Array:
    dtype, axis_name = dtype_of(batch), spec.axis_name
    n, m = batch.queries.shape[0], batch.keys.shape[0]
    if n * m == 0:
        return jnp.zeros((), dtype)
    if spec.paired:
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * m
        ids = first + jnp.arange(max(n, m), dtype=jnp.int32)
        batch = batch._replace(query_ids=ids[:n], key_ids=ids[:m])
    batch = batch._replace(  # what does not count is 0, so that no NaN of it meets a product
        queries=_kept(batch.query_valid, batch.queries),
        keys=_kept(batch.key_valid, batch.keys),
    )
    batch = batch._replace(
        temperature=jnp.asarray(batch.temperature, dtype),
        bias=None if batch.bias is None else jnp.asarray(batch.bias, dtype),
        key_ids=gathered(batch.key_ids, axis_name),
        key_valid=gathered(batch.key_valid, axis_name),
    )
    weights = varying_over(joint_axes(batch), _weights(spec, batch, dtype))
    return jnp.asarray(sum_over(batch_loss(spec, batch, weights), axis_name))


def _kept(valid, vectors: Array) -> Array:
    return vectors if valid is None else jnp.where(valid[:, None], vectors, 0)


def _weights(spec: BatchSpec, batch: Batch, dtype) -> Weights:
    """Means over the rows, and the columns, that have positives; of the sigmoid loss, over all rows that count."""
    query_ids, key_ids, query_valid, key_valid = batch[4:]
    of_rows = _matches(query_ids, key_ids, query_valid, key_valid)
    of_columns = sum_over(_matches(key_ids, query_ids, key_valid, query_valid), spec.axis_name)
    if spec.loss == "sigmoid":
        counted = jnp.ones(query_ids.shape, bool) if query_valid is None else query_valid
        return Weights(
            _mean_of(counted, spec.axis_name, 1, dtype),
            jnp.zeros_like(of_columns, dtype),
            *_at_least_one(of_rows, of_columns, dtype),
        )
    share = 0.5 if spec.loss == "info_nce" else 1.0
    rows = _mean_of(of_rows > 0, spec.axis_name, share, dtype)
    return Weights(rows, _mean_of(of_columns > 0, None, share, dtype), *_at_least_one(of_rows, of_columns, dtype))


def _at_least_one(*counts_and_dtype):
    *counts, dtype = counts_and_dtype
    return (jnp.maximum(count, 1).astype(dtype) for count in counts)


def _mean_of(counted: Array, axis_name: str | None, share: float, dtype) -> Array:
    number = sum_over(jnp.sum(counted, dtype=dtype), axis_name)
    return share * counted.astype(dtype) / jnp.where(number == 0, 1, number)


def _matches(ids: Array, others: Array, valid, others_valid) -> Array:
    """How many of the others that count have each id; 0 for what does not count itself."""
    counted = jnp.ones(others.shape, jnp.int32) if others_valid is None else others_valid.astype(jnp.int32)
    found = _counted_up_to(ids, others, counted) - _counted_below(ids, others, counted)
    return found if valid is None else jnp.where(valid, found, 0)


def _counted_up_to(ids: Array, others: Array, counted: Array) -> Array:
    """How many of the others that count are at most each id."""
    nothing = jnp.zeros(ids.shape, jnp.int32)
    return _sums_in_order((others, ids), (counted, nothing))[others.shape[0] :]


def _counted_below(ids: Array, others: Array, counted: Array) -> Array:
    """How many of the others that count are below each id."""
    nothing = jnp.zeros(ids.shape, jnp.int32)
    return _sums_in_order((ids, others), (nothing, counted))[: ids.shape[0]]


def _sums_in_order(values: tuple[Array, Array], weights: tuple[Array, Array]) -> Array:
    """For each value, the weights up to it in ascending order, where equal ones keep their places. (``jnp.searchsorted`` of
    jax 0.10 and later takes no symbolic length, which ``jax.export`` may have.)"""
    order = jnp.argsort(jnp.concatenate(values), stable=True)
    sums = jnp.cumsum(jnp.concatenate(weights)[order])
    return jnp.zeros_like(sums).at[order].set(sums)
