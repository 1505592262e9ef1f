"""The first formula: ``E_p[f]`` of a function f of log-densities, by quadrature or Monte Carlo.

An integral is refused, an error or under ``jit`` NaN, where the density of p does not add up to 1 over the nodes, or where
the outermost nodes of an interval still count, for then what lies beyond them would too. How far from 1 the mass may be:

| nodes | float32 | float64 | because |
|---|---|---|---|
| of another library's object or a pair | 1e-5 | 1e-10 | the promise: the mass that is missed is what the value misses |
| of a family | 1e-3 | 1e-6 | its density is normalised and its ends are known: what is off is the rounding of the terms \
of its logarithm, of Gamma(1000, 1) terms of 7000 and so 2e-4 in float32 |
| where p is infinite at a node | 1e-3 | 1e-6 | the part of p closer to an end than floats tell, documented |
| of a ``Grid`` | 1e-3 | 1e-3 | it leaves out what is outside of it |

The sum itself rounds by less: all its terms have one sign, and XLA adds up in parts.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.versions import is_concrete
from ._draws import drawn, log_density, log_density_at
from ._family import Family
from ._foreign import batch_shape, describe, event_dimensions, is_discrete
from ._methods import Estimate, Grid, MonteCarlo, Quadrature
from ._nodes import Nodes, nodes_of, support_within
from ._support import at_an_end, support_of

GRID_TOLERANCE = 1e-3
TOLERANCES = {32: (1e-5, 1e-3), 64: (1e-10, 1e-6)}  # of bits: what is promised, and half of its digits
Integrand = Callable[..., Array]  # of the log-densities of p and the others at the same points


def expectation(f: Integrand, p, others: tuple, method: Grid | Quadrature | MonteCarlo) -> Array | Estimate:
    """``E_p[f(log p, log q, ...)]`` over x drawn from p, q... being ``others``."""
    if isinstance(method, MonteCarlo):
        return _monte_carlo(f, p, others, method)
    return _quadrature(f, p, others, method)


def _quadrature(f: Integrand, p, others: tuple, method: Grid | Quadrature) -> Array:
    """``sum_i w_i p(x_i) f(x_i)``, where p is 0 nothing. Points without a weight in exact arithmetic are left out: those
    where a density is infinite, and those exactly on an end of a support where one is 0."""
    nodes = nodes_of(p, others, method)
    batch = jnp.broadcast_shapes(nodes.points.shape[1:], *(batch_shape(q) for q in (p, *others)))
    x, weights = (_with_batch(array, batch) for array in nodes[:2])
    log_p, *logs = _log_densities(p, others, x)
    infinite = [log == jnp.inf for log in (log_p, *logs)]
    left_out = _any(infinite) | (_on_an_end(p, others, x, method) & _any([log == -jnp.inf for log in logs]))
    density = jnp.where(left_out, 0, jnp.exp(jnp.where(left_out, 0, log_p)))
    shares, present = weights * density, (density > 0) | jnp.isnan(density)
    found = f(*(jnp.where(present, log, 0) for log in (log_p, *logs)))
    values = shares * jnp.where((shares == 0) & ~jnp.isfinite(found), 0, found)  # a weight of 0 may have a derivative
    value, mass = jnp.sum(values, 0), jnp.sum(shares, 0)
    promised, half = TOLERANCES[jnp.finfo(mass.dtype).bits]
    if isinstance(method, Grid):
        return _if_all_there(value, mass, GRID_TOLERANCE, p, method)
    tolerance = half if isinstance(p, Family) else jnp.where(infinite[0].any(0), half, promised)
    value = _if_all_there(value, mass, tolerance, p, method)
    return _if_it_ends(value, _beyond(values, x, nodes, p), promised, p, method)


def _any(conditions: list[Array]) -> Array:
    return reduce(jnp.logical_or, conditions, jnp.zeros((), bool))


def _with_batch(array: Array, batch: tuple[int, ...], event: int = 0) -> Array:
    """The first axis, the batch, and the last ``event`` axes."""
    middle = array.ndim - 1 - event
    own = array.reshape(array.shape[0], *(1,) * (len(batch) - middle), *array.shape[1:])
    return jnp.broadcast_to(own, (array.shape[0], *batch, *array.shape[1 + middle :]))


def _on_an_end(p, others: tuple, x: Array, method) -> Array:
    """Whether x stands exactly on an end; integers do so in earnest."""
    if is_discrete(p):
        return jnp.zeros((), bool)
    return _any([at_an_end(x, support) for support in (support_within(p, method), *map(support_of, others))])


def _beyond(values: Array, x: Array, nodes: Nodes, p) -> Array:
    """About what lies beyond the last nodes: what they add themselves. Nothing is beyond the first and the last outcome."""
    last = jnp.asarray(nodes.last)
    found = jnp.abs(values[last])
    return jnp.sum(jnp.where(at_an_end(x[last], support_of(p)), 0, found) if is_discrete(p) else found, 0)


def _log_densities(p, others: tuple, x: Array) -> list[Array]:
    found = [log_density_at(q, x) for q in (p, *others)]
    for q, log in zip((p, *others), found, strict=True):
        _require(log, ~jnp.isnan(log), q, x, "a number, or -inf outside the support")
    return found


def _require(log: Array, accepted: Array, q, x: Array, expectation: str) -> None:
    """Raise for a concrete log-density that is not what it must be; a traced one shows in the value, as NaN."""
    if is_concrete(accepted) and not bool(accepted.all()):
        first = jnp.argmin(accepted.reshape(-1))
        at = x.reshape(accepted.size, -1)[first].squeeze()
        raise ValueError(f"log_prob of {describe(q)} is {_name(log.reshape(-1)[first])} at {at}: it must be {expectation}.")


def _name(number: Array) -> str:
    return "NaN" if bool(jnp.isnan(number)) else f"{number}"


def _if_all_there(value: Array, mass: Array, tolerance, p, method) -> Array:
    """An integral over which p does not add up to 1 is of another function, or has missed it: an error, NaN if traced."""
    bad = ~(jnp.abs(mass - 1) <= tolerance)
    if is_concrete(bad) and bool(bad.any()):
        found = mass.reshape(-1)[jnp.argmax(bad.reshape(-1))]
        raise ValueError(
            f"the density of p, {describe(p)}, adds up to {found:.6g} over the nodes of {method}, not to 1: p is not "
            "normalised, or lies elsewhere, has a jump or a bend that it does not name, or rounds too much in its dtype. "
            "Give low and high, more points, 64 bits, or method=MonteCarlo(key)."
        )
    return jnp.where(bad, jnp.nan, value)


def _if_it_ends(value: Array, beyond: Array, tolerance: float, p, method) -> Array:
    """An integral whose last nodes still count would go on beyond them: an error, NaN if traced."""
    bad = ~(beyond <= tolerance * (1 + jnp.abs(value)))
    if is_concrete(bad) and bool(bad.any()):
        raise ValueError(
            f"the last nodes of {method} add {beyond.reshape(-1)[jnp.argmax(bad.reshape(-1))]:.3g} to an expectation over "
            f"{describe(p)}, which goes on beyond them. Use 64 bits, more points, or method=MonteCarlo(key)."
        )
    return jnp.where(bad, jnp.nan, value)


def _monte_carlo(f: Integrand, p, others: tuple, method: MonteCarlo) -> Estimate:
    at = drawn(p, others, method.key, method.samples)
    batch = jnp.broadcast_shapes(*(batch_shape(q) for q in (p, *others)), at.x.shape[1 : at.x.ndim - event_dimensions(p)])
    at = jax.tree.map(lambda x: _with_batch(x, batch, event_dimensions(p)), at)
    log_p, *logs = [log_density(q, at) for q in (p, *others)]
    _require(log_p, jnp.isfinite(log_p), p, at.x, "finite at a sample")
    for q, log in zip(others, logs, strict=True):
        _require(log, ~jnp.isnan(log), q, at.x, "a number, or -inf outside the support")
    values = f(log_p, *logs)
    error = jnp.std(values, axis=0, ddof=1) / method.samples**0.5
    return Estimate(jnp.mean(values, 0) + _score_term(values, log_p), error)


def _score_term(values: Array, log_p: Array) -> Array:
    """0, with the gradient ``E[(f - mean f) grad log p]`` of drawing from a p that moves; ``n / (n - 1)`` for the mean's own
    samples. Where the mean is infinite, a constant, it is left out."""
    mean = jnp.mean(values, 0, keepdims=True)
    coefficient = jax.lax.stop_gradient(jnp.where(jnp.isinf(mean), 0, values - mean))
    moving = log_p - jax.lax.stop_gradient(log_p)
    return jnp.sum(coefficient * moving, 0) / (values.shape[0] - 1)
