"""Quotients and differences that keep their digits where two parameters are close, very small or very large.

``exp(x) - 1 - x`` is of second order in what it compares: the plain formula subtracts numbers of order 1, this does not.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._pairs.series import expm1_minus, near_zero


@jax.custom_jvp
def quotient(a: Array, b: Array) -> Array:
    """``a / b``. JAX's derivative is made of ``1 / b^2``, which float32 does not hold for b = 1e20 or 1e-20; this one is
    ``(da - (a / b) db) / b``."""
    return a / b


@quotient.defjvp
def _quotient_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    ratio = quotient(a, b)
    return ratio, quotient(da - ratio * db, b)


def log_ratio(a: Array, b: Array, apart: Array | None = None) -> Array:
    """``log(a / b)`` of positive numbers, from their difference where they are close: ``apart`` if it is known better than
    from a - b. A ratio that the dtype may not hold is a difference of logarithms."""
    difference = a - b if apart is None else apart
    near = jnp.abs(difference) < 0.5 * b
    held = (a / b > 1e-30) & (a / b < 1e30)
    far = jnp.where(held, jnp.log(quotient(*(jnp.where(held, x, 1) for x in (a, b)))), jnp.log(a) - jnp.log(b))
    return jnp.where(near, jnp.log1p(quotient(jnp.where(near, difference, 0), b)), far)


def minus_one_minus_log(x: Array) -> Array:
    """``r - 1 - log r = exp(x) - 1 - x``, never negative, of ``x = log r``."""
    near, small = near_zero(x)
    return jnp.where(near, expm1_minus(small), jnp.expm1(x) - jnp.minimum(x, 1e3))
