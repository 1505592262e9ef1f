"""From losses of rows to what the caller asked for: ignored rows, weights, and the four reductions.

The mean is ``sum_i w_i loss_i / sum_i w_i c_i`` over the valid rows, with row weights w and the class weights c of their
labels (already inside loss_i; soft targets: c = 1), and 0 only when no row is valid or every weight is 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .losses import times
from .state import Maybe

REDUCTIONS = ("none", "mean", "sum", "loss_sum")


class LossSum(NamedTuple):
    """A sum of losses and the weight it stands for, so that means of parts combine into the mean of the whole.

    ``a + b`` joins microbatches, ``.psum(axis_name)`` joins the shards of a mesh axis, ``.mean()`` divides. Accumulate
    LossSums (and gradients of ``total``) over uneven microbatches and divide once: averaging their means is wrong.

    Args:
        total: () float32, sum of weighted losses in nats.
        weight: () float32, the denominator of the mean.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = LossSum(jnp.float32(6.0), jnp.float32(3.0)), LossSum(jnp.float32(4.0), jnp.float32(1.0))
        >>> print((a + b).mean())
        2.5
    """

    total: Float[Array, "..."]
    weight: Float[Array, "..."]

    def __add__(self, other: "LossSum") -> "LossSum":
        if not isinstance(other, LossSum):
            return NotImplemented
        return LossSum(self.total + other.total, self.weight + other.weight)

    def __radd__(self, other) -> "LossSum":
        """``sum(list_of_loss_sums)`` starts from the integer 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor):
        """Refused: of a tuple it would be a repetition."""
        raise TypeError(
            f"a LossSum is not multiplied, as its loss and its weight could be meant: scale the mean, factor * x.mean(), or "
            f"one part, LossSum(factor * x.total, x.weight); got {factor!r}."
        )

    __rmul__ = __mul__

    def __str__(self) -> str:
        """With what each number is for, since JAX's refusal to differentiate a LossSum quotes it."""
        return f"LossSum(total={self.total}, weight={self.weight}): differentiate .total, report .mean()"

    def psum(self, axis_name) -> "LossSum":
        """The sum over a mesh axis (inside ``jax.shard_map`` or ``jax.vmap(axis_name=...)``)."""
        return LossSum(jax.lax.psum(self.total, axis_name), jax.lax.psum(self.weight, axis_name))

    def mean(self) -> Float[Array, "..."]:
        """``total / weight``; 0 where both are 0 (nothing counted). Where nothing but NaN counted it is NaN, and its
        derivative, unlike that of NaN / 0, is a number: labels of no class train nothing."""
        nothing = (self.weight == 0) & ~(jnp.abs(self.total) > 0)
        return self.total / jnp.where(nothing, 1, self.weight)


def valid_rows(labels: Array, where: Maybe, ignore_index: int | None) -> Maybe:
    """Rows that count, or None where every row does."""
    kept = None
    if ignore_index is not None and _can_hold(labels.dtype, ignore_index):
        kept = labels != jnp.asarray(ignore_index, labels.dtype)
    if where is None:
        return kept
    return where if kept is None else kept & where


def _can_hold(dtype, value: int) -> bool:
    limits = jnp.iinfo(dtype)
    return limits.min <= value <= limits.max


def keep(valid: Maybe, tree: Any) -> Any:
    """Zero every statistic of the ignored rows: statistics, not losses, so that no NaN of theirs meets a 0 cotangent."""
    if valid is None:
        return tree
    return jax.tree.map(lambda field: jnp.where(valid, field, 0), tree)


def weighted_losses(
    loss: Float[Array, "..."], valid: Bool[Array, "..."] | None, row_weights: Float[Array, "..."] | None
) -> Float[Array, "..."]:
    """The losses times their row weights; 0 for ignored rows. Class weights are already inside ``loss``."""
    if row_weights is not None:
        loss = times(keep(valid, row_weights), loss)
    return keep(valid, loss)


def counted_weights(
    valid: Bool[Array, "..."] | None,
    row_weights: Float[Array, "..."] | None,
    class_weight: Float[Array, "..."] | None,
    like: Array,
) -> Float[Array, "..."]:
    """What each row adds to the denominator of the mean; 0 for ignored rows. ``like`` has the rows' shape and dtype."""
    weight = jnp.ones_like(like) if class_weight is None else class_weight
    return keep(valid, weight if row_weights is None else keep(valid, row_weights) * weight)


def reduce_rows(losses: Float[Array, "..."], weights: Float[Array, "..."], reduction: str):
    """One of ``REDUCTIONS`` of weighted losses, or of their sum where that is all there is."""
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    if reduction == "sum":
        return total
    total = LossSum(total, jnp.sum(weights))
    return total if reduction == "loss_sum" else total.mean()
