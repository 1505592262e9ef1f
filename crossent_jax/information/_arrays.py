"""The second formula: entropies and divergences of arrays of probabilities, or of their logarithms."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .. import guards
from .._api import checks
from .._jax.dtypes import statistics_dtype
from .._jax.versions import is_concrete
from .._pairs import integrands
from .._pairs.kinds import weighted
from ._closeness import minus_one_minus_log


def given(name: str, value, log_value, axis: int) -> tuple[Array, Array, int]:
    """Probabilities, their logarithms, and the axis counted from the end, of one form or the other, checked."""
    if (value is None) == (log_value is None):
        raise ValueError(f"give {name} or log_{name}, one of the two; got {'neither' if value is None else 'both'}.")
    said = name if log_value is None else f"log_{name}"
    array, axis = checks.logits(_floats(value if log_value is None else log_value), axis, said)
    if guards.enabled() or is_concrete(array):
        probabilities = array if log_value is None else jnp.exp(array)
        guards.require_distribution(name if log_value is None else f"exp of {said}", probabilities, axis, None, None)
    array = array.astype(statistics_dtype(array.dtype))
    if log_value is not None:
        return jnp.exp(array), array, axis
    return array, jnp.where(array == 0, -jnp.inf, jnp.log(jnp.where(array == 0, 1, array))), axis


def _floats(value):
    """Python numbers and integers, such as the (1, 0) of a certain outcome, as floats."""
    array = checks.array("p", value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.zeros(()).dtype)


def pair(p, q, log_p, log_q, axis: int):
    """Both distributions, of one shape and dtype."""
    first, second = given("p", p, log_p, axis), given("q", q, log_q, axis)
    checks.same_shape("q" if log_q is None else "log_q", second[0], first[0].shape, "the shape of p")
    widest = max(first[0].dtype, second[0].dtype, key=lambda dtype: dtype.itemsize)
    return ((value.astype(widest), log.astype(widest), axis) for value, log, axis in (first, second))


def cross_entropy_of_arrays(p, q, log_p, log_q, axis: int) -> Array:
    """``-sum_i p_i log q_i``; an outcome of p_i = 0 adds 0."""
    (p_value, _, axis), (q_value, log, _) = pair(p, q, log_p, log_q, axis)
    if log_q is None:
        log = integrands.log_probabilities(q_value, p_value != 0)
    return jnp.sum(-weighted(p_value, log), axis)


def entropy_of_array(p, log_p, axis: int) -> Array:
    """``-sum_i p_i log p_i``."""
    value, log, axis = given("p", p, log_p, axis)
    return jnp.sum(-weighted(value, log), axis)


def kl_of_arrays(p, q, log_p, log_q, axis: int) -> Array:
    """``sum_i q_i - p_i + p_i log(p_i / q_i)``: the terms beside the logarithm add up to 0, and none of the sum is negative.
    Without them the rounding of two sums of 1 would be a divergence, of either sign."""
    (p_value, log_p_value, axis), (q_value, log_q_value, _) = pair(p, q, log_p, log_q, axis)
    first, second = (p_value if log_p is None else log_p_value), (q_value if log_q is None else log_q_value)
    both = integrands.from_forms(second, first, log_q is not None, log_p is not None)
    return jnp.sum(integrands.generalized_kl(both), axis)


def js_of_arrays(p, q, log_p, log_q, axis: int, beta: float) -> Array:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``, each by the sum of
    :func:`kl_of_arrays`: with ``y = (p - m) / m``, which is ``(1 - beta) (p - q) / m``, the term of p is
    ``m ((1 + y) log(1 + y) - y)``."""
    (p_value, log_p_value, axis), (q_value, log_q_value, _) = pair(p, q, log_p, log_q, axis)
    apart = p_value - q_value
    if log_p is not None and log_q is not None:
        apart = _difference_of_exponentials(p_value, q_value, log_p_value, log_q_value)
    m = beta * p_value + (1 - beta) * q_value
    relative = apart / jnp.where(m == 0, 1, m)
    terms = beta * _excess((1 - beta) * relative) + (1 - beta) * _excess(-beta * relative)
    return jnp.sum(m * terms, axis)


def _difference_of_exponentials(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    """``p - q``, from the difference of the logarithms where they are close."""
    near = jnp.abs(p - q) < 0.5 * q
    x = jnp.where(near, log_p, 0) - jnp.where(near, log_q, 0)
    return jnp.where(near, q * jnp.expm1(x), p - q)


def _excess(y: Array) -> Array:
    """``(1 + y) log(1 + y) - y``, never negative; 1 at -1, where its derivative is taken to be 0."""
    gone = y <= -1
    log = jnp.log1p(jnp.where(gone, 0, y))
    return jnp.where(gone, 1, (1 + y) * minus_one_minus_log(-log))


def mutual_information(
    joint: ArrayLike | None = None,
    *,
    log_joint: ArrayLike | None = None,
    axes: tuple[int, int] = (-2, -1),
    base: float | None = None,
) -> Array:
    """Mutual information ``I(x; y) = KL(p(x, y) || p(x) p(y))`` of two variables, from the array of their joint
    probabilities.

    Args:
        joint, log_joint: floating, one of the two: probabilities that sum to 1 over both axes, or their logarithms.
        axes: the two axes of the variables; the others are a batch.
        base: of the logarithm; None: e, nats. 2: bits.

    Returns:
        The batch shape, float32 (float64 for float64). Never negative, 0 for independent variables, at most the smaller of
        the two entropies.

    Raises:
        TypeError, ValueError: as :func:`entropy`, and for axes that are not two.

    Example:
        >>> from crossent_jax import information
        >>> print(f"{information.mutual_information([[0.5, 0.0], [0.0, 0.5]], base=2):.4f}")
        1.0000

    Source: Cover and Thomas 2006, section 2.3.
    """
    said, array = ("joint", joint) if log_joint is None else ("log_joint", log_joint)
    if (joint is None) == (log_joint is None):
        raise ValueError(f"give joint or log_joint, one of the two; got {'neither' if joint is None else 'both'}.")
    array = checks.floating(said, _floats(array))
    if len({axis % array.ndim for axis in axes if -array.ndim <= axis < array.ndim}) != 2 or len(axes) != 2:
        raise ValueError(f"axes must be two different axes of {said}, of shape {array.shape}; got {axes}.")
    array = jnp.moveaxis(array, axes, (-2, -1))
    flat = array.reshape(*array.shape[:-2], -1)
    p = given("joint", flat, None, -1)[0] if log_joint is None else given("joint", None, flat, -1)[0]
    p = p.reshape(array.shape)
    independent = jnp.sum(p, -1, keepdims=True) * jnp.sum(p, -2, keepdims=True)
    return in_base(jnp.sum(integrands.generalized_kl(integrands.from_both_probabilities(independent, p)), (-2, -1)), base)


def in_base(nats: Array, base: float | None) -> Array:
    """Nats in units of another base's logarithm."""
    if base is None:
        return nats
    if isinstance(base, bool) or not isinstance(base, int | float) or not base > 1:
        raise ValueError(f"base must be a number greater than 1, or None for nats; got {base!r}.")
    return nats / jnp.log(jnp.asarray(base, nats.dtype))
