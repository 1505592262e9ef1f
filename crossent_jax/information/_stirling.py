"""What ``log Gamma`` has beside its large terms, so that the formulas of large concentrations do not cancel.

    log Gamma(x) = (x - 1/2) log x - x + log(2 pi) / 2 + mu(x)
    digamma(x) = log x - 1 / (2 x) + mu'(x)

In an entropy or a divergence the terms ``x log x`` and x cancel, and on paper they do so exactly; left is what is small. mu
falls from infinity to 0 as ``1 / (12 x)`` and is convex. From ``START`` on it is Stirling's series, whose rest is below the
first term left out: 1e-11 at 4, 1e-18 at 10. Below, where nothing is large, it is a difference of JAX's functions.

Source: DLMF, 5.11.1 and 5.11.2.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma
from jaxtyping import Array

from ._closeness import log_ratio, minus_one_minus_log

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)  # of 1/x, 1/x^3, ...
START = {"float32": 4.0, "float64": 10.0}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(10)


def remainder(x: Array) -> Array:
    """``mu(x)``."""
    large, small, inverse = _parts(x)
    direct = gammaln(small) - ((small - 0.5) * jnp.log(small) - small + HALF_LOG_TAU)
    return jnp.where(large, inverse * _polynomial(SERIES, inverse), direct)


def remainder_slope(x: Array) -> Array:
    """``mu'(x)``, at most 0."""
    large, small, inverse = _parts(x)
    series = [-(2 * n + 1) * a for n, a in enumerate(SERIES)]
    return jnp.where(large, inverse**2 * _polynomial(series, inverse), digamma(small) - jnp.log(small) + 0.5 / small)


def remainder_curvature(x: Array) -> Array:
    """``mu''(x)``, at least 0."""
    large, small, inverse = _parts(x)
    series = [(2 * n + 1) * (2 * n + 2) * a for n, a in enumerate(SERIES)]
    direct = polygamma(1, small) - 1 / small - 0.5 / jnp.square(small)
    return jnp.where(large, inverse**3 * _polynomial(series, inverse), direct)


def _parts(x: Array) -> tuple[Array, Array, Array]:
    """Where x is large, and for the other formula each a stand-in: x where it is small, 1 / x where it is large."""
    start = START[x.dtype.name]
    large = x >= start
    return large, jnp.where(large, 1, x), 1 / jnp.where(large, x, start)


def _polynomial(coefficients, inverse: Array) -> Array:
    total = jnp.zeros_like(inverse)
    for coefficient in reversed(coefficients):
        total = coefficient + inverse**2 * total
    return total


def mean_log_gap(x: Array) -> Array:
    """``log x - digamma(x)``, above 0: of a gamma variable ``log E[y] - E[log y]``."""
    return 0.5 / x - remainder_slope(x)


def bregman(p: Array, q: Array, apart: Array) -> Array:
    """Bregman divergence of ``log Gamma(x) - x log x`` from p to q, ``apart`` being q - p: that of ``-log(x) / 2``, which is
    ``(r - 1 - log r) / 2`` with r = q / p, and that of mu,

        mu(p + d) - mu(p) - d mu'(p) = d^2 int_0^1 (1 - s) mu''(p + s d) ds.

    The integral is taken by Gauss-Legendre's rule of 10 points where d is within half of p: the nearest pole, at 0, is then
    a full half-width away and the error below 1e-12. Neither is negative.
    """
    near = jnp.abs(apart) < 0.5 * p
    step = jnp.where(near, apart, 0)
    curvature = sum(
        0.25 * weight * (1 - node) * remainder_curvature(p + 0.5 * (1 + node) * step)
        for node, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True)
    )
    direct = remainder(q) - remainder(p) - apart * remainder_slope(p)
    return 0.5 * minus_one_minus_log(log_ratio(q, p, apart)) + jnp.where(near, jnp.square(step) * curvature, direct)
