"""Linear losses of arrays that are split over a mesh, each array moved once; of contrastive ones see ``sharded_pairs``."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from .._row.reduce import LossSum
from . import checks
from .dispatch import inside_sharded
from .linear import (
    linear_cross_entropy,
    linear_loss,
    linear_row_stats,
    linear_soft_cross_entropy,
    linear_token_log_probs,
)
from .linear_divergence import linear_divergence
from .mesh_specs import (
    ARRAYS,
    HEADS,
    HIDDEN,
    OF_CLASSES,
    OF_LOGITS,
    OF_ROWS,
    mapped,
    names_of,
    parted,
    refuse_made_here,
    require_spec,
)
from .moved import movement
from .options import completed
from .sharded_pairs import CONTRASTIVE, sharded_pairs

FUNCTIONS = (
    linear_cross_entropy,
    linear_soft_cross_entropy,
    linear_token_log_probs,
    linear_row_stats,
    linear_loss,
    linear_divergence,
)
MADE_HERE = ("axis_name", "sequence_axis_name")


class Layout(NamedTuple):
    """Which mesh axes split what. ``rows``: of each batch axis, but for the axis of the classes; ``gathered``: the batch
    axis of hidden states that this one splits (None: none); ``features``: of a head; ``vocab_axes``: of the two heads."""

    rows: tuple[tuple[str, ...], ...]
    classes: str | None
    gathered: int | None
    features: tuple[str, ...]
    vocab_axes: dict[str, int]

    @property
    def axes(self) -> tuple[str, ...]:
        """All that split rows."""
        return tuple(name for names in self.rows for name in names)

    def spec(self, name: str, x) -> P:
        """Of an argument of this name."""
        rows: list[Any] = [names or None for names in self.rows]
        if name in HIDDEN:
            if self.gathered is not None:
                rows[self.gathered] = (*self.rows[self.gathered], self.classes)
            return P(*rows)
        if name in HEADS:
            both = (self.features or None, self.classes)
            return P(*both) if self.vocab_axes[name] else P(*both[::-1])
        if name in OF_ROWS:
            return P(*rows)
        if name in OF_CLASSES and jnp.ndim(x) == 1:
            return P(self.classes)
        return P(*rows, self.classes) if name in OF_LOGITS + OF_CLASSES else P()

    def fix(self, name: str, axis: int) -> str:
        """What to do where devices do not divide an axis of an argument of this name."""
        if name not in HEADS:
            return "Pad this axis, and mask the padding with where."
        if axis == self.vocab_axes[name]:
            return "Pad the head, and mask the padding with class_mask."
        return "Split its features over fewer devices."

    def gather(self, name: str, x):
        """What a device needs of an argument of this name: all features, and all rows of its devices of the classes."""
        if name in HIDDEN and self.gathered is not None:
            return jax.lax.all_gather(x, self.classes, axis=self.gathered, tiled=True)
        if name in HEADS and self.features:
            return jax.lax.all_gather(x, self.features, axis=1 - self.vocab_axes[name], tiled=True)
        return x


def sharded(function: Callable, *, hidden: P, head: P, labels: P | None = None) -> Callable:
    """A linear or contrastive loss of arrays that are split over the ambient mesh (``jax.set_mesh``), each moved once.

    Under ``jax.jit`` the types of arrays on an Auto mesh do not say how they are split, and a loop over chunks of rows may
    gather a head, or add up its gradient over devices, in every chunk. Here the specs say it, and the loss runs inside
    ``jax.shard_map``:

    ==================================  ============================================================================
    split                               what travels
    ==================================  ============================================================================
    rows (batch, sequence)              the sum of the losses, once the head's gradient; with ``shift`` the borders
    vocabulary                          a few numbers a row, once the gradient of the hidden states
    features of the head                the head, gathered once; the sum of its gradient, scattered once
    rows, by the vocabulary's axis too  hidden states, gathered once; the sum of their gradient, scattered once
    queries and keys                    the keys, gathered once; the sum of their gradient, scattered once
    ==================================  ============================================================================

    Args:
        function: ``linear_cross_entropy``, ``linear_soft_cross_entropy``, ``linear_token_log_probs``, ``linear_row_stats``,
            ``linear_loss`` or ``linear_divergence``; or ``info_nce`` or ``sigmoid_contrastive``: then ``hidden`` is the spec
            of the queries and ``head`` that of the keys, both the same, of one mesh axis that splits the batch.
        hidden: the spec of the hidden states, ``(..., d)``. Their batch axes may be split by any mesh axes, d by none.
        head: the spec of the head. Its vocabulary may be split by one mesh axis; its features by axes that split rows too
            (parameters split over the devices of a batch).
        labels: the spec of the labels; None: that of the batch axes of the hidden states. What belongs to rows or classes
            (``where``, ``bias``, ``targets``, ``row_args``, a teacher's arrays, ...) is split as these are.

    Returns:
        A function of the same arguments and results, but without ``axis_name`` and ``sequence_axis_name``, which it makes.
        Values and gradients are those of the whole arrays. Losses of rows are split as labels are, without the axis of the
        vocabulary. Within another ``jax.shard_map`` it takes the axes that are left, and a gradient one product more.

    Raises:
        TypeError, ValueError: for another function; a spec that names an axis that the ambient mesh has not, or one twice,
            that splits the features of hidden states, or the head's features over devices that do not split rows; an axis of
            an array that its devices do not divide; labels split unlike the hidden states; a sequence split by several axes,
            with ``shift``; and what the function raises, in the shapes of whole arrays. A second derivative is JAX's
            NotImplementedError where the vocabulary is split.

    Example:
        >>> import jax, jax.numpy as jnp, crossent_jax
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        >>> loss = crossent_jax.sharded(
        ...     crossent_jax.linear_cross_entropy, hidden=jax.P("data", None, None), head=jax.P(None, "model")
        ... )
        >>> with jax.set_mesh(mesh):
        ...     print(jax.jit(loss)(jnp.ones((2, 3, 4)), jnp.zeros((4, 8)), jnp.zeros((2, 3), int)).round(4))
        2.0794
    """
    if function not in FUNCTIONS + CONTRASTIVE:
        raise TypeError(f"sharded takes {', '.join(f.__name__ for f in FUNCTIONS + CONTRASTIVE)}; got {function!r}.")
    given = {"hidden": hidden, "head": head} | ({} if labels is None else {"labels": labels})
    for name, spec in given.items():
        require_spec(name, spec)
    if function in CONTRASTIVE:
        return sharded_pairs(function, given)

    @wraps(function)
    def run(*arguments, **options):
        call = _call(function, arguments, options)
        layout = _layout(given, call)
        specs = {name: jax.tree.map(partial(layout.spec, name), x) for name, x in call.arrays.items()}

        axes = _axes(layout, call.static.get("shift", 0))
        inside = call._replace(first=[_of_device(loss_fn) for loss_fn in call.first])

        def here(arrays):
            loss, named = _loss_of(function, inside, {name: layout.gather(name, x) for name, x in arrays.items()})
            return _reduced(layout, loss, call.static | named | axes)

        def whole(arrays):
            loss, named = _loss_of(function, call, arrays)
            return loss(**call.static, **named)

        of_tokens = call.static.get("reduction", "none") == "none"
        out_specs = layout.spec("labels", None) if of_tokens else P()
        with inside_sharded(partial(movement, layout, function.__name__, call.first, call.arrays, call.static)):
            return mapped(here, whole, call.arrays, specs, out_specs, layout.fix)

    return run


def _loss_of(function: Callable, call: "_Call", arrays: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """The loss of arrays, all of which have been passed on but those that are named."""
    arrays = dict(arrays)
    positional = [arrays.pop(name) for name in call.positional]
    return partial(function, *call.first, *positional, *arrays.pop("row_args", ())), arrays


def _of_device(loss_fn: Any) -> Any:
    """The ``loss_fn`` of ``linear_loss``, whose errors, where it has none on whole arrays, say what to do. JAX (to 0.10.2 at
    least) takes no closed-over array into a ``jax.shard_map`` that lies on Explicit axes, and one on Auto axes with the type
    that it has outside, which not every operation likes."""

    def of_device(*arguments):
        try:
            return loss_fn(*arguments)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(
                "loss_fn must be a function that JAX can run inside jax.shard_map, as sharded does; got one that runs on "
                "whole arrays alone. If it closes over an array x, pass it as one of row_args: "
                f"jnp.broadcast_to(x, labels.shape + x.shape), of which each row gets x. JAX says: {error}"
            ) from error

    return of_device if callable(loss_fn) else loss_fn


class _Call(NamedTuple):
    """The arguments of a loss: what stands before the hidden states; arrays, by name, and which of them have no name in a
    call; all other options."""

    first: list
    positional: list[str]
    arrays: dict[str, Any]
    static: dict[str, Any]


def _call(function: Callable, arguments: tuple, options: dict[str, Any]) -> _Call:
    """From what the function is called with."""
    signature = inspect.signature(function)
    without_default = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    named = {name: options.pop(name) for name in without_default if name in options}
    options = completed(function, options)
    refuse_made_here(options, MADE_HERE)
    checks.reduction(options.get("reduction", "none"))
    if options.get("segment_ids") is not None:
        options["segment_ids"] = checks.renumbered(options["segment_ids"])[0]
    values = options | signature.bind(*arguments, **named).arguments
    first = [values.pop(name) for name in without_default if name not in ARRAYS]
    arrays, static = parted(values, ARRAYS)
    arrays = {name: jax.tree.map(partial(checks.array, name), x, is_leaf=_is_array) for name, x in arrays.items()}
    return _Call(first, [name for name in without_default if name in arrays], arrays, static)


def _is_array(x) -> bool:
    """A list of numbers is one, a tuple of arrays is not."""
    return not isinstance(x, tuple)


def _reduced(layout: Layout, loss: Callable, options: dict[str, Any]):
    """The result of all devices."""
    reduction = options.get("reduction", "none")
    if reduction == "none":
        return loss(**options)
    if reduction == "sum":
        return _summed(layout, loss(**options))
    of_device = loss(**options | {"reduction": "loss_sum"})
    whole = LossSum(*(_summed(layout, x) for x in of_device))
    return whole if reduction == "loss_sum" else whole.mean()


def _summed(layout: Layout, x):
    return jax.lax.psum(x, layout.axes) if layout.axes else x


def _axes(layout: Layout, shift: int) -> dict[str, str]:
    """The names that the loss itself takes."""
    of_sequence = layout.rows[-1] if shift and layout.rows else ()
    if len(of_sequence) > 1:
        raise ValueError(
            f"with shift one mesh axis at most may split the sequence, the last batch axis of hidden; got {of_sequence}. "
            "Split the batch over the others."
        )
    names = {"axis_name": layout.classes, "sequence_axis_name": next(iter(of_sequence), None)}
    return {key: name for key, name in names.items() if name is not None}


# --- from specs to a layout ------------------------------------------------------------------------


def _layout(given: dict[str, P], call: _Call) -> Layout:
    ndim, vocab_axis = call.arrays["hidden"].ndim, checks.head_vocab_axis(call.static["head_vocab_axis"])
    of_teacher = call.static.get("teacher_head_vocab_axis")
    vocab_axes = {
        "head": vocab_axis,
        "teacher_head": vocab_axis if of_teacher is None else checks.head_vocab_axis(of_teacher),
    }
    of_head = names_of(given["head"], 2, "head")
    if len(of_head[vocab_axis]) > 1:
        raise ValueError(f"one mesh axis at most may split the vocabulary; got head={given['head']}.")
    classes, features = next(iter(of_head[vocab_axis]), None), of_head[1 - vocab_axis]
    *batch, of_features = names_of(given["hidden"], ndim, "hidden")
    if of_features:
        raise ValueError(
            f"hidden={given['hidden']} splits the features of hidden states, their last axis: give None for it; got hidden "
            f"of shape {call.arrays['hidden'].shape}."
        )
    gathered = next((axis for axis, names in enumerate(batch) if classes in names), None)
    if gathered is not None and batch[gathered][-1] != classes:
        raise ValueError(f"{classes!r}, the axis of the vocabulary, must be the last of {batch[gathered]} in hidden's spec.")
    layout = Layout(_without(classes, batch), classes, gathered, features, vocab_axes)
    _require_busy(layout, given["head"])
    if "labels" in given and _without(classes, names_of(given["labels"], ndim - 1, "labels")) != layout.rows:
        raise ValueError(f"labels={given['labels']} must be split as the batch axes of hidden={given['hidden']}.")
    return layout


def _require_busy(layout: Layout, head: P) -> None:
    """Demand that devices with other features of the head have other rows."""
    idle = [name for name in layout.features if name not in layout.axes]
    if idle:
        vocab_axis = layout.vocab_axes["head"]
        meant = P(idle[0], None) if vocab_axis == 0 else P(None, idle[0])
        raise ValueError(
            f"head={head} splits features, axis {1 - vocab_axis} of head, over {idle[0]!r}, over which rows are not split: "
            f"its devices would all do the same. If the vocabulary is meant, axis {vocab_axis} of head, give head={meant}; "
            "for features split a batch axis of hidden over it too."
        )


def _without(classes: str | None, axes: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(name for name in names if name != classes) for names in axes)
