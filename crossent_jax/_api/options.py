"""The options of the public functions: name, type and default of each, once.

A group is a typed dictionary whose annotations carry the defaults. A function takes ``**options: Unpack[T]`` for a T that
joins its groups, which is what type checkers and editors read; :func:`takes` writes the same into the signature that
``help`` shows, and :func:`completed` fills in the defaults and refuses a name that the signature does not have. What else a
new option needs is in ``CONTRIBUTING.md``.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypedDict, TypeVar, get_args, get_type_hints

from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .forward_mode import WAY_OUT, forward_mode_hint

Scalar = float | Array
F = TypeVar("F", bound=Callable[..., Any])

# --- groups ----------------------------------------------------------------------------------------


class Axis(TypedDict, total=False):
    """Where the classes are in given logits."""

    axis: Annotated[int, -1]


class Head(TypedDict, total=False):
    """How hidden states and a head are multiplied."""

    bias: Annotated[ArrayLike | None, None]
    head_vocab_axis: Annotated[int, 1]
    chunk_rows: Annotated[int | None, None]
    memory_budget: Annotated[int | None, None]
    logits_dtype: Annotated[DTypeLike | None, None]


class Shift(TypedDict, total=False):
    """Which label belongs to a hidden state."""

    shift: Annotated[int, 0]
    sequence_axis_name: Annotated[str | None, None]
    segment_ids: Annotated[ArrayLike | None, None]


class Where(TypedDict, total=False):
    """Which rows and which classes take part."""

    where: Annotated[ArrayLike | None, None]
    class_mask: Annotated[ArrayLike | None, None]


class Ignore(TypedDict, total=False):
    """What integer labels have besides."""

    ignore_index: Annotated[int | None, None]


class Terms(TypedDict, total=False):
    """The terms of a cross-entropy (``_row/losses.py`` has the formula)."""

    class_weights: Annotated[ArrayLike | None, None]
    label_smoothing: Annotated[Scalar, 0.0]
    z_loss: Annotated[Scalar, 0.0]
    focal_gamma: Annotated[Scalar, 0.0]
    poly_epsilon: Annotated[Scalar, 0.0]
    entropy_weight: Annotated[Scalar, 0.0]


class LogitMap(TypedDict, total=False):
    """From given to mapped logits."""

    softcap: Annotated[float | None, None]
    temperature: Annotated[Scalar, 1.0]


class Reduce(TypedDict, total=False):
    """From the losses of rows to the result."""

    row_weights: Annotated[ArrayLike | None, None]
    reduction: Annotated[str, "mean"]


class Run(TypedDict, total=False):
    """Where it runs."""

    axis_name: Annotated[str | None, None]
    implementation: Annotated[str | None, None]


class Beta(TypedDict, total=False):
    """The parameter of the Jensen-Shannon divergence."""

    beta: Annotated[Scalar, 0.5]


class Kind(TypedDict, total=False):
    """Which divergence."""

    kind: Annotated[str | Callable, "forward_kl"]
    order: Annotated[float | None, None]


class Teacher(TypedDict, total=False):
    """Hard labels beside a teacher, and how its side counts."""

    labels: Annotated[ArrayLike | None, None]
    label_weight: Annotated[Scalar | None, None]
    scale_by_temperature_squared: Annotated[bool, False]
    stop_teacher_gradient: Annotated[bool, False]


class TeacherOf(TypedDict, total=False):
    """The three ways to give the teacher of a projection."""

    teacher_logits: Annotated[ArrayLike | None, None]
    teacher_hidden: Annotated[ArrayLike | None, None]
    teacher_head: Annotated[ArrayLike | None, None]
    teacher_bias: Annotated[ArrayLike | None, None]
    teacher_head_vocab_axis: Annotated[int | None, None]
    teacher_top_k: Annotated[tuple[ArrayLike, ArrayLike] | None, None]
    top_k_tail: Annotated[str | None, None]


# --- what each function takes ----------------------------------------------------------------------


class SoftCrossEntropy(Axis, Where, Terms, LogitMap, Reduce, Run, total=False):
    """:func:`soft_cross_entropy`."""


class CrossEntropy(Axis, Where, Ignore, Terms, LogitMap, Reduce, Run, total=False):
    """:func:`cross_entropy`."""


class Statistics(Axis, Where, Ignore, LogitMap, Run, total=False):
    """:func:`token_log_probs` and :func:`row_stats`."""


class LinearSoftCrossEntropy(Head, Where, Terms, LogitMap, Reduce, Run, total=False):
    """:func:`linear_soft_cross_entropy`."""


class LinearCrossEntropy(Head, Shift, Where, Ignore, Terms, LogitMap, Reduce, Run, total=False):
    """:func:`linear_cross_entropy`."""


class LinearStatistics(Head, Shift, Where, Ignore, LogitMap, Run, total=False):
    """:func:`linear_token_log_probs` and :func:`linear_row_stats`."""


class LinearLoss(Head, Shift, Where, Ignore, LogitMap, Reduce, Run, total=False):
    """:func:`linear_loss`."""


class OneDivergence(Teacher, Axis, Where, Ignore, LogitMap, Reduce, Run, total=False):
    """A named divergence."""


class JSDivergence(Beta, OneDivergence, total=False):
    """:func:`js_divergence`."""


class Divergence(Kind, JSDivergence, total=False):
    """:func:`divergence`."""


class LinearDivergence(TeacherOf, Head, Kind, Beta, Teacher, Where, Ignore, LogitMap, Reduce, Run, total=False):
    """:func:`linear_divergence`."""


# --- signatures ------------------------------------------------------------------------------------


def takes(options: type) -> Callable[[F], F]:
    """A decorator: the signature names every option, with its default, in the place of ``**options``; JAX's refusal of
    forward mode names the option that has it."""

    def parameter(name: str, annotation: Any) -> inspect.Parameter:
        kind, default = get_args(annotation)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    hints = get_type_hints(options, include_extras=True)

    def with_signature(function: F) -> F:
        signature = inspect.signature(function)
        given = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        named = [parameter(name, annotation) for name, annotation in hints.items()]
        function = forward_mode_hint(WAY_OUT)(function)
        setattr(function, "__signature__", signature.replace(parameters=[*given, *named]))  # noqa: B010
        return function

    return with_signature


@functools.cache
def defaults_of(function: Callable) -> dict[str, Any]:
    """The options of a function of :func:`takes`, and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def completed(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options ``given`` to a function of :func:`takes`, and the defaults of the others."""
    defaults = defaults_of(function)
    unknown = [name for name in given if name not in defaults]
    if unknown:
        near = difflib.get_close_matches(unknown[0], defaults, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Its options are {', '.join(defaults)}."
        raise TypeError(f"{function.__name__}() got an unexpected keyword argument {unknown[0]!r}. {hint}")
    return {**defaults, **given}
