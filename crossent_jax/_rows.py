"""From checked arguments to the statistics and losses of rows: what the public functions of logits share.

One jitted program per (Spec, shapes, set of options that are on); the values of scalar options are traced.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _checks as checks
from . import guards
from ._block import Operands, Wanted, along_axis, is_soft, statistics_dtype
from ._compat import lookup
from ._core import Maybe, RowStats
from ._dispatch import select
from ._labels import class_index
from ._losses import OPTION_RANGES, LossOptions, row_loss
from ._reduce import keep, reduce_rows, valid_rows
from ._sharding import local_labels, sum_over, total_classes
from ._vjp import row_statistics
from .backends import BACKENDS
from .backends.record import Problem


class Spec(NamedTuple):
    """The static half of a call: hashable, so that equal calls share one compilation."""

    backend: str
    axis: int
    softcap: float | None
    ignore_index: int | None
    axis_name: str | None


class Rows(NamedTuple):
    """The arrays of a call. ``target``: labels as given, or probabilities; None elsewhere: not given."""

    logits: Array
    target: Array
    where: Maybe
    row_weights: Maybe
    class_weights: Maybe
    class_mask: Maybe
    temperature: Maybe


def check_rows(
    function: str,
    logits,
    *,
    labels=None,
    targets=None,
    axis=-1,
    where=None,
    row_weights=None,
    class_weights=None,
    class_mask=None,
    ignore_index=None,
    softcap=None,
    temperature: Any = 1.0,
    axis_name=None,
    implementation=None,
) -> tuple[Spec, Rows]:
    """Guard every array of a call, choose the backend, and run the value guards if they are on."""
    z, axis = checks.logits(logits, axis)
    shape = checks.batch_shape(z, axis)
    axis_name = checks.axis_name(axis_name)
    rows = Rows(
        logits=z,
        target=checks.labels(labels, z, axis) if targets is None else checks.targets(targets, z),
        where=checks.where(where, shape, z.shape),
        row_weights=checks.row_weights(row_weights, shape),
        class_weights=checks.class_weights(class_weights, z.shape[axis]),
        class_mask=checks.class_mask(class_mask, z, axis),
        temperature=checks.scalar("temperature", temperature, low=0.0, above=True, off=1.0),
    )
    problem = Problem(function, z.shape, str(z.dtype), axis_name)
    backend = select(problem, implementation)
    spec = Spec(backend.name, axis, checks.softcap(softcap), checks.ignore_index(ignore_index), axis_name)
    if guards.enabled():
        _check_values(spec, rows)
    return spec, rows


def check_options(label_smoothing, z_loss, focal_gamma, poly_epsilon, entropy_weight) -> LossOptions:
    """Guard the scalar options of a loss."""
    given = LossOptions(label_smoothing, z_loss, focal_gamma, poly_epsilon, entropy_weight)
    checked = {
        name: checks.scalar(name, value, low=OPTION_RANGES[name][0], high=OPTION_RANGES[name][1])
        for name, value in given._asdict().items()
    }
    options = LossOptions(**checked)
    if guards.enabled():
        guards.require_options(options)
    return options


@partial(jax.jit, static_argnums=(0, 1))
def loss_of_rows(spec: Spec, reduction: str, rows: Rows, options: LossOptions):
    """Statistics, the loss of each row, and the reduction."""
    wanted = Wanted(
        spec.axis,
        spec.softcap,
        entropy=options.entropy_weight is not None,
        target_exp=options.poly_epsilon is not None and is_soft(rows.target),
        rows_may_drop=_rows_may_drop(spec, reduction, rows),
    )
    stats, valid, weight = _statistics(spec, wanted, rows, prior=options.label_smoothing is not None)
    known = None if is_soft(rows.target) else stats.target_mass > 0
    stats = keep(_counting_rows(stats, rows.row_weights, weight if options.label_smoothing is None else None), stats)
    loss = row_loss(stats, options, weight)
    if known is not None:
        loss = jnp.where(known, loss, jnp.nan)  # a label of no class: NaN, and none of the row's terms trains
    row_weights = rows.row_weights
    if row_weights is not None:
        row_weights = row_weights.astype(loss.dtype)
    return reduce_rows(loss, valid, row_weights, None if is_soft(rows.target) else weight, reduction)


@partial(jax.jit, static_argnums=(0,))
def stats_of_rows(spec: Spec, rows: Rows) -> RowStats:
    """Every statistic of each row; 0 (argmax: -1) for the ignored ones."""
    wanted = Wanted(spec.axis, spec.softcap, entropy=True, argmax=True)
    stats, valid, _ = _statistics(spec, wanted, rows, prior=True)
    argmax = stats.argmax if valid is None else jnp.where(valid, stats.argmax, -1)
    return stats._replace(argmax=argmax)


@partial(jax.jit, static_argnums=(0,))
def nll_of_rows(spec: Spec, rows: Rows) -> Array:
    """Negative log-likelihood of each row's label; 0 for the ignored rows."""
    return _statistics(spec, Wanted(spec.axis, spec.softcap), rows, prior=False)[0].nll


