"""Families of one continuous variable. Sources: Cover and Thomas 2006, table 17.1; Gil, Alajaji and Linder 2013, table 2."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, polygamma
from jaxtyping import Array

from . import _simplex as simplex
from ._closeness import log_ratio, minus_one_minus_log, quotient
from ._family import Family, each, family, inside, linear
from ._stirling import HALF_LOG_TAU, bregman, mean_log_gap, remainder


@family
class Normal(Family):
    """Normal distribution of mean ``loc`` and standard deviation ``scale``."""

    loc: Array
    scale: Array
    positive = ("scale",)

    def _log_prob(self, x):
        return -0.5 * jnp.square(quotient(x - self.loc, self.scale)) - jnp.log(self.scale) - HALF_LOG_TAU

    def sample(self, key, shape=()):
        standard = jax.random.normal(key, shape + self.batch_shape, self.dtype)
        return each(lambda z: self.loc + self.scale * z, standard, len(shape))

    def mean(self):
        return self.loc

    def standard_deviation(self):
        return self.scale

    def variance(self):
        return jnp.square(self.scale)

    def mean_distance(self, x):
        d = quotient(self.loc - x, self.scale)
        return self.scale * (math.sqrt(2 / math.pi) * jnp.exp(-0.5 * d * d) + d * erf(d / math.sqrt(2)))

    def expected_log_prob(self, p):
        if (mean := p.mean()) is None or (deviation := p.standard_deviation()) is None:
            return None
        return self._expected(mean, deviation)

    def _expected(self, mean: Array, deviation: Array) -> Array:
        """Over an x of this mean and standard deviation: no square of a scale, which float32 does not hold for 1e20."""
        squares = jnp.square(quotient(deviation, self.scale)) + jnp.square(quotient(mean - self.loc, self.scale))
        return -0.5 * squares - jnp.log(self.scale) - HALF_LOG_TAU

    def kl_from(self, p):
        """``(r - 1 - log r + d^2) / 2`` with r the ratio of the variances, d the distance of the means."""
        ratio = 2 * log_ratio(p.scale, self.scale)
        return 0.5 * (minus_one_minus_log(ratio) + jnp.square(quotient(p.loc - self.loc, self.scale)))


@family
class LogNormal(Family):
    """Distribution of ``exp(y)`` for a normal y of mean ``loc`` and standard deviation ``scale``."""

    loc: Array
    scale: Array
    positive = ("scale",)
    low = 0.0

    def logarithm(self) -> Normal:
        return Normal(self.loc, self.scale)

    def _log_prob(self, x):
        y = jnp.log(jnp.where(x > 0, x, 1))
        return jnp.where(x > 0, self.logarithm().log_prob(y) - y, -jnp.inf)

    def sample(self, key, shape=()):
        return jnp.exp(self.logarithm().sample(key, shape))

    def mean(self):
        return jnp.exp(self.loc + 0.5 * jnp.square(self.scale))

    def variance(self):
        return jnp.expm1(jnp.square(self.scale)) * jnp.square(self.mean())

    def mean_log(self):
        return self.loc

    def deviation_log(self):
        return self.scale

    def mean_log_gap(self):
        return 0.5 * jnp.square(self.scale)

    def expected_log_prob(self, p):
        if (mean := p.mean_log()) is None or (deviation := p.deviation_log()) is None:
            return None
        return self.logarithm()._expected(mean, deviation) - mean

    def kl_from(self, p):
        return self.logarithm().kl_from(p.logarithm())


@family
class Exponential(Family):
    """Exponential distribution ``rate exp(-rate x)`` on ``x >= 0``."""

    rate: Array
    positive = ("rate",)
    low = 0.0

    def _log_prob(self, x):
        return inside(x, self.low, self.high, jnp.log(self.rate) - self.rate * x)

    def sample(self, key, shape=()):
        standard = jax.random.exponential(key, shape + self.batch_shape, self.dtype)
        return each(lambda z: z / self.rate, standard, len(shape))

    def mean(self):
        return quotient(jnp.ones_like(self.rate), self.rate)

    def standard_deviation(self):
        return self.mean()

    def variance(self):
        return jnp.square(self.mean())

    def mean_log(self):
        return -jnp.euler_gamma - jnp.log(self.rate)

    def deviation_log(self):
        return jnp.full_like(self.rate, math.pi / math.sqrt(6))

    def mean_log_gap(self):
        return jnp.full_like(self.rate, jnp.euler_gamma)

    def mean_distance(self, x):
        """``|x| + ...``: for x below 0 the mean minus x, else ``x + (2 exp(-rate x) - 1) / rate``."""
        mean = self.mean()
        return jnp.where(x < 0, mean - x, x + (2 * jnp.exp(-self.rate * jnp.maximum(x, 0)) - 1) * mean)

    def expected_log_prob(self, p):
        return linear([(-self.rate, p.mean())], jnp.log(self.rate))

    def kl_from(self, p):
        """``r - 1 - log r`` with r the ratio of the rates."""
        return minus_one_minus_log(log_ratio(self.rate, p.rate))


@family
class Gamma(Family):
    """Gamma distribution ``rate^c x^(c-1) exp(-rate x) / Gamma(c)`` on ``x > 0``, c its ``concentration``."""

    concentration: Array
    rate: Array
    positive = ("concentration", "rate")
    low = 0.0

    def _constant(self):
        """``c log c - c - log Gamma(c)``."""
        return 0.5 * jnp.log(self.concentration) - HALF_LOG_TAU - remainder(self.concentration)

    def _log_prob(self, x):
        """``-log x - c (r - 1 - log r)``, r being x over the mean, and the constant: no large terms at any c."""
        within = (x > 0) & (x < jnp.inf)
        safe = jnp.where(within, x, 1)
        ratio = log_ratio(safe, self.mean())
        value = self._constant() - jnp.log(safe) - self.concentration * minus_one_minus_log(ratio)
        at_zero = jnp.where(self.concentration > 1, -jnp.inf, jnp.where(self.concentration < 1, jnp.inf, jnp.log(self.rate)))
        return jnp.where(within, value, jnp.where(x == 0, at_zero, -jnp.inf))

    def sample(self, key, shape=()):
        standard = jax.random.gamma(key, self.concentration, shape + self.batch_shape, self.dtype)
        return each(lambda z: z / self.rate, standard, len(shape))

    def mean(self):
        return quotient(self.concentration, self.rate)

    def standard_deviation(self):
        return quotient(jnp.sqrt(self.concentration), self.rate)

    def variance(self):
        return jnp.square(self.standard_deviation())

    def mean_log(self):
        return jnp.log(self.concentration) - jnp.log(self.rate) - self.mean_log_gap()

    def deviation_log(self):
        return jnp.sqrt(polygamma(1, self.concentration))

    def mean_log_gap(self):
        return mean_log_gap(self.concentration)

    def expected_log_prob(self, p):
        """``constant - E[log x] - c (r - 1 - log r) - c (log E[x] - E[log x])``, r being p's mean over this one's."""
        mean, mean_log, gap = p.mean(), p.mean_log(), p.mean_log_gap()
        if mean is None or mean_log is None or gap is None:
            return None
        ratio = log_ratio(self.rate * mean, self.concentration)
        return self._constant() - mean_log - self.concentration * (minus_one_minus_log(ratio) + gap)

    def kl_from(self, p):
        """``c_q (r - 1 - log r) + B`` with r the ratio of the means, p's over q's, and B the Bregman divergence from c_p to
        c_q of what ``log Gamma(c)`` has beside ``c log c``: none is negative."""
        apart = self.concentration - p.concentration
        ratio = log_ratio(self.rate, p.rate) - log_ratio(self.concentration, p.concentration, apart)
        return self.concentration * minus_one_minus_log(ratio) + bregman(p.concentration, self.concentration, apart)


@family
class Beta(Family):
    """Beta distribution ``x^(a-1) (1-x)^(b-1) / B(a, b)`` on (0, 1), a and b its ``concentration1`` and
    ``concentration0``."""

    concentration1: Array
    concentration0: Array
    positive = ("concentration1", "concentration0")
    low, high = 0.0, 1.0

    def _both(self) -> Array:
        """The concentrations of x and 1 - x, along a last axis."""
        return jnp.stack([self.concentration1, self.concentration0], -1)

    def _log_prob(self, x):
        within = (x > 0) & (x < 1)
        safe = jnp.where(within, x, 0.5)
        both, logs = jnp.stack([safe, 1 - safe], -1), jnp.stack([jnp.log(safe), jnp.log1p(-safe)], -1)
        from_mean = safe - self.mean()
        value = simplex.log_density(self._both(), both, logs, jnp.stack([from_mean, -from_mean], -1))
        ends = jnp.where(x == 0, self.concentration1, self.concentration0)
        at_end = jnp.where(ends > 1, -jnp.inf, jnp.where(ends < 1, jnp.inf, jnp.log(self._other(x))))
        outside = jnp.where((x == 0) | (x == 1), at_end, -jnp.inf)
        return jnp.where(within, value, outside)

    def _other(self, x):
        """The density at an end whose own concentration is 1: the other concentration."""
        return jnp.where(x == 0, self.concentration0, self.concentration1)

    def sample(self, key, shape=()):
        shape = shape + self.batch_shape
        return jax.random.beta(key, self.concentration1, self.concentration0, shape, self.dtype)

    def mean(self):
        return simplex.mean(self._both())[..., 0]

    def mean1m(self):
        return simplex.mean(self._both())[..., 1]

    def variance(self):
        return self.mean() * self.mean1m() / (self.concentration1 + self.concentration0 + 1)

    def mean_log(self):
        return simplex.mean_logs(self._both())[..., 0]

    def deviation_log(self):
        return jnp.sqrt(polygamma(1, self.concentration1) - polygamma(1, self.concentration1 + self.concentration0))

    def mean_log1m(self):
        return simplex.mean_logs(self._both())[..., 1]

    def mean_log_gap(self):
        return simplex.mean_log_gaps(self._both())[..., 0]

    def mean_log1m_gap(self):
        return simplex.mean_log_gaps(self._both())[..., 1]

    def expected_log_prob(self, p):
        """Dirichlet's formula of two components, x and 1 - x."""
        pairs = (p.mean(), p.mean1m()), (p.mean_log(), p.mean_log1m()), (p.mean_log_gap(), p.mean_log1m_gap())
        moments = [jnp.stack((x, y), -1) for x, y in pairs if x is not None and y is not None]
        return simplex.expected_log_density(self._both(), *moments) if len(moments) == len(pairs) else None

    def kl_from(self, p):
        """Dirichlet's formula of two components."""
        return simplex.kl(p._both(), self._both())


