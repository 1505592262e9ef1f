"""From the arguments of a divergence to a checked call, and its loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import guards
from .._dense.shards import total_classes
from .._jax.dtypes import statistics_dtype
from .._jax.versions import is_concrete
from .._linear.describe import describe
from .._linear.projection import Projection
from .._linear.shift import Shift
from .._linear.spec import LinearSpec
from .._pairs.kinds import KINDS, ORDERED, Kind, of_order, of_user
from .._pairs.loss import PairRows, PairSpec, TopK
from .._pairs.rows import linear_pair_loss, linear_pair_loss_jitted, pair_loss, pair_loss_jitted
from .._row.labels import NOT_HERE, class_index
from .._row.reduce import keep, valid_rows
from .._row.user_loss import function_key
from ..backends.record import Backend, Problem
from . import checks
from .arguments import check_logit_values, check_projection_values
from .dispatch import select

TAILS = ("bucket", "renormalize")


class _Options(NamedTuple):
    """What dense and linear divergences share: a checked spec, the rows' arrays, and whether a compilation can be shared."""

    spec: PairSpec
    rows: PairRows
    shareable: bool


def divergence_of(function: str, logits, teacher_logits, *, axis=-1, class_mask=None, reduction="mean", **given):
    """Check a call on two arrays of logits, and run it."""
    z, axis = checks.logits(logits, axis)
    w = checks.teacher_logits(teacher_logits, z)
    mask = checks.class_mask(class_mask, z, axis)
    z, w = jnp.moveaxis(z, axis, -1), jnp.moveaxis(w, axis, -1)
    mask = mask if mask is None or mask.ndim == 1 else jnp.moveaxis(mask, axis, -1)
    if checks.flag("stop_teacher_gradient", given.pop("stop_teacher_gradient")):
        w = jax.lax.stop_gradient(w)
    spec, rows, shareable = _checked(function, f"{z.dtype}{list(z.shape)} logits and a {w.dtype} teacher", z, **given)
    checks.split_over(spec.axis_name, "the classes", logits=z)
    if guards.enabled():
        for name, x in (("logits", z), ("teacher_logits", w)):
            check_logit_values(name, x, -1, rows.valid)
    run = pair_loss_jitted if shareable else pair_loss
    rows = rows._replace(logits=z, teacher=w)
    return run(spec, checks.reduction(reduction), mask, rows, _widest(z, w))


def linear_divergence_of(
    function: str,
    hidden,
    head,
    *,
    bias,
    head_vocab_axis,
    teacher_logits,
    teacher_hidden,
    teacher_head,
    teacher_bias,
    teacher_head_vocab_axis,
    teacher_top_k,
    top_k_tail,
    chunk_rows,
    memory_budget,
    logits_dtype,
    class_mask=None,
    reduction="mean",
    **given,
):
    """Check a call on hidden states and a head, and run it."""
    vocab_axis = checks.head_vocab_axis(head_vocab_axis)
    teacher_axis = vocab_axis if teacher_head_vocab_axis is None else checks.head_vocab_axis(teacher_head_vocab_axis)
    student = Projection(*checks.projection(hidden, head, bias, vocab_axis))
    linear = LinearSpec(vocab_axis, checks.limits(chunk_rows, memory_budget), checks.logits_dtype(logits_dtype), Shift())
    classes = student.head.shape[vocab_axis]
    z = jax.ShapeDtypeStruct((*student.hidden.shape[:-1], classes), student.hidden.dtype)
    _one_teacher(teacher_logits, teacher_hidden, teacher_head, teacher_top_k, teacher_bias)
    stopped = checks.flag("stop_teacher_gradient", given.pop("stop_teacher_gradient"))
    if top_k_tail is not None and teacher_top_k is None:
        raise ValueError(f"top_k_tail belongs to teacher_top_k, which is not given; got {top_k_tail!r}. Leave it out.")
    tail = TAILS[0] if top_k_tail is None else checks.one_of("top_k_tail", top_k_tail, TAILS)
    arrays = (
        f"{student.hidden.dtype}{list(student.hidden.shape)} hidden, {student.head.dtype}{list(student.head.shape)} head"
    )
    reduction = checks.reduction(reduction)
    spec, rows, shareable = _checked(
        function, arrays, z, scheme=lambda backend: describe(backend, linear, student, reduction, distributions=2), **given
    )
    checks.split_over(spec.axis_name, "its vocabulary", head=student.head)
    spec = spec._replace(tail=tail)
    side: Any = None
    teacher: Any = None
    if teacher_logits is not None:
        teacher = checks.teacher_logits(teacher_logits, z)
    elif teacher_top_k is not None:
        teacher = _top_k(teacher_top_k, z.shape[:-1], total_classes(classes, spec.axis_name), rows.valid)
    else:
        side = _teacher_projection(teacher_hidden, teacher_head, teacher_bias, teacher_axis, z)
    if stopped:
        side, teacher = jax.tree.map(_stopped, (side, teacher))
    if guards.enabled():
        check_projection_values(student, rows.valid)
        if side is not None:
            check_projection_values(side, rows.valid, "teacher_")
        if teacher_logits is not None:
            check_logit_values("teacher_logits", teacher, -1, rows.valid)
    mask = checks.class_mask(class_mask, z, -1)
    run = linear_pair_loss_jitted if shareable else linear_pair_loss
    dtype = _widest(*jax.tree.leaves((student, side)), *([] if teacher_logits is None else [teacher]))
    return run(spec, linear, teacher_axis, reduction, (student, side), mask, rows._replace(teacher=teacher), dtype)


