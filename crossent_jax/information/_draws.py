"""Samples for Monte Carlo, with the logarithms that their floats have lost.

Densities like ``x^(c - 1)`` with c below 1 are infinite at an end of the support, where a share of the samples lies closer
to the end than a float can tell: of Gamma(0.01, 1) 42 % lie below 1e-38. Such a sample would be 0 or 1, its log-density
infinite. So Gamma, Beta and Dirichlet, all made of gamma variables, are drawn as ``log x`` (and ``log(1 - x)``), and a
log-density that holds ``(c - 1) log x`` is taken as that of a float x' inside of the support, plus
``(c - 1) (log x - log x')``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._continuous import Beta, Gamma, LogNormal
from ._family import Family, each
from ._foreign import at_counts, draw, log_prob_of
from ._support import ends_like, is_line, is_on_the_line, moved_inside, support_of
from ._vectors import Dirichlet


class Draw(NamedTuple):
    """Samples as floats strictly inside of the support, along the first axis; the exact logarithms where they are known."""

    x: Array
    log_x: Array | None = None
    log1m_x: Array | None = None


def drawn(p, others: tuple, key: Array, count: int) -> Draw:
    """``count`` samples of p, constants to a gradient."""
    if isinstance(p, Family):
        p = jax.tree.map(jax.lax.stop_gradient, p)
    found = _drawn_as_logarithms(p, key, count) or Draw(draw(p, key, count))
    x = jax.lax.stop_gradient(found.x)
    if is_on_the_line(p):
        for side in (*others, p):
            x = moved_inside(x, support_of(side))
    return Draw(x, *jax.lax.stop_gradient(found[1:]))


def _drawn_as_logarithms(p, key: Array, count: int) -> Draw | None:
    """A gamma variable by itself, as its share of two, or as its share of many."""
    if isinstance(p, Gamma):
        log_x = each(lambda log: log - jnp.log(p.rate), _log_gamma(key, p.concentration, count), 1)
        return Draw(_normal(jnp.exp(log_x)), log_x)
    if isinstance(p, Beta):
        keys = jax.random.split(key)
        first, second = (_log_gamma(*of, count) for of in zip(keys, (p.concentration1, p.concentration0), strict=True))
        total = jnp.logaddexp(first, second)
        return Draw(_normal(jnp.exp(first - total)), first - total, second - total)
    if isinstance(p, Dirichlet):
        log_x = jax.nn.log_softmax(_log_gamma(key, p.concentration, count), -1)
        return Draw(_normal(jnp.exp(log_x)), log_x)
    return None


def _log_gamma(key: Array, concentration: Array, count: int) -> Array:
    return jax.random.loggamma(key, concentration, (count, *concentration.shape), concentration.dtype)


def _normal(x: Array) -> Array:
    """At least the smallest float whose digits are all there: 0 and what hardware takes as 0 are not inside."""
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def log_density(q, at: Draw) -> Array:
    """log q at the samples; -inf outside of the support that q says."""
    if at.log_x is not None and isinstance(q, LogNormal):
        return q.logarithm().log_prob(at.log_x) - at.log_x
    if at.log_x is not None and isinstance(q, Gamma):
        return q.log_prob(at.x) + _power(q.concentration, at.log_x - jnp.log(at.x))
    if at.log_x is not None and at.log1m_x is not None and isinstance(q, Beta):
        powers = _power(q.concentration1, at.log_x - jnp.log(at.x))
        return q.log_prob(at.x) + powers + _power(q.concentration0, at.log1m_x - jnp.log1p(-at.x))
    if at.log_x is not None and isinstance(q, Dirichlet):
        return q.log_prob(at.x) + jnp.sum(_power(q.concentration, at.log_x - jnp.log(at.x)), -1)
    return log_density_at(q, at.x)


def _power(concentration: Array, lost: Array) -> Array:
    return each(lambda log: (concentration - 1) * log, lost, 1)


def log_density_at(q: Any, x: Array) -> Array:
    """log q at floats x; -inf outside of the support that q says. An object need not give a number there, nor at its ends:
    the log-density at an end is that of the next float inside."""
    support = support_of(q)
    if isinstance(q, Family) or is_line(support):
        return log_prob_of(q)(at_counts(q, x))
    points = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    low, high = ends_like(points, support)
    safe = jnp.clip(points, low, high)
    found = log_prob_of(q)(at_counts(q, moved_inside(safe, support) if is_on_the_line(q) else safe))
    return jnp.where((points >= low) & (points <= high), found, -jnp.inf)
