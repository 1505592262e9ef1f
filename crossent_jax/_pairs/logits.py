"""The logits that a divergence is taken of, from those that are given: in float32, finite in rows that do not count, after
the soft cap, -inf where masked."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._dense.vjp import without_dead_values
from .._row.block import along_axis
from .._row.logit_map import capped
from .._row.state import Maybe


class Given(NamedTuple):
    """Both sides' logits in their dtypes, the classes last, a mask of classes (maybe for all rows), and which rows count."""

    logits: Any
    teacher: Any
    class_mask: Maybe
    live: Maybe


def wide_logits(softcap: float | None, dtype: Any, given: Given) -> tuple[Array, Array]:
    """The student's and the teacher's, in ``dtype``."""
    student, teacher = (wide_side(softcap, dtype, z, given.class_mask, given.live) for z in given[:2])
    return student, teacher


def wide_side(softcap: float | None, dtype: Any, z: Array, class_mask: Maybe, live: Maybe) -> Array:
    """One side's."""
    z = (z if live is None else without_dead_values(z, live, -1)).astype(dtype)
    if softcap is None and class_mask is None:
        return z
    allowed = z != -jnp.inf
    if class_mask is not None:
        allowed &= class_mask if class_mask.ndim == z.ndim else along_axis(class_mask, z.ndim, -1)
    return jnp.where(allowed, capped(jnp.where(allowed, z, 0), softcap), -jnp.inf)
