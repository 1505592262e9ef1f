"""Guards of the public arguments: one function each, returning the argument in the form the rest relies on.

They look at rank, shape, dtype and static values only, at trace time, and always run (chex's switch does not reach them).
What needs the data, such as the range of labels, belongs to ``guards.values()``.
"""

import math
import numbers

import jax
import jax.dtypes
import jax.numpy as jnp
import numpy as np

from ._reduce import REDUCTIONS

LARGEST_CLASS_COUNT = 2**31 - 2


def array(name: str, value) -> jax.Array:
    """Any array-like as a JAX array."""
    if isinstance(value, jax.Array):
        return value
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} must be an array; got {value!r}.")
    value = np.asarray(value)
    if value.dtype == object:
        raise TypeError(f"{name} must be an array of numbers; got an object of type {type(value).__name__}.")
    return jnp.asarray(_narrow_integers(value))


def _narrow_integers(value: np.ndarray) -> np.ndarray:
    """Without x64 JAX would wrap 64-bit integers into 32 bits: saturate instead, so that no id becomes another."""
    if value.dtype.kind not in "iu" or value.dtype.itemsize < 8 or jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype:
        return value
    limits = np.iinfo(np.int32)
    return np.clip(value, limits.min if value.dtype.kind == "i" else 0, limits.max).astype(np.int32)


def _described(value) -> str:
    return f"dtype {value.dtype} and shape {tuple(value.shape)}"


def floating(name: str, value, hint: str = "") -> jax.Array:
    """An array of a floating dtype."""
    value = array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        fix = hint or f"cast it first: {name}.astype(jnp.float32)."
        raise TypeError(f"{name} must have a floating dtype; got {_described(value)}. {fix[0].upper()}{fix[1:]}")
    return value


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
        raise TypeError(f"labels has {_described(value)}: these look like probabilities; use soft_cross_entropy.")
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"labels must have an integer dtype; got {_described(value)}. Cast class ids with labels.astype(jnp.int32)."
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


def teacher_logits(value, z) -> jax.Array:
    """The teacher's logits."""
    value = floating("teacher_logits", value)
    return same_shape("teacher_logits", value, z.shape, "the logits' shape", "Both need the same vocabulary.")


def teacher_top_k(value, shape, classes: int) -> tuple[jax.Array, jax.Array]:
    """Class ids and log-probabilities, of the batch's shape and one more axis."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"teacher_top_k must be a pair (indices, log_probs); got {type(value).__name__}.")
    indices, log_probs = (
        array("the indices of teacher_top_k", value[0]),
        floating("the log_probs of teacher_top_k", value[1]),
    )
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"the indices of teacher_top_k must have an integer dtype; got {_described(indices)}.")
    if indices.ndim == 0 or indices.shape[:-1] != tuple(shape) or not 1 <= indices.shape[-1] <= classes:
        raise ValueError(
            f"the indices of teacher_top_k must have the batch shape {tuple(shape)} and one axis more, of 1 to {classes} "
            f"classes; got {tuple(indices.shape)}."
        )
    return indices, same_shape("the log_probs of teacher_top_k", log_probs, indices.shape, "the shape of the indices")


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
        raise TypeError(f"{name} must have an integer dtype; got {_described(value)}.")
    return same_shape(name, value, (length,), "one id per row, shape")


def one_of(name: str, value, options: tuple[str, ...]):
    """One of a few names."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}.")
    return value


def order(kind: str, value) -> float:
    """A static number, the order of a Renyi (above 0) or alpha divergence (not 0)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"kind={kind!r} needs a static order: pass a Python number; got {value!r}.")
    if not math.isfinite(value) or (value <= 0 if kind == "renyi" else value == 0):
        demand = "above 0" if kind == "renyi" else "other than 0 (the limit at 0 is kind='reverse_kl')"
        raise ValueError(f"order must be a finite number {demand} for kind={kind!r}; got {value!r}.")
    return float(value)


def flag(name: str, value) -> bool:
    """True or False, static."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}.")
    return value


def binary_labels(value, z: jax.Array) -> jax.Array:
    """Labels of yes/no decisions: bool, integer or floating, the logits' shape."""
    value = array("labels", value)
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"labels must be bool, integer or floating; got {_described(value)}. Take the real part.")
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


def same_shape(name: str, value: jax.Array, shape, meaning: str, hint: str = "Nothing is broadcast.") -> jax.Array:
    """The value, if it has the shape."""
    if value.shape != tuple(shape):
        raise ValueError(f"{name} must have {meaning} {tuple(shape)}; got {tuple(value.shape)}. {hint}")
    return value


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


def boolean(name: str, value) -> jax.Array:
    """An array of truth values."""
    value = array(name, value)
    if value.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean; got {_described(value)}. Write {name} != 0, or row_weights for weights.")
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


