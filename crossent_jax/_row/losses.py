"""The loss of a row, from its statistics. Every option of the losses over classes is written here, once.

    loss = (1 - eps) w phi(nll) + eps ce_prior + w (lambda lse^2 - eta entropy + kappa (mass - p_y))

with eps label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7), w the label's class weight,
phi focal (Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 4), lambda the z-loss (Chowdhery et al. 2022, PaLM,
https://arxiv.org/abs/2204.02311, section 5), eta the entropy bonus, kappa Poly-1 (Leng et al. 2022,
https://arxiv.org/abs/2204.12511, eq. 6). ``mass`` is 1 for labels, the sum of a soft target otherwise.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .state import Maybe, RowStats


class LossOptions(NamedTuple):
    """Scalar options of a loss; None: switched off. A number that is present may be traced."""

    label_smoothing: Maybe = None
    z_loss: Maybe = None
    focal_gamma: Maybe = None
    poly_epsilon: Maybe = None
    entropy_weight: Maybe = None


class Shared(NamedTuple):
    """What every row reads besides its state: the temperature (None: 1), and the terms of the loss (its options, or the
    arrays that a user's function closes over)."""

    temperature: Maybe
    terms: Any


OPTION_RANGES = {
    "label_smoothing": (0.0, 1.0),
    "z_loss": (0.0, math.inf),
    "focal_gamma": (0.0, math.inf),
    "poly_epsilon": (-math.inf, math.inf),
    "entropy_weight": (-math.inf, math.inf),
}


def row_loss(stats: RowStats, options: LossOptions, weight: Maybe) -> Float[Array, "..."]:
    """The module's formula. ``weight`` is w, None for 1."""
    hard = stats.nll if options.focal_gamma is None else focal(stats.nll, options.focal_gamma)
    extra = _regularizers(stats, options)
    if weight is not None:
        hard = times(weight, hard)
        extra = None if extra is None else times(weight, extra)
    if options.label_smoothing is not None:
        smoothing = options.label_smoothing.astype(hard.dtype)
        hard = times(1 - smoothing, hard) + times(smoothing, stats.ce_prior)
    return hard if extra is None else hard + extra


def _regularizers(stats: RowStats, options: LossOptions) -> Array | None:
    terms = (
        (options.z_loss, lambda: jnp.square(stats.lse)),
        (options.entropy_weight, lambda: -stats.entropy),
        (options.poly_epsilon, lambda: stats.target_mass - stats.target_probability),
    )
    present = [times(scale.astype(stats.nll.dtype), term()) for scale, term in terms if scale is not None]
    return sum(present[1:], present[0]) if present else None


def times(weight: Float[Array, "..."], value: Float[Array, "..."]) -> Float[Array, "..."]:
    """``weight * value`` where a zero weight means "does not count": 0 * inf and 0 * NaN are 0, with zero gradients."""
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(value), 0, value)


@jax.custom_jvp
def focal(nll: Float[Array, "..."], gamma: Float[Array, ""]) -> Float[Array, "..."]:
    """``phi(x) = (1 - exp(-x))^gamma x``, 0 for x at most 0 (below by rounding only) and x itself at x = +inf.

    With h = 1 - exp(-x):  d phi / dx = h^gamma (1 + gamma x exp(-x) / h),  d phi / d gamma = x h^gamma log h.
    The plain formula's derivative is NaN at 0 (h^(gamma - 1) x) and at +inf (x exp(-x)), and log h is -inf at 0.
    """
    return _miss(_inside(nll)) ** gamma.astype(nll.dtype) * jnp.maximum(nll, 0)


@focal.defjvp
def _focal_jvp(primals, tangents):
    (nll, gamma), (nll_tangent, gamma_tangent) = primals, tangents
    gamma, x = gamma.astype(nll.dtype), _inside(nll)
    miss = _miss(x)
    power = miss**gamma
    slope = power * (1 + gamma * x * jnp.exp(-x) / miss)
    gamma_slope = x * power * jnp.log(miss)
    return focal(nll, gamma), slope * nll_tangent + gamma_slope * gamma_tangent.astype(nll.dtype)


def _inside(nll: Array) -> Array:
    """``nll`` kept off both limits, continuously: a compiler may compute it twice, an ulp apart on either side of 0, and use
    one for the branch and the other for the value, so no branch may jump. NaN stays."""
    least = float(jnp.finfo(nll.dtype).eps) ** 2
    return jnp.clip(nll, least, 1 / least)


def _miss(nll: Array) -> Array:
    """1 - p_y, accurate where p_y is near 1."""
    return -jnp.expm1(-nll)