def _statistics(spec: Spec, wanted: Wanted, rows: Rows, prior: bool):
    """``(statistics with the ignored rows zeroed, valid rows or None, class weight of each row or None)``."""
    dtype = statistics_dtype(rows.logits.dtype)
    classes = rows.logits.shape[spec.axis]
    everywhere = total_classes(classes, spec.axis_name)
    if is_soft(rows.target):
        valid = rows.where
        target, weight = _weighted_targets(spec, rows._replace(target=_keep_classes(spec, valid, rows.target)), dtype)
    else:
        valid = valid_rows(rows.target, rows.where, spec.ignore_index)
        target = local_labels(keep(valid, class_index(rows.target, everywhere)), classes, spec.axis_name)
        weight = _weight_of_label(spec, rows.class_weights, target, dtype)
    prior_weights, prior_total = _prior(spec, rows.class_weights, classes, everywhere, dtype) if prior else (None, None)
    temperature = None if rows.temperature is None else jnp.asarray(rows.temperature, dtype)
    operands = Operands(rows.logits, target, prior_weights, rows.class_mask, temperature)
    live = _live_rows(valid, rows.row_weights, None if prior else weight)
    stats = row_statistics(BACKENDS[spec.backend], wanted, operands, live, prior_total, spec.axis_name)
    shape = checks.batch_shape(rows.logits, spec.axis)
    chex.assert_shape([field for field in stats if field is not None], shape)
    chex.assert_type([stats.lse, stats.nll], dtype)
    return keep(valid, stats), valid, weight


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


def _prior(spec: Spec, class_weights, classes: int, everywhere: int, dtype):
    """pi_j = w_j / v (uniform without class weights: PyTorch's weighted smoothing) and its total over all classes."""
    if class_weights is None:
        return jnp.full((classes,), 1 / everywhere, dtype), jnp.ones((), dtype)
    prior = class_weights.astype(dtype) / everywhere
    return prior, sum_over(jnp.sum(prior), spec.axis_name)


def _rows_may_drop(spec: Spec, reduction: str, rows: Rows) -> bool:
    """Whether some row's cotangents may be zero while others' are not: it may be ignored here, weighted 0, or masked by the
    caller, who sees rows under "none" and under ``jax.vmap`` of one-row calls."""
    ignoring = (rows.where, spec.ignore_index, rows.row_weights, rows.class_weights)
    return any(option is not None for option in ignoring) or reduction == "none" or rows.logits.ndim == 1


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


def _keep_classes(spec: Spec, valid: Maybe, array):
    return array if valid is None else jnp.where(jnp.expand_dims(valid, spec.axis), array, 0)


def _check_values(spec: Spec, rows: Rows) -> None:
    z, axis = rows.logits, spec.axis
    everywhere = total_classes(z.shape[axis], spec.axis_name)
    if is_soft(rows.target):
        valid = rows.where
        guards.require_distribution("targets", rows.target, axis, valid, spec.axis_name)
    else:
        valid = valid_rows(rows.target, rows.where, spec.ignore_index)
        known = class_index(rows.target, everywhere) >= 0
        guards.require("labels", rows.target, known if valid is None else known | ~valid, f"a class id in [0, {everywhere})")
    finite = jnp.isfinite(z) | (z == -jnp.inf)
    if valid is not None:
        finite = finite | ~jnp.expand_dims(valid, axis)
    guards.require("logits", z, finite, "finite numbers, or -inf for a masked class")
    for name, weights in (("row_weights", rows.row_weights), ("class_weights", rows.class_weights)):
        if weights is not None:
            guards.require(name, weights, jnp.isfinite(weights), "finite numbers")
    if rows.class_weights is not None:
        guards.require("class_weights", rows.class_weights, rows.class_weights >= 0, "numbers that are not negative")
    if isinstance(rows.temperature, jax.Array):
        guards.require("temperature", rows.temperature, rows.temperature > 0, "a number above 0")
