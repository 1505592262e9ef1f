"""The cross-entropy and KL losses of ``optax.losses`` (0.2.8): same names, arguments and per-example results.

    from crossent_jax.compat import optax as losses

Where optax gives a number that is right, this module gives it too. The differences, each of them a test:

| function | input | optax | here |
|---|---|---|---|
| all losses | bfloat16 or float16 | result in that dtype: 2 to 3 digits | float32, exact for the given logits |
| the softmax losses | forward mode (jvp, jacfwd, linearize) | works | ``TypeError``; give ``implementation="reference"`` |
| ``..._with_integer_labels`` | label -1 (-v to -1) | trains class v - 1 (v + label) | NaN loss, zero gradient |
| ``..._with_integer_labels`` | label -100, or v and above | NaN loss, non-zero gradient | NaN loss, zero gradient |
| ``..._with_integer_labels`` | ``where`` removes the label's class | any number, also negative | +inf |
| ``..._with_integer_labels`` | labels of shape (1,) for n rows | broadcast | ``ValueError`` |
| ``softmax_cross_entropy`` | class ids, integers of shape (n,) | broadcast silently where n = v | ``TypeError`` |
| ``softmax_cross_entropy``, ``poly_...`` | -inf logit where the label is 0 | NaN | that class adds 0 |
| ``softmax_cross_entropy``, ``poly_...`` | ``where``: gradient of the labels of a masked class | NaN | 0 |
| ``safe_softmax_cross_entropy`` | -inf logit in forward mode | NaN | right, with ``implementation="reference"`` |
| ``safe_softmax_cross_entropy`` | gradient of the labels at a -inf logit | inf | 0 |
| ``poly_loss_cross_entropy`` | ``where`` over examples | error | as in ``softmax_cross_entropy`` |
| ``sigmoid_...`` | infinite logit on the label's side | NaN | 0 |
| ``kl_divergence`` | target 0 and log-prediction -inf | NaN | 0 |
| ``kl_divergence`` | gradient of the targets at 0 | NaN | 0 |
| ``kl_divergence`` | NaN masked by ``where`` | NaN gradient of the targets | zero gradient |
| ``kl_divergence_with_log_targets`` | log-target -inf | NaN | 0 |
| ``generalized_kl_divergence`` | predictions near the targets, float32 | noise of 1e-7, also negative | exact, at least 0 |
| ``convex_kl_divergence`` | any | deprecation warning | none: another name of ``generalized_kl_divergence`` |
| ``smooth_labels`` | ``where`` False in the whole row | inf | that row gets no smoothing mass |

``where`` keeps optax's meaning: of the logits' rank a mask over classes, of a lower rank a mask over examples (of which the
masked ones give 0). ``implementation`` (None, or a name that ``crossent_jax.explain`` lists) is the one argument added.
Everything is in nats. Other losses of optax have no counterpart here.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .._api import checks
from .._api.binary import binary_cross_entropy
from .._api.cross_entropy import cross_entropy, soft_cross_entropy
from .._jax.dtypes import statistics_dtype
from .._pairs import integrands

Axes = int | tuple[int, ...] | None


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    *,
    implementation: str | None = None,
) -> Array:
    """Cross-entropy of target distributions, ``-sum_j t_j log p_j`` with ``p = softmax(logits)``, of each example.

    Args:
        logits: floating; the classes lie along ``axis``.
        labels: floating, broadcastable with the logits: probabilities, of any sum. A boolean or integer one-hot of exactly
            the logits' shape is accepted.
        axis: class axis, several of them (one distribution over all), or None for all.
        where: boolean. Of the logits' rank: the classes that take part, in the softmax and in the sum over labels. Of a
            lower rank: the examples that do.

    Returns:
        Nats, the shape without ``axis``, float32 (float64 for float64 logits). +inf where a label above 0 meets a logit of
        -inf.

    Raises:
        TypeError: class ids as labels (``softmax_cross_entropy_with_integer_labels`` takes them), or a mask that is not
            boolean. ValueError: shapes that do not broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.softmax_cross_entropy(jnp.array([0.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 0.0])):.4f}")
        2.2395

    Source: ``optax.losses.softmax_cross_entropy``; differences in the module's table.
    """
    return _soft(logits, labels, axis, where, implementation=implementation)


def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike, *, implementation: str | None = None) -> Array:
    """:func:`softmax_cross_entropy` over the last axis; here the two agree, as ``0 log 0 = 0`` everywhere.

    Args, Returns, Raises:
        as :func:`softmax_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.safe_softmax_cross_entropy(jnp.array([0.0, -jnp.inf, 0.0]), jnp.array([1.0, 0.0, 0.0])):.4f}")
        0.6931

    Source: ``optax.losses.safe_softmax_cross_entropy``.
    """
    return _soft(logits, labels, -1, None, implementation=implementation)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: float | Array = 2.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    implementation: str | None = None,
) -> Array:
    """Poly-1 loss ``sum_j t_j (-log p_j + epsilon (1 - p_j))`` of each example.

    Args:
        epsilon: a number or a floating scalar array.
        logits, labels, axis, where: as :func:`softmax_cross_entropy`.

    Returns, Raises:
        as :func:`softmax_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.poly_loss_cross_entropy(jnp.zeros(4), jnp.eye(4)[0]):.4f}")
        2.8863

    Sources: ``optax.losses.poly_loss_cross_entropy``; Leng et al. 2022 (https://arxiv.org/abs/2204.12511), eq. 6.
    """
    return _soft(logits, labels, axis, where, poly_epsilon=epsilon, implementation=implementation)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    implementation: str | None = None,
) -> Array:
    """Cross-entropy of class ids, ``-log p_y`` with ``p = softmax(logits)``, of each example.

    Args:
        logits: floating; the classes lie along ``axis``.
        labels: integers, the logits' shape without ``axis``.
        axis: class axis; of several, a label counts their elements in the order given, the last one fastest.
        where: boolean. Of the logits' rank: the classes that take part. Of a lower rank: the examples that do.

    Returns:
        Nats, the labels' shape, float32 (float64 for float64 logits). NaN for a label outside ``[0, v)``, +inf for one whose
        class is masked, 0 for an example with no class left.

    Raises:
        TypeError, ValueError: for a wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.softmax_cross_entropy_with_integer_labels(jnp.array([0.0, 0.0, 2.0]), jnp.array(1)):.4f}")
        2.2395

    Source: ``optax.losses.softmax_cross_entropy_with_integer_labels``; differences in the module's table.
    """
    logits = checks.array("logits", logits)
    examples, classes = _masks(where, logits.shape, axis)
    logits, classes = jax.tree.map(lambda x: _one_class_axis(x, axis), (logits, classes))
    return cross_entropy(
        logits,
        labels,
        axis=_last_if_joined(axis),
        where=examples,
        class_mask=classes,
        reduction="none",
        implementation=implementation,
    )


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Binary cross-entropy ``-y log p - (1 - y) log(1 - p)`` with ``p = sigmoid(logits)``, elementwise.

    Args:
        logits: floating.
        labels: boolean, integer or floating, broadcastable with the logits; outside [0, 1] the formula holds as it stands.

    Returns:
        Nats, the broadcast shape, float32 (float64 for float64 logits). Every mode of differentiation works.

    Raises:
        TypeError, ValueError: for a wrong dtype, or shapes that do not broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.sigmoid_binary_cross_entropy(jnp.array(3.0), jnp.array(0)):.4f}")
        3.0486

    Source: ``optax.losses.sigmoid_binary_cross_entropy``.
    """
    return binary_cross_entropy(*_broadcast(logits, labels), reduction="none")


