"""The divergences of two distributions p and t: phi, whose sum over the classes is the divergence, and its derivatives.

With ``x = log p - log t``, ``chi = d phi / d log p`` and ``tau = d phi / d log t``:

| kind | phi | chi | tau |
|---|---|---|---|
| ``forward_kl``, KL(t || p) | p - t - t x | p - t | -t x |
| ``reverse_kl``, KL(p || t) | t - p + p x | p x | t - p |
| ``jeffreys``, their sum | (p - t) x | p x + p - t | -t x - (p - t) |
| ``js``, m = beta t + b p | beta KL(t || m) + b KL(p || m) | b p (log p - log m) | beta t (log t - log m) |
| ``total_variation`` | abs(p - t) / 2 | p sign(p - t) / 2 | -t sign(p - t) / 2 |
| ``renyi``, ``log(1 + sum phi) / (alpha - 1)`` | q - t - a (p - t), q = t^alpha p^a | a (q - p) | alpha (q - t) |
| ``alpha``, ``sum phi / (alpha (alpha - 1))`` | the same | the same | the same |

with a = 1 - alpha and b = 1 - beta. The terms ``p - t`` add up to 0: they make every phi non-negative in each element
(Rényi: of one sign), so a divergence is exactly 0 for identical inputs, never negative, and loses nothing where p and t are
close: there ``p - t - t x = t (exp(x) - 1 - x)`` and its like are taken from the series of ``exp(x) - 1 - x``. What an error
c of all x (of the two logarithms of sums) does to a KL divergence is ``r - log(1 + r) = c^2 / 2`` with ``r = sum(p - t)``,
the sum of the derivatives of the side for which they should add up to 0, and is taken off.

Limits: 0 log 0 = 0, an element with t > 0 = p adds +inf to KL(t || p), one with p > 0 = t to KL(p || t).

Sources: Kullback and Leibler 1951; Lin 1991 (Jensen-Shannon, section 4); Jeffreys 1946; Rényi 1961; Amari 2009 (alpha).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._row.losses import times
from .._row.state import Maybe
from .series import expm1_minus, near_zero

SMALLEST_SHIFT = 0.5  # of a Renyi divergence: while the logarithm of the sum of powers is smaller, its excess is summed


class Elements(NamedTuple):
    """One class each: the probabilities, and ``x = log p - log t`` made from the logits' difference (0 where both are 0)."""

    p: Float[Array, "..."]
    t: Float[Array, "..."]
    x: Float[Array, "..."]
    log_p: Float[Array, "..."]
    log_t: Float[Array, "..."]


class Terms(NamedTuple):
    """phi, chi and tau of each class."""

    phi: Float[Array, "..."]
    chi: Float[Array, "..."]
    tau: Float[Array, "..."]


class Kind(NamedTuple):
    """A divergence: ``terms(elements, parameter, shift)``. ``exponent(elements)``: where given, each row's log-sum-exp is
    its ``shift`` (0 where that is small), None elsewhere. ``finish(sum of phi, shift)``: the divergence. ``balanced``:
    whether chi, or tau, adds up to 0 in every row, so that it is the gradient (what it adds up to instead is rounding); the
    other one adds up to what phi does less that.
    ``key``: what makes two kinds equal. ``integrand``: a user's function that may close over arrays."""

    key: Any
    terms: Callable[[Elements, Maybe, Maybe], Terms]
    exponent: Callable[[Elements], Array] | None = None
    finish: Callable[[Array, Maybe], Array] = lambda total, shift: total
    balanced: tuple[bool, bool] = (False, False)
    integrand: Callable | None = None

    def __eq__(self, other) -> bool:
        return isinstance(other, Kind) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


# --- what the kinds are made of --------------------------------------------------------------------


def difference(e: Elements) -> Array:
    """p - t."""
    near, x = near_zero(e.x)
    return jnp.where(near, e.t * (x + expm1_minus(x)), e.p - e.t)


def bregman(a: Array, b: Array, log_ratio: Array) -> Array:
    """``b - a - a (log b - log a)``, never negative."""
    near, x = near_zero(log_ratio)
    return jnp.where(near, a * expm1_minus(x), b - a - weighted(a, log_ratio))


def weighted(p: Array, log: Array) -> Array:
    """``p log``, 0 where p is 0, whatever the logarithm."""
    return p * jnp.where(p == 0, 0, log)


# --- the kinds -------------------------------------------------------------------------------------


def _forward_kl(e: Elements, parameter, shift) -> Terms:
    return Terms(bregman(e.t, e.p, e.x), difference(e), -weighted(e.t, e.x))


def _reverse_kl(e: Elements, parameter, shift) -> Terms:
    return Terms(bregman(e.p, e.t, -e.x), weighted(e.p, e.x), -difference(e))


def _jeffreys(e: Elements, parameter, shift) -> Terms:
    apart, px, tx = difference(e), weighted(e.p, e.x), weighted(e.t, e.x)
    near, x = near_zero(e.x)
    return Terms(jnp.where(near, apart * x, px - tx), px + apart, -tx - apart)


def _total_variation(e: Elements, parameter, shift) -> Terms:
    apart = difference(e)
    sign = jnp.sign(apart) / 2
    return Terms(jnp.abs(apart) / 2, e.p * sign, -e.t * sign)