@family
class Laplace(Family):
    """Laplace distribution ``exp(-|x - loc| / scale) / (2 scale)``."""

    loc: Array
    scale: Array
    positive = ("scale",)

    def _log_prob(self, x):
        return -jnp.abs(quotient(x - self.loc, self.scale)) - jnp.log(2 * self.scale)

    def sample(self, key, shape=()):
        standard = jax.random.laplace(key, shape + self.batch_shape, self.dtype)
        return each(lambda z: self.loc + self.scale * z, standard, len(shape))

    def mean(self):
        return self.loc

    def standard_deviation(self):
        return math.sqrt(2) * self.scale

    def variance(self):
        return 2 * jnp.square(self.scale)

    def mean_distance(self, x):
        distance = jnp.abs(self.loc - x)
        return distance + self.scale * jnp.exp(-quotient(distance, self.scale))

    def expected_log_prob(self, p):
        distance = p.mean_distance(self.loc)
        return None if distance is None else -quotient(distance, self.scale) - jnp.log(2 * self.scale)

    def kl_from(self, p):
        """``r - 1 - log r + r (exp(-d) - 1 + d)`` with r the ratio of the scales, d the distance in p's scale."""
        ratio = log_ratio(p.scale, self.scale)
        apart = minus_one_minus_log(-jnp.abs(quotient(p.loc - self.loc, p.scale)))
        return minus_one_minus_log(ratio) + quotient(p.scale, self.scale) * apart


