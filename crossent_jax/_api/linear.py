"""Losses of hidden states and a head, whose logits are never whole: the public functions, thin over ``_api.arguments`` and
``_api.label_losses``."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from jax.typing import ArrayLike
from jaxtyping import Array

from .._jax.versions import joint_axes
from .._linear.shift import to_hidden
from .._row.state import RowStats
from .._row.user_loss import UserLoss, trace
from . import checks
from .arguments import check_linear_rows, check_terms, taken_terms
from .label_losses import log_probs_of_rows, loss_of_rows, stats_of_rows, user_loss_of_call, user_loss_of_rows
from .options import LinearCrossEntropy, LinearLoss, LinearSoftCrossEntropy, LinearStatistics, completed, takes


@takes(LinearCrossEntropy)
def linear_cross_entropy(
    hidden: ArrayLike, head: ArrayLike, labels: ArrayLike, **options: Unpack[LinearCrossEntropy]
) -> Any:
    """Cross-entropy of integer labels under ``softmax(hidden @ head + bias)``, without holding these logits.

    The value, the options and the gradients are those of ``cross_entropy(hidden @ head + bias, labels, ...)`` with the
    product accumulated in float32. Rows go through in chunks. For a scalar reduction a differentiated call takes three
    matrix products and keeps the gradients until the backward pass; ``reduction="none"`` takes four and keeps a few numbers
    per row; a call that is not differentiated takes one. The gradient of a head or of hidden states that are not
    differentiated is not computed. Under ``jax.checkpoint`` the first pass takes one product, and the backward pass three or
    four: nothing is kept in between.

    Args:
        hidden: floating ``(..., d)``.
        head: floating ``(d, v)``, or ``(v, d)`` with ``head_vocab_axis=0`` (a tied embedding, without a transposed copy).
        labels: integer ``(...)``, as in :func:`cross_entropy`.
        bias: floating ``(v,)``. A bias of -inf masks its class.
        head_vocab_axis: the head's axis of length v, 1 or 0.
        chunk_rows: static; the most rows whose logits exist at once. None: as many as keep a chunk's float32 logits within
            half the memory of the head's float32 gradient (d / 2) or, on a GPU or TPU, 512 MiB if that is more; on a CPU at
            least d up to 256, 128, and 2**20 logits, at most half of the rows. Where no option reads more of a class, the
            512 MiB of a TPU are of exponentials, in the dtype of the products.
        memory_budget: static; instead of ``chunk_rows``, the most bytes to hold beside inputs and gradients (of one device,
            and a few numbers a row): the head's float32 gradient, unless all rows are one chunk, and of each row of a chunk
            its logits and their exponentials, 6 bytes a class in bfloat16 (4 on such a TPU). :func:`explain` says what comes
            of it.
        logits_dtype: the dtype to which a chunk's logits are rounded; None: not at all (float32; float64 for float64). With
            bfloat16 for bfloat16 inputs a GPU or TPU never writes them in float32.
        shift: static; the label of a hidden state stands ``shift`` places later on the last batch axis. ``shift=1`` with
            ``labels=tokens`` predicts the next token. Labels without such a state are ignored. What belongs to labels
            (``where``, ``row_weights``, ``segment_ids``, and the result for "none") is indexed like them.
        sequence_axis_name: inside ``jax.shard_map``, with ``shift``: the mesh axis over which the last batch axis is split.
            A device's last states then predict the first labels of the next one; without it these are ignored.
        segment_ids: integer ``(...)``, with ``shift``: a label in another segment than its hidden state is ignored.
        where, row_weights, ...: as in :func:`cross_entropy`. An ignored row has an exactly zero gradient and adds exactly
            nothing to the head's, even if its hidden state is NaN; in large problems on one device, or inside a fully manual
            ``jax.shard_map``, it costs no product.
        axis_name: inside ``jax.shard_map``, the mesh axis over which head and bias are split along the vocabulary.
        implementation: None chooses; "reference" also has forward mode, in bounded memory.

    hidden and head of different dtypes meet in the wider one. Gradients have the dtype of their primal; the head's is
    accumulated in float32.

    Returns:
        Loss in nats, float32 (float64 for float64): a scalar, the labels' shape for "none", or a ``LossSum``.

    Raises:
        TypeError, ValueError: as :func:`cross_entropy`; for shapes of hidden, head, bias and labels that do not fit (a head
            that looks transposed is named), ``chunk_rows`` below 1, a ``memory_budget`` that a chunk of one row does not fit
            into (it says by how much), ``segment_ids`` or ``sequence_axis_name`` without ``shift``, a sequence that is not
            split.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> hidden, head = jnp.eye(3), 2.0 * jnp.eye(3)
        >>> print(crossent_jax.linear_cross_entropy(hidden, head, jnp.array([0, 1, 2])).round(4))
        0.2395

    Sources: chunked rows with gradients in the forward pass, Hsu et al. 2024 (Liger, https://arxiv.org/abs/2410.10989),
    section 3; recomputing instead of keeping logits, Wijmans et al. 2024 (https://arxiv.org/abs/2411.09009), section 4.
    """
    return _loss(linear_cross_entropy, hidden, head, options, labels=labels)


@takes(LinearSoftCrossEntropy)
def linear_soft_cross_entropy(
    hidden: ArrayLike, head: ArrayLike, targets: ArrayLike, **options: Unpack[LinearSoftCrossEntropy]
) -> Any:
    """Cross-entropy of target distributions under ``softmax(hidden @ head + bias)``, without holding these logits.

    :func:`soft_cross_entropy` of ``hidden @ head + bias``; chunks and schemes are those of :func:`linear_cross_entropy`.

    Args:
        hidden, head, bias, ...: as in :func:`linear_cross_entropy`.
        targets: floating ``(..., v)``, as in :func:`soft_cross_entropy`; differentiable.

    Returns:
        Loss in nats, float32 (float64 for float64): a scalar, hidden's batch shape for "none", or a ``LossSum``.

    Raises:
        TypeError, ValueError: as :func:`linear_cross_entropy`; integer ``targets`` are refused.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> hidden, head, targets = jnp.ones((1, 2)), jnp.zeros((2, 4)), jnp.array([[0.5, 0.5, 0.0, 0.0]])
        >>> print(crossent_jax.linear_soft_cross_entropy(hidden, head, targets).round(4))
        1.3863
    """
    return _loss(linear_soft_cross_entropy, hidden, head, options, targets=targets)


@takes(LinearStatistics)
def linear_token_log_probs(
    hidden: ArrayLike, head: ArrayLike, labels: ArrayLike, **options: Unpack[LinearStatistics]
) -> Array:
    """Log-probability of each label under ``softmax(hidden @ head + bias)``, differentiable, without holding these logits.

    Args:
        hidden, head, labels, ...: as in :func:`linear_cross_entropy`.

    Returns:
        Nats, the labels' shape, float32 (float64 for float64); 0 for ignored labels, -inf for a masked one, NaN for one out
        of range.

    Raises:
        TypeError, ValueError: as :func:`linear_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> hidden, head, tokens = jnp.ones((1, 3, 2)), jnp.zeros((2, 4)), jnp.array([[1, 3, 2]])
        >>> print(crossent_jax.linear_token_log_probs(hidden, head, tokens, shift=1).round(4))
        [[ 0.     -1.3863 -1.3863]]
    """
    given = completed(linear_token_log_probs, options)
    call = check_linear_rows("linear_token_log_probs", hidden, head, labels=labels, only_nll=True, **given)
    return log_probs_of_rows(*call)


@takes(LinearStatistics)
def linear_row_stats(hidden: ArrayLike, head: ArrayLike, labels: ArrayLike, **options: Unpack[LinearStatistics]) -> RowStats:
    """Every statistic of each row of ``hidden @ head + bias``, differentiable but ``argmax``, without holding these logits.

    :func:`row_stats` of the product. Four products when differentiated, and O(n) memory between forward and backward. A
    scalar loss of one's own takes three with :func:`linear_loss`.

    Args:
        hidden, head, labels, ...: as in :func:`linear_cross_entropy`.

    Returns:
        :class:`RowStats` with fields of the labels' shape, in nats; 0 (``argmax``: -1) for ignored labels.

    Raises:
        TypeError, ValueError: as :func:`linear_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> stats = crossent_jax.linear_row_stats(jnp.ones((1, 2)), jnp.zeros((2, 8)), jnp.array([5]))
        >>> print(stats.entropy.round(4), stats.argmax)
        [2.0794] [0]
    """
    given = completed(linear_row_stats, options)
    return stats_of_rows(*check_linear_rows("linear_row_stats", hidden, head, labels=labels, **given))


@takes(LinearLoss)
def linear_loss(
    loss_fn: Callable[..., Array],
    hidden: ArrayLike,
    head: ArrayLike,
    labels: ArrayLike,
    *row_args: ArrayLike,
    **options: Unpack[LinearLoss],
) -> Any:
    """A loss of one's own of each row of ``hidden @ head + bias``, with fused gradients.

    ``loss_fn(stats, *row_args)`` gets one row: scalar statistics (:class:`RowStats`) and its slice of each of ``row_args``.
    It is mapped over the rows. For a scalar reduction its gradients are computed while a chunk's logits exist: three
    products, as in :func:`linear_cross_entropy`. Statistics that it does not read are not computed.

    Args:
        loss_fn: ``(stats, *row_args) -> scalar`` in ``jax.numpy``. Arrays that it closes over get gradients too, inside
            ``jax.shard_map`` (as ``sharded`` calls it) for a fourth product; ``row_args`` take none.
        hidden, head, labels, bias, ...: as in :func:`linear_cross_entropy`.
        *row_args: arrays ``(..., *)`` whose first axes are the labels' (advantages, old log-probabilities), indexed like
            them; differentiable. Those of ignored rows are 0.
        row_weights: multiply the loss; the mean divides by their sum.

    Returns:
        Float32 (float64 for float64): a scalar, the labels' shape for "none", or a ``LossSum``.

    Raises:
        TypeError, ValueError: as :func:`linear_cross_entropy`; for a ``loss_fn`` that does not return one floating scalar,
            and for ``row_args`` of another batch shape.

    Example:
        >>> import jax.numpy as jnp, crossent_jax
        >>> hidden, head, labels, advantages = jnp.ones((2, 2)), jnp.zeros((2, 4)), jnp.array([1, 3]), jnp.array([1.0, -1.0])
        >>> policy_gradient = lambda stats, advantage: advantage * stats.nll - 0.01 * stats.entropy
        >>> print(crossent_jax.linear_loss(policy_gradient, hidden, head, labels, advantages).round(4))
        -0.0139
    """
    given = completed(linear_loss, options)
    spec, rows = check_linear_rows("linear_loss", hidden, head, labels=labels, only_nll=None, **given)
    batch, shift = rows.target.shape, spec.shift
    row_args = tuple(checks.row_arg(f"row_args[{i}]", x, batch) for i, x in enumerate(row_args))
    row_args = tuple(to_hidden(shift, x, len(batch) - 1) if shift.places else x for x in row_args)
    traced = trace(loss_fn, row_args, len(batch), rows.dtype, joint_axes((rows, row_args)))
    run = user_loss_of_rows if traced.shareable else user_loss_of_call
    loss, reduction = UserLoss(traced.loss, traced.apart), checks.reduction(given["reduction"])
    return run(spec, reduction, loss, traced.reads, rows, row_args, traced.constants)


def _loss(function: Callable, hidden: ArrayLike, head: ArrayLike, options: Mapping, **target: ArrayLike) -> Any:
    given = completed(function, options)
    terms = taken_terms(given)
    checked = check_terms(**terms)
    only_nll = checked.label_smoothing is None and checked.entropy_weight is None
    spec, rows = check_linear_rows(function.__name__, hidden, head, only_nll=only_nll, **target, **given)
    return loss_of_rows(spec, checks.reduction(given["reduction"]), rows, checked)
