"""The first formula: ``E_p[f]`` of a function f of log-densities, by quadrature or Monte Carlo."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.versions import is_concrete
from .._pairs.kinds import weighted
from ._family import Family
from ._foreign import describe, draw, is_discrete, log_prob_of
from ._methods import Estimate, Grid, MonteCarlo, Quadrature
from ._nodes import nodes_of

MASS_TOLERANCE = 1e-3
Integrand = Callable[..., Array]  # of the log-densities of p and the others at the same points


def expectation(f: Integrand, p, others: tuple, method: Grid | Quadrature | MonteCarlo) -> Array | Estimate:
    """``E_p[f(log p, log q, ...)]`` over x drawn from p, q... being ``others``."""
    if isinstance(method, MonteCarlo):
        return _monte_carlo(f, p, others, method)
    return _quadrature(f, p, others, method)


def _quadrature(f: Integrand, p, others: tuple, method: Grid | Quadrature) -> Array:
    """``sum_i w_i p(x_i) f(x_i)``, where p is 0 nothing. A node at which p is infinite is left out: it is the end of an
    interval where the integral converges, and its weight is 0 in exact arithmetic."""
    x, weights = nodes_of(p, others, method)
    batch = jnp.broadcast_shapes(x.shape[1:], *(q.batch_shape for q in (p, *others) if isinstance(q, Family)))
    x, weights = (_with_batch(array, batch) for array in (x, weights))
    log_p, *logs = _log_densities(p, others, x)
    shares = weights * jnp.where(log_p == jnp.inf, 0, jnp.exp(log_p))
    present = (shares > 0) | jnp.isnan(shares)
    values = f(jnp.where(present, log_p, 0), *(jnp.where(present, log, 0) for log in logs))
    return _if_all_there(jnp.sum(weighted(shares, values), 0), jnp.sum(shares, 0), p, method)


def _with_batch(array: Array, batch: tuple[int, ...]) -> Array:
    own = array.reshape(array.shape[0], *(1,) * (len(batch) + 1 - array.ndim), *array.shape[1:])
    return jnp.broadcast_to(own, (array.shape[0], *batch))


def _log_densities(p, others: tuple, x: Array) -> list[Array]:
    """At the points x; integers for a discrete distribution of another library, which may expect them."""
    if is_discrete(p) and not isinstance(p, Family):
        x = x.astype(jnp.int32)
    found = [log_prob_of(q)(x) for q in (p, *others)]
    for q, log in zip((p, *others), found, strict=True):
        if is_concrete(log) and bool(jnp.isnan(log).any()):
            at = x.reshape(-1)[jnp.argmax(jnp.isnan(log).reshape(-1))]
            raise ValueError(f"log_prob of {describe(q)} is NaN at {at}: it must be a number, or -inf outside the support.")
    return found


def _if_all_there(value: Array, mass: Array, p, method) -> Array:
    """An integral over which p does not add up to 1 is of another function, or has missed it: an error, NaN if traced."""
    bad = ~(jnp.abs(mass - 1) <= MASS_TOLERANCE)
    if is_concrete(bad) and bool(bad.any()):
        found = mass.reshape(-1)[jnp.argmax(bad.reshape(-1))]
        raise ValueError(
            f"the density of p, {describe(p)}, adds up to {found:.6g} over the nodes of {method}, not to 1: p is not "
            "normalised, or lies elsewhere. Give low and high, more points, or method=MonteCarlo(key)."
        )
    return jnp.where(bad, jnp.nan, value)


def _monte_carlo(f: Integrand, p, others: tuple, method: MonteCarlo) -> Estimate:
    x = jax.lax.stop_gradient(draw(p, method.key, method.samples))
    log_p, *logs = _log_densities(p, others, x) if not is_discrete(p) else [log_prob_of(q)(x) for q in (p, *others)]
    values = f(log_p, *logs)
    error = jnp.std(values, axis=0, ddof=1) / method.samples**0.5
    return Estimate(jnp.mean(values, 0) + _score_term(values, log_p), error)


def _score_term(values: Array, log_p: Array) -> Array:
    """0, with the gradient ``E[(f - mean f) grad log p]`` of drawing from a p that moves; ``n / (n - 1)`` for the mean's own
    samples."""
    apart = values - jnp.mean(values, 0, keepdims=True)
    coefficient = jax.lax.stop_gradient(jnp.where(jnp.isfinite(apart), apart, 0))
    moving = log_p - jax.lax.stop_gradient(log_p)
    return jnp.sum(coefficient * moving, 0) / (values.shape[0] - 1)
