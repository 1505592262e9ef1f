"""``exp(x) - 1 - x`` near 0, where the plain formula keeps no digit: divergences of close distributions are made of it."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SERIES = {"float32": (0.5, 8), "float64": (0.5, 16)}  # radius and terms: the rest is below half an ulp


def near_zero(x: Float[Array, "..."]) -> tuple[Bool[Array, "..."], Float[Array, "..."]]:
    """Where the series holds, and x there (0 elsewhere)."""
    near = jnp.abs(x) <= SERIES[x.dtype.name][0]
    return near, jnp.where(near, x, 0)


def expm1_minus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``exp(x) - 1 - x = x^2 / 2 (1 + x / 3 (1 + x / 4 (...)))`` for x within the radius."""
    tail = jnp.ones_like(x)
    for n in range(SERIES[x.dtype.name][1] + 2, 2, -1):
        tail = 1 + x * (1 / n) * tail
    return x * x / 2 * tail
