"""Logits as a product that is never held whole: ``z = hidden @ head + bias``.

Hidden, head and the gradient of the logits meet in one dtype, the wider of hidden's and head's; every product is accumulated
in float32 (float64 for float64). The logits of a piece are that accumulator, rounded only where ``logits_dtype`` asks for
it. The same product makes them in the forward and in the backward pass: otherwise ``exp(z - lse)`` is unbounded at large
logits.

float16 ends at 6e-8, where dL/dz of a mean over n rows of v classes is of the size of 1 / (n v): what is rounded to it is
multiplied by a power of two before, and divided by it in float32 after the product (:class:`Rounded`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._jax.dtypes import statistics_dtype
from .._jax.halves import narrowed
from .._jax.versions import explicit_sharding
from .._row.state import Maybe


class Projection(NamedTuple):
    """``hidden`` (..., d), ``head`` (d, v) or (v, d), ``bias`` (v,) or None."""

    hidden: Float[Array, "..."]
    head: Float[Array, "..."]
    bias: Maybe = None


class Layout(NamedTuple):
    """What is static about a projection: the head's axis of the vocabulary, and the dtype of the logits of a piece."""

    vocab_axis: int
    logits_dtype: str

    @property
    def feature_axis(self) -> int:
        """The head's other axis."""
        return 1 - self.vocab_axis


class Rounded(NamedTuple):
    """The gradient of a piece's logits in the dtype of the products, times ``scale``, a power of two (None: 1)."""

    dz: Float[Array, "... v"]
    scale: Maybe = None

    def undone(self, product: Array) -> Array:
        """A product with ``dz``, without the scale."""
        return product if self.scale is None else product / self.scale


def rounded(dz: Float[Array, "... v"], dtype) -> Rounded:
    """``dz`` made once, in the dtype of the products; in float16 the largest of it is between 2**14 and 2**15."""
    if dtype != jnp.float16:
        return Rounded(jax.lax.optimization_barrier(narrowed(dz, dtype)))
    finite = jnp.where(jnp.isfinite(dz), jnp.abs(dz), 0)
    _, exponent = jnp.frexp(jnp.max(finite))
    scale = jnp.ldexp(jnp.ones((), dz.dtype), 15 - jnp.maximum(exponent, -100))
    return Rounded(jax.lax.optimization_barrier((dz * scale).astype(dtype)), scale)


def product_dtype(projection: Projection) -> jnp.dtype:
    """The dtype in which hidden, head and the gradient of the logits are multiplied: bfloat16 for 8 bits, which it holds
    exactly and in which no gradient of logits has a digit."""
    with jax.numpy_dtype_promotion("standard"):  # the same for a caller who has it strict
        dtype = jnp.promote_types(projection.hidden.dtype, projection.head.dtype)
    return jnp.dtype(jnp.bfloat16) if dtype.itemsize == 1 else dtype


def classes_of(layout: Layout, projection: Projection) -> int:
    """The number of classes."""
    return projection.head.shape[layout.vocab_axis]


def piece_logits(layout: Layout, projection: Projection) -> Float[Array, "... v"]:
    """The logits of these rows for these classes."""
    hidden, head = operands_of_product(projection)
    if projection.bias is None and layout.logits_dtype == "bfloat16" == str(hidden.dtype):
        return _rounded_product(layout, hidden, head)
    z = _logits(layout, hidden, head)
    if projection.bias is not None:
        z = z + jnp.broadcast_to(projection.bias.astype(z.dtype), z.shape)
    if layout.logits_dtype == "float16":  # its numbers in float32, for the exponents of their gradient
        return jax.lax.reduce_precision(z, exponent_bits=5, mantissa_bits=10)
    return narrowed(z, jnp.dtype(layout.logits_dtype))


def _logits(layout: Layout, hidden: Array, head: Array, dtype=None) -> Array:
    return _product(hidden, head, (hidden.ndim - 1,), (layout.feature_axis,), dtype=dtype)


def _rounded_product(layout: Layout, hidden: Array, head: Array) -> Array:
    """Rounded where it is accumulated, so that the float32 logits are not written first; a CPU may accumulate in what the
    product is to be."""

    def on_cpu(hidden, head):
        return _logits(layout, hidden, head).astype(jnp.bfloat16)

    elsewhere = partial(_logits, layout, dtype=jnp.bfloat16)
    return jax.lax.platform_dependent(hidden, head, cpu=on_cpu, default=elsewhere)


def hidden_gradient(layout: Layout, dz: Rounded, projection: Projection) -> Float[Array, "... d"]:
    """``dz @ head^T``, as accumulated."""
    hidden, head = operands_of_product(projection)
    return dz.undone(_product(dz.dz, head, (dz.dz.ndim - 1,), (layout.vocab_axis,), explicit_sharding(hidden)))


def head_gradient(
    layout: Layout, dz: Rounded, features: Float[Array, "d ..."], head: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``hidden^T @ dz`` in the layout of ``head``, as accumulated, from :func:`transposed` hidden states."""
    rows = tuple(range(dz.dz.ndim - 1))
    upright = head if layout.vocab_axis == 1 else head.T
    product = dz.undone(_product(features, dz.dz, tuple(range(1, features.ndim)), rows, explicit_sharding(upright)))
    if layout.vocab_axis == 1:
        return product
    return jax.lax.optimization_barrier(product).T  # else XLA swaps the operands, into a form its CPU backend refuses


def transposed(hidden: Float[Array, "... d"]) -> Float[Array, "d ..."]:
    """Features first, in memory: XLA's CPU backend multiplies 16-bit floats as they are only where the summed axis of the
    first operand is its last; else it converts both to float32."""
    return jax.lax.optimization_barrier(jnp.moveaxis(hidden, -1, 0))


def bias_gradient(dz: Float[Array, "... v"]) -> Float[Array, " v"]:
    """``dz`` summed over its rows, before any rounding to the activations' dtype."""
    return jnp.sum(dz.astype(statistics_dtype(dz.dtype)), tuple(range(dz.ndim - 1)))


def operands_of_product(projection: Projection) -> tuple[Array, Array]:
    """Hidden and head in the dtype of the product."""
    dtype = product_dtype(projection)
    return projection.hidden.astype(dtype), projection.head.astype(dtype)


def _product(a, b, contract_a, contract_b, out_sharding=None, dtype=None):
    dimensions = ((contract_a, contract_b), ((), ()))
    dtype = statistics_dtype(a.dtype) if dtype is None else dtype
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype, out_sharding=out_sharding)
