"""The public measures, of arrays and of distributions."""

from typing import Any

import jax
import jax.numpy as jnp

from . import _arrays as arrays
from ._distributions import check_method, measure_of_distributions
from ._foreign import describe, is_distribution
from ._methods import MonteCarlo


def entropy(p: Any = None, *, log_p=None, axis: int = -1, base: float | None = None, method=None) -> Any:
    """Entropy ``H(p) = -E_p[log p]``: ``-sum_i p_i log p_i`` of an array.

    Args:
        p: floating, probabilities that sum to 1 along ``axis``; or a distribution: a family of this module, an object with
            ``log_prob`` and ``sample`` (distrax, numpyro, TensorFlow Probability on JAX), or a pair of callables
            ``(log_prob, sample)`` with ``sample(key, shape)``.
        log_p: in place of an array p, the logarithms of its probabilities (-inf: 0).
        axis: the axis of an array's outcomes.
        base: of the logarithm; None: e, nats. 2: bits.
        method: for distributions, ``ClosedForm()``, ``Quadrature(...)``, ``Grid(...)`` or ``MonteCarlo(key, ...)``. None: a
            closed form where one is known, else quadrature.

    Returns:
        The array's shape without ``axis``, or the distribution's batch shape; float32 (float64 for float64). By Monte Carlo
        an ``Estimate`` with its standard error. The entropy of a density may be negative, of ``N(0, 0.1)`` -0.88 nats.

    Raises:
        TypeError, ValueError: for arrays that are not probabilities, shapes that differ, parameters out of range, a pair
            without a closed form where one is asked for, and integrals that miss p. Values are checked where they are
            known; under ``jit`` ``guards.values()`` checks arrays, and an integral that misses p is NaN.

    Example:
        >>> from crossent_jax import information
        >>> print(f"{information.entropy([0.5, 0.25, 0.25], base=2):.4f} bits")
        1.5000 bits
        >>> print(f"{information.entropy(information.Normal(0.0, 0.1)):.4f}")
        -0.8836

    Source: Cover and Thomas 2006, sections 2.1 and 8.1.
    """
    if is_distribution(p):
        return _of_distributions("entropy", (p,), method, base, axis, log_p)
    _no_method(method)
    return arrays.in_base(arrays.entropy_of_array(p, log_p, axis), base)


def cross_entropy(p: Any = None, q: Any = None, *, log_p=None, log_q=None, axis: int = -1, base=None, method=None) -> Any:
    """Cross-entropy ``H(p, q) = -E_p[log q] = H(p) + KL(p || q)``: ``-sum_i p_i log q_i`` of arrays.

    Args:
        p, q: both arrays of one shape, or both distributions, as in :func:`entropy`.
        log_p, log_q, axis, base, method: as in :func:`entropy`.

    Returns:
        As :func:`entropy`. +inf where q is 0 and p is not; an outcome of p = 0 adds 0.

    Raises:
        TypeError, ValueError: as :func:`entropy`; for one array and one distribution, or a discrete and a continuous one.

    Example:
        >>> from crossent_jax import information
        >>> print(f"{information.cross_entropy([1.0, 0.0], [0.8, 0.2]):.4f}")
        0.2231
        >>> ages, guesses = information.Normal(35.0, 5.0), information.Normal(40.0, 5.0)
        >>> print(f"{information.cross_entropy(ages, guesses):.4f}")
        3.5284

    Source: Cover and Thomas 2006, sections 2.3 and 5.4 (the code length under a wrong distribution).
    """
    if _distributions(p, q):
        return _of_distributions("cross_entropy", (p, q), method, base, axis, log_p, log_q)
    _no_method(method)
    return arrays.in_base(arrays.cross_entropy_of_arrays(p, q, log_p, log_q, axis), base)


