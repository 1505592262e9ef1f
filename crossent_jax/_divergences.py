"""Divergences between two distributions: the public functions, thin over ``_pair_arguments``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from . import _checks as checks
from . import _integrands as integrands
from . import guards
from ._pair_arguments import divergence_of, linear_divergence_of
from ._reduce import counted_weights, keep, reduce_rows


def divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    kind: str | Callable = "forward_kl",
    beta: float | Array = 0.5,
    order: float | None = None,
    labels: ArrayLike | None = None,
    label_weight: float | Array | None = None,
    scale_by_temperature_squared: bool = False,
    stop_teacher_gradient: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Any:
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
    return divergence_of(
        "divergence",
        logits,
        teacher_logits,
        kind=kind,
        beta=beta,
        order=order,
        labels=labels,
        label_weight=label_weight,
        scale_by_temperature_squared=scale_by_temperature_squared,
        stop_teacher_gradient=stop_teacher_gradient,
        axis=axis,
        where=where,
        row_weights=row_weights,
        class_mask=class_mask,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        implementation=implementation,
    )


def kl_divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    label_weight: float | Array | None = None,
    scale_by_temperature_squared: bool = False,
    stop_teacher_gradient: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Any:
    """Kullback-Leibler divergence KL(teacher || student) of two sets of logits.

    ``KL(t || p) = sum_j t_j (log t_j - log p_j)``: the teacher first, as in distillation.

    Args:
        logits, teacher_logits, ...: as in :func:`divergence`, of which this is ``kind="forward_kl"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.kl_divergence(student, teacher):.4f}")
        0.1308

    Source: Kullback and Leibler 1951, section 2; Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2.
    """
    return divergence(
        logits,
        teacher_logits,
        kind="forward_kl",
        labels=labels,
        label_weight=label_weight,
        scale_by_temperature_squared=scale_by_temperature_squared,
        stop_teacher_gradient=stop_teacher_gradient,
        axis=axis,
        where=where,
        row_weights=row_weights,
        class_mask=class_mask,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        implementation=implementation,
    )


def reverse_kl_divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    label_weight: float | Array | None = None,
    scale_by_temperature_squared: bool = False,
    stop_teacher_gradient: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Any:
    """Kullback-Leibler divergence KL(student || teacher) of two sets of logits.

    ``KL(p || t) = sum_j p_j (log p_j - log t_j)``: mode-seeking, as in on-policy distillation.

    Args:
        logits, teacher_logits, ...: as in :func:`divergence`, of which this is ``kind="reverse_kl"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.reverse_kl_divergence(student, teacher):.4f}")
        0.1438

    Source: Gu et al. 2024 (MiniLLM, https://arxiv.org/abs/2306.08543), section 2.1.
    """
    return divergence(
        logits,
        teacher_logits,
        kind="reverse_kl",
        labels=labels,
        label_weight=label_weight,
        scale_by_temperature_squared=scale_by_temperature_squared,
        stop_teacher_gradient=stop_teacher_gradient,
        axis=axis,
        where=where,
        row_weights=row_weights,
        class_mask=class_mask,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        implementation=implementation,
    )


def js_divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: float | Array = 0.5,
    labels: ArrayLike | None = None,
    label_weight: float | Array | None = None,
    scale_by_temperature_squared: bool = False,
    stop_teacher_gradient: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Any:
    """Jensen-Shannon divergence of two sets of logits.

    ``beta KL(t || m) + (1 - beta) KL(p || m)`` with ``m = beta t + (1 - beta) p``: at most ln 2, symmetric at beta = 1/2.

    Args:
        logits, teacher_logits, ...: as in :func:`divergence`, of which this is ``kind="js"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.js_divergence(student, teacher):.4f}")
        0.0338

    Source: Lin 1991, section 4; Agarwal et al. 2024 (GKD, https://arxiv.org/abs/2306.13649), section 3.
    """
    return divergence(
        logits,
        teacher_logits,
        kind="js",
        beta=beta,
        labels=labels,
        label_weight=label_weight,
        scale_by_temperature_squared=scale_by_temperature_squared,
        stop_teacher_gradient=stop_teacher_gradient,
        axis=axis,
        where=where,
        row_weights=row_weights,
        class_mask=class_mask,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        implementation=implementation,
    )


def jeffreys_divergence(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    label_weight: float | Array | None = None,
    scale_by_temperature_squared: bool = False,
    stop_teacher_gradient: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Any:
    """Jeffreys divergence of two sets of logits.

    ``KL(t || p) + KL(p || t)``, symmetric.

    Args:
        logits, teacher_logits, ...: as in :func:`divergence`, of which this is ``kind="jeffreys"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.jeffreys_divergence(student, teacher):.4f}")
        0.2747

    Source: Jeffreys 1946.
    """
    return divergence(
        logits,
        teacher_logits,
        kind="jeffreys",
        labels=labels,
        label_weight=label_weight,
        scale_by_temperature_squared=scale_by_temperature_squared,
        stop_teacher_gradient=stop_teacher_gradient,
        axis=axis,
        where=where,
        row_weights=row_weights,
        class_mask=class_mask,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        implementation=implementation,
    )


def total_variation(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    label_weight: float | Array | None = None,
    scale_by_temperature_squared: bool = False,
    stop_teacher_gradient: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Any:
    """Total variation distance of two sets of logits.

    ``sum_j |p_j - t_j| / 2``, in [0, 1].

    Args:
        logits, teacher_logits, ...: as in :func:`divergence`, of which this is ``kind="total_variation"``.

    Returns, Raises:
        as :func:`divergence`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
        >>> print(f"{crossent_jax.total_variation(student, teacher):.4f}")
        0.2500

    Source: Levin and Peres 2017, section 4.1.
    """
    return divergence(
        logits,
        teacher_logits,
        kind="total_variation",
        labels=labels,
        label_weight=label_weight,
        scale_by_temperature_squared=scale_by_temperature_squared,
        stop_teacher_gradient=stop_teacher_gradient,
        axis=axis,
        where=where,
        row_weights=row_weights,
        class_mask=class_mask,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        implementation=implementation,
    )


def linear_divergence(
    hidden: ArrayLike,
    head: ArrayLike,
    *,
    teacher_logits: ArrayLike | None = None,
    teacher_hidden: ArrayLike | None = None,
    teacher_head: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    teacher_head_vocab_axis: int | None = None,
    teacher_top_k: tuple[ArrayLike, ArrayLike] | None = None,
    top_k_tail: str = "bucket",
    bias: ArrayLike | None = None,
    head_vocab_axis: int = 1,
    chunk_rows: int | None = None,
    logits_dtype: DTypeLike | None = None,
    kind: str | Callable = "forward_kl",
    beta: float | Array = 0.5,
    order: float | None = None,
    labels: ArrayLike | None = None,
    label_weight: float | Array | None = None,
    scale_by_temperature_squared: bool = False,
    stop_teacher_gradient: bool = False,
    where: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    reduction: str = "mean",
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Any:
    """Divergence between ``softmax(hidden @ head + bias)`` and a teacher, without holding these logits.

    The value, the options and the gradients are those of ``divergence(hidden @ head + bias, teacher's logits, ...)`` with
    the products accumulated in float32. Rows go through in chunks; for a scalar reduction a differentiated call takes three
    matrix products a side, one for a side that is not differentiated. The teacher is given in one of three ways:

    - ``teacher_logits``: an array ``(..., v)``;
    - ``teacher_hidden`` and ``teacher_head`` (and ``teacher_bias``): another model over the same vocabulary, of any number
      of features; its logits are never held either;
    - ``teacher_top_k = (indices, log_probs)``, each ``(..., k)``: an offline teacher that was stored for its likeliest
      classes. The student is compared with it in k + 1 outcomes, the classes listed and all others together. Their share of
      the teacher is what is left of 1 (``top_k_tail="bucket"``), or nothing, the listed ones renormalised
      (``"renormalize"``). The log-probabilities are the teacher's at the temperature of the comparison: ``temperature``
      divides the student's logits alone.

    Args:
        hidden: floating ``(..., d)``.
        head: floating ``(d, v)``, or ``(v, d)`` with ``head_vocab_axis=0``.
        teacher_top_k: an index outside ``[0, v)``, or the same one twice in a row, gives that row a NaN loss and no
        gradient.
        teacher_head_vocab_axis: as ``head_vocab_axis``; None: the same.
        bias, head_vocab_axis, chunk_rows, logits_dtype: as in :func:`linear_cross_entropy`, of both sides; a chunk has half
            its rows, for its two distributions.
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
    return linear_divergence_of(
        "linear_divergence",
        hidden,
        head,
        bias=bias,
        head_vocab_axis=head_vocab_axis,
        teacher_logits=teacher_logits,
        teacher_hidden=teacher_hidden,
        teacher_head=teacher_head,
        teacher_bias=teacher_bias,
        teacher_head_vocab_axis=teacher_head_vocab_axis,
        teacher_top_k=teacher_top_k,
        top_k_tail=top_k_tail,
        chunk_rows=chunk_rows,
        logits_dtype=logits_dtype,
        kind=kind,
        beta=beta,
        order=order,
        labels=labels,
        label_weight=label_weight,
        scale_by_temperature_squared=scale_by_temperature_squared,
        stop_teacher_gradient=stop_teacher_gradient,
        where=where,
        row_weights=row_weights,
        class_mask=class_mask,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        reduction=reduction,
        axis_name=axis_name,
        implementation=implementation,
    )


def kl(
    *,
    p: ArrayLike | None = None,
    q: ArrayLike | None = None,
    log_p: ArrayLike | None = None,
    log_q: ArrayLike | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    reduction: str = "none",
) -> Any:
    """Kullback-Leibler divergence ``KL(p || q) = sum_j p_j (log p_j - log q_j)`` of arrays of probabilities or their logs.

    p and q are said by name, so that their order cannot be mistaken. The logits of a model belong in :func:`kl_divergence`,
    which normalises them.

    Args:
        p, log_p: floating, one of the two: probabilities, or their logarithms (-inf: 0).
        q, log_q: the same of the other distribution, p's shape.
        axis: the axis of the classes.
        where: boolean, the shape without ``axis``; rows where it is False give 0 and exactly zero gradients.
        reduction: "none", "mean", "sum" or "loss_sum".

    Returns:
        Nats, the shape without ``axis`` for "none", float32 (float64 if either is). The formula holds for arrays of any sum;
        ``guards.values()`` demands probabilities that sum to 1. ``0 log 0 = 0``; +inf where p > 0 = q. Exactly 0 for
        identical arrays. Gradients are the limits: 0 for both where both are 0. Every mode of differentiation
        works.

    Raises:
        TypeError, ValueError: for none or both forms of a distribution, wrong dtypes, and shapes that differ.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.25, 0.5])
        >>> print(f"{crossent_jax.kl(p=p, q=q):.4f} {crossent_jax.kl(p=q, q=p)}")
        0.6931 inf

    Source: Kullback and Leibler 1951, section 2.
    """
    p_name, p_value = _one_form("p", p, log_p)
    q_name, q_value = _one_form("q", q, log_q)
    p_value, axis = checks.logits(p_value, axis, p_name)
    q_value = checks.same_shape(q_name, checks.floating(q_name, q_value), p_value.shape, f"the shape of {p_name}")
    rows = checks.batch_shape(p_value, axis)
    valid = checks.where(where, rows, p_value.shape)
    reduction = checks.reduction(reduction)
    if guards.enabled():
        for name, value in ((p_name, p_value), (q_name, q_value)):
            value = jnp.exp(value) if name.startswith("log_") else value
            guards.require_distribution(name.replace("log_", "exp of log_"), value, axis, valid, None)
    if valid is not None:
        p_value, q_value = (jnp.where(jnp.expand_dims(valid, axis), x, 0) for x in (p_value, q_value))
    return _kl_of_arrays(reduction, axis, p_name == "log_p", q_name == "log_q", p_value, q_value, valid)


def _one_form(name: str, value, log_value):
    if (value is None) == (log_value is None):
        raise ValueError(f"give {name} or log_{name}, one of the two; got {'neither' if value is None else 'both'}.")
    return (name, value) if log_value is None else (f"log_{name}", log_value)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _kl_of_arrays(reduction: str, axis: int, p_is_log: bool, q_is_log: bool, p: Array, q: Array, valid) -> Any:
    if not (p_is_log or q_is_log):
        pair, apart = integrands.from_both_probabilities(q, p), p - q
    else:
        log_q = q if q_is_log else integrands.log_probabilities(q, p != (-jnp.inf if p_is_log else 0))
        pair = integrands.from_logs(log_q, p) if p_is_log else integrands.from_probabilities(log_q, p)
        apart = pair.t - jnp.exp(pair.log_p)
    parts = integrands.kl_in_two(pair, apart.astype(pair.t.dtype))
    rows = keep(valid, jnp.sum(parts[0], axis) + jnp.sum(parts[1], axis))
    return reduce_rows(rows, counted_weights(valid, None, None, jnp.ones_like(rows)), reduction)