def scalar(
    name: str, value, *, low: float = -math.inf, high: float = math.inf, off: float | None = 0.0, above: bool = False
):
    """A Python number or scalar array; None where a Python number says that the option is off.

    Python numbers are checked against ``[low, high]`` (``above``: ``(low, high]``); traced values by ``guards.values()``.
    """
    if isinstance(value, bool) or isinstance(value, str) or value is None:
        raise TypeError(f"{name} must be a number or a scalar array; got {value!r}.")
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise ValueError(f"{name} must be a finite number{_interval(low, high, above)}; got {value!r}.")
        return None if number == off else number
    value = array(name, value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{name} must be a number or a floating scalar array; got {_described(value)}.")
    return value


def _interval(low: float, high: float, above: bool) -> str:
    if low == -math.inf:
        return ""
    return f", {'above' if above else 'at least'} {low:g}" + ("" if high == math.inf else f" and at most {high:g}")


def softcap(value) -> float | None:
    """A static positive number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"softcap is static: pass None or a Python number; got {value!r}.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"softcap must be a finite number above 0, or None for no cap; got {value!r}.")
    return float(value)


def ignore_index(value) -> int | None:
    """A static integer."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"ignore_index is static: pass None or a Python integer; got {value!r}.")
    return int(value)


def reduction(value) -> str:
    """One of the four reductions."""
    return one_of("reduction", value, REDUCTIONS)


def axis_name(value) -> str | None:
    """The name of one mesh axis."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"axis_name must be None or the name of the mesh axis that splits the classes; got {value!r}.")
    return value


def head_vocab_axis(value) -> int:
    """0 for a head ``(v, d)``, 1 for ``(d, v)``."""
    if isinstance(value, bool) or value not in (0, 1, -1, -2):
        raise ValueError(f"head_vocab_axis must be 1 for a head (d, v), or 0 for a head (v, d); got {value!r}.")
    return int(value) % 2


def projection(hidden, head, bias, vocab_axis: int, side: str = "") -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Hidden states ``(..., d)``, a head of rank 2 with the same d, and a bias ``(v,)``. ``side``: before their names."""
    hidden, head = floating(f"{side}hidden", hidden), floating(f"{side}head", head)
    if hidden.ndim == 0:
        raise ValueError(f"{side}hidden must have a feature axis; got a scalar. Pass an array of shape (..., d).")
    if head.ndim != 2:
        raise ValueError(f"{side}head must have two axes, features and vocabulary; got shape {head.shape}.")
    features, classes = head.shape[1 - vocab_axis], head.shape[vocab_axis]
    if features != hidden.shape[-1]:
        raise ValueError(
            f"{side}head has {features} features (axis {1 - vocab_axis} of shape {head.shape}, "
            f"{side}head_vocab_axis={vocab_axis}) and {side}hidden {hidden.shape[-1]} (last axis of shape {hidden.shape}): "
            "they must agree. " + _other_layout(hidden, head, vocab_axis, side)
        )
    if not 0 < classes <= LARGEST_CLASS_COUNT:
        raise ValueError(
            f"{side}head has {classes} classes (axis {vocab_axis} of shape {head.shape}); at least 1 is needed."
        )
    if bias is not None:
        bias = same_shape(f"{side}bias", floating(f"{side}bias", bias), (classes,), "one entry per class, shape")
    return hidden, head, bias


def _other_layout(hidden: jax.Array, head: jax.Array, vocab_axis: int, side: str) -> str:
    if head.shape[vocab_axis] == hidden.shape[-1]:
        return f"The head looks transposed: pass {side}head_vocab_axis={1 - vocab_axis}."
    return f"{side}head is (d, v) with {side}head_vocab_axis=1, (v, d) with {side}head_vocab_axis=0."


def chunk_rows(value) -> int | None:
    """A static positive integer."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"chunk_rows is static: pass None or a Python integer; got {value!r}.")
    if value < 1:
        raise ValueError(f"chunk_rows must be at least 1, or None to choose by a memory budget; got {value}.")
    return int(value)


def logits_dtype(value) -> str | None:
    """A floating dtype."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"logits_dtype must be None or a floating dtype; got {value!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"logits_dtype must be a floating dtype; got {dtype}.")
    return str(dtype)


def shift(value) -> int:
    """A static integer, not negative."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"shift is static: pass a Python integer; got {value!r}.")
    if value < 0:
        raise ValueError(f"shift must be at least 0 (1: each hidden state predicts the next token); got {value}.")
    return int(value)


def segment_ids(value, shape) -> jax.Array | None:
    """Integers, one per row."""
    if value is None:
        return None
    value = array("segment_ids", value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"segment_ids must have an integer dtype; got {_described(value)}. Cast with .astype(jnp.int32).")
    return same_shape("segment_ids", value, shape, "the labels' shape")


def row_arg(name: str, value, shape) -> jax.Array:
    """An array whose first axes are the labels'."""
    value = array(name, value)
    if value.shape[: len(shape)] != tuple(shape):
        raise ValueError(
            f"{name} must begin with the labels' shape {tuple(shape)}; got {tuple(value.shape)}. Nothing is broadcast; a "
            "number that is the same for every row can be closed over."
        )
    return value
