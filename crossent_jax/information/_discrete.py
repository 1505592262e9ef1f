"""Families of one discrete variable. Sources: Cover and Thomas 2006, sections 2.1 to 2.3; Poisson, Gil 2011, table 2.2."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array

from .._api import checks
from .._pairs.integrands import from_both_probabilities, generalized_kl
from ._family import Family, family


class Finite(Family):
    """A family of finitely many outcomes 0, 1, ..., whose formulas are sums over them: those of arrays."""

    discrete = True

    def log_probs(self) -> Array:
        """Log-probabilities of all outcomes, along the last axis."""
        raise NotImplementedError

    @property
    def outcomes(self) -> int:
        return self.log_probs().shape[-1]

    def _log_prob(self, x):
        index = jnp.clip(x.astype(jnp.int32), 0, self.outcomes - 1)
        found = jnp.take_along_axis(self.log_probs(), index[..., None], -1)[..., 0]
        return jnp.where((x >= 0) & (x < self.outcomes), found, -jnp.inf)

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

    def log_probs(self):
        return jax.nn.log_softmax(self.logits)


@family
class Bernoulli(Finite):
    """1 with probability ``sigmoid(logits)``, else 0."""

    logits: Array

    def log_probs(self):
        return jnp.stack([-jax.nn.softplus(self.logits), -jax.nn.softplus(-self.logits)], -1)


@family
class Poisson(Family):
    """Counts 0, 1, ... with probability ``rate^x exp(-rate) / x!``; rate 0 is the constant 0.

    Entropy and cross-entropy have no closed form (``E[log x!]``), the divergence has.
    """

    rate: Array
    discrete = True
    low, high = 0.0, math.inf

    def __post_init__(self):
        super().__post_init__()
        self.require("rate", self.rate >= 0, "at least 0")

    def _log_prob(self, x):
        x = x.astype(self.dtype)
        certain = (self.rate == 0) & (x == 0)
        power = jnp.where(certain, 0, x * jnp.log(jnp.where(certain, 1, self.rate)))
        return jnp.where(x >= 0, power - self.rate - gammaln(jnp.maximum(x, 0) + 1), -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.poisson(key, self.rate, shape + self.batch_shape)

    def mean(self):
        return self.rate

    def variance(self):
        return self.rate

    def kl_from(self, p):
        """``rate_q - rate_p + rate_p log(rate_p / rate_q)``."""
        return generalized_kl(from_both_probabilities(*jnp.broadcast_arrays(self.rate, p.rate)))
