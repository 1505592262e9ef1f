"""What a family of distributions is: parameters, a log-density, samples, and the moments its closed forms are made of.

``H(p, q) = -E_p[log q]`` needs of p only the expectations of what ``log q`` is linear in: mean and variance for a normal q,
mean and mean logarithm for a gamma q. So a family states which moments it knows, and in ``expected_log_prob`` which ones its
own log-density needs; a closed form exists for every pair where the two meet, families of one kind or of two.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._api import checks
from .._jax.versions import is_concrete

INFINITY = math.inf


def floats(names: tuple[str, ...], values: list) -> list[Array]:
    """Parameters as arrays of one floating dtype: the widest given, numbers take it."""
    arrays = [checks.array(name, value) for name, value in zip(names, values, strict=True)]
    given = [x.dtype for x, value in zip(arrays, values, strict=True) if hasattr(value, "dtype")]
    floating = [dtype for dtype in given if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32]
    widest = max(floating, key=lambda dtype: dtype.itemsize) if floating else jnp.zeros(()).dtype
    return [x.astype(widest) for x in arrays]


@dataclass_transform(frozen_default=True, eq_default=False)
def family(cls):
    """A frozen dataclass of arrays that is a pytree; its constructor checks, its unflattening takes anything."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))

    def unflatten(_, leaves):
        made = object.__new__(cls)
        made.__dict__.update(zip(names, leaves, strict=True))
        return made

    jax.tree_util.register_pytree_node(cls, lambda made: ([getattr(made, name) for name in names], None), unflatten)
    return cls


class Family:
    """Base of the families. A moment that a family does not know in closed form is None."""

    positive: tuple[str, ...] = ()  # parameters that must be > 0
    discrete = False
    event_dimensions = 0

    def __post_init__(self):
        names = tuple(field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]
        arrays = floats(names, [getattr(self, name) for name in names])
        self.__dict__.update(zip(names, self.shaped(names, arrays), strict=True))
        for requirement in self.requirements():
            self._require(*requirement)

    def requirements(self) -> list[tuple[str, Array, str]]:
        """Of each parameter with a range: its name, where it is accepted, and what is expected."""
        return [(name, getattr(self, name) > 0, "greater than 0") for name in self.positive]

    def _require(self, name: str, accepted: Array, expectation: str) -> None:
        """Raise for a concrete parameter out of its range; a traced one makes log-density and measures NaN."""
        if is_concrete(accepted) and not bool(accepted.all()):
            raise ValueError(f"{name} of {type(self).__name__} must be {expectation}; got {getattr(self, name)}.")

    def valid(self) -> Array:
        """Where all parameters are in their ranges, of the batch's shape: for those that no constructor could check."""
        found = jnp.ones(self.batch_shape, bool)
        for _, accepted, _ in self.requirements():
            found &= accepted.reshape(*self.batch_shape, -1).all(-1)
        return found

    def shaped(self, names: tuple[str, ...], arrays: list[Array]) -> list[Array]:
        """Parameters of one shape, by NumPy's rule of broadcasting."""
        try:
            shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
        except ValueError:
            shapes = ", ".join(f"{name} {x.shape}" for name, x in zip(names, arrays, strict=True))
            raise ValueError(f"the parameters of {type(self).__name__} must have one shape; got {shapes}.") from None
        return [jnp.broadcast_to(x, shape) for x in arrays]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return jax.tree_util.tree_leaves(self)[0].shape

    @property
    def dtype(self):
        return jax.tree_util.tree_leaves(self)[0].dtype

    # --- where the distribution lives ---------------------------------------------------------------

    low: float | Array = -INFINITY
    high: float | Array = INFINITY

    def log_prob(self, x) -> Array:
        """Log-density at x: the batch's shape (then the event's), after any axes of samples.

        -inf where the density is 0, off the support and between the outcomes of a discrete family; on an edge its limit. NaN
        for an x that is NaN, and for traced parameters out of their range.
        """
        x = checks.array("x", x)
        if not self.event_dimensions:
            x = jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, self.batch_shape))
        return each(self._known_log_prob, x, x.ndim - self.event_dimensions - len(self.batch_shape))

    def _known_log_prob(self, x: Array) -> Array:
        unknown = jnp.isnan(x).any(tuple(range(len(self.batch_shape), x.ndim)))
        return jnp.where(self.valid() & ~unknown, self._log_prob(x), jnp.nan)

    def _log_prob(self, x: Array) -> Array:
        raise NotImplementedError

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        raise NotImplementedError

    def in_batch(self, shape: tuple[int, ...], dtype) -> Any:
        """The same distributions with this batch shape and dtype."""
        own = len(self.batch_shape)
        return jax.tree.map(lambda x: jnp.broadcast_to(x.astype(dtype), shape + x.shape[own:]), self)

    # --- moments ------------------------------------------------------------------------------------

    def mean(self) -> Array | None:
        return None

    def mean1m(self) -> Array | None:
        """E[1 - x]."""
        return None

    def standard_deviation(self) -> Array | None:
        """A family with a scale says it itself: float32 does not hold the square of 1e20."""
        variance = self.variance()
        return None if variance is None else jnp.sqrt(variance)

    def variance(self) -> Array | None:
        return None

    def mean_log(self) -> Array | None:
        """E[log x]."""
        return None

    def mean_log_gap(self) -> Array | None:
        """``log E[x] - E[log x]``, at least 0: known by itself, where the two are large and close."""
        return None

    def deviation_log(self) -> Array | None:
        """Standard deviation of log x."""
        return None

    def variance_log(self) -> Array | None:
        deviation = self.deviation_log()
        return None if deviation is None else jnp.square(deviation)

    def mean_log1m(self) -> Array | None:
        """E[log(1 - x)]."""
        return None

    def mean_log1m_gap(self) -> Array | None:
        """``log E[1 - x] - E[log(1 - x)]``."""
        return None

    def mean_distance(self, x: Array) -> Array | None:
        """E|X - x|."""
        return None

    # --- closed forms -------------------------------------------------------------------------------

    def expected_log_prob(self, p: "Family") -> Array | None:
        """``E_p[log self]`` for a p whose support lies in this one's; None if p lacks a moment."""
        return None

    def kl_from(self, p) -> Array | None:
        """``KL(p || self)`` for p of the same family, by a formula that does not cancel where the two are close."""
        return None


def each(function: Callable[[Array], Array], x: Array, axes: int) -> Array:
    """``function`` of every element along the leading axes of x, so that no array meets one of another rank."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function(x)


def inside(x: Array, low, high, value: Array) -> Array:
    """A log-density: -inf outside of [low, high]."""
    return jnp.where((x >= low) & (x <= high), value, -jnp.inf)


def linear(coefficients: list[tuple[Array, Array | None]], constant: Array) -> Array | None:
    """``constant + sum of coefficient * moment``; None if a moment is missing."""
    total = constant
    for coefficient, moment in coefficients:
        if moment is None:
            return None
        total = total + coefficient * moment
    return total
