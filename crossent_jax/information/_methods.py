"""How the expectation ``E_p[f(x)]`` is taken: the methods, each with its own options."""

import dataclasses
from typing import NamedTuple

from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """The formula of the pair of families; a ValueError if none is known."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """``sum_i p(x_i) f(x_i) dx`` on ``points`` equally spaced points from ``low`` to ``high``, both included: what one
    writes first. What lies outside is left out."""

    low: float
    high: float
    points: int = 100

    def __post_init__(self):
        _require_points(self.points)
        if not self.low < self.high:
            raise ValueError(f"low of Grid must be less than high; got {self.low} and {self.high}.")


@dataclasses.dataclass(frozen=True)
class Quadrature:
    """The double-exponential rule with ``points`` nodes between any two of: the ends of p's support, its centre, the kinks
    of both densities. For discrete p the sum over all outcomes between two known ends, else over ``4 points`` integers
    around its mean: consecutive ones, or, where these do not reach 10 standard deviations, every second, fourth, ... one.

    A substitution of the variable makes every integrand die out doubly exponentially, so that the plain sum converges
    exponentially, at ends where the density is infinite and over infinite intervals too. float32 gives about six digits, 64
    bits about twelve; where a density is infinite at an end other than 0, as that of Beta(0.5, 0.5) at 1, half of them.

    ``low`` and ``high`` are the ends of the support of a distribution that does not say them (an object of another library
    or a pair of callables); None: the whole line.

    Source: Takahasi and Mori 1974, Publ. RIMS 9, 721-741.
    """

    points: int = 256
    low: float | None = None
    high: float | None = None

    def __post_init__(self):
        _require_points(self.points)


@dataclasses.dataclass(frozen=True)
class MonteCarlo:
    """The mean over ``samples`` draws of p, with its standard error: an :class:`Estimate`.

    Its gradient is unbiased for any p with a ``log_prob``, whether or not its samples can be differentiated:
    ``E[grad f + (f - mean f) grad log p]``. Source: Williams 1992, section 5.
    """

    key: Array
    samples: int = 10_000

    def __post_init__(self):
        _require_points(self.samples, "samples")


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error, in the same unit."""

    value: Array
    standard_error: Array


def _require_points(points: int, name: str = "points") -> None:
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"{name} must be an integer of at least 2; got {points!r}.")
