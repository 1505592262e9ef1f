"""The logit map ``u = f(z)``: soft cap, then temperature. One elementwise function, traced into every backend.

    f(z)  = softcap * tanh(z / softcap) / temperature
    f'(z) = sech(z / softcap)^2 / temperature

Both are monotone in z (temperature > 0), so the row maximum of u is f of the row maximum of z.
Soft cap: Gemma 2 (https://arxiv.org/abs/2408.00118, section 2). Temperature: Hinton et al. 2015
(https://arxiv.org/abs/1503.02531).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def logit_map(z: Float[Array, "..."], softcap: float | None, temperature: Float[Array, ""] | None) -> Float[Array, "..."]:
    """Map raw logits to the logits that enter the softmax."""
    if softcap is not None:
        z = softcap * tanh(z / softcap)
    return z if temperature is None else z / temperature


def logit_map_slope(
    z: Float[Array, "..."], softcap: float | None, temperature: Float[Array, ""] | None
) -> Float[Array, "..."]:
    """The derivative of :func:`logit_map` with respect to ``z``."""
    slope = jnp.ones_like(z) if softcap is None else sech_squared(z / softcap)
    return slope if temperature is None else slope / temperature


@jax.custom_jvp
def tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``tanh`` whose derivative is :func:`sech_squared`; JAX's own, ``1 - tanh^2``, cancels beyond the cap."""
    return jnp.tanh(x)


@jax.custom_jvp
def sech_squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``4 q / (1 + q)^2`` with ``q = exp(-2 |x|)``; its derivative is ``-2 tanh(x) sech(x)^2``, also where ``|x|`` bends."""
    q = jnp.exp(-2 * jnp.abs(x))
    return 4 * q / jnp.square(1 + q)


tanh.defjvps(lambda dx, y, x: dx * sech_squared(x))
sech_squared.defjvps(lambda dx, y, x: dx * (-2 * tanh(x) * y))
