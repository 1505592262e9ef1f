"""Temperature scaling: the one-dimensional search, done exactly, and how far confidences are from the truth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import cross_entropy, row_stats
from .._api import checks

COLDEST, HOTTEST = 2.0**-10, 2.0**10
HALVINGS = 40  # of 20 powers of two: beyond the last digit of float32


def fit_temperature(logits: Array, labels: Array, *, where: Array | None = None) -> Float[Array, ""]:
    """The temperature T that minimises the held-out negative log-likelihood of ``softmax(logits / T)``.

    The loss -1/N sum_i log softmax(z_i / T)[y_i] is convex in 1/T, so its slope in T changes sign once at most: found by
    bisection in log T with the exact gradient. Dividing by T changes no prediction, only its confidence.

    Args:
        logits: (n, v) of held-out examples, any float dtype.
        labels: (n,) int.
        where: (n,) bool or int (0 is False), which of them count.

    Returns:
        T, float32 (float64 for float64 logits), in [2**-10, 2**10]: the upper end where the loss has no minimum inside, as
        for logits no better than chance. For logits that are never wrong the loss falls to 0 as T does: the largest T where
        its slope underflows, or the lower end. NaN where a row that counts holds NaN or a label of no class.

    Raises:
        ValueError, TypeError: shapes or dtypes, as ``cross_entropy``.

    Source: Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", section 4.2, arXiv:1706.04599.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from crossent_jax import tuning
        >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> temperature = tuning.fit_temperature(logits, jnp.array([0, 0, 0, 1]))  # right in 3 of 4
        >>> print(f"{temperature:.4f}, confidence {jax.nn.softmax(logits / temperature)[0, 0]:.4f}")
        1.8205, confidence 0.7500
    """
    return _fit(*_checked(logits, labels, where))


def _checked(logits: Array, labels: Array, where: Array | None) -> tuple[Array, Array, Array | None]:
    """By the rules of the losses."""
    z, axis = checks.logits(logits, -1)
    return z, checks.labels(labels, z, axis), checks.where(where, z.shape[:-1], z.shape)


@jax.jit
def _fit(logits: Array, labels: Array, where: Array | None) -> Array:
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    loss = jax.value_and_grad(lambda log_t: cross_entropy(logits, labels, where=where, temperature=jnp.exp(log_t)))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        rising = loss(middle)[1] > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    ends = jnp.log(jnp.asarray([COLDEST, HOTTEST], dtype))
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (ends[0], ends[1]))
    value, slope = loss(low)
    return jnp.where(jnp.isnan(value + slope), jnp.nan, jnp.exp((low + high) / 2)).astype(dtype)


class Reliability(NamedTuple):
    """Predictions grouped by confidence in bins of equal width.

    ``edges`` (bins + 1,), ``count``, ``confidence`` (mean) and ``accuracy`` (bins,), the last two NaN in an empty bin, and
    ``expected_calibration_error``, ``sum_b count_b / n |accuracy_b - confidence_b|``.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    expected_calibration_error: float


def reliability(
    logits: Array, labels: Array, *, temperature: float = 1.0, where: Array | None = None, bins: int = 15
) -> Reliability:
    """How often predictions of each confidence are right.

    The prediction is the class of the largest logit, its confidence ``max softmax(logits / temperature)``; bin b of m holds
    confidences in (b/m, (b+1)/m], the first also 0.

    Args:
        logits: (n, v).
        labels: (n,) int.
        temperature: above 0; divides the logits.
        where: (n,) bool or int (0 is False), which rows count.
        bins: how many.

    Returns:
        :class:`Reliability`, of numpy arrays.

    Raises:
        ValueError: ``bins`` below 1, no row counts, or a row that counts holds NaN, no class, or a label of no class (-100:
            leave it out by ``where=labels != -100``); shapes and the temperature as ``cross_entropy``.

    Source: Guo et al. 2017, section 2, equations 2 and 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax import tuning
        >>> sure = tuning.reliability(jnp.array([[2.0, 0.0]] * 4), jnp.array([0, 0, 0, 1]), bins=10)
        >>> print(f"{sure.accuracy[8]:.2f} right at {sure.confidence[8]:.2f}: {sure.expected_calibration_error:.2f}")
        0.75 right at 0.88: 0.13
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    z, labels, where = _checked(logits, labels, where)
    divisor = checks.scalar("temperature", temperature, low=0.0, above=True, off=None)
    confidence, right, counts = (np.asarray(x) for x in _predictions(z, labels, where, divisor))
    unknown = np.flatnonzero(counts & ((labels < 0) | (labels >= z.shape[-1])))
    if len(unknown):
        raise ValueError(
            f"labels must be class ids in [0, {z.shape[-1]}) in every row that counts; labels[{unknown[0]}] is "
            f"{labels[unknown[0]]}. Leave such rows out by where=."
        )
    confidence, right = confidence[counts].astype(np.float64), right[counts]
    if not len(right) or not np.all(np.isfinite(confidence)):
        raise ValueError("logits must have a row that counts, and finite confidences in every such row.")
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, accuracy = (np.bincount(bin_of, weights, bins) / count for weights in (confidence, right))
    error = float(np.nansum(count * np.abs(accuracy - mean)) / len(right))
    return Reliability(edges, count, mean, accuracy, error)


@jax.jit
def _predictions(logits: Array, labels: Array, where: Array | None, temperature) -> tuple[Array, Array, Array]:
    """Confidence, whether it is right, and whether the row counts."""
    best = row_stats(logits, labels, temperature=temperature).argmax
    confidence = row_stats(logits, best, temperature=temperature).target_probability
    return confidence, best == labels, jnp.ones(labels.shape, bool) if where is None else where