def _js(e: Elements, beta, shift) -> Terms:
    """``log m - log`` of the larger of p and t is ``log(1 + c (exp(-abs x) - 1))``, c being the smaller one's share of m.

    With ``h = tanh(abs x / 2)``, ``exp(-abs x) - 1`` is ``-2 h / (1 + h)``: XLA's CPU loops over ten classes one number at a
    time where ``expm1`` stands in so long an expression (value and gradient of (32768, 10) on two cores: 8.1 ms, so 4.7).
    """
    size, smaller = jnp.abs(e.x), e.x <= 0
    half = jnp.tanh(size / 2)
    of_larger = jnp.log1p(jnp.where(smaller, 1 - beta, beta) * (-2 * half / (1 + half)))
    to_t, to_p = (jnp.where(s, of_larger, of_larger + size) for s in (smaller, ~smaller))
    m = beta * e.t + (1 - beta) * e.p
    phi = times(beta, bregman(e.t, m, to_t)) + times(1 - beta, bregman(e.p, m, to_p))
    return Terms(phi, -times(1 - beta, weighted(e.p, to_p)), -times(beta, weighted(e.t, to_t)))


def _powers(order: float) -> Callable:
    """Of Renyi and alpha divergences. Where a row's exponents are shifted, phi is ``t^alpha p^a exp(-shift)`` alone."""
    a = 1 - order
    reach = max(1.0, abs(a))

    def terms(e: Elements, parameter, shift) -> Terms:
        shift = jnp.zeros((), e.x.dtype) if shift is None else shift
        near, scaled = near_zero(reach * e.x)
        x, near = scaled / reach, near & (shift == 0)
        power = jnp.exp(_exponent(order, e) - shift)
        minus_p = jnp.where(shift == 0, power - e.p, power)
        minus_t = jnp.where(shift == 0, jnp.where(jnp.abs(a * e.x) < 1, e.t * jnp.expm1(a * e.x), power - e.t), power)
        of_a, of_1 = expm1_minus(a * x), expm1_minus(x)
        phi = jnp.where(near, e.t * (of_a - a * of_1), jnp.where(shift == 0, minus_t - a * difference(e), power))
        chi = a * jnp.where(near, e.t * (of_a - of_1 + (a - 1) * x), minus_p)
        return Terms(phi, chi, order * jnp.where(near, e.t * (of_a + a * x), minus_t))

    return terms


def _exponent(order: float, e: Elements) -> Array:
    """log(t^alpha p^a), -inf where both are 0."""
    nowhere = (e.p == 0) & (e.t == 0)
    return jnp.where(nowhere, -jnp.inf, order * e.log_t + (1 - order) * jnp.where(nowhere, 0, e.log_p))


def _renyi_of_sum(order: float, total: Array, shift: Array) -> Array:
    shift = shift[..., 0]
    shifted = shift != 0
    log = jnp.where(shifted, shift + jnp.log(jnp.where(shifted, total, 1)), jnp.log1p(jnp.where(shifted, 0, total)))
    return log / (order - 1)


def _renyi(order: float) -> Kind:
    return Kind(("renyi", order), _powers(order), partial(_exponent, order), partial(_renyi_of_sum, order))


def _alpha(order: float) -> Kind:
    """Never shifted: a sum that is too large for the dtype is a divergence that is."""
    return Kind(("alpha", order), _powers(order), finish=lambda total, shift: total / (order * (order - 1)))


FORWARD_KL = Kind("forward_kl", _forward_kl, balanced=(True, False))
KINDS = {
    "forward_kl": FORWARD_KL,
    "reverse_kl": Kind("reverse_kl", _reverse_kl, balanced=(False, True)),
    "js": Kind("js", _js),
    "jeffreys": Kind("jeffreys", _jeffreys),
    "total_variation": Kind("total_variation", _total_variation),
}
ORDERED = {"renyi": _renyi, "alpha": _alpha}  # of an order; of order 1 both are the forward KL divergence


def of_order(name: str, order: float) -> Kind:
    """Renyi's or the alpha divergence of an order."""
    return FORWARD_KL if order == 1 else ORDERED[name](order)


def of_user(function: Callable, key: Any, closes_over_arrays: bool = False) -> Kind:
    """A user's integrand ``function(log_p, log_t, *parameter)``: phi, or (phi, chi, tau). chi and tau of a phi alone are
    JAX's.

    A logarithm of -inf arrives as the lowest finite number, so that the usual expressions have their limits; where both are,
    the element is 0.
    """

    def terms(e: Elements, parameter, shift) -> Terms:
        lowest = jnp.finfo(e.p.dtype).min
        logs = jnp.maximum(e.log_p, lowest), jnp.maximum(e.log_t, lowest)
        nowhere = (e.log_p == -jnp.inf) & (e.log_t == -jnp.inf)
        constants = () if parameter is None else parameter
        phi, pull = jax.vjp(lambda *logs: _first(function(*logs, *constants)), *logs)
        given = function(*logs, *constants)
        chi, tau = given[1:] if isinstance(given, tuple) else pull(jnp.ones_like(phi))
        return Terms(*(jnp.where(nowhere, 0, x) for x in (phi, chi, tau)))

    return Kind(("user", key), terms, integrand=function if closes_over_arrays else None)


def with_constants(kind: Kind, log_p: Array, log_t: Array) -> tuple[Kind, tuple]:
    """The kind of a user's integrand, and the arrays that it closes over as its parameter, for logarithms of these types."""

    def fresh(*logs):
        """JAX remembers what it traced of a function, and what the function refers to may have changed since."""
        assert kind.integrand is not None
        return kind.integrand(*logs)

    function, constants = jax.closure_convert(fresh, log_p, log_t)
    return of_user(function, function), tuple(constants)


def _first(given):
    return given[0] if isinstance(given, tuple) else given
