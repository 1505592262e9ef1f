"""The logit map ``u = c / temperature`` with ``c = softcap * tanh(z / softcap)``, traced into every backend.

    du/dz = sech(z / softcap)^2 / temperature

Both steps are monotone in z (temperature > 0), so the row maximum of c is that of the row maximum of z. Only differences of
c are divided by the temperature: ``finfo.min / 0.5`` is -inf, a masked class, which no finite logit is.
Soft cap: Gemma 2 (https://arxiv.org/abs/2408.00118, section 2). Temperature: Hinton et al. 2015
(https://arxiv.org/abs/1503.02531).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def capped(z: Float[Array, "..."], softcap: float | None) -> Float[Array, "..."]:
    """The logits after the soft cap (None: no cap; nor is one beyond the dtype's largest number). Far below a very large
    cap, where ``z / softcap`` leaves the dtype's normal numbers, the cap changes nothing."""
    if softcap is None or softcap > float(jnp.finfo(z.dtype).max):
        return z
    return _capped(z, softcap)


def over(z: Float[Array, "..."], temperature: Float[Array, "..."] | None) -> Float[Array, "..."]:
    """Capped logits, or differences of them, divided by the temperature (None: 1): finite where these are."""
    return z if temperature is None else _quotient(z, temperature)


@jax.custom_jvp
def _quotient(z: Float[Array, "..."], temperature: Float[Array, "..."]) -> Float[Array, "..."]:
    """``z / T`` kept within the dtype's finite numbers; its derivatives are as if it were not, and square no small T."""
    limits = jnp.finfo(z.dtype)
    return jnp.clip(z / temperature, float(limits.min), float(limits.max))


_quotient.defjvps(lambda dz, u, z, temperature: dz / temperature, lambda dt, u, z, temperature: -u * (dt / temperature))


def usable(temperature: Float[Array, "..."]) -> Float[Array, "..."]:
    """NaN for a temperature that is not above 0; one that is smaller than the smallest normal number counts as that, as
    processors may take it for 0. Its bits tell one from the other."""
    value = jax.lax.stop_gradient(temperature)
    positive = jax.lax.bitcast_convert_type(value, f"int{8 * value.dtype.itemsize}") > 0
    raised = jnp.maximum(jnp.finfo(value.dtype).tiny - value, 0)
    return jnp.where(positive, temperature + raised, jnp.nan)


def logit_map_slope(
    z: Float[Array, "..."], softcap: float | None, temperature: Float[Array, ""] | None
) -> Float[Array, "..."]:
    """The derivative of the map with respect to ``z``."""
    if softcap is None or softcap > float(jnp.finfo(z.dtype).max):
        return over(jnp.ones_like(z), temperature)
    return over(sech_squared(z / softcap), temperature)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _capped(z: Float[Array, "..."], softcap: float) -> Float[Array, "..."]:
    """The cap with :func:`sech_squared` as its derivative; JAX's own, ``1 - tanh^2``, cancels beyond the cap."""
    c = softcap * jnp.tanh(z / softcap)
    return c if softcap < 2**64 else jnp.where(jnp.abs(z) < 2.0**-13 * softcap, z, c)


@_capped.defjvp
def _capped_jvp(softcap, primals, tangents):
    (z,), (dz,) = primals, tangents
    return _capped(z, softcap), dz * sech_squared(z / softcap)


@jax.custom_jvp
def sech_squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``4 q / (1 + q)^2`` with ``q = exp(-2 |x|)``; its derivative is ``-2 tanh(x) sech(x)^2``, also where ``|x|`` bends."""
    q = jnp.exp(-2 * jnp.abs(x))
    return 4 * q / jnp.square(1 + q)


sech_squared.defjvps(lambda dx, y, x: dx * (-2 * jnp.tanh(x) * y))
