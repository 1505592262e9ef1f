"""Families of one continuous variable. Sources: Cover and Thomas 2006, table 17.1; Gil, Alajaji and Linder 2013, table 2."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, digamma, erf, gammaln, polygamma
from jaxtyping import Array

from ._closeness import gammaln_bregman, log_ratio, minus_one_minus_log
from ._family import Family, each, family, inside, linear

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


@family
class Normal(Family):
    """Normal distribution of mean ``loc`` and standard deviation ``scale``."""

    loc: Array
    scale: Array
    positive = ("scale",)

    def _log_prob(self, x):
        return -0.5 * jnp.square((x - self.loc) / self.scale) - jnp.log(self.scale) - HALF_LOG_TAU

    def sample(self, key, shape=()):
        standard = jax.random.normal(key, shape + self.batch_shape, self.dtype)
        return each(lambda z: self.loc + self.scale * z, standard, len(shape))

    def mean(self):
        return self.loc

    def variance(self):
        return jnp.square(self.scale)

    def mean_distance(self, x):
        d = (self.loc - x) / self.scale
        return self.scale * (math.sqrt(2 / math.pi) * jnp.exp(-0.5 * d * d) + d * erf(d / math.sqrt(2)))

    def expected_log_prob(self, p):
        if (mean := p.mean()) is None or (variance := p.variance()) is None:
            return None
        squares = (variance + jnp.square(mean - self.loc)) / jnp.square(self.scale)
        return -0.5 * squares - jnp.log(self.scale) - HALF_LOG_TAU

    def kl_from(self, p):
        """``(r - 1 - log r + d^2) / 2`` with r the ratio of the variances, d the distance of the means."""
        ratio = 2 * log_ratio(p.scale, self.scale)
        return 0.5 * (minus_one_minus_log(ratio) + jnp.square((p.loc - self.loc) / self.scale))


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

    def variance_log(self):
        return jnp.square(self.scale)

    def expected_log_prob(self, p):
        mean, variance = p.mean_log(), p.variance_log()
        if mean is None or variance is None:
            return None
        squares = (variance + jnp.square(mean - self.loc)) / jnp.square(self.scale)
        return -0.5 * squares - jnp.log(self.scale) - HALF_LOG_TAU - mean

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
        return 1 / self.rate

    def variance(self):
        return 1 / jnp.square(self.rate)

    def mean_log(self):
        return -jnp.euler_gamma - jnp.log(self.rate)

    def variance_log(self):
        return jnp.full_like(self.rate, math.pi**2 / 6)

    def mean_distance(self, x):
        """``|x| + ...``: for x below 0 the mean minus x, else ``x + (2 exp(-rate x) - 1) / rate``."""
        return jnp.where(x < 0, 1 / self.rate - x, x + (2 * jnp.exp(-self.rate * jnp.maximum(x, 0)) - 1) / self.rate)

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

    def _normalizer(self):
        return self.concentration * jnp.log(self.rate) - gammaln(self.concentration)

    def _log_prob(self, x):
        safe = jnp.where(x > 0, x, 1)
        value = self._normalizer() + (self.concentration - 1) * jnp.log(safe) - self.rate * safe
        at_zero = jnp.where(self.concentration > 1, -jnp.inf, jnp.where(self.concentration < 1, jnp.inf, self._normalizer()))
        return jnp.where(x > 0, value, jnp.where(x == 0, at_zero, -jnp.inf))

    def sample(self, key, shape=()):
        standard = jax.random.gamma(key, self.concentration, shape + self.batch_shape, self.dtype)
        return each(lambda z: z / self.rate, standard, len(shape))

    def mean(self):
        return self.concentration / self.rate

    def variance(self):
        return self.concentration / jnp.square(self.rate)

    def mean_log(self):
        return digamma(self.concentration) - jnp.log(self.rate)

    def variance_log(self):
        return polygamma(1, self.concentration)

    def expected_log_prob(self, p):
        return linear([(self.concentration - 1, p.mean_log()), (-self.rate, p.mean())], self._normalizer())

    def kl_from(self, p):
        """``B + c_p (r - 1 - log r) + (c_p - c_q) log r`` with r = rate_q / rate_p and B the Bregman divergence of
        ``log Gamma`` from c_p to c_q."""
        ratio = log_ratio(self.rate, p.rate)
        shape = gammaln_bregman(p.concentration, self.concentration - p.concentration)
        return shape + p.concentration * minus_one_minus_log(ratio) + (p.concentration - self.concentration) * ratio


@family
class Beta(Family):
    """Beta distribution ``x^(a-1) (1-x)^(b-1) / B(a, b)`` on (0, 1), a and b its ``concentration1`` and
    ``concentration0``."""

    concentration1: Array
    concentration0: Array
    positive = ("concentration1", "concentration0")
    low, high = 0.0, 1.0

    def _log_prob(self, x):
        within = (x > 0) & (x < 1)
        safe = jnp.where(within, x, 0.5)
        powers = (self.concentration1 - 1) * jnp.log(safe) + (self.concentration0 - 1) * jnp.log1p(-safe)
        ends = jnp.where(x == 0, self.concentration1, self.concentration0)
        at_end = jnp.where(ends > 1, -jnp.inf, jnp.where(ends < 1, jnp.inf, jnp.log(self._other(x))))
        outside = jnp.where((x == 0) | (x == 1), at_end, -jnp.inf)
        return jnp.where(within, powers - betaln(self.concentration1, self.concentration0), outside)

    def _other(self, x):
        """The density at an end whose own concentration is 1: the other concentration."""
        return jnp.where(x == 0, self.concentration0, self.concentration1)

    def sample(self, key, shape=()):
        shape = shape + self.batch_shape
        return jax.random.beta(key, self.concentration1, self.concentration0, shape, self.dtype)

    def _total(self):
        return self.concentration1 + self.concentration0

    def mean(self):
        return self.concentration1 / self._total()

    def variance(self):
        return self.mean() * (1 - self.mean()) / (self._total() + 1)

    def mean_log(self):
        return digamma(self.concentration1) - digamma(self._total())

    def variance_log(self):
        return polygamma(1, self.concentration1) - polygamma(1, self._total())

    def mean_log1m(self):
        return digamma(self.concentration0) - digamma(self._total())

    def expected_log_prob(self, p):
        moments = [(self.concentration1 - 1, p.mean_log()), (self.concentration0 - 1, p.mean_log1m())]
        return linear(moments, -betaln(self.concentration1, self.concentration0))

    def kl_from(self, p):
        """``B(a) + B(b) - B(a + b)``, each the Bregman divergence of ``log Gamma`` from p's parameter to q's."""
        apart = self.concentration1 - p.concentration1, self.concentration0 - p.concentration0
        own = gammaln_bregman(p.concentration1, apart[0]) + gammaln_bregman(p.concentration0, apart[1])
        return own - gammaln_bregman(p._total(), apart[0] + apart[1])


@family
class Laplace(Family):
    """Laplace distribution ``exp(-|x - loc| / scale) / (2 scale)``."""

    loc: Array
    scale: Array
    positive = ("scale",)

    def kinks(self):
        return (self.loc,)

    def _log_prob(self, x):
        return -jnp.abs(x - self.loc) / self.scale - jnp.log(2 * self.scale)

    def sample(self, key, shape=()):
        standard = jax.random.laplace(key, shape + self.batch_shape, self.dtype)
        return each(lambda z: self.loc + self.scale * z, standard, len(shape))

    def mean(self):
        return self.loc

    def variance(self):
        return 2 * jnp.square(self.scale)

    def mean_distance(self, x):
        distance = jnp.abs(self.loc - x)
        return distance + self.scale * jnp.exp(-distance / self.scale)

    def expected_log_prob(self, p):
        return linear([(-1 / self.scale, p.mean_distance(self.loc))], -jnp.log(2 * self.scale))

    def kl_from(self, p):
        """``r - 1 - log r + r (exp(-d) - 1 + d)`` with r the ratio of the scales, d the distance in p's scale."""
        ratio = log_ratio(p.scale, self.scale)
        apart = minus_one_minus_log(-jnp.abs(p.loc - self.loc) / p.scale)
        return minus_one_minus_log(ratio) + p.scale / self.scale * apart


