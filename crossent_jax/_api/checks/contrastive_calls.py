"""Arguments of a call on a batch of pairs of vectors."""

import jax
import jax.numpy as jnp

from .arrays import array, described, floating, same_shape


def vectors(name: str, value) -> jax.Array:
    """Floating vectors, one per row."""
    value = floating(name, value)
    if value.ndim != 2:
        raise ValueError(f"{name} must have shape (batch, features); got {tuple(value.shape)}.")
    return value


def ids(name: str, value, length: int) -> jax.Array:
    """Integers, one per row."""
    value = array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must have an integer dtype; got {described(value)}.")
    return same_shape(name, value, (length,), "one id per row, shape")
