"""From checked arguments to the statistics and losses of rows: what the public functions share, whether the logits are given
or are a projection that is never whole.

One jitted program per (Spec, shapes, set of options that are on); the values of scalar options are traced.
"""

from functools import partial, reduce
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._dense.shards import known_labels, local_labels, sum_over, total_classes
from .._dense.vjp import row_state, without_dead_values
from .._jax.versions import lookup, typed_like
from .._linear.counted import Masks
from .._linear.rows import projection_state, projection_sum
from .._linear.shift import to_labels
from .._linear.spec import Rows, Spec
from .._row.block import Operands, Wanted, along_axis, is_soft
from .._row.labels import class_index
from .._row.logit_map import usable
from .._row.losses import LossOptions, Shared, row_loss
from .._row.reduce import counted_weights, keep, reduce_rows, valid_rows, weighted_losses
from .._row.state import Maybe, RowStats, State, finalize
from .._row.user_loss import UserLoss
from ..backends import BACKENDS
from . import checks


class Prepared(NamedTuple):
    """What the state of rows is made from (``operands``; no logits where they are a projection), and what their losses need
    besides: valid rows, class weight of each row, and rows that can reach the result (None each: all, 1, all). ``known``:
    which labels are of a class, where the classes are split (:func:`known_labels`)."""

    operands: Operands
    valid: Maybe
    weight: Maybe
    live: Maybe
    known: Maybe

    @property
    def masks(self) -> Masks:
        """Of the rows of a projection."""
        return Masks(self.valid, self.live, self.known)


@partial(jax.jit, static_argnums=(0, 1))
def loss_of_rows(spec: Spec, reduction: str, rows: Rows, options: LossOptions):
    """Statistics, the loss of each row, and the reduction."""
    soft = is_soft(rows.target)
    options = jax.tree.map(lambda option: jnp.asarray(option, rows.dtype), options)  # numbers, under jax.disable_jit()
    parts = _prepare(spec, rows, prior=options.label_smoothing is not None)
    wanted = Wanted(
        spec.axis,
        spec.softcap,
        entropy=options.entropy_weight is not None,
        target_exp=options.poly_epsilon is not None and soft,
        prior_count=options.label_smoothing is not None and rows.class_weights is not None,
        rows_may_drop=_rows_may_drop(spec, reduction, rows),
    )
    row_weights = None if rows.row_weights is None else rows.row_weights.astype(rows.dtype)
    of_rows = parts.valid, parts.weight, row_weights
    shared = Shared(parts.operands.temperature, options)
    class_weight = None if soft else parts.weight
    return _reduced(spec, reduction, wanted, rows, parts, StateLoss(soft), of_rows, shared, row_weights, class_weight)


def _reduced(spec, reduction, wanted, rows, parts, losses_of, of_rows, shared, row_weights, class_weight):
    """The losses ``losses_of(state, of_rows, shared)`` of all rows, reduced."""
    if spec.linear is not None and reduction != "none" and not losses_of.apart:
        losses = projection_sum(spec, wanted, rows.logits, parts.operands, parts.masks, losses_of, of_rows, shared)
    else:
        losses = losses_of(_state(spec, wanted, rows, parts), of_rows, shared)
    like = jnp.ones(_batch_shape(spec, rows), rows.dtype)
    return _of_tokens(spec, reduce_rows(losses, counted_weights(parts.valid, row_weights, class_weight, like), reduction))


class StateLoss(NamedTuple):
    """The weighted losses of rows from their state: ``of_rows`` is (valid rows, class weights, row weights)."""

    soft: bool
    apart = False  # of what a user's function closes over: UserLoss

    def __call__(self, state: State, of_rows, shared: Shared) -> Array:
        (valid, weight, row_weights), (temperature, options) = of_rows, shared
        stats = keep(valid, finalize(state, temperature=temperature, soft=self.soft))
        known = None if self.soft else stats.target_mass > 0
        stats = keep(_counting_rows(stats, row_weights, weight if options.label_smoothing is None else None), stats)
        loss = row_loss(stats, options, weight)
        if known is not None:
            loss = jnp.where(known, loss, jnp.nan)  # a label of no class: NaN, and none of the row's terms trains
        return weighted_losses(loss, valid, row_weights)