@family
class Uniform(Family):
    """Uniform distribution on [``low``, ``high``]."""

    low: Array
    high: Array

    def __post_init__(self):
        super().__post_init__()
        self.require("high", self.high > self.low, f"greater than low, {self.low}")

    def _log_prob(self, x):
        return inside(x, self.low, self.high, -jnp.log(self.high - self.low))

    def sample(self, key, shape=()):
        unit = jax.random.uniform(key, shape + self.batch_shape, self.dtype)
        return each(lambda z: self.low + (self.high - self.low) * z, unit, len(shape))

    def mean(self):
        return 0.5 * (self.low + self.high)

    def variance(self):
        return jnp.square(self.high - self.low) / 12

    def mean_log(self):
        """``(high log high - low log low) / (high - low) - 1``, for low >= 0."""
        return self._mean_log_between(self.low, self.high)

    def mean_log1m(self):
        return self._mean_log_between(1 - self.high, 1 - self.low)

    @staticmethod
    def _mean_log_between(low, high):
        at_low = jnp.where(low > 0, low * jnp.log(jnp.where(low > 0, low, 1)), 0)
        return (high * jnp.log(high) - at_low) / (high - low) - 1

    def mean_distance(self, x):
        within = jnp.square(x - self.low) + jnp.square(self.high - x)
        outside = jnp.abs(self.mean() - x)
        return jnp.where((x > self.low) & (x < self.high), within / (2 * (self.high - self.low)), outside)

    def expected_log_prob(self, p):
        return jnp.broadcast_to(-jnp.log(self.high - self.low), jnp.broadcast_shapes(self.batch_shape, p.batch_shape))

    def kl_from(self, p):
        return log_ratio(self.high - self.low, p.high - p.low)
