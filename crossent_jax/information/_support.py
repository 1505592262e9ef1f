"""Where a distribution lives: the ends of its support, whether one support lies in another, points at the ends.

A family states its ends. An object of another library says them by its ``support`` (numpyro: a constraint with
``lower_bound`` and ``upper_bound``) or by ``experimental_default_event_space_bijector`` (TensorFlow Probability: a monotone
map from the whole line, whose limits are the ends). What says nothing may be anywhere; then the mass over the nodes decides.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._family import Family
from ._foreign import counts, event_dimensions, is_discrete


class Support(NamedTuple):
    """The ends, numbers or arrays of the batch's shape; infinite where there is none or none is known."""

    low: Any
    high: Any


LINE = Support(-math.inf, math.inf)


def support_of(distribution) -> Support:
    """Of events of one variable; of vectors the whole space."""
    if event_dimensions(distribution):
        return LINE
    if isinstance(distribution, Family):
        return Support(distribution.low, distribution.high)
    if (ends := counts(distribution)) is not None:
        return Support(*ends)
    if (constraint := getattr(distribution, "support", None)) is not None:
        low, high = (getattr(constraint, f"{side}_bound", None) for side in ("lower", "upper"))
        return Support(-math.inf if low is None else low, math.inf if high is None else high)
    return _image_of_the_line(distribution)


def _image_of_the_line(distribution) -> Support:
    """The limits of the bijector at both ends of the line, where they are an interval: one that is not monotone has the same
    limit twice."""
    given = getattr(distribution, "experimental_default_event_space_bijector", None)
    try:
        bijector = given() if given else None
    except NotImplementedError:
        bijector = None
    if bijector is None:
        return LINE
    with jax.ensure_compile_time_eval():
        line = jnp.asarray([-jnp.inf, jnp.inf])
        first, second = (jnp.asarray(bijector.forward(end)) for end in line)
    low, high = jnp.minimum(first, second), jnp.maximum(first, second)
    return Support(jnp.where(low < high, low, -jnp.inf), jnp.where(low < high, high, jnp.inf))


def contained(p, q) -> Any:
    """Whether p's support lies in q's, as far as they say: True, or an array of the batch's shape. An object that says
    nothing may end anywhere; that a family has no end is known."""
    inner, outer = support_of(p), support_of(q)
    if is_line(outer) or (is_line(inner) and not isinstance(p, Family) and getattr(p, "support", None) is None):
        return True
    dtype = jnp.zeros(()).dtype
    low, high, outer_low, outer_high = (jnp.asarray(end).astype(dtype) for end in (*inner, *outer))
    return (low >= outer_low) & (high <= outer_high)


def is_line(support: Support) -> bool:
    return all(is_infinite(end) for end in support)


def is_infinite(end) -> bool:
    """Whether an end is known to be infinite before any value is; the end of another library's object may be so later."""
    return isinstance(end, float) and math.isinf(end)


def is_finite(end) -> bool:
    """Whether an end is known to be finite before any value is."""
    return isinstance(end, float) and math.isfinite(end)


def ends_like(x: Array, support: Support) -> Support:
    """The ends in the dtype and shape of x."""
    return Support(*(jnp.broadcast_to(jnp.asarray(end).astype(x.dtype), x.shape) for end in support))


def at_an_end(x: Array, support: Support) -> Array:
    """Whether x is exactly an end: a float that stands for numbers inside, closer to the end than its digits tell."""
    low, high = ends_like(x, support)
    return (x == low) | (x == high)


def moved_inside(x: Array, support: Support) -> Array:
    """x, where it is exactly an end the next float inside; for 0 the smallest one whose digits are all there."""
    low, high = ends_like(x, support)
    return _next(_next(x, low, 1), high, -1)


def _next(x: Array, end: Array, direction: int) -> Array:
    limits = jnp.finfo(x.dtype)
    step = jnp.maximum(jnp.abs(x) * limits.eps, limits.tiny)
    return jnp.where(jnp.isfinite(x) & (x == end), x + direction * step, x)


def is_on_the_line(distribution) -> bool:
    """Whether it is of one continuous variable."""
    return not is_discrete(distribution) and not event_dimensions(distribution)
