"""What a call on hidden states and a head has besides: the projection, and how it is cut and moved."""

import numbers

import jax
import jax.numpy as jnp

from ..._linear.cuts import Limits
from ..._linear.shift import Shift
from .arrays import array, described, floating, mesh_axis, renumbered, same_shape, split_over
from .label_calls import LARGEST_CLASS_COUNT


def head_vocab_axis(value) -> int:
    """0 for a head ``(v, d)``, 1 for ``(d, v)``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"head_vocab_axis is static: pass the Python integer 1 for a head (d, v), 0 for (v, d); got {value!r}."
        )
    if value not in (0, 1, -1, -2):
        raise ValueError(f"head_vocab_axis must be 1 for a head (d, v), or 0 for a head (v, d); got {value!r}.")
    return int(value) % 2


def projection(hidden, head, bias, vocab_axis: int, side: str = "") -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Hidden states ``(..., d)``, a head of rank 2 with the same d, and a bias ``(v,)``. ``side``: before their names."""
    dequantise = f"dequantise it first: {side}head.astype({side}hidden.dtype), times its scale."
    hidden, head = floating(f"{side}hidden", hidden), floating(f"{side}head", head, dequantise)
    if hidden.dtype != head.dtype and 1 in (hidden.dtype.itemsize, head.dtype.itemsize):
        raise TypeError(
            f"{side}hidden and {side}head of 8 bits must have one dtype; got {hidden.dtype} and {head.dtype}. For a "
            f"quantised head, {dequantise}"
        )
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


def limits(rows, budget) -> Limits:
    """Of a chunk: ``chunk_rows`` or ``memory_budget``, not both."""
    if rows is not None and budget is not None:
        raise ValueError(f"pass chunk_rows or memory_budget, not both; got chunk_rows={rows!r}, memory_budget={budget!r}.")
    return Limits(chunk_rows(rows), _static_positive("memory_budget", budget, "bytes"))


def chunk_rows(value) -> int | None:
    """A static positive integer."""
    return _static_positive("chunk_rows", value, "rows")


def _static_positive(name: str, value, unit: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is static: pass None or a Python integer, a number of {unit}; got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, or None to leave it to the library; got {value}.")
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


def shift(value, sequence_axis_name=None, axis_name: str | None = None) -> Shift:
    """A static integer, not negative, and where it is not 0 the mesh axis that splits the sequence."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"shift is static: pass a Python integer; got {value!r}.")
    if value < 0:
        raise ValueError(f"shift must be at least 0 (1: each hidden state predicts the next token); got {value}.")
    sequence = mesh_axis("sequence_axis_name", sequence_axis_name, "splits the sequence")
    if sequence is not None and value == 0:
        raise ValueError(
            f"sequence_axis_name={sequence!r} says where labels come from with shift; got shift=0: leave it out."
        )
    if sequence is not None and sequence == axis_name:
        raise ValueError(f"one mesh axis splits the sequence and another the classes; got {sequence!r} for both.")
    return Shift(int(value), sequence)


def sequence(shift: Shift, hidden: jax.Array, labels: jax.Array) -> None:
    """Hidden states must have a last batch axis for ``shift``, split as it says."""
    if hidden.ndim < 2:
        raise ValueError(
            f"shift={shift.places} needs a sequence axis, the last batch axis of hidden; hidden has no batch axis."
        )
    if shift.axis_name is None:
        return
    if shift.places > hidden.shape[-2]:
        raise ValueError(
            f"shift={shift.places} must be at most the places of a device, {hidden.shape[-2]}: labels come from the next "
            f"device of {shift.axis_name!r} alone. Split the sequence over fewer devices."
        )
    split_over(shift.axis_name, "the last batch axis", "sequence_axis_name", hidden=hidden, labels=labels)


def segment_ids(value, shape) -> jax.Array | None:
    """Integers, one per row."""
    if value is None:
        return None
    value = array("segment_ids", *renumbered(value))
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"segment_ids must have an integer dtype; got {described(value)}. Cast with .astype(jnp.int32).")
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
