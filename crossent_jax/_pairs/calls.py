"""Rows of two arrays of logits, through a backend: gradients are made with the losses, in the forward pass.

The loss of a row depends on that row alone, so the gradients for cotangent 1 can be made while its exponentials are at hand,
and the backward pass multiplies them by the row's cotangent. On a CPU many rows go through in blocks that stay in the cache.
Value and gradient of a prototype, milliseconds on two cores (jax 0.10.2, AVX2, float32, KL, gradient of the student), one
run (blocks are of 1 MiB now; benchmarks/results has the library itself):

| (n, v) | log_softmax formula | recomputed in backward | gradient in forward, whole | in blocks of 2 MiB |
|---|---|---|---|---|
| (32768, 10) | 3.4 | | 2.7 | 2.7 |
| (8192, 257) | 11.8 | 14.0 | 12.0 | 8.9 |
| (2048, 4099) | 91 | 68 | 76 | 58 |
| (256, 50257) | 171 | 119 | 117 | 90 |
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._jax.differentiated import filled, is_asked, is_floating, is_primal, typed_as, values_of, zeros
from .._jax.halves import narrowed
from .._jax.row_blocks import by_rows
from .._jax.versions import joint_axes, to_varying, varying_axes, varying_over
from ..backends import BACKENDS
from .kinds import Kind
from .loss import PairRows, PairSpec, TopK, pair_losses


def losses_of_pairs(spec: PairSpec, class_mask: Any, rows: PairRows) -> Array:
    """The weighted loss of each row."""
    class_mask, rows = alike(spec.axis_name, class_mask, rows)
    if BACKENDS[spec.backend].dense_gradient is None:
        return pair_losses(spec, class_mask, rows)
    return _losses(spec, class_mask, rows)


def alike(axis_name: str | None, of_classes: Any, rows: PairRows) -> tuple[Any, PairRows]:
    """Cast to the mesh axes over which any array varies; numbers of rows but for the one that splits the classes."""
    top_k = isinstance(rows.teacher, TopK)  # indices are global: they belong to the rows
    of_classes = of_classes, rows.logits, None if top_k else rows.teacher
    of_rows = rows._replace(logits=None, teacher=rows.teacher if top_k else None)
    axes = joint_axes((of_classes, of_rows))
    given, logits, teacher = varying_over(axes, of_classes)
    of_rows = varying_over(axes - {axis_name}, of_rows)
    return given, of_rows._replace(logits=logits, teacher=of_rows.teacher if top_k else teacher)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(spec: PairSpec, class_mask: Any, rows: PairRows) -> Array:

    def run(class_mask, rows, _):
        return pair_losses(spec, class_mask, rows), None

    return by_rows(run, class_mask, rows, None, rows.logits, _held(spec.kind, []))[0]


def _forward(spec: PairSpec, primal_mask: Any, primals: PairRows):
    class_mask, rows = values_of((primal_mask, primals))
    needed = [is_asked(x) for x in jax.tree.leaves(primals, is_leaf=is_primal)]
    losses, gradients = losses_and_gradients(spec, needed, class_mask, rows, None)
    return losses, (filled(gradients, jax.tree.leaves(rows)), rows)


def losses_and_gradients(spec: PairSpec, needed: list[bool], class_mask: Any, rows: PairRows, g: Array | None):
    """``(losses, gradients)``, the gradients of the arrays of ``rows`` for the cotangents ``g`` of the losses (None: 1), in
    their dtypes; None where not needed."""

    def run(class_mask, rows, g):
        leaves, treedef = jax.tree.flatten(rows)

        def losses_of(*moving):
            rest = iter(moving)
            return pair_losses(
                spec, class_mask, treedef.unflatten([next(rest) if n else x for n, x in zip(needed, leaves, strict=True)])
            )

        losses, pull = jax.vjp(losses_of, *(x for n, x in zip(needed, leaves, strict=True) if n))
        return (losses, pull(to_varying(jnp.ones_like(losses), varying_axes(losses)) if g is None else g)), None

    (losses, gradients), _ = by_rows(run, class_mask, rows, g, rows.logits, _held(spec.kind, needed))
    rest = iter(gradients)
    return losses, [next(rest) if asked else None for asked in needed]


def _held(kind: Kind, needed: list[bool]) -> int:
    """How many float32 arrays of the logits' size XLA's CPU backend holds beside the gradients: the exponentials of both
    sides, and three more where the kind has longer expressions or the derivatives of a side must first be made to add up to
    0, or four for both. ``needed`` begins with the student's and the teacher's."""
    sides = zip(kind.balanced, needed, strict=False)
    if any(kind.balanced) and all(balanced or not asked for balanced, asked in sides):
        return 2
    return 5 + (sum(needed[:2]) == 2)


def _backward(spec: PairSpec, residuals, g: Array):
    """A row without cotangent gets 0, whatever its logits hold."""
    gradients, rows = residuals
    leaves, treedef = jax.tree.flatten(rows)

    def cotangent(gradient, x):
        if not is_floating(x):
            return None
        if gradient.shape != x.shape:
            return zeros(x, x.dtype)
        scale = g.reshape(*g.shape, *[1] * (x.ndim - g.ndim))
        return typed_as(narrowed(jnp.where(scale == 0, 0, scale * gradient.astype(g.dtype)), x.dtype), x)

    return None, treedef.unflatten([cotangent(*pair) for pair in zip(gradients, leaves, strict=True)])


_losses.defvjp(_forward, _backward, symbolic_zeros=True)
