"""Families of vectors. Sources: normal, Cover and Thomas 2006, theorem 8.4.1, and Duchi 2007; Dirichlet, Penny 2001."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from . import _simplex as simplex
from ._closeness import log_ratio, minus_one_minus_log
from ._family import Family, each, family
from ._stirling import HALF_LOG_TAU


@family
class MultivariateNormal(Family):
    """Normal distribution of mean ``loc (..., k)`` and covariance ``scale_tril @ scale_tril.T``, ``scale_tril (..., k, k)``
    lower triangular with a positive diagonal (``jnp.linalg.cholesky`` of a covariance)."""

    loc: Array
    scale_tril: Array
    event_dimensions = 1

    def requirements(self):
        return [
            ("scale_tril", self._diagonal() > 0, "of a positive diagonal"),
            ("scale_tril", self.scale_tril == jnp.tril(self.scale_tril), "lower triangular"),
        ]

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
        ``r - 1 - log r`` with ``r = M_ii^2``, M_ii being the ratio of the diagonals, for each of its diagonal, and squares
        for the rest, which is that of ``M - 1 = L_q^-1 (L_p - L_q)``."""
        below = jnp.tril(self._whitened(p.scale_tril - self.scale_tril), -1)
        apart = self._whitened((p.loc - self.loc)[..., None])
        own = jnp.sum(minus_one_minus_log(2 * log_ratio(p._diagonal(), self._diagonal())), -1)
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

    def _log_prob(self, x):
        """On an edge, where a component is 0: -inf if its concentration is above 1, inf if it is below, NaN, as no limit
        exists, for one of each. Off the simplex, beyond rounding, -inf."""
        c, mean = self.concentration, simplex.mean(self.concentration)
        slack = max(1e-5, 8 * float(jnp.finfo(x.dtype).eps)) if jnp.issubdtype(x.dtype, jnp.floating) else 0
        x = x.astype(jnp.promote_types(x.dtype, c.dtype))
        on_simplex = (x >= 0).all(-1) & (jnp.abs(jnp.sum(x, -1) - 1) <= slack)
        edge, safe = x == 0, jnp.where(x > 0, x, mean)
        of_one = jnp.where(c == 1, 1 - jnp.log(mean), jnp.where(c < 1, jnp.inf, -jnp.inf))
        inner = simplex.log_density(c, safe, jnp.where(edge, 0, jnp.log(safe)), safe - mean)
        return jnp.where(on_simplex, inner + jnp.sum(jnp.where(edge, of_one, 0), -1), -jnp.inf)

    def sample(self, key, shape=()):
        return jax.random.dirichlet(key, self.concentration, shape + self.batch_shape, self.dtype)

    def expected_log_prob(self, p):
        if not isinstance(p, Dirichlet):
            return None
        c = p.concentration
        moments = simplex.mean(c), simplex.mean_logs(c), simplex.mean_log_gaps(c)
        return simplex.expected_log_density(self.concentration, *moments)

    def kl_from(self, p):
        """:func:`._simplex.kl` of the concentrations."""
        return simplex.kl(p.concentration, self.concentration)
