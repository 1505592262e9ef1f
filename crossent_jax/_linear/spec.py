"""A call, checked: its static half and its arrays."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._jax.dtypes import statistics_dtype
from .._row.state import Maybe
from .cuts import Limits
from .projection import Projection, product_dtype
from .shift import Shift


class LinearSpec(NamedTuple):
    """What is static about a projection: the head's vocabulary axis, what limits a chunk, the dtype of a chunk's logits
    (None: as accumulated), and where the label of a hidden state stands."""

    vocab_axis: int
    limits: Limits
    logits_dtype: str | None
    shift: Shift


class Spec(NamedTuple):
    """The static half of a call: hashable, so that equal calls share one compilation. ``linear``: None for given logits."""

    backend: str
    axis: int
    softcap: float | None
    ignore_index: int | None
    axis_name: str | None
    linear: LinearSpec | None = None

    @property
    def shift(self) -> Shift:
        """Where labels stand; given logits have them at their own places."""
        return Shift() if self.linear is None else self.linear.shift


class Rows(NamedTuple):
    """The arrays of a call. ``logits``: an array, or the projection that makes them. ``target``: labels as given, or
    probabilities; None elsewhere: not given."""

    logits: Any
    target: Array
    where: Maybe
    row_weights: Maybe
    class_weights: Maybe
    class_mask: Maybe
    temperature: Maybe

    @property
    def dtype(self) -> jnp.dtype:
        """Of the statistics."""
        z = self.logits
        return statistics_dtype(product_dtype(z) if isinstance(z, Projection) else z.dtype)
