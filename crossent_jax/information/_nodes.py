"""Nodes and weights of the quadratures, for one variable.

The double-exponential rule sums ``f(x(t)) x'(t) h`` over equal steps of t. With ``g = pi sinh t``:

| interval | x(t) |
|---|---|
| a to b | ``a + (b - a) sigmoid(g)``, near b as ``b - (b - a) sigmoid(-g)`` |
| a to infinity | ``a + s exp(g / 2)`` |
| -infinity to b | ``b - s exp(g / 2)`` |

The range of t is nine tenths of what the dtype's exponents hold. Nodes move with the parameters of
p, so a gradient has the terms of moving ends too.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._family import Family
from ._foreign import event_dimensions, is_discrete, sampled_location
from ._methods import Grid, Quadrature

MOST_OUTCOMES = 2**20  # that are all taken


class Nodes(NamedTuple):
    """Points along the first axis, then the batch; their weights."""

    points: Array
    weights: Array


def nodes_of(p, others: tuple, method: Grid | Quadrature) -> Nodes:
    """Nodes for expectations over p of functions of the densities of p and ``others``."""
    if event_dimensions(p):
        raise ValueError(
            f"quadrature is for one variable, and a sample of this {type(p).__name__} is a vector: "
            "pass method=MonteCarlo(key)."
        )
    if isinstance(method, Grid):
        return _grid(method, is_discrete(p))
    low, high, centre, spread = _whereabouts(p, method)
    if is_discrete(p):
        return _integers(low, high, centre, spread, 4 * method.points)
    kinks = [kink for q in (p, *others) if isinstance(q, Family) for kink in (*q.kinks(), *_finite_ends(q))]
    return _double_exponential(low, high, centre, spread, kinks, method.points)


def _grid(method: Grid, discrete: bool) -> Nodes:
    points = jnp.linspace(method.low, method.high, method.points)
    step = (method.high - method.low) / (method.points - 1)
    if discrete and step != 1:
        raise ValueError(f"the points of Grid must be integers for a discrete p, one apart; they are {step:g} apart.")
    return Nodes(points, jnp.full_like(points, step))


def _whereabouts(p: Any, method: Quadrature) -> tuple[Any, Any, Array, Array]:
    if isinstance(p, Family):
        mean, deviation = p.mean(), p.standard_deviation()
        assert mean is not None and deviation is not None  # every family of one variable knows them
        return p.low, p.high, mean, jnp.where(deviation > 0, deviation, 1)
    low = -math.inf if method.low is None else float(method.low)
    high = math.inf if method.high is None else float(method.high)
    if math.isfinite(low) and math.isfinite(high):
        return low, high, jnp.asarray(0.5 * (low + high)), jnp.asarray(high - low)
    return low, high, *_sampled(p)


def _sampled(p):
    try:
        return sampled_location(p)
    except ValueError as error:
        raise ValueError(
            "quadrature needs to know where p lies: give it a sample, or pass method=Quadrature(low=..., high=...)."
        ) from error


def _finite_ends(q: Family) -> list[Array]:
    return [jnp.asarray(end) for end in (q.low, q.high) if not (isinstance(end, float) and math.isinf(end))]


def _integers(low, high, centre: Array, spread: Array, count: int) -> Nodes:
    """All outcomes between two ends that are known; else integers around the centre, to 10 standard deviations at least: one
    apart where ``count`` of them reach so far, else the power of two apart that makes them, each for so many.

    By Poisson's summation formula a sum over every h-th integer, times h, misses of a smooth function of width s about
    ``exp(-2 (pi s / h)^2)``; 1024 integers have s / h at least 25. Powers of two are exact where integers no longer are.
    """
    if _is_finite(low) and _is_finite(high) and high - low < MOST_OUTCOMES:
        points = jnp.arange(math.ceil(low), math.floor(high) + 1, dtype=centre.dtype).reshape(-1, *(1,) * centre.ndim)
        return Nodes(points, jnp.ones_like(points))
    centre, spread = jax.lax.stop_gradient((centre, spread))
    doublings = jnp.ceil(jnp.log2(jnp.maximum(20 * spread / count, 1)))
    step = jnp.ldexp(jnp.ones_like(centre), doublings.astype(jnp.int32))
    start = jnp.maximum(step * jnp.floor(centre / step - count // 2), low)
    points = start[None] + step[None] * jnp.arange(count, dtype=start.dtype).reshape(count, *(1,) * start.ndim)
    return Nodes(points, jnp.where(points <= high, step[None], 0))


def _double_exponential(low, high, centre: Array, spread: Array, kinks: list[Array], count: int) -> Nodes:
    """Intervals between the sorted break points; the outer two end where the support does."""
    dtype, shape = centre.dtype, jnp.broadcast_shapes(centre.shape, *(kink.shape for kink in kinks))
    inner = jnp.stack([jnp.broadcast_to(jnp.clip(x.astype(dtype), low, high), shape) for x in (centre, *kinks)])
    breaks = jnp.sort(inner, 0)[:, None]
    spread = jnp.broadcast_to(spread, shape)[None]
    t, step = _steps(dtype, count, len(shape))
    parts = [_finite(t, step, breaks[i], breaks[i + 1]) for i in range(len(breaks) - 1)]
    first, last = breaks[0], breaks[-1]
    parts.append(_below(t, step, first, spread) if _is_infinite(low) else _finite(t, step, _end(low, first), first))
    parts.append(_above(t, step, last, spread) if _is_infinite(high) else _finite(t, step, last, _end(high, last)))
    return Nodes(*(jnp.concatenate(column) for column in zip(*parts, strict=True)))


def _is_finite(end) -> bool:
    return isinstance(end, float) and math.isfinite(end)


def _is_infinite(end) -> bool:
    return isinstance(end, float) and math.isinf(end)


def _end(end, like: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(end, like.dtype), like.shape)


def _steps(dtype, count: int, dimensions: int) -> tuple[Array, float]:
    largest = math.asinh(2 / math.pi * 0.9 * math.log(float(jnp.finfo(dtype).max)))
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
    points, weights = _above(t, step, -b, s)
    return Nodes(-points, weights)
