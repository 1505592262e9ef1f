"""Cross-entropy of logits: the public functions, thin over the checks and ``_api.label_losses``."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from jax.typing import ArrayLike
from jaxtyping import Array

from .._row.state import RowStats
from . import checks
from .arguments import check_rows, check_terms, taken_terms
from .label_losses import log_probs_of_rows, loss_of_rows, stats_of_rows
from .options import CrossEntropy, SoftCrossEntropy, Statistics, completed, takes


@takes(CrossEntropy)
def cross_entropy(logits: ArrayLike, labels: ArrayLike, **options: Unpack[CrossEntropy]) -> Any:
    """Cross-entropy of integer labels under ``softmax(logits)``.

    With ``u = softcap * tanh(logits / softcap) / temperature`` and ``p = softmax(u)``, the loss of a row with label y is

        (1 - eps) w phi(-log p_y) + eps sum_j pi_j (-log p_j)
            + w (z_loss lse^2 - entropy_weight H(p) + poly_epsilon (1 - p_y))

    where eps = ``label_smoothing``, w = ``class_weights[y]``, ``phi(x) = (1 - exp(-x))^focal_gamma x``,
    ``pi_j = class_weights[j] / v`` (1 / v without class weights; v counts the classes that are not masked),
    ``lse = log sum_j exp u_j`` and H the entropy.

    Args:
        logits: floating array of any rank, the classes along ``axis``. Computed in float32 (float64 for float64). A -inf
            logit is a masked class. A finite one never is: the lowest number of a dtype, as in action masks, has probability
            0 and adds 0 to every term that does not ask for it, at any temperature; what would pass the dtype's range stops
            at its largest number. +inf in a row makes it NaN.
        labels: integer array (any width, signed or not) of the shape of ``logits`` without ``axis``. An id outside
            ``[0, v)`` that is not ``ignore_index`` gives that row a NaN loss and a zero gradient; it never wraps.
        axis: the class axis.
        where: boolean (or integer, 0 is False), the labels' shape; rows where it is False give 0 and get an exactly zero
            gradient, even from NaN.
        row_weights: floating, the labels' shape; differentiable. Negative weights are meant for "none", "sum" and
            "loss_sum". A zero weight removes a row even if its loss is NaN or inf.
        class_weights: floating ``(v,)``, not negative; differentiable. With smoothing as in PyTorch.
        class_mask: boolean (or integer, 0 is False) ``(v,)`` or the logits' shape; False removes a class: the loss is that
            of the smaller vocabulary, with every option. A label on a removed class has loss +inf, and a finite gradient.
        ignore_index: static integer; rows with this label are ignored like ``where`` False.
        label_smoothing: in [0, 1].
        z_loss: at least 0; the weight of ``lse^2``.
        focal_gamma: at least 0; acts on the label's term only.
        poly_epsilon: the weight of ``1 - p_y``.
        entropy_weight: the weight of the entropy bonus (subtracted).
        softcap: static positive number, or None.
        temperature: above 0; divides the logits after the soft cap. An array is differentiable. One below the smallest
            normal number (1.2e-38) counts as that; a traced one that is not above 0 gives NaN.
        reduction: "mean", ``sum_i r_i loss_i / sum_i r_i w_i`` over valid rows (r: row weights), 0 if there are none; "sum"
            the numerator; "none" the weighted losses; "loss_sum" numerator and denominator as a :class:`LossSum`.
        axis_name: inside ``jax.shard_map``, the mesh axis over which the classes are split (each device holds a
            consecutive block of logits, ``class_weights`` and ``class_mask``; labels are global ids).
        implementation: None chooses; ``explain`` says what and why. "reference" also has forward mode; "pallas_tpu" has
            kernels of a TPU for given logits.

    Scalar options take a Python number or a scalar array: arrays are traced, so a schedule compiles once. Without x64 JAX
    has 32-bit integers: 64-bit labels of NumPy beyond them are classes out of range, and a traced caller's are cut by JAX
    before they come here.

    Returns:
        Loss in nats, float32 (float64 for float64 logits): a scalar, the labels' shape for "none", or a ``LossSum``.

    Raises:
        TypeError, ValueError: for a wrong rank, shape, dtype, range of a Python number, or an unknown reduction or
            implementation. TypeError by JAX under forward mode (jvp, jacfwd, linearize): use ``implementation="reference"``.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
        >>> print(crossent_jax.cross_entropy(logits, jnp.array([0, 1])).round(4))
        0.1672
        >>> print(crossent_jax.cross_entropy(logits, jnp.array([0, -1]), ignore_index=-1, reduction="none").round(4))
        [0.2395 0.    ]

    Sources: label smoothing, Szegedy et al. 2016, section 7; focal loss, Lin et al. 2017, eq. 4; z-loss, PaLM 2022,
    section 5; Poly-1, Leng et al. 2022, eq. 6; soft cap, Gemma 2 2024, section 2.
    """
    return _loss(cross_entropy, logits, options, labels=labels)


@takes(SoftCrossEntropy)
def soft_cross_entropy(logits: ArrayLike, targets: ArrayLike, **options: Unpack[SoftCrossEntropy]) -> Any:
    """Cross-entropy of target distributions under ``softmax(logits)``: ``H(t, p) = -sum_j t_j log p_j``.

    The formula and the options are those of :func:`cross_entropy` with ``-log p_y`` replaced by ``h = -sum_j s_j log p_j``,
    ``1 - p_y`` by ``sum_j s_j (1 - p_j)``, the focal factor by ``(1 - exp(-h))^gamma``. Without class weights s is t and w
    is 1; with them ``w = sum_j class_weights[j] t_j`` and ``s_j = class_weights[j] t_j / w`` (as in PyTorch).

    Args:
        logits: floating array, the classes along ``axis``.
        targets: floating array of the logits' shape: probabilities, differentiable. They need not sum to 1 (the formula is
            linear in them); ``guards.values()`` demands that they do. A target of 0 on a masked class adds 0, any other
            makes the loss +inf.
        where, row_weights, ...: as in :func:`cross_entropy`. The mean divides by the sum of the row weights.

    Returns:
        Loss in nats, float32 (float64 for float64 logits): a scalar, the batch shape for "none", or a ``LossSum``.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`; integer ``targets`` are refused.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> logits, targets = jnp.zeros((1, 4)), jnp.array([[0.5, 0.5, 0.0, 0.0]])
        >>> print(crossent_jax.soft_cross_entropy(logits, targets).round(4))
        1.3863

    Source: Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), section 2.
    """
    return _loss(soft_cross_entropy, logits, options, targets=targets)


@takes(Statistics)
def token_log_probs(logits: ArrayLike, labels: ArrayLike, **options: Unpack[Statistics]) -> Array:
    """Log-probability of each label: ``log softmax(u)[y]``, differentiable, at most 0.

    Args:
        logits, labels, ...: as in :func:`cross_entropy`.

    Returns:
        Nats, the labels' shape, float32 (float64 for float64 logits); 0 for ignored rows, -inf for a masked label, NaN
        for a label out of range.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> print(crossent_jax.token_log_probs(jnp.array([[0.0, jnp.log(3.0)]]), jnp.array([1])).round(4))
        [-0.2877]
    """
    spec, rows = check_rows("token_log_probs", logits, labels=labels, **completed(token_log_probs, options))
    return log_probs_of_rows(spec, rows)


@takes(Statistics)
def row_stats(logits: ArrayLike, labels: ArrayLike, **options: Unpack[Statistics]) -> RowStats:
    """Every statistic of each row: the numbers that losses are made of, each differentiable but ``argmax``.

    ``lse = log sum_j exp u_j``, ``nll = -log p_y``, ``ce_prior = -1/v sum_j log p_j``, ``entropy = -sum_j p_j log p_j``,
    ``target_probability = p_y``, ``argmax`` the lowest index of the largest logit. Write a loss of your own in
    ``jax.numpy`` on them and JAX differentiates it; statistics that you do not use cost nothing under ``jit``.

    Args:
        logits, labels, ...: as in :func:`cross_entropy`.

    Returns:
        :class:`RowStats` with fields of the labels' shape; 0 (``argmax``: -1) for ignored rows.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> stats = crossent_jax.row_stats(jnp.zeros((1, 8)), jnp.array([5]))
        >>> print(stats.entropy.round(4), stats.argmax)
        [2.0794] [0]
    """
    spec, rows = check_rows("row_stats", logits, labels=labels, **completed(row_stats, options))
    return stats_of_rows(spec, rows)


def _loss(function: Callable, logits: ArrayLike, options: Mapping, **target: ArrayLike) -> Any:
    given = completed(function, options)
    terms, reduction = taken_terms(given), given.pop("reduction")
    spec, rows = check_rows(function.__name__, logits, **target, **given)
    return loss_of_rows(spec, checks.reduction(reduction), rows, check_terms(**terms))
