"""Pairs of distributions p and t: the integrands of the Kullback-Leibler divergence, elementwise.

| integrand | value | d / d log p | d / d log t | d / d t |
|---|---|---|---|---|
| ``kl`` | t (log t - log p) | -t | t (log t - log p) + t | log t - log p + 1 |
| ``generalized_kl`` | p - t + t (log t - log p) | p - t | t (log t - log p) | log t - log p |

Summed over the classes both are KL(t || p) where p and t have the same sum. Only ``generalized_kl`` is non-negative in
every element, so its sum is exactly 0 for identical inputs and never negative; where the sums differ it is the Bregman
divergence of ``x log x - x``, another number than the sum of ``kl``.

Limits: an element of t = 0 adds 0 to KL (``0 log 0 = 0``), one of t > 0 = p adds +inf. Derivatives are the limits too, and
finite where the limit is; d / d t alone has none at t = 0 (-inf) and is 0 there, which makes the chain rule through
``t = exp(s)`` or a softmax right. A stand-in is chosen before a function that is infinite there and not after it, so every
derivative of every order is JAX's own and no NaN arises in any transform.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._jax.dtypes import statistics_dtype
from .series import expm1_minus, near_zero


class Pair(NamedTuple):
    """Elements of two distributions. ``present``: t is not 0; elsewhere t and ``log_ratio`` are the constant 0."""

    log_p: Float[Array, "..."]
    t: Float[Array, "..."]
    log_ratio: Float[Array, "..."]
    present: Bool[Array, "..."]


def from_probabilities(log_p: Float[Array, "..."], t: Float[Array, "..."]) -> Pair:
    """Pair of log-probabilities and probabilities. float32 inside for half precision."""
    log_p, t = _promoted(log_p, t)
    present = t != 0
    log_ratio = _log_ratio(log_p, jnp.log(jnp.where(present, t, 1)), present)
    return Pair(log_p, jnp.where(present, t, 0), log_ratio, present)


def log_probabilities(p: Float[Array, "..."], needed: Bool[Array, "..."]) -> Float[Array, "..."]:
    """log p; the constant -inf where p is 0 and not needed, where its derivative would meet 0 as infinity."""
    p = p.astype(statistics_dtype(p.dtype))
    constant = (p == 0) & ~needed
    return jnp.where(constant, -jnp.inf, jnp.log(jnp.where(constant, 1, p)))


def from_logs(log_p: Float[Array, "..."], log_t: Float[Array, "..."]) -> Pair:
    """Pair of log-probabilities; t is 0 where ``exp(log_t)`` underflows."""
    log_p, log_t = _promoted(log_p, log_t)
    t = jnp.exp(log_t)
    present = t != 0
    return Pair(log_p, t, _log_ratio(log_p, jnp.where(present, log_t, 0), present), present)


def from_both_probabilities(p: Float[Array, "..."], t: Float[Array, "..."]) -> Pair:
    """Pair of probabilities. Where they are close ``log t - log p`` is taken from their difference; where both are 0 neither
    gets a gradient."""
    p, t = _promoted(p, t)
    present = t != 0
    log_p = log_probabilities(p, present)
    t_or_1 = jnp.where(present, t, 1)
    apart = jnp.where(present, p - t, 0) / t_or_1
    near = jnp.abs(apart) < 0.5
    log_ratio = jnp.where(near, -jnp.log1p(jnp.where(near, apart, 0)), jnp.log(t_or_1) - log_p)
    return Pair(log_p, jnp.where(present, t, 0), jnp.where(present, log_ratio, jnp.where(jnp.isnan(p), p, 0)), present)


def from_forms(p: Float[Array, "..."], t: Float[Array, "..."], p_is_log: bool, t_is_log: bool) -> Pair:
    """Pair of two arrays of one dtype, each probabilities or their logarithms."""
    if not (p_is_log or t_is_log):
        return from_both_probabilities(p, t)
    log_p = p if p_is_log else log_probabilities(p, t != (-jnp.inf if t_is_log else 0))
    return from_logs(log_p, t) if t_is_log else from_probabilities(log_p, t)


def kl(pair: Pair) -> Float[Array, "..."]:
    """``t (log t - log p)``: of either sign, and any sums of p and t."""
    return pair.t * pair.log_ratio


def kl_in_two(pair: Pair, difference: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """:func:`kl` as two arrays to be summed one by one, so that nothing is lost where p and t are close: there the
    non-negative :func:`generalized_kl` and ``difference``, t - p."""
    near, close = _close(pair)
    return jnp.where(near, close, kl(pair)), jnp.where(near, difference, 0)


def generalized_kl(pair: Pair) -> Float[Array, "..."]:
    """``p - t + t (log t - log p)``, never negative: with ``x = log p - log t`` it is ``t (exp(x) - 1 - x)``, by its
    series where p and t are close and the plain formula would cancel."""
    near, close = _close(pair)
    return jnp.where(near, close, jnp.exp(pair.log_p) - pair.t + kl(pair))


def _close(pair: Pair) -> tuple[Bool[Array, "..."], Float[Array, "..."]]:
    """Where the series holds, and ``t (exp(x) - 1 - x)`` by it."""
    near, x = near_zero(-pair.log_ratio)
    return near & pair.present, pair.t * expm1_minus(x)


def _log_ratio(log_p: Array, log_t: Array, present: Array) -> Array:
    """log t - log p; where t is 0, 0 (NaN for a NaN log p, which must show)."""
    return jnp.where(present, log_t - log_p, jnp.where(jnp.isnan(log_p), log_p, 0))


def _promoted(*arrays: Array) -> list[Array]:
    dtype = max((statistics_dtype(x.dtype) for x in arrays), key=lambda dtype: dtype.itemsize)
    return [x.astype(dtype) for x in arrays]
