"""Integer labels: which class of a block they name, and the value of an array at that class.

A gather is the fast way on CPU and GPU (an iota compare costs 2-4 times as much on a CPU); on TPU the compare is (a gather
keeps a float32 copy of bfloat16 logits). The choice is made per lowering platform, in ``label_value`` alone. A
class axis that the type says is sharded is compared too: a gather over it has no sharding of its own.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Integer

from .._jax.versions import in_a_tpu_kernel, is_split

NOT_HERE = -1


def class_index(labels: Integer[Array, "..."], num_classes: int) -> Int[Array, "..."]:
    """The labels as int32, with ``NOT_HERE`` for every id outside ``[0, num_classes)``.

    The comparison happens in an unsigned type that holds both sides, where a negative id is larger than every class: no id
    wraps into a class, and one comparison does.
    """
    unsigned = labels.astype(jnp.uint32 if labels.dtype.itemsize <= 4 else jnp.uint64)
    return jnp.where(unsigned < num_classes, labels.astype(jnp.int32), NOT_HERE)


def local_index(index: Int[Array, "..."], start: Array | int, num_classes: int) -> Int[Array, "..."]:
    """Index within the block of ``num_classes`` classes that begins at ``start``; ``NOT_HERE`` if it lies elsewhere."""
    return jnp.where(index < 0, NOT_HERE, class_index(index - start, num_classes))


def is_label(index: Int[Array, "..."], shape: tuple[Any, ...], axis: int) -> Bool[Array, "..."]:
    """The one-hot of the labels along ``axis``, as a comparison that every compiler fuses."""
    classes = jax.lax.broadcasted_iota(jnp.int32, shape, axis % len(shape))
    return classes == jnp.expand_dims(index, axis)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def label_value(values: Array, index: Int[Array, "..."], axis: int) -> Array:
    """``values`` at each label's class along ``axis``; an unspecified value of the row where the label is not here."""
    by_gather, by_compare = partial(_gather, axis=axis), partial(_compare, axis=axis)
    if is_split(values, axis):
        return by_compare(values, index)
    gathers: dict[str, Any] = dict.fromkeys(("cpu", "cuda", "rocm"), by_gather)
    return jax.lax.platform_dependent(values, index, **gathers, **in_a_tpu_kernel(by_compare), default=by_compare)


@label_value.defjvp
def _label_value_jvp(axis, primals, tangents):
    (values, index), (tangent, _) = primals, tangents
    return label_value(values, index, axis), _compare(tangent, index, axis=axis)


def _compare(values, index, *, axis):
    here = is_label(index, values.shape, axis)
    if values.dtype == jnp.bool_:
        return jnp.any(here & values, axis)
    return jnp.sum(jnp.where(here, values, 0), axis, dtype=values.dtype)


def _gather(values, index, *, axis):
    """Gather 16-bit floats by their bits: XLA's CPU backend turns a bfloat16 gather into a float32 copy of the array."""
    index = jnp.expand_dims(jnp.maximum(index, 0), axis)
    if jnp.issubdtype(values.dtype, jnp.floating) and values.dtype.itemsize == 2:
        bits = jax.lax.bitcast_convert_type(values, jnp.uint16)
        return jax.lax.bitcast_convert_type(_take(bits, index, axis), values.dtype)
    return _take(values, index, axis)


def _take(values, index, axis):
    return jnp.take_along_axis(values, index, axis, mode="promise_in_bounds").squeeze(axis)
