"""Arguments of a call on logits and labels, or on logits and target probabilities."""

import math
import numbers

import jax
import jax.numpy as jnp

from .arrays import array, beyond_32_bits, boolean, described, floating, same_shape

LARGEST_CLASS_COUNT = 2**31 - 2


def logits(value, axis: int, name: str = "logits") -> tuple[jax.Array, int]:
    """The logits, and the class axis counted from the end."""
    value = floating(name, value)
    if value.ndim == 0:
        raise ValueError(f"{name} must have a class axis; got a scalar. Pass an array of shape (..., num_classes).")
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise TypeError(f"axis must be an integer; got {axis!r}.")
    if not -value.ndim <= axis < value.ndim:
        raise ValueError(f"axis {axis} is outside {name} of shape {tuple(value.shape)}, which has {value.ndim} axes.")
    axis = int(axis) % value.ndim - value.ndim
    if not 0 < value.shape[axis] <= LARGEST_CLASS_COUNT:
        raise ValueError(
            f"{name} has {value.shape[axis]} classes (axis {axis} of shape {tuple(value.shape)}); at least 1 is needed."
        )
    return value, axis


def batch_shape(z: jax.Array, axis: int) -> tuple[int, ...]:
    """The shape of the logits without the class axis."""
    shape = list(z.shape)
    del shape[axis]
    return tuple(shape)


def labels(value, z: jax.Array, axis: int) -> jax.Array:
    """Integer class ids, one per row."""
    value, expected = array("labels", value), batch_shape(z, axis)
    if jnp.issubdtype(value.dtype, jnp.floating) and value.shape == z.shape:
        raise TypeError(f"labels has {described(value)}: these look like probabilities; use soft_cross_entropy.")
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"labels must have an integer dtype; got {described(value)}. Cast class ids with labels.astype(jnp.int32)."
        )
    if value.shape == expected:
        return value
    fix = "Drop the last axis: labels.squeeze(-1)." if value.shape == (*expected, 1) else "Nothing is broadcast."
    if value.shape == z.shape:
        fix = "A one-hot integer array is not a label: pass its argmax, or a floating copy to soft_cross_entropy."
    raise ValueError(
        f"labels must have the shape of the logits {tuple(z.shape)} without axis {axis}, {expected}; "
        f"got {tuple(value.shape)}. {fix}"
    )


def targets(value, z: jax.Array) -> jax.Array:
    """Target probabilities of every class."""
    value = floating("targets", value, "integer class ids go to cross_entropy.")
    return same_shape("targets", value, z.shape, "the logits' shape")


def where(value, shape, logits_shape, name: str = "where") -> jax.Array | None:
    """A boolean array, True for the rows that count."""
    if value is None:
        return None
    value = boolean(name, value)
    hint = "Nothing is broadcast."
    if value.shape == tuple(logits_shape) != tuple(shape):
        hint = "A mask over classes is class_mask."
    return same_shape(name, value, shape, "the labels' shape", hint)


def class_mask(value, z, axis: int) -> jax.Array | None:
    """A boolean array over the classes, ``(v,)`` or the logits' shape, True for the classes that take part."""
    if value is None:
        return None
    value = boolean("class_mask", value)
    if value.shape not in (z.shape, (z.shape[axis],)):
        raise ValueError(
            f"class_mask must have shape {(z.shape[axis],)} (one mask for all rows) or the logits' shape {z.shape}; "
            f"got {value.shape}. A mask over rows is where."
        )
    return value


def row_weights(value, shape, name: str = "row_weights") -> jax.Array | None:
    """Floating weights, one per row."""
    if value is None:
        return None
    value = floating(name, value, "a boolean mask is where=; otherwise cast with .astype(jnp.float32).")
    return same_shape(name, value, shape, "the labels' shape")


def class_weights(value, num_classes: int, name: str = "class_weights") -> jax.Array | None:
    """Floating weights, one per class."""
    if value is None:
        return None
    return same_shape(name, floating(name, value), (num_classes,), "one entry per class, shape")


def softcap(value) -> float | None:
    """A static positive number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"softcap is static: pass None or a Python number; got {value!r}.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"softcap must be a finite number above 0, or None for no cap; got {value!r}.")
    return float(value)


def ignore_index(value, labels) -> int | None:
    """A static integer. ``labels`` as the caller gave them: those beyond 32 bits must not be mistaken for it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"ignore_index is static: pass None or a Python integer; got {value!r}.")
    value, limits, wide = int(value), jnp.iinfo(jnp.int32), beyond_32_bits(labels)
    if wide is not None and not limits.min < value < limits.max and (wide == value).any():
        raise ValueError(
            f"labels holds ignore_index={value} beside the 32-bit integers that JAX has without x64. Use an ignore_index "
            "nearer to 0 (-100), or jax.config.update('jax_enable_x64', True)."
        )
    return value
