"""What a call on yes/no decisions has besides."""

import numbers

import jax
import jax.numpy as jnp

from .arrays import array, described, floating, same_shape, scalar


def binary_labels(value, z: jax.Array) -> jax.Array:
    """Labels of yes/no decisions: bool, integer or floating, the logits' shape."""
    value = array("labels", value)
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"labels must be bool, integer or floating; got {described(value)}. Take the real part.")
    return same_shape("labels", value, z.shape, "the logits' shape", "Every decision has a label; one-hot class ids first.")


def pos_weight(value, z: jax.Array):
    """A number, a scalar array, or one weight per entry of the last axis."""
    if value is None or isinstance(value, numbers.Real):
        return None if value is None else scalar("pos_weight", value, low=0.0, off=1.0)
    value = floating("pos_weight", value)
    if value.shape not in ((), z.shape[-1:]):
        raise ValueError(
            f"pos_weight must be a number, or one weight per entry of the last axis, shape {z.shape[-1:]}; "
            f"got {value.shape}."
        )
    return value
