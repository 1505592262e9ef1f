"""Divergences of two models whose logits are never whole: the public function, thin over ``_api.pair_arguments``."""

from typing import Any, Unpack

from jax.typing import ArrayLike

from .options import LinearDivergence, completed, takes
from .pair_arguments import linear_divergence_of


@takes(LinearDivergence)
def linear_divergence(hidden: ArrayLike, head: ArrayLike, **options: Unpack[LinearDivergence]) -> Any:
    """Divergence between ``softmax(hidden @ head + bias)`` and a teacher, without holding these logits.

    The value, the options and the gradients are those of ``divergence(hidden @ head + bias, teacher's logits, ...)`` with
    the products accumulated in float32. Rows go through in chunks; for a scalar reduction a differentiated call takes three
    matrix products a side, one for a side that is not differentiated. The teacher is given in one of three ways:

    - ``teacher_logits``: an array ``(..., v)``;
    - ``teacher_hidden`` and ``teacher_head`` (and ``teacher_bias``): another model over the same vocabulary, of any number
      of features; its logits are never held either;
    - ``teacher_top_k = (indices, log_probs)``, each ``(..., k)``: an offline teacher that was stored for its likeliest
      classes. The student is compared with it in k + 1 outcomes, the classes listed and all others together. Their share of
      the teacher is what is left of 1 (``top_k_tail="bucket"``, the default), or nothing, the listed ones renormalised
      (``"renormalize"``). The log-probabilities are the teacher's at the temperature of the comparison: ``temperature``
      divides the student's logits alone.

    Args:
        hidden: floating ``(..., d)``.
        head: floating ``(d, v)``, or ``(v, d)`` with ``head_vocab_axis=0``.
        teacher_top_k: an index outside ``[0, v)``, or the same one twice in a row, gives that row a NaN loss and no
        gradient.
        teacher_head_vocab_axis: as ``head_vocab_axis``; None: the same.
        bias, head_vocab_axis, chunk_rows, memory_budget, logits_dtype: as in :func:`linear_cross_entropy`, of both sides; a
            chunk has half its rows, for its two distributions.
        kind, beta, order, labels, ...: as in :func:`divergence`.

    Returns:
        Nats, float32 (float64 for float64): a scalar, hidden's batch shape for "none", or a ``LossSum``.

    Raises:
        TypeError, ValueError: as :func:`divergence`; for shapes of hidden, heads and teacher that do not fit, and for no
            teacher or more than one.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> hidden, head = jnp.ones((1, 2)), jnp.zeros((2, 4))
        >>> print(f"{crossent_jax.linear_divergence(hidden, head, teacher_logits=jnp.array([[0.0, 0.0, 0.0, 3.0]])):.4f}")
        0.8572
        >>> top_k = jnp.array([[3, 1]]), jnp.log(jnp.array([[0.5, 0.25]]))
        >>> print(f"{crossent_jax.linear_divergence(hidden, head, teacher_top_k=top_k):.4f}")
        0.1733

    Sources: Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2; chunked rows with gradients in the forward
    pass, Hsu et al. 2024 (Liger, https://arxiv.org/abs/2410.10989), section 3.
    """
    return linear_divergence_of("linear_divergence", hidden, head, **completed(linear_divergence, options))
