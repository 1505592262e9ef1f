"""Nodes and weights of the quadratures, for one variable.

The double-exponential rule sums ``f(x(t)) x'(t) h`` over equal steps of t. With ``g = pi sinh t``:

| interval | x(t) |
|---|---|
| a to b | ``a + (b - a) sigmoid(g)``, near b as ``b - (b - a) sigmoid(-g)`` |
| a to infinity | ``a + s exp(g / 2)`` |
| -infinity to b | ``b - s exp(g / 2)`` |

The range of t is nine tenths of what the dtype's exponents hold. A feature that is narrow beside its interval is resolved
only next to a break point, where the nodes are dense on every scale. So the intervals break at the centre of each density
and ``REACH`` spreads to both sides of it, as well as at kinks and at the ends of supports: the logarithm of a mixture of a
wide and a narrow density bends where the two are equal, of normals at ``sqrt(2 log ratio)`` spreads, below 8 up to a ratio
of 1e13.
Kinks and ends move with the parameters, so a gradient has their terms too; the other break points are constants to it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._family import Family
from ._foreign import can_sample, event_dimensions, is_discrete, kinks, sampled_location
from ._methods import Grid, Quadrature
from ._support import Support, is_finite, is_infinite, support_of

REACH = 8

MOST_OUTCOMES = 2**20  # that are all taken


class Nodes(NamedTuple):
    """Points along the first axis, then the batch; their weights; the indices of the points beyond which a rule stops."""

    points: Array
    weights: Array
    last: tuple[int, ...] = ()


def nodes_of(p, others: tuple, method: Grid | Quadrature) -> Nodes:
    """Nodes for expectations over p of functions of the densities of p and ``others``."""
    if event_dimensions(p):
        raise ValueError(
            f"quadrature is for one variable, and a sample of this {type(p).__name__} is a vector: "
            "pass method=MonteCarlo(key)."
        )
    if isinstance(method, Grid):
        return _grid(method, is_discrete(p))
    support, (centre, spread) = support_within(p, method), _whereabouts(p, method)
    if is_discrete(p):
        return _integers(*support, centre, spread, 4 * method.points)
    return _double_exponential(support, centre, spread, _breaks(p, others, centre, spread), method.points)


def support_within(p, method) -> Support:
    """The support of p, or the ends that the method gives for an object."""
    low, high = support_of(p)
    if isinstance(p, Family) or not isinstance(method, Quadrature):
        return Support(low, high)
    return Support(low if method.low is None else float(method.low), high if method.high is None else float(method.high))


def _grid(method: Grid, discrete: bool) -> Nodes:
    points = jnp.linspace(method.low, method.high, method.points)
    step = (method.high - method.low) / (method.points - 1)
    if discrete and step != 1:
        raise ValueError(f"the points of Grid must be integers for a discrete p, one apart; they are {step:g} apart.")
    return Nodes(points, jnp.full_like(points, step))


def _whereabouts(p: Any, method: Quadrature) -> tuple[Array, Array]:
    """Centre and spread of p: where it says or its samples show, or else of the interval that the method gives."""
    if isinstance(p, Family) or can_sample(p):
        return _centre_and_spread(p)
    if method.low is None or method.high is None:
        raise ValueError(
            "quadrature needs to know where p lies: give it a sample, or pass method=Quadrature(low=..., high=...)."
        )
    return jnp.asarray(0.5 * (method.low + method.high)), jnp.asarray(float(method.high - method.low))


def _centre_and_spread(distribution) -> tuple[Array, Array]:
    """Mean and standard deviation, or those of samples. Where they overflow, or nothing spreads, the scale 1."""
    if isinstance(distribution, Family):
        mean, deviation = distribution.mean(), distribution.standard_deviation()
        assert mean is not None and deviation is not None  # every family of one variable knows them
        centre, spread = mean, deviation
    else:
        centre, spread = sampled_location(distribution)
    spread = jnp.where((spread > 0) & jnp.isfinite(spread), spread, 1)
    return jax.lax.stop_gradient(jnp.where(jnp.isinf(centre), 0, centre)), jax.lax.stop_gradient(spread)


def _breaks(p, others: tuple, centre: Array, spread: Array) -> list[Array]:
    """Of p and of each of the others that says where it is: the centre, both sides of it, kinks, ends of the support."""
    places = [(centre, spread), *(_centre_and_spread(q) for q in others if isinstance(q, Family) or can_sample(q))]
    found = [middle + side * REACH * around for middle, around in places for side in (-1, 0, 1)]
    for q in (p, *others):
        found += [*kinks(q), *(jnp.asarray(end) for end in support_of(q) if not is_infinite(end))]
    return found


def _integers(low, high, centre: Array, spread: Array, count: int) -> Nodes:
    """All outcomes between two ends that are known; else integers around the centre, to 10 standard deviations at least: one
    apart where ``count`` of them reach so far, else the power of two apart that makes them, each for so many.

    By Poisson's summation formula a sum over every h-th integer, times h, misses of a smooth function of width s about
    ``exp(-2 (pi s / h)^2)``; 1024 integers have s / h at least 25. Powers of two are exact where integers no longer are.
    """
    if is_finite(low) and is_finite(high) and high - low < MOST_OUTCOMES:
        points = jnp.arange(math.ceil(low), math.floor(high) + 1, dtype=centre.dtype).reshape(-1, *(1,) * centre.ndim)
        return Nodes(points, jnp.ones_like(points), (0, -1))
    centre, spread = jax.lax.stop_gradient((centre, spread))
    doublings = jnp.ceil(jnp.log2(jnp.maximum(20 * spread / count, 1)))
    step = jnp.ldexp(jnp.ones_like(centre), doublings.astype(jnp.int32))
    start = jnp.maximum(step * jnp.floor(centre / step - count // 2), low)
    points = start[None] + step[None] * jnp.arange(count, dtype=start.dtype).reshape(count, *(1,) * start.ndim)
    return Nodes(points, jnp.where(points <= high, step[None], 0), (0, -1))


def _double_exponential(support: Support, centre: Array, spread: Array, found: list[Array], count: int) -> Nodes:
    """Intervals between the sorted break points; the outer two end where the support does."""
    dtype, ends = centre.dtype, tuple(jnp.asarray(end).astype(centre.dtype) for end in support)
    shape = jnp.broadcast_shapes(centre.shape, *(x.shape for x in (*found, *ends)))
    low, high = (jnp.broadcast_to(end, shape) for end in ends)
    centre, spread = jnp.broadcast_to(centre, shape), jnp.broadcast_to(spread.astype(dtype), shape)
    inner = [jnp.clip(_finite_or(jnp.broadcast_to(x.astype(dtype), shape), centre), low, high) for x in found]
    breaks = jnp.sort(jnp.stack(inner), 0)[:, None]
    steps = _steps(dtype, count, len(shape), math.pi)
    parts = [_finite(*steps, breaks[i], breaks[i + 1]) for i in range(len(breaks) - 1)]
    parts.append(_outer(support.low, low[None], count, breaks[0], spread[None], upwards=False))
    parts.append(_outer(support.high, high[None], count, breaks[-1], spread[None], upwards=True))
    points, weights = (jnp.concatenate([getattr(part, name) for part in parts]) for name in ("points", "weights"))
    return Nodes(points, weights, tuple(i * count + end for i in range(len(parts)) for end in (0, count - 1)))


def _finite_or(x: Array, other: Array) -> Array:
    return jnp.where(jnp.isinf(x), other, x)


def _outer(said, end: Array, count: int, start: Array, spread: Array, upwards: bool) -> Nodes:
    """From the last break point to an end, finite or not: known beforehand, or not before its value is."""
    steps, steps_of_infinite = (_steps(start.dtype, count, start.ndim - 1, rate) for rate in (math.pi, 0.5 * math.pi))
    unbounded = (_above if upwards else _below)(*steps_of_infinite, start, spread)
    if is_infinite(said):
        return unbounded
    infinite, end = jnp.isinf(end), _finite_or(end, start)
    bounded = _finite(*steps, start, end) if upwards else _finite(*steps, end, start)
    if isinstance(said, float):
        return bounded
    points, weights = (jnp.where(infinite, *both) for both in zip(unbounded[:2], bounded[:2], strict=True))
    return Nodes(points, weights)


def _steps(dtype, count: int, dimensions: int, rate: float) -> tuple[Array, float]:
    """Equal steps of t, as far as ``exp(rate sinh t)`` is well within the dtype."""
    largest = math.asinh(0.9 * math.log(float(jnp.finfo(dtype).max)) / rate)
    t = jnp.linspace(-largest, largest, count, dtype=dtype)
    return t.reshape(count, *(1,) * dimensions), 2 * largest / (count - 1)


def _finite(t: Array, step: float, a: Array, b: Array) -> Nodes:
    g, slope = math.pi * jnp.sinh(t), math.pi * jnp.cosh(t)
    width = b - a
    points = jnp.where(t < 0, a + width * jax.nn.sigmoid(g), b - width * jax.nn.sigmoid(-g))
    return Nodes(points, width * jax.nn.sigmoid(g) * jax.nn.sigmoid(-g) * slope * step)


def _above(t: Array, step: float, a: Array, s: Array) -> Nodes:
    """Nodes too far out for the dtype stand at its edge, and weigh nothing."""
    distance = jnp.minimum(s * jnp.exp(0.5 * math.pi * jnp.sinh(t)), 0.1 * float(jnp.finfo(t.dtype).max))
    weights = distance * (0.5 * math.pi) * jnp.cosh(t) * step
    return Nodes(a + distance, jnp.where(jnp.isfinite(weights), weights, 0))


def _below(t: Array, step: float, b: Array, s: Array) -> Nodes:
    above = _above(t, step, -b, s)
    return Nodes(-above.points, above.weights)