def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Focal loss ``alpha_t (1 - p_t)^gamma (-y log p - (1 - y) log(1 - p))``, elementwise.

    ``p_t = p y + (1 - p) (1 - y)`` and ``alpha_t = alpha y + (1 - alpha) (1 - y)``, 1 without ``alpha``.

    Args:
        logits, labels: as :func:`sigmoid_binary_cross_entropy`.
        alpha, gamma: numbers, or arrays that broadcast with the logits, such as one per class.

    Returns, Raises:
        as :func:`sigmoid_binary_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.sigmoid_focal_loss(jnp.array(3.0), jnp.array(0), alpha=0.25):.4f}")
        2.0747

    Sources: ``optax.losses.sigmoid_focal_loss``; Lin et al. 2017 (https://arxiv.org/abs/1708.02002), eq. 5.
    """
    logits, labels = _broadcast(logits, labels)
    given: dict[str, Any] = {"focal_gamma": gamma} | ({} if alpha is None else {"focal_alpha": alpha})
    loss = partial(binary_cross_entropy, reduction="none")
    if all(np.ndim(option) == 0 for option in given.values()):
        return loss(logits, labels, **given)
    each = jnp.vectorize(lambda z, y, *options: loss(z, y, **dict(zip(given, options, strict=True))))
    return each(logits, labels, *(jnp.asarray(option, statistics_dtype(logits.dtype)) for option in given.values()))


def kl_divergence(log_predictions: ArrayLike, targets: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None) -> Array:
    """Kullback-Leibler divergence ``KL(t || p) = sum_j t_j (log t_j - log p_j)`` of each example.

    The formula holds as it stands for p and t of any sum, hence its rounding: identical distributions can give a few 1e-8 of
    either sign. ``generalized_kl_divergence`` is at least 0, and the same number where the sums are equal.

    Args:
        log_predictions: floating, log p.
        targets: floating, t, broadcastable with the predictions.
        axis: the axis of the classes, several, or None for all.
        where: boolean, broadcastable with the predictions: elements that take part.

    Returns:
        Nats, the shape without ``axis``, float32 (float64 if an input is); +inf where some t > 0 = p. Every mode of
        differentiation works; a target of 0 adds 0 and gets gradient 0.

    Raises:
        TypeError, ValueError: for a wrong dtype, or shapes that do not broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.kl_divergence(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array([1.0, 0.0, 0.0])):.4f}")
        0.6931

    Source: ``optax.losses.kl_divergence``; differences in the module's table.
    """
    targets = checks.floating("targets", targets)
    return _divergence(integrands.kl, integrands.from_probabilities, log_predictions, targets, axis, where)


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike, log_targets: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None
) -> Array:
    """:func:`kl_divergence` of targets given as ``log t``; exactly 0 for identical inputs.

    Args, Returns, Raises:
        as :func:`kl_divergence`, with ``log_targets`` for ``targets``; -inf is a target of 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> log_p = jnp.log(jnp.array([0.5, 0.25, 0.25]))
        >>> print(losses.kl_divergence_with_log_targets(log_p, log_p))
        0.0

    Source: ``optax.losses.kl_divergence_with_log_targets``.
    """
    log_targets = checks.floating("log_targets", log_targets)
    return _divergence(integrands.kl, integrands.from_logs, log_predictions, log_targets, axis, where)


def generalized_kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None
) -> Array:
    """``sum_j t_j (log t_j - log p_j) + p_j - t_j`` of each example: at least 0 for p and t of any sum.

    Args, Returns, Raises:
        as :func:`kl_divergence`.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(f"{losses.generalized_kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.5])):.4f}")
        0.1931

    Source: ``optax.losses.generalized_kl_divergence``; the Bregman divergence of ``x log x - x``.
    """
    targets = checks.floating("targets", targets)
    return _divergence(integrands.generalized_kl, integrands.from_probabilities, log_predictions, targets, axis, where)


convex_kl_divergence = generalized_kl_divergence


def smooth_labels(labels: ArrayLike, alpha: float | Array, *, axis: Axes = -1, where: ArrayLike | None = None) -> Array:
    """Smoothed labels ``(1 - alpha) t_j + alpha / k``, k the number of classes (where ``where`` is true).

    As in optax every class gets ``alpha / k``, masked or not: the losses above leave the masked ones out.

    Args:
        labels: floating, one-hot or probabilities.
        alpha: number or array that broadcasts with the labels.
        axis: the axis of the classes, several, or None for all.
        where: boolean, broadcastable to the labels' shape.

    Returns:
        Probabilities, the labels' shape, float32 (float64 for float64 labels).

    Raises:
        TypeError, ValueError: for a wrong dtype, or shapes that do not broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import optax as losses
        >>> print(losses.smooth_labels(jnp.array([1.0, 0.0, 0.0, 0.0]), 0.5))
        [0.625 0.125 0.125 0.125]

    Sources: ``optax.losses.smooth_labels``; Szegedy et al. 2016 (https://arxiv.org/abs/1512.00567), section 7.
    """
    labels = checks.floating("labels", labels)
    labels = labels.astype(statistics_dtype(labels.dtype))
    if where is None:
        return (1 - alpha) * labels + alpha / jnp.size(labels, axis)
    classes = jnp.sum(_boolean(where, labels.shape), axis, keepdims=True, dtype=labels.dtype)
    return (1 - alpha) * labels + jnp.where(classes > 0, alpha / jnp.maximum(classes, 1), 0)


def _soft(logits, labels, axis, where, **options) -> Array:
    logits, labels = _broadcast(logits, _distribution(labels, logits))
    examples, classes = _masks(where, logits.shape, axis)
    if classes is not None:
        labels = jnp.where(classes, labels, 0)  # optax's sum over the labels leaves masked classes out
    logits, labels, classes = jax.tree.map(lambda x: _one_class_axis(x, axis), (logits, labels, classes))
    return soft_cross_entropy(
        logits, labels, axis=_last_if_joined(axis), where=examples, class_mask=classes, reduction="none", **options
    )


def _distribution(labels, logits) -> Array:
    """Floating labels as they are; integers only where they cannot be class ids."""
    labels = checks.array("labels", labels)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    if labels.shape != np.shape(logits):
        raise TypeError(
            f"labels must be a distribution over the classes; got dtype {labels.dtype} and shape {labels.shape} for logits "
            f"of shape {np.shape(logits)}. Class ids go to softmax_cross_entropy_with_integer_labels."
        )
    return labels.astype(jnp.float32)


def _broadcast(logits, labels) -> Sequence[Array]:
    return jnp.broadcast_arrays(checks.floating("logits", logits), checks.array("labels", labels))


def _masks(where, shape: tuple[int, ...], axis: Axes) -> tuple[Array | None, Array | None]:
    """optax's ``where`` as a mask over examples and a mask over classes; an example with no class left is masked too."""
    if where is None:
        return None, None
    if np.ndim(where) == len(shape):
        classes = _boolean(where, shape)
        return jnp.any(classes, axis), classes
    axes = {a % len(shape) for a in _as_tuple(axis, len(shape))}
    return _boolean(where, tuple(size for a, size in enumerate(shape) if a not in axes)), None


def _boolean(where, shape: tuple[int, ...]) -> Array:
    where = checks.boolean("where", where)
    try:
        return jnp.broadcast_to(where, shape)
    except ValueError:
        raise ValueError(f"where must broadcast to shape {shape}; got {where.shape}.") from None


def _as_tuple(axis: Axes, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return axis if isinstance(axis, tuple) else (axis,)


def _one_class_axis(x: Array, axis: Axes) -> Array:
    """Several class axes joined into a last one, in the order given."""
    if isinstance(axis, int):
        return x
    axes = _as_tuple(axis, x.ndim)
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    batch = x.shape[: x.ndim - len(axes)]
    return x.reshape(*batch, math.prod(x.shape[len(batch) :]))


def _last_if_joined(axis: Axes) -> int:
    return axis if isinstance(axis, int) else -1


def _divergence(integrand, pair_of, log_predictions, targets, axis, where) -> Array:
    """Sum of an integrand over the classes; masked elements are constants before it and 0 after it."""
    predictions, targets = jnp.broadcast_arrays(checks.floating("log_predictions", log_predictions), targets)
    if where is None:
        return jnp.sum(integrand(pair_of(predictions, targets)), axis)
    where = _boolean(where, predictions.shape)
    elements = integrand(pair_of(*(jnp.where(where, x, 0) for x in (predictions, targets))))
    return jnp.sum(elements, axis, where=where)
