"""16-bit floats on a CPU, whose XLA backend has no good programs for them: by their bits, which it reads and writes as they
are.

A slice, an update or a gather of bfloat16 is made of a float32 copy of the whole array. And what is computed in float32
and cast to bfloat16 takes half as long again as rounded by the bits: ``exp(x - m) f - [label]`` of bfloat16 x (2048, 8192),
two cores of an EPYC with AVX-512, jax 0.10.2, memory kept, 6.8 and 4.4 ms (``findings/bfloat16_cast_on_a_cpu.sh``).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


def is_half(dtype) -> bool:
    """Whether it is a floating dtype of 16 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 2


def bits(x: jax.Array) -> jax.Array:
    """Of 16-bit floats."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def from_bits(x: jax.Array, dtype) -> jax.Array:
    """The floats again."""
    return jax.lax.bitcast_convert_type(x, dtype)


def by_bits(function: Callable, of_bits: Callable, *arrays: jax.Array) -> jax.Array:
    """``function(*arrays)``, on a CPU by ``of_bits``, with the derivative of the former: to JAX bits are constants. On a TPU
    bits are copies, two of all of an array."""
    return jax.lax.platform_dependent(*arrays, cpu=partial(_differentiable, function, of_bits), default=function)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable(function: Callable, of_bits: Callable, *arrays) -> jax.Array:
    return of_bits(*arrays)


@_differentiable.defjvp
def _differentiable_jvp(function, of_bits, primals, tangents):
    return of_bits(*primals), jax.jvp(function, primals, tangents)[1]


def narrowed(x: jax.Array, dtype) -> jax.Array:
    """``x.astype(dtype)``, for what was computed in ``x.dtype``: of a signaling NaN, which no computation gives, a CPU makes
    infinity."""
    if x.dtype != jnp.float32 or dtype != jnp.bfloat16:
        return x.astype(dtype)
    return by_bits(lambda x: x.astype(jnp.bfloat16), _upper_half, x)


def _upper_half(x: jax.Array) -> jax.Array:
    """Rounded to eight bits of significand, which are in the upper 16 bits."""
    rounded = jax.lax.bitcast_convert_type(jax.lax.reduce_precision(x, 8, 7), jnp.uint32)
    return from_bits((rounded >> 16).astype(jnp.uint16), jnp.bfloat16)