@partial(jax.jit, static_argnums=(0,))
def stats_of_rows(spec: Spec, rows: Rows) -> RowStats:
    """Every statistic of each row; 0 (argmax: -1) for the ignored ones."""
    wanted = Wanted(spec.axis, spec.softcap, entropy=True, argmax=True, prior_count=rows.class_weights is not None)
    stats, valid = _statistics(spec, wanted, rows, prior=True)
    argmax = stats.argmax if valid is None else jnp.where(valid, stats.argmax, -1)
    return _of_tokens(spec, stats._replace(argmax=argmax))


@partial(jax.jit, static_argnums=(0,))
def log_probs_of_rows(spec: Spec, rows: Rows) -> Array:
    """Log-probability of each row's label; 0 for the ignored rows."""
    stats, _ = _statistics(spec, Wanted(spec.axis, spec.softcap), rows, prior=False)
    return _of_tokens(spec, 0 - stats.nll)  # not the negative, which is -0


def _of_tokens(spec: Spec, tree):
    """What belongs to hidden states, moved to the labels they predict, ``shift`` places later."""
    return jax.tree.map(lambda x: to_labels(spec.shift, x) if x.ndim else x, tree) if spec.shift.places else tree


def _statistics(spec: Spec, wanted: Wanted, rows: Rows, prior: bool) -> tuple[RowStats, Maybe]:
    """``(statistics with the ignored rows zeroed, valid rows or None)``."""
    parts = _prepare(spec, rows, prior)
    state, temperature = _state(spec, wanted, rows, parts), parts.operands.temperature
    stats = finalize(state, temperature=temperature, soft=is_soft(rows.target))
    return keep(parts.valid, stats), parts.valid


def _state(spec: Spec, wanted: Wanted, rows: Rows, parts: Prepared) -> State:
    if spec.linear is not None:
        state = projection_state(spec, wanted, rows.logits, parts.operands, parts.masks)
    else:
        state = row_state(BACKENDS[spec.backend], wanted, parts.operands, parts.live, spec.axis_name, parts.known)
    chex.assert_shape([field for field in state if field is not None], _batch_shape(spec, rows))
    chex.assert_type([state.maximum, state.exp_sum, state.target_dot], rows.dtype)
    return state


def _prepare(spec: Spec, rows: Rows, prior: bool) -> Prepared:
    dtype, linear = rows.dtype, spec.linear is not None
    classes = _local_classes(spec, rows)
    everywhere = total_classes(classes, spec.axis_name)
    if is_soft(rows.target):
        valid, known = rows.where, None
        target, weight = _weighted_targets(spec, rows._replace(target=_targets_that_count(spec, rows)), dtype)
        matters = weight
    else:
        valid = valid_rows(rows.target, rows.where, spec.ignore_index)
        index = keep(valid, class_index(rows.target, everywhere))
        target, known = local_labels(index, classes, spec.axis_name), known_labels(index, spec.axis_name)
        weight = _weight_of_label(spec, rows.class_weights, target, dtype)
        matters = None if weight is None else jnp.where(index < 0, 1, weight)  # the loss of a label of no class is NaN
    temperature = None if rows.temperature is None else usable(jnp.asarray(rows.temperature, dtype))
    pi = _prior(rows.class_weights, classes, dtype) if prior else None
    operands = Operands(None if linear else rows.logits, target, pi, rows.class_mask, temperature)
    return Prepared(operands, valid, weight, _live_rows(valid, rows.row_weights, None if prior else matters), known)


def _local_classes(spec: Spec, rows: Rows) -> int:
    if spec.linear is not None:
        return rows.logits.head.shape[spec.linear.vocab_axis]
    return rows.logits.shape[spec.axis]


def _batch_shape(spec: Spec, rows: Rows) -> tuple[int, ...]:
    if spec.linear is not None:
        return rows.logits.hidden.shape[:-1]
    return checks.batch_shape(rows.logits, spec.axis)