def _checked(
    function: str,
    arrays: str,
    z,
    *,
    kind,
    beta,
    order,
    labels,
    label_weight,
    scale_by_temperature_squared,
    where,
    row_weights,
    ignore_index,
    softcap,
    temperature,
    axis_name,
    implementation,
    scheme: Callable[[Backend], str | None] = lambda backend: None,
) -> _Options:
    """``z``: shape and dtype of the logits, the classes last."""
    shape = z.shape[:-1]
    kind, parameter, shareable = _kind(kind, beta, order)
    problem = Problem(function, arrays, checks.axis_name(axis_name))
    backend = select(problem, implementation, scheme).name if shareable else "reference"
    spec = PairSpec(
        kind,
        backend,
        checks.softcap(softcap),
        problem.axis_name,
        checks.flag("scale_by_temperature_squared", scale_by_temperature_squared),
        TAILS[0],
    )
    valid, label, weight = _labels(
        z, labels, label_weight, checks.where(where, shape, z.shape), ignore_index, spec.axis_name
    )
    rows = PairRows(
        logits=None,
        teacher=None,
        label=label,
        valid=valid,
        row_weights=checks.row_weights(row_weights, shape),
        label_weight=weight,
        temperature=checks.scalar("temperature", temperature, low=0.0, above=True, off=1.0),
        parameter=parameter,
    )
    if guards.enabled():
        _check_values(rows)
    return _Options(spec, rows, shareable)


def _kind(kind, beta, order) -> tuple[Kind, Any, bool]:
    """``(kind, its parameter, whether calls with an equal one can share a compilation)``."""
    if callable(kind):
        _unused("order", order is not None, kind)
        _unused("beta", not _is_default(beta), kind)
        _check_integrand(kind)
        key = function_key(kind)
        return of_user(kind, object() if key is None else key, closes_over_arrays=key is None), None, key is not None
    names = (*KINDS, *ORDERED)
    if not isinstance(kind, str) or kind not in names:
        raise ValueError(
            f"kind must be one of {', '.join(map(repr, names))}, or a function (log_p, log_t) -> phi; got {kind!r}."
        )
    _unused("order", order is not None and kind not in ORDERED, kind)
    _unused("beta", kind != "js" and not _is_default(beta), kind)
    if kind in ORDERED:
        return of_order(kind, checks.order(kind, order)), None, True
    return KINDS[kind], checks.scalar("beta", beta, low=0.0, high=1.0, off=None) if kind == "js" else None, True


def _is_default(beta) -> bool:
    return isinstance(beta, float) and beta == 0.5


def _unused(name: str, given: bool, kind) -> None:
    if given:
        owner = {"order": "'renyi' and 'alpha'", "beta": "'js'"}[name]
        raise ValueError(
            f"{name} belongs to kind {owner}; got it with kind={kind!r}, where it would do nothing. Leave it out."
        )


def _check_integrand(function: Callable) -> None:
    """A user's integrand must be elementwise: the shape of its result tells."""
    probe = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    out = jax.eval_shape(function, probe, probe)
    if not (isinstance(out, tuple) and len(out) == 3):
        out = (out,)
    shapes = [getattr(x, "shape", None) for x in out]
    if shapes != [(2, 3)] * len(out):
        raise TypeError(
            "a function as kind must take (log_p, log_t) and return phi, or (phi, chi, tau), elementwise: of shape (2, 3) "
            f"for logarithms of shape (2, 3); got {shapes[0] if len(shapes) == 1 else shapes}."
        )


