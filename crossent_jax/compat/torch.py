"""The cross-entropy and KL losses of ``torch.nn.functional`` (2.13), with PyTorch's semantics, for JAX arrays.

    from crossent_jax.compat import torch as F

Class axis 1, PyTorch's denominators, NaN for the mean of nothing, +inf where label smoothing meets a -inf logit: as there.
The differences, each of them a test:

| function | input | PyTorch | here |
|---|---|---|---|
| all | bfloat16 or float16 | result in that dtype | float32 |
| ``cross_entropy`` | label outside ``[0, C)``, not ``ignore_index`` | error | NaN loss, zero gradient for that row |
| ``cross_entropy`` | weight 0 or target 0 at a class of loss +inf | NaN | adds 0 |
| ``cross_entropy`` | NaN in an ignored row | NaN gradient | zero gradient |
| with ``weight``, ``pos_weight`` | their gradient | error | the derivative |
| ``kl_div`` | target 0 (log-target -inf), its gradient; or with input -inf | NaN | 0 |
| ``kl_div`` | ``reduction="mean"`` | warning that it is not the divergence | none; "batchmean" is the divergence |
| ``binary_cross_entropy_with_logits`` | infinite input on the target's side | NaN | 0 |

The deprecated ``size_average`` and ``reduce`` are not here, and arguments that follow them in PyTorch are keyword-only.
Everything is in nats, float32 (float64 for float64 input); any array-like is taken.
"""

import numbers
from functools import partial

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._api import checks
from .._api.binary import binary_cross_entropy
from .._api.cross_entropy import cross_entropy as index_cross_entropy
from .._api.cross_entropy import soft_cross_entropy
from .._jax.dtypes import statistics_dtype
from .._pairs import integrands
from .._row.block import along_axis
from .._row.losses import times
from .._row.reduce import keep, valid_rows


def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float | Array = 0.0,
    implementation: str | None = None,
) -> Array:
    """Cross-entropy of class ids or class probabilities under ``p = softmax(input)`` over axis 1 (0 for 1-D input).

    With ``eps = label_smoothing`` and, for class ids y, ``t = onehot(y)``, the loss of a row is

        sum_c w_c ((1 - eps) t_c + eps / C) (-log p_c)

    and 0 for a row with the label ``ignore_index``.

    Args:
        input: floating ``(C,)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: integer class ids of the input's shape without the class axis, or floating probabilities of the input's
            shape, of any sum. The dtype decides which.
        weight: floating ``(C,)``, not negative.
        ignore_index: rows with this label are left out; with probabilities it must be negative, as in PyTorch.
        reduction: "none"; "sum"; "mean", which divides by the sum of ``weight[y]`` over the rows not ignored (class ids), or
            by the number of rows (probabilities). The mean of no rows is NaN.
        label_smoothing: in [0, 1].
        implementation: as in :func:`crossent_jax.cross_entropy`; "reference" also has forward mode.

    Returns:
        A scalar, or for "none" the shape without the class axis.

    Raises:
        TypeError, ValueError: for a wrong shape or dtype, an unknown reduction, or a value out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import torch as F
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
        >>> print(f"{F.cross_entropy(logits, jnp.array([0, -100])):.4f}")
        0.2395

    Source: ``torch.nn.functional.cross_entropy``; differences in the module's table.
    """
    _check_reduction(reduction, ("none", "mean", "sum"))
    input, target = checks.floating("input", input), checks.array("target", target)
    if input.ndim == 0:
        raise ValueError("input must have a class axis; got a scalar. Pass (C,), (N, C) or (N, C, d1, ..., dK).")
    axis = 1 if input.ndim > 1 else 0
    weight = checks.class_weights(weight, input.shape[axis], "weight")
    ignore_index = _static_integer("ignore_index", ignore_index)
    options = dict(axis=axis, class_weights=weight, label_smoothing=label_smoothing, implementation=implementation)
    if jnp.issubdtype(target.dtype, jnp.floating):
        if ignore_index >= 0:
            raise ValueError(f"ignore_index is for class ids, and target holds probabilities; got {ignore_index}.")
        checks.same_shape("target", target, input.shape, "input's shape, for probabilities,", "Class ids are integers.")
        loss, valid = partial(soft_cross_entropy, **options), None
    else:
        ids = tuple(n for i, n in enumerate(input.shape) if i != axis)
        checks.same_shape("target", target, ids, "input's shape without the class axis,", "Probabilities are floating.")
        loss = partial(index_cross_entropy, ignore_index=ignore_index, **options)
        valid = valid_rows(target, None, ignore_index)
    extra = keep(valid, _smoothing_of_masked(input, weight, label_smoothing, axis))
    if reduction == "none":
        return loss(input, target, reduction="none") + extra
    sums = loss(input, target, reduction="loss_sum")
    total = sums.total + jnp.sum(extra)
    return total if reduction == "sum" else total / sums.weight


