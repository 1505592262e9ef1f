"""Passes over arrays on a GPU: each reads what is given, and holds nothing for the next one.

XLA's GPU backend writes to memory what several kernels share: the float32 of bfloat16 logits, or a long expression of which
two sums are taken; a TPU's does so now and then. Here each pass makes its own from what is given, behind a barrier in the
given dtype, and two sums of a pass are one. The forward KL divergence at (4096, 32768) and the student's gradient in
bfloat16, as compiled for an H100 (jax 0.10.2): 1026 MiB of temporary memory and 4.1 GB moved before, 4 MiB and 1.9 GB now.
Other backends make what is shared once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .versions import in_a_tpu_kernel


def read_again(function: Callable, value: Any, given: Any, tpu: bool = False) -> tuple[Any, Any]:
    """``(value, given)``, the value being ``function(given)``; on a GPU (``tpu``: or a TPU) made again from ``given``, which
    is read again. Of two readings the second must be of the first one's ``given``: XLA takes equal barriers for one. Each
    array has its own, so that one that is not read is not counted, and keeps its type in ``jax.shard_map``."""

    def again(value, given):
        given = jax.tree.map(jax.lax.optimization_barrier, given)
        return function(given), given

    return _by_platform(again, lambda value, given: (value, given), value, given, tpu=tpu)


def sums_together(axis: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The sum over an axis of each of one or two arrays of one shape and dtype. On a GPU two are the real and the
    imaginary part of one: of two sums, or one of pairs, XLA holds what they share (H100, Jensen-Shannon in bfloat16 and the
    student's gradient: 1026 and 1538 MiB; of complex numbers 0.1; findings/two_sums_on_a_gpu.sh)."""

    def each(*arrays):
        return tuple(jnp.sum(x, axis) for x in arrays)

    def of_complex(*arrays):
        both = jnp.sum(jax.lax.complex(*arrays), axis)
        return jnp.real(both), jnp.imag(both)

    return each(*arrays) if len(arrays) == 1 else _by_platform(of_complex, each, *arrays)


def on_a_gpu(function: Callable, x: Any) -> Any:
    """``function(x)`` on a GPU, x elsewhere."""
    return _by_platform(function, lambda x: x, x)


def _by_platform(of_gpu: Callable, of_others: Callable, *arguments: Any, tpu: bool = False) -> Any:
    of_tpu = of_gpu if tpu else of_others
    kernels = in_a_tpu_kernel(of_others)
    return jax.lax.platform_dependent(*arguments, cuda=of_gpu, rocm=of_gpu, tpu=of_tpu, **kernels, default=of_others)
