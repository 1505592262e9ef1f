"""Formulas of Dirichlet's distribution along the last axis, of which the beta distribution is the one of two components.

With s the sum of the concentrations c, the mean is ``m = c / s``, and ``phi(r) = r - 1 - log r``. As ``sum(c) = s``,

    sum_i c_i log(x_i / m_i) = -sum_i c_i phi(x_i / m_i)      for x on the simplex,

so the log-density is ``-sum_i log x_i - sum_i c_i phi(x_i / m_i) + constant(c)``, the constant being what Stirling's formula
leaves of the normaliser: no term grows with c but the ones that are 0 at the mean.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ._closeness import log_ratio, minus_one_minus_log, quotient
from ._stirling import HALF_LOG_TAU, bregman, mean_log_gap, remainder


def mean(c: Array) -> Array:
    return quotient(c, _total(c))


def mean_log_gaps(c: Array) -> Array:
    """``log E[x] - E[log x]``, above 0."""
    return mean_log_gap(c) - mean_log_gap(_total(c))


def mean_logs(c: Array) -> Array:
    """``E[log x] = digamma(c) - digamma(s)``."""
    return log_ratio(c, _total(c)) - mean_log_gaps(c)


def log_density(c: Array, x: Array, log_x: Array, from_mean: Array) -> Array:
    """At x inside the simplex; ``from_mean = x - m``, which a beta distribution knows better of its second component."""
    ratios = log_ratio(x, mean(c), from_mean)
    return _at(c, ratios, log_x)


def expected_log_density(c: Array, means: Array, logs: Array, gaps: Array) -> Array:
    """``E[log density]`` over an x of these means, means of logarithms, and gaps ``log E[x] - E[log x]``."""
    return _at(c, log_ratio(means, mean(c)), logs) - jnp.sum(c * gaps, -1)


def _at(c: Array, ratios: Array, logs: Array) -> Array:
    return _constant(c) - jnp.sum(logs, -1) - jnp.sum(c * minus_one_minus_log(ratios), -1)


def _constant(c: Array) -> Array:
    """``sum_i c_i log m_i - log B(c)``."""
    total = _total(c)[..., 0]
    powers = 0.5 * (jnp.sum(jnp.log(c), -1) - jnp.log(total)) - (c.shape[-1] - 1) * HALF_LOG_TAU
    return powers - (jnp.sum(remainder(c), -1) - remainder(total))


def kl(p: Array, q: Array) -> Array:
    """``KL`` of two concentrations: ``s_q KL(m_q || m_p)``, which is ``sum_i q_i phi(m_p / m_q)``, and the Bregman
    divergences of what ``log Gamma`` has beside ``x log x``, of each concentration, less that of the sum."""
    apart = q - p
    of_total = jnp.sum(apart, -1, keepdims=True)
    ratios = log_ratio(_total(q), _total(p), of_total) - log_ratio(q, p, apart)
    own = jnp.sum(q * minus_one_minus_log(ratios), -1) + jnp.sum(bregman(p, q, apart), -1)
    return jnp.maximum(own - bregman(_total(p), _total(q), of_total)[..., 0], 0)


def _total(c: Array) -> Array:
    return jnp.sum(c, -1, keepdims=True)
