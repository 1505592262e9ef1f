"""Families of vectors. Sources: normal, Cover and Thomas 2006, theorem 8.4.1, and Duchi 2007; Dirichlet, Penny 2001."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array

from ._closeness import gammaln_bregman, minus_one_minus_log
from ._continuous import HALF_LOG_TAU
from ._family import Family, each, family


@family
class MultivariateNormal(Family):
    """Normal distribution of mean ``loc (..., k)`` and covariance ``scale_tril @ scale_tril.T``, ``scale_tril (..., k, k)``
    lower triangular with a positive diagonal (``jnp.linalg.cholesky`` of a covariance)."""

    loc: Array
    scale_tril: Array
    event_dimensions = 1

    def __post_init__(self):
        super().__post_init__()
        self.require("scale_tril", self._diagonal() > 0, "of a positive diagonal")
        self.require("scale_tril", self.scale_tril == jnp.tril(self.scale_tril), "lower triangular")

    def shaped(self, names, arrays):
        loc, scale = arrays
        if loc.ndim < 1 or scale.ndim < 2 or scale.shape[-2:] != (loc.shape[-1],) * 2:
            raise ValueError(f"loc must be (..., k) and scale_tril (..., k, k); got {loc.shape} and {scale.shape}.")
        batch = jnp.broadcast_shapes(loc.shape[:-1], scale.shape[:-2])
        return [jnp.broadcast_to(loc, batch + loc.shape[-1:]), jnp.broadcast_to(scale, batch + scale.shape[-2:])]

    @property
    def batch_shape(self):
        return self.loc.shape[:-1]

    def _diagonal(self):
        return jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)

    def _whitened(self, columns: Array) -> Array:
        """``scale_tril^-1 columns``."""
        return solve_triangular(self.scale_tril, columns, lower=True)

    def _log_prob(self, x):
        standard = self._whitened((x - self.loc)[..., None])[..., 0]
        size = self.loc.shape[-1]
        return -0.5 * jnp.sum(jnp.square(standard), -1) - jnp.sum(jnp.log(self._diagonal()), -1) - size * HALF_LOG_TAU

    def sample(self, key, shape=()):
        standard = jax.random.normal(key, shape + self.loc.shape, self.dtype)
        return each(self._placed, standard, len(shape))

    def _placed(self, standard: Array) -> Array:
        return self.loc + jnp.einsum("...ij,...j->...i", self.scale_tril, standard, precision="highest")

    def expected_log_prob(self, p):
        if not isinstance(p, MultivariateNormal):
            return None
        spread = jnp.sum(jnp.square(self._whitened(p.scale_tril)), (-2, -1))
        return self.log_prob(p.loc) - 0.5 * spread

    def kl_from(self, p):
        """``(|M|^2 - k - 2 log det M + |L_q^-1 (m_p - m_q)|^2) / 2`` with ``M = L_q^-1 L_p``, lower triangular: a term
        ``r - 1 - log r`` with ``r = M_ii^2`` for each of its diagonal, squares for the rest."""
        ratio = self._whitened(p.scale_tril)
        diagonal = jnp.diagonal(ratio, axis1=-2, axis2=-1)
        below = jnp.tril(ratio, -1)
        apart = self._whitened((p.loc - self.loc)[..., None])
        own = jnp.sum(minus_one_minus_log(2 * jnp.log(diagonal)), -1)
        return 0.5 * (own + jnp.sum(jnp.square(below), (-2, -1)) + jnp.sum(jnp.square(apart), (-2, -1)))


@family
class Dirichlet(Family):
    """Dirichlet distribution ``prod_i x_i^(c_i - 1)`` on the simplex, ``concentration (..., k)``."""

    concentration: Array
    positive = ("concentration",)
    event_dimensions = 1

    def shaped(self, names, arrays):
        if arrays[0].ndim < 1 or arrays[0].shape[-1] < 2:
            raise ValueError(f"concentration of Dirichlet must be (..., k), k at least 2; got shape {arrays[0].shape}.")
        return arrays

    @property
    def batch_shape(self):
        return self.concentration.shape[:-1]

    def _log_normalizer(self):
        return jnp.sum(gammaln(self.concentration), -1) - gammaln(jnp.sum(self.concentration, -1))

    def _log_prob(self, x):
        return jnp.sum((self.concentration - 1) * jnp.log(x), -1) - self._log_normalizer()

    def sample(self, key, shape=()):
        return jax.random.dirichlet(key, self.concentration, shape + self.batch_shape, self.dtype)

    def mean_logs(self):
        return digamma(self.concentration) - digamma(jnp.sum(self.concentration, -1, keepdims=True))

    def expected_log_prob(self, p):
        if not isinstance(p, Dirichlet):
            return None
        return jnp.sum((self.concentration - 1) * p.mean_logs(), -1) - self._log_normalizer()

    def kl_from(self, p):
        """Bregman divergences of ``log Gamma``, of each concentration, less that of their sum."""
        apart = self.concentration - p.concentration
        own = jnp.sum(gammaln_bregman(p.concentration, apart), -1)
        return own - gammaln_bregman(jnp.sum(p.concentration, -1), jnp.sum(apart, -1))