def _labels(z, labels, weight, where, ignore_index, axis_name):
    """``(valid rows, class ids as int32, weight)``."""
    if labels is None:
        for name, value in (("label_weight", weight), ("ignore_index", ignore_index)):
            if value is not None:
                raise ValueError(f"{name} belongs to labels; got {name}={value!r} without labels.")
        return where, None, None
    ignore_index = checks.ignore_index(ignore_index, labels)
    labels = checks.labels(labels, z, -1)
    valid = valid_rows(labels, where, ignore_index)
    classes = total_classes(z.shape[-1], axis_name)
    label = class_index(labels, classes)
    if guards.enabled():
        known = label >= 0
        guards.require("labels", labels, known if valid is None else known | ~valid, f"a class id in [0, {classes})")
    weight = checks.scalar("label_weight", 0.5 if weight is None else weight, low=0.0, high=1.0, off=None)
    return valid, keep(valid, label), weight


def _one_teacher(logits, hidden, head, top_k, bias) -> None:
    if (hidden is None) != (head is None):
        missing = "teacher_head" if head is None else "teacher_hidden"
        raise ValueError(f"teacher_hidden and teacher_head come together; {missing} is missing.")
    given = [
        name
        for name, value in (("teacher_logits", logits), ("teacher_hidden", hidden), ("teacher_top_k", top_k))
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(
            "give the teacher once: teacher_logits, or teacher_hidden and teacher_head, or teacher_top_k; got "
            f"{', '.join(given) or 'none of them'}."
        )
    if bias is not None and hidden is None:
        raise ValueError("teacher_bias belongs to teacher_hidden and teacher_head, which are not given.")


def _teacher_projection(hidden, head, bias, vocab_axis: int, z) -> Projection:
    side = Projection(*checks.projection(hidden, head, bias, vocab_axis, "teacher_"))
    if side.hidden.shape[:-1] != z.shape[:-1]:
        raise ValueError(
            f"teacher_hidden must have hidden's batch shape {z.shape[:-1]}; got {side.hidden.shape[:-1]}. Nothing is "
            "broadcast."
        )
    if side.head.shape[vocab_axis] != z.shape[-1]:
        raise ValueError(
            f"teacher_head has {side.head.shape[vocab_axis]} classes and head {z.shape[-1]}: both need the same vocabulary."
        )
    return side


def _top_k(given, shape, classes: int, valid) -> TopK:
    """Ids of no class, and those of a row that names a class twice, become -1, which makes the row's loss NaN."""
    indices, log_probs = checks.teacher_top_k(given, shape, classes)
    known = class_index(indices, classes)
    ordered = jnp.sort(known, -1)
    twice = jnp.any((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0), -1)
    if guards.enabled():
        ignored = jnp.zeros(shape, bool) if valid is None else ~valid
        guards.require(
            "the indices of teacher_top_k", indices, (known >= 0) | ignored[..., None], f"a class id in [0, {classes})"
        )
        guards.require("a row of teacher_top_k", twice, ~twice | ignored, "every class at most once")
    if guards.enabled() or is_concrete(log_probs):
        mass = jnp.sum(jnp.exp(log_probs.astype(jnp.float32)), -1)
        possible = ~(mass > 1 + max(1e-3, 8 * float(jnp.finfo(log_probs.dtype).eps)))
        guards.require(
            "the mass of teacher_top_k",
            mass,
            possible if valid is None else possible | ~valid,
            "log-probabilities of at most 1 in all: logits go through jax.nn.log_softmax, probabilities through jnp.log",
        )
    return TopK(jnp.where(twice[..., None], NOT_HERE, known), log_probs)


def _stopped(x: Array) -> Array:
    return jax.lax.stop_gradient(x)


def _widest(*arrays: Array) -> jnp.dtype:
    return max((statistics_dtype(x.dtype) for x in arrays), key=lambda dtype: dtype.itemsize)


def _check_values(rows: PairRows) -> None:
    guards.require_finite("row_weights", rows.row_weights)
    guards.require_between("temperature", rows.temperature, 0.0, jnp.inf, above=True)
    guards.require_between("beta", rows.parameter, 0.0, 1.0)
    guards.require_between("label_weight", rows.label_weight, 0.0, 1.0)
