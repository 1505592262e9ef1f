"""The loss of a row that has two distributions: a divergence, and the cross-entropy of a label beside it where one is given.

    loss = (1 - label_weight) T^2 D(teacher, student) + label_weight (-log softmax(z)_label)

with T the temperature of the divergence (T^2 only where asked for: the gradient of D falls as 1 / T^2) and the label's term
at temperature 1: Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2.

A teacher known in k classes alone (``TopK``) is compared in k + 1 outcomes: those classes, and all others as one. The
student's logit of that last outcome is the log-sum-exp of its other logits, so that everything else stays as it is.
"""

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._dense.shards import known_labels, local_labels, sum_over, total_classes
from .._dense.vjp import row_state
from .._jax.dtypes import statistics_dtype
from .._jax.versions import explicit_sharding, is_split
from .._row.block import Operands, Wanted, is_soft
from .._row.labels import NOT_HERE, is_label
from .._row.reduce import weighted_losses
from .._row.state import Maybe, finalize
from ..backends import BACKENDS
from .kinds import Kind
from .logits import Given, wide_side
from .row_divergence import Pair, Static, log_sum_exp, row_divergence


class TopK(NamedTuple):
    """Classes of a teacher, and their log-probabilities; -1: no class (the row's loss is NaN)."""

    indices: Int[Array, "... k"]
    log_probs: Float[Array, "... k"]


class PairSpec(NamedTuple):
    """What is static. ``tail``: of a top-k teacher, whether the classes that it leaves out have the rest of the mass
    ("bucket") or nothing ("renormalize"). ``read_again``: whether a GPU reads the logits again instead of holding what it
    makes of them; not a chunk's, which may be overwritten."""

    kind: Kind
    backend: str
    softcap: float | None
    axis_name: str | None
    squared: bool
    tail: str
    read_again: bool = True


class PairRows(NamedTuple):
    """The arrays of a call, the rows' axes first and the classes last (a mask may be for all rows). ``teacher``: logits or a
    ``TopK``; ``label``: global ids as int32, -1 for none known. Numbers of a row have its shape; ``temperature`` and
    ``parameter`` a last axis of 1. None: not given."""

    logits: Any
    teacher: Any
    label: Maybe
    valid: Maybe
    row_weights: Maybe
    label_weight: Maybe
    temperature: Maybe
    parameter: Maybe


def pair_losses(spec: PairSpec, class_mask: Bool[Array, "..."] | None, rows: PairRows) -> Float[Array, "..."]:
    """The weighted loss of each row; 0 for those that do not count."""
    given, rows = Given(rows.logits, rows.teacher, class_mask, _live(rows)), _in_wide(rows)
    z = wide_side(spec.softcap, rows.logits.dtype, given.logits, class_mask, given.live)
    loss = row_divergence(*_compared(spec, given, rows, z))
    if spec.squared and rows.temperature is not None:
        loss = jnp.square(rows.temperature[..., 0]) * loss
    if rows.label is not None:
        loss = (1 - rows.label_weight) * loss + rows.label_weight * _label_loss(spec, z, rows.label)
    known = _known(rows)
    loss = loss if known is None else jnp.where(known, loss, jnp.nan)
    return weighted_losses(loss, rows.valid, rows.row_weights)


def _known(rows: PairRows) -> Maybe:
    """False for rows with an id of no class: their loss is NaN, and nothing of them trains."""
    known = [] if rows.label is None else [rows.label != NOT_HERE]
    known += [jnp.all(rows.teacher.indices != NOT_HERE, -1)] if isinstance(rows.teacher, TopK) else []
    return reduce(jnp.logical_and, known) if known else None


def _live(rows: PairRows) -> Maybe:
    """Which rows count (None: all): of the others NaN and inf become 0, so that no derivative multiplies them by 0."""
    if rows.row_weights is None:
        return rows.valid
    counts = rows.row_weights != 0
    return counts if rows.valid is None else rows.valid & counts


