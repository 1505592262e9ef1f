"""Labels that stand some places after the hidden states that predict them.

Over a mesh axis that splits the sequence, a device's last states predict the first labels of the next one: these few are
sent to it, in a circle. What went around the end of the whole sequence has no state, and is not kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._jax.versions import to_varying, varying_axes, whole_along


class Shift(NamedTuple):
    """How many places, on the last batch axis, and the mesh axis over which this is split (None: it is whole)."""

    places: int = 0
    axis_name: str | None = None


def to_hidden(shift: Shift, x: Array, axis: int = -1) -> Array:
    """What belongs to labels, moved to the hidden states that predict them."""
    return _moved(shift, x, -shift.places, axis)


def to_labels(shift: Shift, x: Array, axis: int = -1) -> Array:
    """What belongs to hidden states, moved to the labels that they predict."""
    return _moved(shift, x, shift.places, axis)


def with_label(shift: Shift, length: int) -> Bool[Array, " length"]:
    """Which of so many hidden states (of this device) have a label."""
    places = jnp.arange(length)
    if shift.axis_name is None:
        return places < length - shift.places
    first, total = jax.lax.axis_index(shift.axis_name) * length, jax.lax.axis_size(shift.axis_name) * length
    return first + places < total - shift.places


def _moved(shift: Shift, x: Array, places: int, axis: int) -> Array:
    if shift.axis_name is None:
        return jnp.roll(whole_along(x, axis), places, axis)
    x = to_varying(x, varying_axes(jax.lax.axis_index(shift.axis_name)))
    size, length = jax.lax.axis_size(shift.axis_name), x.shape[axis]
    later = places > 0
    border = length - places if later else -places
    first, last = jnp.split(x, [border], axis)
    sent, kept = (last, first) if later else (first, last)
    circle = [(i, (i + (1 if later else -1)) % size) for i in range(size)]
    received = jax.lax.ppermute(sent, shift.axis_name, circle)
    return jnp.concatenate([received, kept] if later else [kept, received], axis)