def _weighted_targets(spec: Spec, rows: Rows, dtype):
    """``(t_j w_j / W, W)`` with ``W = sum_j t_j w_j``, so that W weighs a row as a label's class weight does;
    ``(t, None)`` without class weights."""
    if rows.class_weights is None:
        return rows.target, None
    target = rows.target.astype(dtype) * along_axis(rows.class_weights.astype(dtype), rows.target.ndim, spec.axis)
    weight = sum_over(jnp.sum(target, spec.axis), spec.axis_name)
    divisor = jnp.expand_dims(jnp.where(weight == 0, 1, weight), spec.axis)
    return target / divisor, weight


def _weight_of_label(spec: Spec, class_weights, index, dtype):
    if class_weights is None:
        return None
    weight = jnp.where(index < 0, 0, lookup(class_weights.astype(dtype), jnp.maximum(index, 0)))
    return sum_over(weight, spec.axis_name)


def _prior(class_weights, classes: int, dtype) -> Array:
    """The class weights, or 1 (PyTorch's weighted smoothing)."""
    return jnp.ones((classes,), dtype) if class_weights is None else class_weights.astype(dtype)


def _rows_may_drop(spec: Spec, reduction: str, rows: Rows) -> bool:
    """Whether some row's cotangents may be zero while others' are not: it may be ignored here, weighted 0, or masked by the
    caller, who sees rows under "none" and under ``jax.vmap`` of one-row calls."""
    ignoring = (rows.where, spec.ignore_index, rows.row_weights, rows.class_weights)
    return any(option is not None for option in ignoring) or reduction == "none" or not _batch_shape(spec, rows)


def _counting_rows(stats: RowStats, *weights: Maybe) -> Maybe:
    """False for rows of weight 0 with a NaN or infinite statistic: 0 * NaN must not reach a loss or a gradient."""
    zeros = [weight == 0 for weight in weights if weight is not None]
    if not zeros:
        return None
    finite = reduce(jnp.logical_and, [jnp.isfinite(field) for field in stats if field is not None])
    return finite | ~reduce(jnp.logical_or, zeros)


def _live_rows(valid: Maybe, *weights: Maybe) -> Maybe:
    """Rows that can reach the result, None for all."""
    conditions = [weight != 0 for weight in weights if weight is not None]
    conditions += [] if valid is None else [valid]
    return reduce(jnp.logical_and, conditions) if conditions else None


def _targets_that_count(spec: Spec, rows: Rows) -> Array:
    """Zeros for the targets of ignored rows, and for NaN and inf in those of weight 0; split as given logits are."""
    target = rows.target if spec.linear is not None else typed_like(rows.target, rows.logits)
    if rows.where is not None:
        target = jnp.where(jnp.expand_dims(rows.where, spec.axis), target, 0)
    return target if rows.row_weights is None else without_dead_values(target, rows.row_weights != 0, spec.axis)


def user_loss(spec: Spec, reduction: str, loss: UserLoss, reads: frozenset[str], rows: Rows, row_args, constants):
    """A user's loss of each row, and the reduction."""
    prior = "ce_prior" in reads
    parts = _prepare(spec, rows, prior)
    counted = prior and rows.class_weights is not None
    wanted = Wanted(spec.axis, spec.softcap, "entropy" in reads, argmax="argmax" in reads, prior_count=counted)
    row_weights = None if rows.row_weights is None else rows.row_weights.astype(rows.dtype)
    of_rows = parts.valid, row_weights, row_args
    shared = Shared(parts.operands.temperature, constants)
    return _reduced(spec, reduction, wanted, rows, parts, loss, of_rows, shared, row_weights, None)


user_loss_of_rows = jax.jit(user_loss, static_argnums=(0, 1, 2, 3))


def user_loss_of_call(spec: Spec, reduction: str, loss: UserLoss, reads: frozenset[str], *arrays):
    """The same of a function that no later call can share: a program that is forgotten with it. One program too, since JAX
    (0.10.2, 0.12.0.1) runs no rule with symbolic zeros in a ``jax.shard_map`` that is not compiled."""
    return jax.jit(partial(user_loss, spec, reduction, loss, reads))(*arrays)
