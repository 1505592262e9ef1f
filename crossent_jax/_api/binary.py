"""Binary cross-entropy: independent yes/no decisions, elementwise, so plain jax.numpy is already exact and fused.

With ``softplus(x) = log(1 + exp(x))``: ``-log sigmoid(z) = softplus(-z)`` and ``-log(1 - sigmoid(z)) = softplus(z)``.
Neither overflows nor cancels, and each derivative is a sigmoid, so every transform of JAX works on every platform.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .. import guards
from .._jax.dtypes import statistics_dtype
from .._jax.row_blocks import by_rows, on_one_device
from .._jax.versions import joint_axes, sums_exponentials_at_once, typed_like, varying_over
from .._row.logit_map import over, usable
from .._row.losses import times
from .._row.reduce import counted_weights, keep, reduce_rows, weighted_losses
from .._row.state import Maybe
from . import checks

SUMMED = 3  # float32 arrays that a CPU holds for a sum of losses


class _Options(NamedTuple):
    pos_weight: Maybe
    label_smoothing: Maybe
    focal_gamma: Maybe
    focal_alpha: Maybe
    temperature: Maybe


def binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float | Array = 0.0,
    focal_gamma: float | Array = 0.0,
    focal_alpha: float | Array | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
) -> Any:
    """Binary cross-entropy of labels in [0, 1] under ``p = sigmoid(logits / temperature)``, elementwise.

        alpha_t (1 - p_t)^focal_gamma (pos_weight t (-log p) + (1 - t) (-log(1 - p)))

    with ``t = (1 - label_smoothing) y + label_smoothing / 2``, ``1 - p_t = t (1 - p) + (1 - t) p`` and
    ``alpha_t = alpha t + (1 - alpha) (1 - t)`` (1 without ``focal_alpha``).

    Args:
        logits: floating array of any shape, computed in float32 (float64 for float64).
        labels: the logits' shape; bool, integer 0/1, or floating in [0, 1] (then differentiable). Values outside [0, 1]
            are not clipped: the formula is extended linearly; ``guards.values()`` refuses them.
        where: boolean, the logits' shape; elements where it is False give 0 and an exactly zero gradient, even from NaN.
        row_weights: floating, the logits' shape, one per element; differentiable.
        pos_weight: number, scalar array, or one weight per entry of the last axis; differentiable.
        label_smoothing: in [0, 1].
        focal_gamma: at least 0.
        focal_alpha: in [0, 1], or None.
        temperature: above 0.
        reduction: "mean" (sum of weighted losses over the sum of ``row_weights``, 0 if nothing counts), "sum", "none" or
            "loss_sum".

    Returns:
        Loss in nats, float32 (float64 for float64 logits): a scalar, the logits' shape for "none", or a ``LossSum``.

    Raises:
        TypeError, ValueError: for a wrong shape, dtype, range of a Python number, or an unknown reduction.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> loss = crossent_jax.binary_cross_entropy(jnp.array([0.0, 200.0]), jnp.array([1, 0]), reduction="none")
        >>> print(loss.round(4))
        [  0.6931 200.    ]

    Source: focal loss and alpha, Lin et al. 2017 (https://arxiv.org/abs/1708.02002), section 3.
    """
    z = checks.floating("logits", logits)
    y = checks.binary_labels(labels, z)
    valid = checks.where(where, z.shape, z.shape)
    weights = checks.row_weights(row_weights, z.shape)
    options = _Options(
        pos_weight=checks.pos_weight(pos_weight, z),
        label_smoothing=checks.scalar("label_smoothing", label_smoothing, low=0.0, high=1.0),
        focal_gamma=checks.scalar("focal_gamma", focal_gamma, low=0.0),
        focal_alpha=None if focal_alpha is None else checks.scalar("focal_alpha", focal_alpha, low=0.0, high=1.0, off=None),
        temperature=checks.scalar("temperature", temperature, low=0.0, above=True, off=1.0),
    )
    if guards.enabled():
        guards.require_binary(z, y, valid)
        guards.require_finite("row_weights", weights)
        for name, high in (
            ("pos_weight", math.inf),
            ("label_smoothing", 1.0),
            ("focal_gamma", math.inf),
            ("focal_alpha", 1.0),
        ):
            guards.require_between(name, getattr(options, name), 0.0, high)
        guards.require_between("temperature", options.temperature, 0.0, math.inf, above=True)
    return _reduced(checks.reduction(reduction), z, y, valid, weights, options)


@partial(jax.jit, static_argnums=0)
def _reduced(reduction: str, z, y, valid, weights, options: _Options):
    options = jax.tree.map(lambda option: jnp.asarray(option, statistics_dtype(z.dtype)), options)
    if reduction == "none":
        return _weighted(z, y, valid, weights, options)[0]
    given = z, y, valid, weights, options
    return reduce_rows(*_sums(*varying_over(joint_axes(given), given)), reduction)


@jax.custom_jvp
def _sums(z, y, valid, weights, options: _Options) -> tuple[Array, Array]:
    """The sums of the losses and of what counts in the mean."""
    given = z, y, valid, weights, options
    selects = valid is not None or weights is not None or options.focal_gamma is not None
    if selects or not (sums_exponentials_at_once() and on_one_device(z)):
        return _sums_in_blocks(*given)
    return jax.lax.platform_dependent(*given, cpu=_sums_at_once, default=_sums_in_blocks)


def _sums_at_once(*given) -> tuple[Array, Array]:
    """XLA's CPU backend adds up an expression that has no select in one pass, and writes nothing. Where an infinity, which a
    select would guard, got into the sum, it is done again with them: a loop of one turn or none, as in ``_row.plain``."""
    z, y, _, _, options = given
    dtype = statistics_dtype(z.dtype)
    sums = jnp.sum(_elementwise(z.astype(dtype), y.astype(dtype), options, _unguarded)), jnp.asarray(z.size, dtype)

    def again(carry):
        return _sums_in_blocks(*given), jnp.zeros_like(carry[1])

    return jax.lax.while_loop(lambda carry: carry[1], again, (sums, ~jnp.isfinite(sums[0])))[0]


def _sums_in_blocks(z, y, valid, weights, options: _Options) -> tuple[Array, Array]:
    """A sum of long expressions writes arrays to memory on a CPU, of which XLA holds three (float32, (4096, 1000): 47 MiB;
    optax's loss 31); blocks of the first axis hold nothing."""

    def sums_of(options, elements, counted):
        z, y, valid, weights = elements
        of_elements = _weighted(z, y, valid, weights, options)
        counted = counted.reshape(*counted.shape, *[1] * (z.ndim - counted.ndim))
        return None, tuple(jnp.sum(jnp.where(counted, x, 0)) for x in of_elements)

    like = z if z.ndim > 1 else z[..., None]
    return by_rows(sums_of, options, (z, y, valid, weights), jnp.ones(like.shape[:-1], bool), like, SUMMED)[1]


@_sums.defjvp
def _sums_jvp(primals, tangents):
    """The derivative is elementwise: of arrays that it shares nothing with the value of, or XLA would hold what is shared
    (bfloat16 on an H100, (4096, 32768): two float32 arrays)."""
    apart = jax.lax.optimization_barrier(primals)
    return _sums(*primals), jax.jvp(_whole_sums, apart, tangents)[1]


def _whole_sums(z, y, valid, weights, options: _Options) -> tuple[Array, Array]:
    loss, counted = _weighted(z, y, valid, weights, options)
    return jnp.sum(loss), jnp.sum(counted)


def _weighted(z, y, valid, weights, options: _Options) -> tuple[Array, Array]:
    """The weighted losses, and what each counts in the denominator of the mean."""
    dtype = statistics_dtype(z.dtype)
    z, y = keep(valid, (z, typed_like(y, z)))
    z, y = z.astype(dtype), y.astype(dtype)
    if weights is not None:  # 0 * NaN of a decision of weight 0 must not reach a gradient
        weights = weights.astype(dtype)
        z, y = (jnp.where((weights != 0) | jnp.isfinite(x), x, 0) for x in (z, y))
    loss = weighted_losses(_elementwise(z, y, options), valid, weights)
    return loss, counted_weights(valid, weights, None, loss)


def _of_both_sides(z: Array, y: Array, pos_weight: Maybe) -> Array:
    """``pos_weight y softplus(-z) + (1 - y) softplus(z)`` with one exponential and one logarithm: each softplus is
    ``log1p(exp(-|z|))``, plus ``|z|`` where z is on the wrong side. The slope of ``|z|`` at 0 is that of the side that is
    taken there, or the derivatives at 0 would be wrong."""
    positive, negative, above = y if pos_weight is None else pos_weight * y, 1 - y, z > 0
    magnitude = jnp.where(above, z, -z)
    return times(jnp.where(above, negative, positive), magnitude) + (positive + negative) * jnp.log1p(jnp.exp(-magnitude))


def _unguarded(z: Array, y: Array, pos_weight: Maybe) -> Array:
    """:func:`_of_both_sides` without selects, for its value alone; not finite where that has 0 times infinity. No 0 and 1 as
    in the gradient: XLA's CPU backend writes a number that both use as an array (jax 0.10)."""
    twice, magnitude = y + y, jnp.abs(z)
    negative, positive = 2 - twice, twice if pos_weight is None else pos_weight * twice
    wrong = negative * (magnitude + z) + positive * (magnitude - z)
    return 0.25 * wrong + 0.5 * (positive + negative) * jnp.log1p(jnp.exp(-magnitude))


def _elementwise(z: Array, y: Array, options: _Options, of_both_sides: Callable = _of_both_sides) -> Float[Array, "..."]:
    """The formula of :func:`binary_cross_entropy`."""
    if options.temperature is not None:
        z = over(z, usable(options.temperature))
    if options.label_smoothing is not None:
        y = (1 - options.label_smoothing) * y + options.label_smoothing / 2
    loss = of_both_sides(z, y, None if options.pos_weight is None else _along_last(options.pos_weight, z.ndim))
    if options.focal_gamma is not None:
        loss = times(_focal_factor(z, y, options.focal_gamma), loss)
    if options.focal_alpha is not None:
        loss = (options.focal_alpha * y + (1 - options.focal_alpha) * (1 - y)) * loss
    return loss


def _along_last(weight: Array, ndim: int) -> Array:
    return weight if weight.ndim == 0 else weight.reshape([1] * (ndim - 1) + [-1])


def _focal_factor(z: Array, y: Array, gamma: Array) -> Array:
    """(1 - p_t)^gamma, and its limit with zero slope where 1 - p_t underflows to 0."""
    miss = y * jax.nn.sigmoid(-z) + (1 - y) * jax.nn.sigmoid(z)
    some = miss > 0
    return jnp.where(some, jnp.where(some, miss, 1) ** gamma, jnp.where(gamma == 0, 1.0, 0.0).astype(z.dtype))
