"""Divergences between the distributions of two sets of logits: the public functions, thin over ``_api.pair_arguments``."""

from typing import Any, Unpack

from jax.typing import ArrayLike

from .options import Divergence, JSDivergence, OneDivergence, completed, takes
from .pair_arguments import divergence_of


@takes(Divergence)
def divergence(logits: ArrayLike, teacher_logits: ArrayLike, **options: Unpack[Divergence]) -> Any:
    """Divergence between ``p = softmax(u)`` of the student and ``t = softmax(w)`` of the teacher.

    ``u`` and ``w`` are the logits of each side after the same map, ``softcap * tanh(z / softcap) / temperature``.

    | kind | divergence |
    |---|---|
    | "forward_kl" | ``KL(t || p) = sum_j t_j (log t_j - log p_j)``, the loss of distillation |
    | "reverse_kl" | ``KL(p || t) = sum_j p_j (log p_j - log t_j)`` |
    | "js" | ``beta KL(t || m) + (1 - beta) KL(p || m)`` with ``m = beta t + (1 - beta) p``; symmetric at beta = 1/2 |
    | "jeffreys" | ``KL(t || p) + KL(p || t)`` |
    | "total_variation" | ``sum_j |p_j - t_j| / 2`` |
    | "renyi" | ``log(sum_j t_j^order p_j^(1 - order)) / (order - 1)``; at order 1 the forward KL |
    | "alpha" | ``(sum_j t_j^order p_j^(1 - order) - 1) / (order (order - 1))``; likewise |
    | a function | ``sum_j phi(log p_j, log t_j)`` |

    With ``labels`` the loss of a row is ``(1 - label_weight) T^2 D + label_weight (-log softmax(z)_label)``, the label's
    term at temperature 1 (T^2 only with ``scale_by_temperature_squared``): distillation from soft and hard targets in one
    pass.

    Args:
        logits: floating array of any rank, the student's, the classes along ``axis``. Computed in float32 (float64 if either
            side is). A -inf logit is a masked class, of probability 0.
        teacher_logits: floating, the logits' shape, of any floating dtype.
        kind: a name of the table, or a function of two arrays of one shape that gives phi elementwise, or ``(phi, chi,
            tau)`` with ``chi = d phi / d log p`` and ``tau = d phi / d log t``; of phi alone JAX takes them. It gets a
            logarithm of -inf as the lowest finite number, and its elements where both are count as 0.
        beta: in [0, 1], the teacher's share of m, for "js" alone; an array is differentiable. 0 at both ends.
        order: static, for "renyi" (above 0) and "alpha" (not 0).
        labels: integer, the logits' shape without ``axis``: hard targets beside the teacher. An id outside ``[0, v)`` that
            is not ``ignore_index`` gives that row a NaN loss and a zero gradient.
        label_weight: in [0, 1], with ``labels``; None: 1/2.
        scale_by_temperature_squared: multiply the divergence by ``temperature^2``: its gradient falls as 1 / T^2.
        stop_teacher_gradient: True: the teacher gets no gradient, at every temperature. False: both sides get the exact one.
        where: boolean, the batch shape; rows where it is False give 0 and exactly zero gradients, even from NaN.
        row_weights: floating, the batch shape; differentiable.
        class_mask: boolean ``(v,)`` or the logits' shape; False removes a class from both distributions.
        ignore_index: static integer, with ``labels``: rows with this label are ignored like ``where`` False.
        softcap: static positive number, or None; caps both sides.
        temperature: above 0; divides the logits of both sides. An array is differentiable.
        reduction: "mean" (over the sum of the row weights, 0 if there are no rows), "sum", "none" or "loss_sum".
        axis_name: inside ``jax.shard_map``, the mesh axis over which the classes of both sides are split.
        implementation: None chooses; "reference" also has forward mode.

    Returns:
        Nats, float32 (float64 if either side is): a scalar, the batch shape for "none", or a ``LossSum``. Exactly 0 for
        identical logits and never negative, also far below float32's resolution of the terms: a KL divergence of 1e-10 keeps
        four digits. +inf where a class has no probability under the distribution that the logarithm is taken of, and where
        one side has no class at all. In such a row a side whose gradient has no finite limit gets 0. NaN or +inf logits give
        NaN for their row alone.

    Raises:
        TypeError, ValueError: for a wrong shape (a different vocabulary), dtype, range of a Python number, an unknown kind,
            or an option that belongs to another kind. TypeError by JAX under forward mode: use
            ``implementation="reference"``.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> for kind in ("forward_kl", "reverse_kl", "js", "total_variation"):
        ...     print(kind, f"{crossent_jax.divergence(student, teacher, kind=kind):.4f}")
        forward_kl 0.1308
        reverse_kl 0.1438
        js 0.0338
        total_variation 0.2500

    Sources: Kullback and Leibler 1951, section 2; Lin 1991, section 4 (Jensen-Shannon); Jeffreys 1946; Rényi 1961, section
    3; Amari 2009 (alpha); Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2.
    """
    return divergence_of("divergence", logits, teacher_logits, **completed(divergence, options))


