"""The Kullback-Leibler divergence of two arrays of probabilities, or of their logarithms."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .. import guards
from .._jax.dtypes import statistics_dtype
from .._jax.versions import is_concrete
from .._pairs import integrands
from .._row.reduce import counted_weights, keep, reduce_rows
from . import checks


def kl(
    *,
    p: ArrayLike | None = None,
    q: ArrayLike | None = None,
    log_p: ArrayLike | None = None,
    log_q: ArrayLike | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    reduction: str = "none",
) -> Any:
    """Kullback-Leibler divergence ``KL(p || q) = sum_j p_j (log p_j - log q_j)`` of arrays of probabilities or their logs.

    p and q are said by name, so that their order cannot be mistaken. The logits of a model belong in :func:`kl_divergence`,
    which normalises them.

    Args:
        p, log_p: floating, one of the two: probabilities, or their logarithms (-inf: 0).
        q, log_q: the same of the other distribution, p's shape.
        axis: the axis of the classes.
        where: boolean, the shape without ``axis``; rows where it is False give 0 and exactly zero gradients.
        reduction: "none", "mean", "sum" or "loss_sum".

    Returns:
        Nats, the shape without ``axis`` for "none", float32 (float64 if either is). The formula holds for arrays of any sum;
        ``guards.values()`` demands probabilities that sum to 1. ``0 log 0 = 0``; +inf where p > 0 = q. Exactly 0 for
        identical arrays. Gradients are the limits: 0 for both where both are 0. Every mode of differentiation
        works. XLA takes numbers below the dtype's smallest normal one (float32: 1.2e-38) for 0 on a CPU: a q as small gives
        +inf there. Give ``log_q``, which holds it.

    Raises:
        TypeError, ValueError: for none or both forms of a distribution, wrong dtypes, and shapes that differ; where values
            are known, or under ``guards.values()``, for logarithms above 0.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.25, 0.5])
        >>> print(f"{crossent_jax.kl(p=p, q=q):.4f} {crossent_jax.kl(p=q, q=p)}")
        0.6931 inf

    Source: Kullback and Leibler 1951, section 2.
    """
    p_name, p_value = _one_form("p", p, log_p)
    q_name, q_value = _one_form("q", q, log_q)
    p_value, axis = checks.logits(p_value, axis, p_name)
    q_value = checks.same_shape(q_name, checks.floating(q_name, q_value), p_value.shape, f"the shape of {p_name}")
    rows = checks.batch_shape(p_value, axis)
    valid = checks.where(where, rows, p_value.shape)
    reduction = checks.reduction(reduction)
    for name, value in ((p_name, p_value), (q_name, q_value)):
        if name.startswith("log_") and (guards.enabled() or is_concrete(value)):
            _require_logarithms(name, value, valid, axis)
    if guards.enabled():
        for name, value in ((p_name, p_value), (q_name, q_value)):
            value = jnp.exp(value) if name.startswith("log_") else value
            guards.require_distribution(name.replace("log_", "exp of log_"), value, axis, valid, None)
    if valid is not None:
        p_value, q_value = (jnp.where(jnp.expand_dims(valid, axis), x, 0) for x in (p_value, q_value))
    return _kl_of_arrays(reduction, axis, p_name == "log_p", q_name == "log_q", p_value, q_value, valid)


def _require_logarithms(name: str, value: Array, valid, axis: int) -> None:
    """Above 0 there are no logarithms of probabilities; a sum that was rounded may be a little above."""
    possible = ~(value > max(1e-3, 8 * float(jnp.finfo(value.dtype).eps)))
    guards.require(
        name,
        value,
        possible if valid is None else possible | ~jnp.expand_dims(valid, axis),
        "a logarithm of a probability, at most 0: logits belong in kl_divergence, or through jax.nn.log_softmax; "
        f"probabilities in {name.removeprefix('log_')}=",
    )


def _one_form(name: str, value, log_value):
    if (value is None) == (log_value is None):
        raise ValueError(f"give {name} or log_{name}, one of the two; got {'neither' if value is None else 'both'}.")
    return (name, value) if log_value is None else (f"log_{name}", log_value)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _kl_of_arrays(reduction: str, axis: int, p_is_log: bool, q_is_log: bool, p: Array, q: Array, valid) -> Any:
    widest = max(p.dtype, q.dtype, key=lambda dtype: statistics_dtype(dtype).itemsize)
    p, q = (x.astype(statistics_dtype(widest)) for x in (p, q))
    pair = integrands.from_forms(q, p, q_is_log, p_is_log)
    apart = pair.t - jnp.exp(pair.log_p) if p_is_log or q_is_log else p - q
    parts = integrands.kl_in_two(pair, apart)
    rows = keep(valid, jnp.sum(parts[0], axis) + jnp.sum(parts[1], axis))
    return reduce_rows(rows, counted_weights(valid, None, None, jnp.ones_like(rows)), reduction)