@family
class Uniform(Family):
    """Uniform distribution on [``low``, ``high``]."""

    low: Array
    high: Array

    def requirements(self):
        return [("high", self.high > self.low, f"greater than low, {self.low}")]

    def _log_prob(self, x):
        return inside(x, self.low, self.high, -jnp.log(self.high - self.low))

    def sample(self, key, shape=()):
        unit = jax.random.uniform(key, shape + self.batch_shape, self.dtype)
        return each(lambda z: self.low + (self.high - self.low) * z, unit, len(shape))

    def mean(self):
        return 0.5 * (self.low + self.high)

    def standard_deviation(self):
        return (self.high - self.low) / math.sqrt(12)

    def variance(self):
        return jnp.square(self.standard_deviation())

    def mean_log(self):
        """For low >= 0."""
        return jnp.log(self.mean()) - self.mean_log_gap()

    def mean_log_gap(self):
        return mean_log_gap_between(self.low, self.high)

    def mean_log1m(self):
        """For high <= 1."""
        return jnp.log(self.mean1m()) - self.mean_log1m_gap()

    def mean_log1m_gap(self):
        return mean_log_gap_between(1 - self.high, 1 - self.low)

    def mean1m(self):
        return 0.5 * ((1 - self.low) + (1 - self.high))

    def mean_distance(self, x):
        """From x inside, two triangles over the width: ``((x - low)^2 + (high - x)^2) / (2 (high - low))``."""
        share = quotient(x - self.low, self.high - self.low)
        within = 0.5 * (share * (x - self.low) + (1 - share) * (self.high - x))
        return jnp.where((x > self.low) & (x < self.high), within, jnp.abs(self.mean() - x))

    def expected_log_prob(self, p):
        return jnp.broadcast_to(-jnp.log(self.high - self.low), jnp.broadcast_shapes(self.batch_shape, p.batch_shape))

    def kl_from(self, p):
        """The logarithm of the ratio of the widths, whose difference is that of the ends."""
        wider = (self.high - p.high) + (p.low - self.low)
        return log_ratio(self.high - self.low, p.high - p.low, wider)


def mean_log_gap_between(low: Array, high: Array) -> Array:
    """``log E[x] - E[log x]`` of an even x from low to high, low >= 0.

    With ``w = (high - low) / (high + low)``, from 0 to 1, it is ``1 - ((1 + w) log(1 + w) - (1 - w) log(1 - w)) / (2 w)``,
    and by its series ``sum_n w^(2n) / (2n (2n + 1))`` where w is small and the formula cancels.
    """
    w = quotient(high - low, high + low)
    near = w < 0.25
    small = jnp.where(near, w, 0)
    series = sum(small ** (2 * n) / (2 * n * (2 * n + 1)) for n in range(1, 14))
    w = jnp.where(near, 0.5, w)
    ends = jnp.where(w < 1, (1 - w) * jnp.log(jnp.where(w < 1, 1 - w, 1)), 0)
    return jnp.where(near, series, 1 - ((1 + w) * jnp.log1p(w) - ends) / (2 * w))