def kl_divergence(p: Any = None, q: Any = None, *, log_p=None, log_q=None, axis: int = -1, base=None, method=None) -> Any:
    """Kullback-Leibler divergence ``KL(p || q) = E_p[log p - log q]``: ``sum_i p_i (log p_i - log q_i)`` of arrays.

    Args:
        p, q, log_p, log_q, axis, base, method: as in :func:`cross_entropy`. p is the distribution that is averaged over, the
            true one; :func:`crossent_jax.kl_divergence` takes logits of a model and a teacher.

    Returns:
        As :func:`cross_entropy`; +inf where q is 0 and p is not. Never negative, and exactly 0 for identical arrays and, in
        closed form, identical families (quadrature and Monte Carlo have their own error). Of arrays it is
        ``sum_i q_i - p_i + p_i (log p_i - log q_i)``, in which the rounding of sums of 1 does not count.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`.

    Example:
        >>> from crossent_jax import information
        >>> print(f"{information.kl_divergence(information.Normal(35.0, 5.0), information.Normal(40.0, 5.0)):.4f}")
        0.5000
        >>> print(information.kl_divergence(information.Uniform(0.0, 2.0), information.Uniform(0.0, 1.0)))
        inf

    Source: Kullback and Leibler 1951, section 2.
    """
    if _distributions(p, q):
        return _of_distributions("kl_divergence", (p, q), method, base, axis, log_p, log_q)
    _no_method(method)
    return arrays.in_base(arrays.kl_of_arrays(p, q, log_p, log_q, axis), base)


def js_divergence(
    p: Any = None, q: Any = None, *, log_p=None, log_q=None, beta: float = 0.5, axis: int = -1, base=None, method=None
) -> Any:
    """Jensen-Shannon divergence ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``.

    Args:
        p, q, log_p, log_q, axis, base, method: as in :func:`cross_entropy`. No closed form is known but for finitely many
            outcomes.
        beta: the share of p in the mixture, in [0, 1].

    Returns:
        As :func:`entropy`; in [0, ln 2], symmetric for ``beta=0.5``.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`; for a beta out of range.

    Example:
        >>> from crossent_jax import information
        >>> print(f"{information.js_divergence([1.0, 0.0], [0.0, 1.0], base=2):.4f}")
        1.0000

    Source: Lin 1991, section 4.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
        raise ValueError(f"beta must be a number in [0, 1]; got {beta!r}.")
    if _distributions(p, q):
        return _of_distributions("js_divergence", (p, q), method, base, axis, log_p, log_q, beta=float(beta))
    _no_method(method)
    return arrays.in_base(arrays.js_of_arrays(p, q, log_p, log_q, axis, float(beta)), base)


def perplexity(p: Any = None, q: Any = None, *, log_p=None, log_q=None, axis: int = -1, method=None) -> Any:
    """Perplexity ``exp H(p, q)``, or ``exp H(p)`` without q: the number of equally likely outcomes of that entropy.

    Args:
        p, q, log_p, log_q, axis, method: as in :func:`cross_entropy`; no Monte Carlo, whose exponential is biased.

    Returns:
        As :func:`entropy`; of a model, ``jnp.exp`` of its mean loss in nats.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`.

    Example:
        >>> from crossent_jax import information
        >>> print(f"{information.perplexity([0.25, 0.25, 0.25, 0.25]):.4f}")
        4.0000

    Source: Jelinek et al. 1977, J. Acoust. Soc. Am. 62, S63.
    """
    if isinstance(method, MonteCarlo):
        raise ValueError("perplexity takes no MonteCarlo: the exponential of an estimate is biased. Estimate the entropy.")
    if q is None and log_q is None:
        return jnp.exp(entropy(p, log_p=log_p, axis=axis, method=method))
    return jnp.exp(cross_entropy(p, q, log_p=log_p, log_q=log_q, axis=axis, method=method))


# --- arrays or distributions -----------------------------------------------------------------------


def _distributions(p, q) -> bool:
    """Whether both are; an error for one only."""
    found = is_distribution(p), is_distribution(q)
    if found[0] != found[1]:
        raise TypeError(f"p and q must both be arrays or both distributions; got {_kind(p)} and {_kind(q)}.")
    return found[0]


def _kind(x) -> str:
    return f"a distribution ({describe(x)})" if is_distribution(x) else f"{type(x).__name__}"


def _no_method(method) -> None:
    if method is not None:
        raise ValueError(f"method is for distributions; got {method} with arrays, whose formula is a sum.")


def _of_distributions(measure: str, given: tuple, method, base, axis: int, *logs, beta: float = 0.5) -> Any:
    if any(log is not None for log in logs) or axis != -1:
        raise ValueError("log_p, log_q and axis are for arrays; p and q are distributions.")
    nats = measure_of_distributions(measure, given, check_method(method), beta)
    return jax.tree.map(lambda x: arrays.in_base(x, base), nats)
