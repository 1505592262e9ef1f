"""The dtype that is computed in."""

import jax.numpy as jnp


def statistics_dtype(dtype) -> jnp.dtype:
    """float64 for float64, float32 for every other floating dtype."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
