"""Families of one discrete variable. Sources: Cover and Thomas 2006, sections 2.1 to 2.3; Poisson, Gil 2011, table 2.2."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._api import checks
from .._pairs.integrands import from_both_probabilities, generalized_kl
from .._pairs.kinds import KINDS, weighted
from .._pairs.row_divergence import Pair, Static, row_divergence
from ._closeness import log_ratio, minus_one_minus_log
from ._family import Family, family
from ._stirling import HALF_LOG_TAU, remainder


class Finite(Family):
    """A family of finitely many outcomes 0, 1, ..., whose formulas are sums over them: those of arrays, and for divergences
    those of rows of logits, whose differences keep the digits of rare outcomes and of close distributions."""

    discrete = True
    low = 0.0

    def class_logits(self) -> Array:
        """Logits of all outcomes, along the last axis."""
        raise NotImplementedError

    def log_probs(self) -> Array:
        """Log-probabilities of all outcomes, along the last axis."""
        raise NotImplementedError

    @property
    def outcomes(self) -> int:
        return self.log_probs().shape[-1]

    @property
    def high(self) -> float:  # type: ignore[override]
        return self.outcomes - 1.0

    def _log_prob(self, x):
        index = jnp.clip(x, 0, self.outcomes - 1).astype(jnp.int32)
        found = jnp.take_along_axis(self.log_probs(), index[..., None], -1)[..., 0]
        return jnp.where(index.astype(x.dtype) == x, found, -jnp.inf)

    def kl_from(self, p):
        return _divergence("forward_kl", p, self, None)

    def js(self, other: "Finite", beta: float) -> Array:
        """``beta KL(self || m) + (1 - beta) KL(other || m)`` with ``m = beta self + (1 - beta) other``."""
        return _divergence("js", self, other, beta)

    def sample(self, key, shape=()):
        return jax.random.categorical(key, self.log_probs(), axis=-1, shape=shape + self.log_probs().shape[:-1])

    def mean(self):
        return self._expectation(lambda outcome: outcome)

    def variance(self):
        return self._expectation(jnp.square) - jnp.square(self.mean())

    def _expectation(self, f) -> Array:
        return jnp.exp(self.log_probs()) @ f(jnp.arange(self.outcomes, dtype=self.dtype))


@family
class Categorical(Finite):
    """Outcomes 0 to k - 1 with the probabilities ``softmax(logits)``, along the last axis of ``logits``."""

    logits: Array
    event_dimensions = 0

    def shaped(self, names, arrays):
        return [checks.logits(arrays[0], -1, "logits of Categorical")[0]]

    @property
    def batch_shape(self):
        return self.logits.shape[:-1]

    def requirements(self):
        top = jnp.max(self.logits, -1)
        return [("logits", jnp.isfinite(top), "less than infinity, in every row one above -inf")]

    def class_logits(self):
        return self.logits

    def log_probs(self):
        return jax.nn.log_softmax(self.logits)


@family
class Bernoulli(Finite):
    """1 with probability ``sigmoid(logits)``, else 0."""

    logits: Array

    def requirements(self):
        return [("logits", ~jnp.isnan(self.logits), "numbers")]

    def class_logits(self):
        """0 and the logit; of a certain 1, -inf and 0."""
        certain = self.logits == jnp.inf
        return jnp.stack([jnp.where(certain, -jnp.inf, 0), jnp.where(certain, 0, self.logits)], -1)

    def log_probs(self):
        return jnp.stack([-jax.nn.softplus(self.logits), -jax.nn.softplus(-self.logits)], -1)


@family
class Poisson(Family):
    """Counts 0, 1, ... with probability ``rate^x exp(-rate) / x!``; rate 0 is the constant 0.

    The entropy is a sum over the counts of a small rate, and a series in 1 / rate of a large one, each to the last digits;
    the cross-entropy is the entropy plus the divergence.
    """

    rate: Array
    discrete = True
    low, high = 0.0, math.inf

    def requirements(self):
        return [("rate", self.rate >= 0, "at least 0")]

    def _log_prob(self, x):
        """``-log(2 pi x) / 2 - mu(x) - x (r - 1 - log r)`` with r = rate / x: no large terms at any rate."""
        x = x.astype(self.dtype)
        count = (x > 0) & (x == jnp.floor(x)) & (x < jnp.inf)
        safe = jnp.where(count, x, 1)
        rate = jnp.where(self.rate == 0, 1, self.rate)
        value = -0.5 * jnp.log(safe) - HALF_LOG_TAU - remainder(safe) - safe * minus_one_minus_log(log_ratio(rate, safe))
        value = jnp.where(self.rate == 0, -jnp.inf, value)
        return jnp.where(count, value, jnp.where(x == 0, -self.rate, -jnp.inf))

    def sample(self, key, shape=()):
        return jax.random.poisson(key, self.rate, shape + self.batch_shape)

    def mean(self):
        return self.rate

    def variance(self):
        return self.rate

    def entropy(self) -> Array:
        """Below ``LARGE_RATE`` the sum; above it, with Gregory's coefficients G_n (``1/2, -1/12, 1/24, ...``),

            log(2 pi e rate) / 2 - sum_{n >= 2} |G_n| (n - 2)! / rate^(n - 1).

        As ``d E[f(x)] / d rate = E[f(x + 1) - f(x)]``, the derivative is ``E[log(x + 1)] - log(rate)``, and from
        ``log a = int_0^inf (exp(-t) - exp(-a t)) / t dt``, with u = 1 - exp(-t), it is

            int_0^1 (1 - exp(-rate u)) / -log(1 - u) du - log(rate),    1 / -log(1 - u) = 1 / u - sum_n |G_n| u^(n - 1):

        each power of u integrates to ``(n - 1)! / rate^n``, up to exp(-rate). Source: Flajolet 1999, Theoret. Comput. Sci.
        215, 371-381.
        """
        large = self.rate >= LARGE_RATE
        inverse = 1 / jnp.where(large, self.rate, LARGE_RATE)
        series = sum(coefficient * inverse**n for n, coefficient in enumerate(ENTROPY_SERIES, 1))
        of_large = HALF_LOG_TAU + 0.5 - 0.5 * jnp.log(inverse) - series
        small = Poisson(jnp.where(large, 1, self.rate))
        counts = jnp.arange(4 * LARGE_RATE, dtype=self.dtype).reshape(-1, *(1,) * self.rate.ndim)
        logs = small.log_prob(counts)
        return jnp.where(large, of_large, jnp.sum(-weighted(jnp.exp(logs), logs), 0))

    def expected_log_prob(self, p):
        if not isinstance(p, Poisson):
            return None
        return -p.entropy() if p is self else -p.entropy() - self.kl_from(p)

    def kl_from(self, p):
        """``rate_q - rate_p + rate_p log(rate_p / rate_q)``."""
        return generalized_kl(from_both_probabilities(*jnp.broadcast_arrays(self.rate, p.rate)))


LARGE_RATE = 32  # from which the series of the entropy has 15 digits


def _entropy_series(terms: int) -> list[float]:
    """``|G_n| (n - 2)!`` for n = 2, 3, ...: ``sum_{k=1}^n |G_k| / (n + 1 - k) = 1 / (n + 1)``, as the product of
    ``-log(1 - u) / u`` and its inverse is 1."""
    gregory: list[Fraction] = []
    for n in range(1, terms + 2):
        gregory.append(Fraction(1, n + 1) - sum((g / (n + 1 - k) for k, g in enumerate(gregory, 1)), Fraction(0)))
    return [float(g * math.factorial(n)) for n, g in enumerate(gregory[1:])]


ENTROPY_SERIES = _entropy_series(18)


def _divergence(kind: str, teacher: Finite, student: Finite, beta: float | None) -> Array:
    """Of rows of logits."""
    logits, of_teacher = jnp.broadcast_arrays(student.class_logits(), teacher.class_logits())
    parameter = None if beta is None else jnp.full((*logits.shape[:-1], 1), beta, logits.dtype)
    return row_divergence(Static(KINDS[kind], None), Pair(logits, of_teacher, None, parameter))
