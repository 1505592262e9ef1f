"""What a call on two distributions has besides: the teacher, and the order of a divergence."""

import math
import numbers

import jax
import jax.numpy as jnp

from .arrays import array, described, floating, same_shape


def teacher_logits(value, z) -> jax.Array:
    """The teacher's logits."""
    value = floating("teacher_logits", value)
    return same_shape("teacher_logits", value, z.shape, "the logits' shape", "Both need the same vocabulary.")


def teacher_top_k(value, shape, classes: int) -> tuple[jax.Array, jax.Array]:
    """Class ids and log-probabilities, of the batch's shape and one more axis."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"teacher_top_k must be a pair (indices, log_probs); got {type(value).__name__}.")
    indices, log_probs = array("the indices of teacher_top_k", value[0]), array("the log_probs of teacher_top_k", value[1])
    if jnp.issubdtype(indices.dtype, jnp.floating) and jnp.issubdtype(log_probs.dtype, jnp.integer):
        raise TypeError(
            "teacher_top_k must be (indices, log_probs); got the log_probs first, the order of jax.lax.top_k. Swap the two."
        )
    log_probs = floating("the log_probs of teacher_top_k", log_probs)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"the indices of teacher_top_k must have an integer dtype; got {described(indices)}.")
    if indices.ndim == 0 or indices.shape[:-1] != tuple(shape) or not 1 <= indices.shape[-1] <= classes:
        raise ValueError(
            f"the indices of teacher_top_k must have the batch shape {tuple(shape)} and one axis more, of 1 to {classes} "
            f"classes; got {tuple(indices.shape)}."
        )
    return indices, same_shape("the log_probs of teacher_top_k", log_probs, indices.shape, "the shape of the indices")


def order(kind: str, value) -> float:
    """A static number, the order of a Renyi (above 0) or alpha divergence (not 0)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"kind={kind!r} needs a static order: pass a Python number; got {value!r}.")
    if not math.isfinite(value) or (value <= 0 if kind == "renyi" else value == 0):
        demand = "above 0" if kind == "renyi" else "other than 0 (the limit at 0 is kind='reverse_kl')"
        raise ValueError(f"order must be a finite number {demand} for kind={kind!r}; got {value!r}.")
    return float(value)
