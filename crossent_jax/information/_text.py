"""Bits per byte: the cross-entropy of text in a unit that does not depend on the tokenizer."""

import math
import numbers

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .._api import checks
from .._jax.dtypes import statistics_dtype
from .._jax.versions import is_concrete
from .._row.reduce import LossSum


def bits_per_byte(total_nll: ArrayLike, byte_count: ArrayLike) -> Array:
    """Bits per byte: ``total_nll / (byte_count log 2)``.

    The mean loss of a token depends on how long tokens are; this does not, so models of different vocabularies compare.

    Args:
        total_nll: floating, nats: the negative log-likelihood summed over all tokens
            (``cross_entropy(..., reduction="sum")``, the ``total`` of a ``LossSum``).
        byte_count: the number of bytes of the text that these tokens encode, above 0; total_nll's shape, or one number.

    Returns:
        Bits, total_nll's shape, float32 (float64 for float64).

    Raises:
        TypeError, ValueError: a dtype that is not floating, shapes that differ, a count that is not above 0.

    Example:
        >>> from crossent_jax import information
        >>> print(f"{information.bits_per_byte(693.147, 1000):.4f}")
        1.0000

    Source: Gao et al. 2020 (The Pile, https://arxiv.org/abs/2101.00027), section 3.1.
    """
    for name, value in (("total_nll", total_nll), ("byte_count", byte_count)):
        if isinstance(value, LossSum):
            raise TypeError(
                f"{name} must be a number or an array; got a LossSum, a total and a weight: pass its total, bits_per_byte("
                "loss_sum.total, byte_count), with the number of bytes that the tokens encode."
            )
    nll = checks.floating("total_nll", total_nll)
    nll = nll.astype(statistics_dtype(nll.dtype))
    if isinstance(byte_count, numbers.Real):
        count = jnp.asarray(float(byte_count), nll.dtype)
    else:
        count = checks.array("byte_count", byte_count).astype(nll.dtype)
        checks.same_shape("byte_count", count, nll.shape, "the shape of total_nll")
    if is_concrete(count) and not bool((count > 0).all()):
        raise ValueError(f"byte_count must be greater than 0; got {byte_count}.")
    return nll / (count * math.log(2))
