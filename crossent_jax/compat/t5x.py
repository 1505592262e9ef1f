"""The loss of T5X and MaxText: ``cross_entropy_with_logits``.

Same argument order and results; the differences, each of them a test:

| input | T5X | here |
|---|---|---|
| bfloat16 logits | computed and returned in bfloat16 | float32 |
| targets that do not sum to 1 | a gradient that is not the loss's derivative | the derivative |
| -inf logit where the target is 0 | NaN | that class adds 0 |
| gradient of ``z_loss`` | 0 | the derivative, ``lse^2`` |
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._api import checks
from .._api.cross_entropy import soft_cross_entropy
from .._jax.dtypes import statistics_dtype


def cross_entropy_with_logits(
    logits: ArrayLike, targets: ArrayLike, z_loss: float | Array = 0.0, *, implementation: str | None = None
) -> tuple[Array, Array]:
    """``(-sum_j t_j log p_j + z_loss lse^2, z_loss lse^2)`` of each token, ``p = softmax(logits)``, lse its normaliser.

    Args:
        logits: floating ``(..., v)``.
        targets: floating, the logits' shape: one-hot or soft labels, of any sum. Label smoothing is the caller's, through
            the targets, and so is the constant that T5X subtracts for it.
        z_loss: coefficient, a number or a floating scalar array, at least 0.
        implementation: as in :func:`crossent_jax.cross_entropy`; "reference" also has forward mode.

    Returns:
        The loss with the z-loss in it, and the z-loss, which is for logging: no gradient flows through it. Nats, shape
        ``(...)``, float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: for a wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat.t5x import cross_entropy_with_logits
        >>> loss, z_loss = cross_entropy_with_logits(jnp.zeros((1, 4)), jnp.array([[0.0, 1.0, 0.0, 0.0]]), 0.5)
        >>> print(f"{loss[0]:.4f} {z_loss[0]:.4f}")
        2.3472 0.9609

    Source: ``t5x.losses.cross_entropy_with_logits``; z-loss, PaLM 2022 (https://arxiv.org/abs/2204.02311), section 5.
    """

    def loss_at(z_loss):
        return soft_cross_entropy(logits, targets, z_loss=z_loss, reduction="none", implementation=implementation)

    # The loss is linear in z_loss, so its derivative along z_loss is the z-loss: one pass over the logits gives both.
    dtype = statistics_dtype(checks.floating("logits", logits).dtype)
    coefficient = jnp.asarray(checks.scalar("z_loss", z_loss, low=0.0, off=None), dtype)
    loss, total_z_loss = jax.jvp(loss_at, (coefficient,), (coefficient,))
    return loss, jax.lax.stop_gradient(total_z_loss)