def kl_div(input: ArrayLike, target: ArrayLike, *, reduction: str = "mean", log_target: bool = False) -> Array:
    """``t (log t - input)``, elementwise, then reduced: the divergence KL(t || p) for "batchmean" and ``input = log p``.

    Args:
        input: floating, log-probabilities.
        target: floating, probabilities, or their logs with ``log_target``; broadcast with the input.
        reduction: "none"; "sum"; "mean", over all elements; "batchmean", the sum divided by the first size of ``input``.
        log_target: static.

    Returns:
        A scalar, or for "none" the broadcast shape; +inf where t > 0 and input is -inf. Every mode of differentiation works.

    Raises:
        TypeError, ValueError: for a wrong dtype, shapes that do not broadcast, or an unknown reduction.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import torch as F
        >>> loss = F.kl_div(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[1.0, 0.0]]), reduction="batchmean")
        >>> print(f"{loss:.4f}")
        0.6931

    Source: ``torch.nn.functional.kl_div``; differences in the module's table.
    """
    _check_reduction(reduction, ("none", "mean", "sum", "batchmean"))
    input, target = checks.floating("input", input), checks.floating("target", target)
    pair_of = integrands.from_logs if log_target else integrands.from_probabilities
    elements = integrands.kl(pair_of(*_broadcast(input, target)))
    if reduction == "batchmean":
        return jnp.sum(elements) / (input.shape[0] if input.ndim else 1)
    return _reduce(elements, reduction)


def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: str = "mean",
    pos_weight: ArrayLike | None = None,
) -> Array:
    """``weight (-pos_weight t log p - (1 - t) log(1 - p))`` with ``p = sigmoid(input)``, elementwise, then reduced.

    Args:
        input: floating.
        target: the input's shape; boolean, integer or floating, outside [0, 1] the formula holds as it stands.
        weight: floating, broadcast to the input's shape.
        reduction: "none"; "sum"; "mean", over all elements, whatever the weights.
        pos_weight: floating, broadcast to the input's shape: one per class, for instance.

    Returns:
        A scalar, or for "none" the input's shape. Every mode of differentiation works.

    Raises:
        TypeError, ValueError: for a wrong shape or dtype, or an unknown reduction.

    Example:
        >>> import jax.numpy as jnp
        >>> from crossent_jax.compat import torch as F
        >>> loss = F.binary_cross_entropy_with_logits(jnp.zeros(2), jnp.array([1.0, 0.0]), pos_weight=jnp.array(3.0))
        >>> print(f"{loss:.4f}")
        1.3863

    Source: ``torch.nn.functional.binary_cross_entropy_with_logits``; differences in the module's table.
    """
    _check_reduction(reduction, ("none", "mean", "sum"))
    input = checks.floating("input", input)
    target = checks.same_shape("target", checks.array("target", target), input.shape, "input's shape")
    loss = partial(binary_cross_entropy, reduction="none")
    if pos_weight is None:
        elements = loss(input, target)
    else:
        each = jnp.vectorize(lambda z, y, positive: loss(z, y, pos_weight=positive))
        elements = each(input, target, _to_shape("pos_weight", pos_weight, input.shape))
    if weight is not None:
        elements = times(_to_shape("weight", weight, input.shape).astype(elements.dtype), elements)
    return _reduce(elements, reduction)


def _check_reduction(reduction: str, known: tuple[str, ...]) -> None:
    if reduction not in known:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, known))}; got {reduction!r}.")


def _reduce(elements: Array, reduction: str) -> Array:
    return {"none": lambda x: x, "sum": jnp.sum, "mean": jnp.mean}[reduction](elements)


def _static_integer(name: str, value) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a Python integer; got {value!r}.")
    return int(value)


def _broadcast(input: Array, target: Array) -> list[Array]:
    try:
        return jnp.broadcast_arrays(input, target)
    except ValueError:
        raise ValueError(f"input and target must broadcast; got shapes {input.shape} and {target.shape}.") from None


def _to_shape(name: str, value, shape: tuple[int, ...]) -> Array:
    value = checks.floating(name, value)
    try:
        return jnp.broadcast_to(value, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to input's shape {shape}; got {value.shape}.") from None


def _smoothing_of_masked(input: Array, weight, label_smoothing, axis: int) -> Array:
    """+inf for the rows where smoothing puts mass on a -inf logit, from which the core takes it away; 0 elsewhere."""
    dtype = statistics_dtype(input.dtype)
    if isinstance(label_smoothing, numbers.Real) and label_smoothing == 0:
        return jnp.zeros(checks.batch_shape(input, axis), dtype)
    masked = input == -jnp.inf
    if weight is not None:
        masked &= along_axis(checks.class_weights(weight, input.shape[axis], "weight") != 0, input.ndim, axis)
    reached = jnp.any(masked, axis) & (jnp.asarray(label_smoothing) > 0)
    return jnp.where(reached, jnp.inf, 0).astype(dtype)