@takes(OneDivergence)
def kl_divergence(logits: ArrayLike, teacher_logits: ArrayLike, **options: Unpack[OneDivergence]) -> Any:
    """Kullback-Leibler divergence KL(teacher || student) of two sets of logits.

    ``KL(t || p) = sum_j t_j (log t_j - log p_j)``: the teacher first, as in distillation.

    Args:
        logits, teacher_logits, options: as in :func:`divergence`, of which this is ``kind="forward_kl"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.kl_divergence(student, teacher):.4f}")
        0.1308

    Source: Kullback and Leibler 1951, section 2; Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2.
    """
    return divergence(logits, teacher_logits, kind="forward_kl", **completed(kl_divergence, options))


@takes(OneDivergence)
def reverse_kl_divergence(logits: ArrayLike, teacher_logits: ArrayLike, **options: Unpack[OneDivergence]) -> Any:
    """Kullback-Leibler divergence KL(student || teacher) of two sets of logits.

    ``KL(p || t) = sum_j p_j (log p_j - log t_j)``: mode-seeking, as in on-policy distillation.

    Args:
        logits, teacher_logits, options: as in :func:`divergence`, of which this is ``kind="reverse_kl"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.reverse_kl_divergence(student, teacher):.4f}")
        0.1438

    Source: Gu et al. 2024 (MiniLLM, https://arxiv.org/abs/2306.08543), section 2.1.
    """
    return divergence(logits, teacher_logits, kind="reverse_kl", **completed(reverse_kl_divergence, options))


@takes(JSDivergence)
def js_divergence(logits: ArrayLike, teacher_logits: ArrayLike, **options: Unpack[JSDivergence]) -> Any:
    """Jensen-Shannon divergence of two sets of logits.

    ``beta KL(t || m) + (1 - beta) KL(p || m)`` with ``m = beta t + (1 - beta) p``: at most ln 2, symmetric at beta = 1/2.

    Args:
        logits, teacher_logits, options: as in :func:`divergence`, of which this is ``kind="js"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.js_divergence(student, teacher):.4f}")
        0.0338

    Source: Lin 1991, section 4; Agarwal et al. 2024 (GKD, https://arxiv.org/abs/2306.13649), section 3.
    """
    return divergence(logits, teacher_logits, kind="js", **completed(js_divergence, options))


@takes(OneDivergence)
def jeffreys_divergence(logits: ArrayLike, teacher_logits: ArrayLike, **options: Unpack[OneDivergence]) -> Any:
    """Jeffreys divergence of two sets of logits.

    ``KL(t || p) + KL(p || t)``, symmetric.

    Args:
        logits, teacher_logits, options: as in :func:`divergence`, of which this is ``kind="jeffreys"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.jeffreys_divergence(student, teacher):.4f}")
        0.2747

    Source: Jeffreys 1946.
    """
    return divergence(logits, teacher_logits, kind="jeffreys", **completed(jeffreys_divergence, options))


@takes(OneDivergence)
def total_variation(logits: ArrayLike, teacher_logits: ArrayLike, **options: Unpack[OneDivergence]) -> Any:
    """Total variation distance of two sets of logits.

    ``sum_j |p_j - t_j| / 2``, in [0, 1].

    Args:
        logits, teacher_logits, options: as in :func:`divergence`, of which this is ``kind="total_variation"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.total_variation(student, teacher):.4f}")
        0.2500

    Source: Levin and Peres 2017, section 4.1.
    """
    return divergence(logits, teacher_logits, kind="total_variation", **completed(total_variation, options))
