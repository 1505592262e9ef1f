"""Differences that keep their digits where two parameters are close.

``exp(x) - 1 - x`` and the Bregman divergence of ``log Gamma`` are of second order in what they compare. The plain formulas
subtract numbers of order 1 or more; these do not.
"""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma
from jaxtyping import Array

from .._pairs.series import expm1_minus, near_zero

NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)


def log_ratio(a: Array, b: Array) -> Array:
    """``log(a / b)`` of positive numbers, from their difference where they are close."""
    apart = (a - b) / b
    near = jnp.abs(apart) < 0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, apart, 0)), jnp.log(a) - jnp.log(b))


def minus_one_minus_log(x: Array) -> Array:
    """``r - 1 - log r = exp(x) - 1 - x``, never negative, of ``x = log r``."""
    near, small = near_zero(x)
    return jnp.where(near, expm1_minus(small), jnp.expm1(x) - x)


def gammaln_bregman(p: Array, apart: Array) -> Array:
    """``log Gamma(p + d) - log Gamma(p) - d digamma(p)``, never negative, for a difference d that is known by itself.

    By Taylor's theorem it is ``d^2 int_0^1 (1 - s) trigamma(p + s d) ds``, taken by Gauss-Legendre's rule of 8
    points where d is within half of p: the nearest pole, at 0, is then a full half-width away and the error below 1e-9.
    """
    near = jnp.abs(apart) < 0.5 * p
    step = jnp.where(near, apart, 0)
    curvature = sum(
        0.25 * weight * (1 - node) * polygamma(1, p + 0.5 * (1 + node) * step)
        for node, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True)
    )
    return jnp.where(near, jnp.square(step) * curvature, gammaln(p + apart) - gammaln(p) - apart * digamma(p))