def _in_wide(rows: PairRows) -> PairRows:
    """float32, or float64 where a side has it."""
    dtypes = (statistics_dtype(x.dtype) for x in jax.tree.leaves((rows.logits, rows.teacher)) if is_soft(x))
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, rows)


def _compared(spec: PairSpec, given: Given, rows: PairRows, z: Array) -> tuple[Static, Pair]:
    """What the divergence is taken of."""
    teacher = given.teacher
    if not isinstance(teacher, TopK):
        w = wide_side(spec.softcap, z.dtype, teacher, given.class_mask, given.live)
        source = given if spec.read_again else None
        return Static(spec.kind, spec.axis_name, spec.softcap), Pair(z, w, rows.temperature, rows.parameter, source)
    student = z if rows.temperature is None else z / rows.temperature
    everything = teacher.indices.shape[-1] == total_classes(z.shape[-1], spec.axis_name)
    student = _with_rest(spec.axis_name, student, teacher.indices)
    log_probs = wide_side(None, z.dtype, teacher.log_probs, None, given.live)
    return Static(spec.kind, None), Pair(student, _with_tail(spec, log_probs, everything), None, rows.parameter)


def _with_rest(axis_name: str | None, u: Array, indices: Array) -> Array:
    """The logits of the classes of ``indices``, and the log-sum-exp of all others, over all shards."""
    classes = u.shape[-1]
    indices = local_labels(indices, classes, axis_name)
    here = indices != NOT_HERE
    listed = sum_over(jnp.where(here, _at(u, jnp.maximum(indices, 0)), 0), axis_name)
    others = _without(u, jnp.where(here, indices, classes))
    return jnp.concatenate([listed, log_sum_exp(others, axis_name)], -1)


def _at(u: Array, indices: Array) -> Array:
    """``u`` at k indices along its last axis. Classes of which a type says that they are split are compared: a gather or a
    scatter along them has no sharding of its own."""
    if is_split(u, -1):
        return jnp.sum(jnp.where(_are_listed(u, indices), jnp.expand_dims(u, -2), 0), -1)
    return jnp.take_along_axis(u, indices, -1)


def _without(u: Array, indices: Array) -> Array:
    """``u`` with -inf at k indices along its last axis, of which those out of range are dropped."""
    if is_split(u, -1):
        return jnp.where(jnp.any(_are_listed(u, indices), -2), -jnp.inf, u)
    if explicit_sharding(u) is None:
        return jnp.put_along_axis(u, indices, -jnp.inf, -1, inplace=False, mode="drop")

    def without(u, indices):
        return u.at[indices].set(-jnp.inf, mode="drop")

    for _ in range(u.ndim - 1):  # for rows that a type says are split, a scatter is asked for row by row
        without = jax.vmap(without)
    return without(u, indices)


def _are_listed(u: Array, indices: Array) -> Bool[Array, "... k v"]:
    """Which class each index is of."""
    return is_label(indices, (*indices.shape, u.shape[-1]), -1)


def _with_tail(spec: PairSpec, log_probs: Array, everything: bool) -> Array:
    """The log-probabilities, and that of the classes left out: of none, or of what is rounding, -inf."""
    if spec.tail == "renormalize" or everything:
        return jnp.concatenate([log_probs, jnp.full_like(log_probs[..., :1], -jnp.inf)], -1)
    mass = jnp.sum(jnp.exp(log_probs), -1, keepdims=True)
    some = mass < 1 - 4 * float(jnp.finfo(log_probs.dtype).eps)
    return jnp.concatenate([log_probs, jnp.where(some, jnp.log1p(-jnp.where(some, mass, 0)), -jnp.inf)], -1)


def _label_loss(spec: PairSpec, z: Array, label: Array) -> Array:
    """-log softmax(z) at the label, of whole rows; NaN where the label is of no class."""
    index = local_labels(label, z.shape[-1], spec.axis_name)
    known = known_labels(label, spec.axis_name)
    state = row_state(BACKENDS[spec.backend], Wanted(-1), Operands(z, index), None, spec.axis_name, known)
    return finalize(state, temperature=None, soft=False).nll
