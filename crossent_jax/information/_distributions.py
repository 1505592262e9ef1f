"""Measures of distributions: by a closed form where one is known, else as an expectation."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from . import _arrays as arrays
from ._discrete import Finite
from ._expectation import expectation
from ._family import Family
from ._foreign import (
    base_of,
    batch_shape,
    describe,
    event_dimensions,
    event_shape,
    is_discrete,
    is_independent,
    is_pair,
    mask_of,
    recognised,
)
from ._methods import ClosedForm, Estimate, Grid, MonteCarlo, Quadrature
from ._support import contained

METHODS = (ClosedForm, Grid, Quadrature, MonteCarlo)


def check_method(method):
    if method is not None and not isinstance(method, METHODS):
        names = ", ".join(kind.__name__ for kind in METHODS)
        raise TypeError(f"method must be None or one of {names}; got {method!r}.")
    return method


def measure_of_distributions(measure: str, given: tuple, method, beta: float) -> Any:
    """Nats: an array, or an ``Estimate`` by Monte Carlo. Of masked distributions that of what is masked, 0 where any mask is
    False; of independent variables the sum over them, of a measure that adds up."""
    masks = [mask for x in given if (mask := mask_of(x)) is not None]
    if masks:
        found = measure_of_distributions(
            measure, tuple(x if mask_of(x) is None else base_of(x) for x in given), method, beta
        )
        return jax.tree.map(lambda nats: jnp.where(reduce(jnp.logical_and, masks), nats, 0), found)
    if measure != "js_divergence" and all(is_independent(x) for x in given):
        _require_one_event(given)
        bases = tuple(base_of(x) for x in given)
        if len({event_dimensions(x) for x in bases}) == 1:
            axes = event_dimensions(given[0]) - event_dimensions(bases[0])
            return _summed(measure_of_distributions(measure, bases, method, beta), axes)
    sides = _of_one_batch(tuple(recognised(x) for x in given))
    exact = _closed(measure, sides, beta) if method is None or isinstance(method, ClosedForm) else None
    if exact is not None:
        known = sides[0].valid() & sides[-1].valid()
        return _infinite_outside(measure, jnp.where(known, exact, jnp.nan), sides)
    if isinstance(method, ClosedForm):
        raise ValueError(
            f"no closed form of {measure} is known for {_names(sides)}: pass method=Quadrature() or MonteCarlo(key)."
        )
    found = _by_expectation(measure, sides, Quadrature() if method is None else method, beta)
    return _infinite_outside(measure, found, sides)


def _summed(found, axes: int):
    """Over the last axes, whose samples are independent."""
    last = tuple(range(-axes, 0))
    if isinstance(found, Estimate):
        return Estimate(jnp.sum(found.value, last), jnp.sqrt(jnp.sum(jnp.square(found.standard_error), last)))
    return jnp.sum(found, last)


def _infinite_outside(measure: str, found, sides: tuple):
    """+inf, without an error of estimation, where q is 0 and p is not by what they say of their supports."""
    if measure not in ("cross_entropy", "kl_divergence") or (inside := contained(*sides)) is True:
        return found
    if isinstance(found, Estimate):
        inside = inside | jnp.isnan(found.value)
        return Estimate(jnp.where(inside, found.value, jnp.inf), jnp.where(inside, found.standard_error, 0))
    return jnp.where(inside | jnp.isnan(found), found, jnp.inf)


def _names(sides: tuple) -> str:
    return " and ".join(describe(x) for x in sides)


def _of_one_batch(sides: tuple) -> tuple:
    """Both of one kind of event; families with one batch shape and one dtype."""
    if len({is_discrete(x) for x in sides}) > 1:
        raise ValueError(f"p and q must both be discrete or both continuous; got {_names(sides)}.")
    _require_one_event(sides)
    families = [x for x in sides if isinstance(x, Family)]
    try:
        shape = jnp.broadcast_shapes(*(batch_shape(x) for x in sides))
    except ValueError:
        shapes = " and ".join(str(batch_shape(x)) for x in sides)
        raise ValueError(f"p and q must have one batch shape; got {shapes}.") from None
    widest = max((x.dtype for x in families), key=lambda dtype: dtype.itemsize, default=None)
    return tuple(x.in_batch(shape, widest) if isinstance(x, Family) else x for x in sides)


def _require_one_event(sides: tuple) -> None:
    if len({event_shape(x) for x in sides if not is_pair(x)}) > 1 or len({event_dimensions(x) for x in sides}) > 1:
        raise ValueError(f"p and q must be of events of one shape; got {_names(sides)}.")


def _closed(measure: str, sides: tuple[Any, ...], beta: float) -> Array | None:
    if not all(isinstance(x, Family) for x in sides):
        return None
    if all(isinstance(x, Finite) for x in sides):
        return _finite(measure, sides, beta)
    if measure == "js_divergence":
        return None
    p, q = sides[0], sides[-1]  # of an entropy both are p
    if measure == "kl_divergence" and type(p) is type(q):
        exact = q.kl_from(p)
    else:
        exact = _minus(q.expected_log_prob(p))
        if measure == "kl_divergence" and exact is not None:
            own = p.expected_log_prob(p)
            exact = None if own is None else jnp.maximum(exact + own, 0)
    return exact


def _minus(x: Array | None) -> Array | None:
    return None if x is None else -x


def _finite(measure: str, sides: tuple[Any, ...], beta: float) -> Array:
    logs = [x.log_probs() for x in sides]
    if len({log.shape[-1] for log in logs}) > 1:
        raise ValueError(f"p and q must have the same number of outcomes; got {[log.shape[-1] for log in logs]}.")
    if measure == "kl_divergence":
        return sides[1].kl_from(sides[0])
    if measure == "js_divergence":
        return sides[0].js(sides[1], beta)
    logs = jnp.broadcast_arrays(*logs)
    if measure == "entropy":
        return arrays.entropy_of_array(None, logs[0], -1)
    return arrays.cross_entropy_of_arrays(None, None, logs[0], logs[1], -1)


def _by_expectation(measure: str, sides: tuple[Any, ...], method, beta: float) -> Array | Estimate:
    if measure == "js_divergence":
        p, q = sides
        return _js_by_expectation(p, q, method, beta)
    integrands: dict[str, Callable] = {
        "entropy": lambda log_p: -log_p,
        "cross_entropy": lambda log_p, log_q: -log_q,
        "kl_divergence": lambda log_p, log_q: log_p - log_q,
    }
    return expectation(integrands[measure], sides[0], sides[1:], method)


def _js_by_expectation(p, q, method, beta: float) -> Any:
    """``beta E_p[log p - log m] + (1 - beta) E_q[log q - log m]``."""

    def excess(share: float) -> Callable[[Array, Array], Array]:
        """Of the own density, of this share in the mixture, over the mixture: ``-log(share + (1 - share) other / own)``."""
        return lambda own, other: -jnp.logaddexp(jnp.log(share) + 0 * own, jnp.log1p(-share) + other - own)

    sides = [(share, own, other) for share, own, other in ((beta, p, q), (1 - beta, q, p)) if share > 0]
    found: list[Any] = [expectation(excess(share), own, (other,), method) for share, own, other in sides]
    shares = [share for share, _, _ in sides]
    if not isinstance(method, MonteCarlo):
        return _dot(shares, found)
    errors = _dot([share**2 for share in shares], [jnp.square(part.standard_error) for part in found])
    return Estimate(_dot(shares, [part.value for part in found]), jnp.sqrt(errors))


def _dot(shares: list[float], parts: list[Array]) -> Array:
    total = shares[0] * parts[0]
    for share, part in zip(shares[1:], parts[1:], strict=True):
        total = total + share * part
    return total
