"""From a checked call on two distributions to its reduced loss."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.versions import regrouped, typed_like
from .._linear.cuts import cut_rows
from .._linear.projection import Layout
from .._linear.rows import devices_of_rows, sizes_of
from .._linear.spec import LinearSpec
from .._row.logit_map import usable
from .._row.reduce import counted_weights, reduce_rows
from .._row.state import Maybe
from .calls import losses_of_pairs
from .linear import PairCall, PairPlan, linear_pair_losses, linear_pair_sum
from .loss import PairRows, PairSpec


def pair_loss(spec: PairSpec, reduction: str, class_mask: Maybe, rows: PairRows, dtype):
    """Of two arrays of logits, the teacher's split as the student's. Scalar options are spread over the rows."""
    batch = rows.logits.shape[:-1]
    rows = _spread(rows._replace(teacher=typed_like(rows.teacher, rows.logits)), batch, dtype)
    return _reduced(losses_of_pairs(spec, class_mask, rows), rows, reduction, batch, dtype)


def linear_pair_loss(
    spec: PairSpec,
    linear: LinearSpec,
    teacher_axis: int,
    reduction: str,
    sides: tuple,
    class_mask: Maybe,
    rows: PairRows,
    dtype,
):
    """Of a projection and its teacher. ``sides``: the student's projection and the teacher's (None: ``rows.teacher``)."""
    student, teacher = sides
    batch = student.hidden.shape[:-1]
    rows = _spread(rows, batch, dtype)
    sizes = sizes_of(linear, student, distributions=2)
    devices = devices_of_rows(student.hidden)
    cut, elsewhere = (cut_rows(batch, sizes, linear.limits, on_cpu, devices) for on_cpu in (True, False))

    def reshaped(x):
        return regrouped(x, len(batch), cut.shape, student.hidden)

    def of_rows(side) -> Any:
        return None if side is None else side._replace(hidden=reshaped(side.hidden))

    logits_dtype = linear.logits_dtype or str(dtype)
    plan = PairPlan(
        spec._replace(read_again=False),
        Layout(linear.vocab_axis, logits_dtype),
        None if teacher is None else Layout(teacher_axis, logits_dtype),
        len(cut.shape) - 1,
        cut.chunk,
        elsewhere.chunk,
    )
    mask = class_mask if class_mask is None or class_mask.ndim == 1 else reshaped(class_mask)
    call = PairCall(of_rows(student), of_rows(teacher), mask, jax.tree.map(reshaped, rows))
    if reduction == "none":
        return regrouped(linear_pair_losses(plan, call), len(cut.shape), batch, student.hidden)
    return _reduced(linear_pair_sum(plan, call), rows, reduction, batch, dtype)


pair_loss_jitted = partial(jax.jit, static_argnums=(0, 1, 4))(pair_loss)
linear_pair_loss_jitted = partial(jax.jit, static_argnums=(0, 1, 2, 3, 7))(linear_pair_loss)


def _spread(rows: PairRows, batch: tuple[Any, ...], dtype) -> PairRows:
    """Scalar options as numbers of each row, whose derivatives JAX adds up."""

    def each(value: Any, shape) -> Array | None:
        return None if value is None else jnp.broadcast_to(jnp.asarray(value, dtype), shape)

    temperature = each(rows.temperature, (*batch, 1))
    return rows._replace(
        row_weights=None if rows.row_weights is None else rows.row_weights.astype(dtype),
        label_weight=each(rows.label_weight, batch),
        temperature=None if temperature is None else usable(temperature),
        parameter=each(rows.parameter, (*batch, 1)),
    )


def _reduced(losses: Array, rows: PairRows, reduction: str, batch: tuple[Any, ...], dtype):
    counted = counted_weights(rows.valid, rows.row_weights, None, jnp.ones(batch, dtype))
    return reduce_rows(losses, counted, reduction)
