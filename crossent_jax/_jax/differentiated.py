"""What a ``custom_vjp`` with symbolic zeros is asked for, and the cotangents that it gives.

Its residuals must have one structure whatever is differentiated: JAX traces a jitted function's rules anew for every set of
differentiated arguments, and takes the structure of one for another. A trained head then gets the zero gradient of a frozen
one where both have as many leaves (0.7.2 to 0.12.0.1), an AssertionError where not (``findings/residuals_by_perturbed.sh``).
So a flag is the size of an array, and a gradient that was not needed is a number.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .dtypes import statistics_dtype
from .halves import narrowed
from .versions import axes_between, summed_over, to_varying, typed_like, varying_axes


def is_primal(x) -> bool:
    """Whether this is what the forward rule gets in an array's place."""
    return hasattr(x, "perturbed")


def values_of(primals: Any) -> Any:
    """The arrays."""
    return jax.tree.map(lambda x: x.value, primals, is_leaf=is_primal)


def is_asked(x) -> bool:
    """Whether the gradient of what stands in an array's place is asked for."""
    return is_primal(x) and x.perturbed and is_floating(x.value)


def is_floating(x) -> bool:
    """Whether there is an array, of floating numbers."""
    return x is not None and jnp.issubdtype(x.dtype, jnp.floating)


def as_shapes(flags: Any) -> Any:
    """Flags as empty or not empty arrays."""
    return jax.tree.map(lambda flag: jnp.zeros(int(flag)), flags)


def from_shapes(shapes: Any) -> Any:
    """The flags again."""
    return jax.tree.map(lambda x: x.size > 0, shapes)


def filled(gradients: Any, parts: Any) -> Any:
    """The gradients of ``parts``, a number in the place of those that were not needed (None)."""

    def fill(gradient, part):
        return jnp.zeros(()) if gradient is None and is_floating(part) else gradient

    return jax.tree.map(fill, gradients, parts, is_leaf=lambda x: x is None)


def cotangents(gradients: Any, parts: Any, scale: jax.Array | None = None) -> Any:
    """The cotangents of ``parts`` from their gradients: multiplied and then added up over the mesh axes over which the parts
    do not vary, both in float32, and then cast; 0 where none was needed, None for what is not floating."""

    def cotangent(gradient, part):
        if not is_floating(part):
            return None
        if gradient is None or gradient.shape != part.shape:
            return zeros(part, part.dtype)
        wide = gradient.astype(statistics_dtype(gradient.dtype))
        wide = wide if scale is None else scale * wide
        return typed_as(narrowed(summed_over(axes_between(wide, part), wide), part.dtype), part)

    return jax.tree.map(cotangent, gradients, parts, is_leaf=lambda x: x is None)


def written_dtype(part: jax.Array, primal: jax.Array, scaled_later: bool) -> jnp.dtype:
    """The dtype in which a gradient is held that is written piece by piece: that of ``primal``, whose values ``part`` has;
    float32 where it is one of several to be added up, or float16, whose exponents do not last until it is multiplied."""
    if axes_between(part, primal) or (scaled_later and part.dtype == jnp.float16):
        return statistics_dtype(part.dtype)
    return part.dtype


def zeros(like: jax.Array, dtype) -> jax.Array:
    """Zeros of the shape, varying axes and explicit sharding of an array."""
    return typed_as(jnp.zeros(like.shape, dtype), like)


def typed_as(cotangent: jax.Array, part: jax.Array) -> jax.Array:
    """With the varying axes and the explicit sharding of an array. A number in the place of a gradient that was not needed
    has neither, and the shape of a scalar operand."""
    return typed_like(to_varying(cotangent, varying_axes(part)), part)
