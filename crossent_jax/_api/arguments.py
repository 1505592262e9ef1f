"""From the arguments of a public function to a checked call: ``Spec``, ``Rows`` and ``LossOptions``."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .. import guards
from .._dense.shards import total_classes
from .._linear.describe import describe
from .._linear.projection import Projection
from .._linear.shift import Shift, to_hidden, to_labels, with_label
from .._linear.spec import LinearSpec, Rows, Spec
from .._row.block import is_soft
from .._row.labels import class_index
from .._row.losses import OPTION_RANGES, LossOptions
from .._row.reduce import valid_rows
from .._row.state import Maybe
from ..backends.record import Backend, Problem
from . import checks
from .dispatch import select


def check_rows(function: str, logits, *, axis, implementation, axis_name, **options) -> tuple[Spec, Rows]:
    """Guard every array of a call on logits, choose the backend, and run the value guards if they are on."""
    z, axis = checks.logits(logits, axis)
    problem = Problem(function, f"{z.dtype}{list(z.shape)} logits", checks.axis_name(axis_name), z, axis)
    checks.split_over(problem.axis_name, "the classes", logits=z)
    spec = Spec(select(problem, implementation).name, axis, None, None, problem.axis_name)
    return _checked(spec, z, z, **options)


def check_linear_rows(
    function: str,
    hidden,
    head,
    *,
    bias,
    head_vocab_axis,
    chunk_rows,
    memory_budget,
    logits_dtype,
    shift=0,
    sequence_axis_name=None,
    segment_ids=None,
    reduction="none",
    implementation,
    axis_name,
    labels=None,
    where,
    row_weights=None,
    only_nll: bool | None = False,
    **options,
) -> tuple[Spec, Rows]:
    """The same for a call on hidden states and a head. ``only_nll``: whether it reads no statistics but ``lse`` and those of
    labels; None: not known before the user's function is seen."""
    vocab_axis = checks.head_vocab_axis(head_vocab_axis)
    projection = Projection(*checks.projection(hidden, head, bias, vocab_axis))
    limits = checks.limits(chunk_rows, memory_budget)
    linear = LinearSpec(
        vocab_axis, limits, checks.logits_dtype(logits_dtype), checks.shift(shift, sequence_axis_name, axis_name)
    )
    z = jax.ShapeDtypeStruct((*projection.hidden.shape[:-1], projection.head.shape[vocab_axis]), projection.hidden.dtype)
    described = ", ".join(
        f"{x.dtype}{list(x.shape)} {name}" for name, x in (("hidden", projection.hidden), ("head", projection.head))
    )
    problem = Problem(function, described, checks.axis_name(axis_name))
    checks.split_over(problem.axis_name, "its vocabulary", head=projection.head)

    def scheme(backend: Backend) -> str:
        plain = labels is not None and options["softcap"] is None and _temperature(options["temperature"]) is None
        return describe(backend, linear, projection, reduction, only_nll if plain else False)

    backend = select(problem, implementation, scheme)
    spec = Spec(backend.name, -1, None, None, problem.axis_name, linear)
    if labels is not None:
        checks.ignore_index(options.get("ignore_index"), labels)
        labels, where, row_weights = _of_hidden(linear.shift, projection.hidden, z, labels, where, row_weights, segment_ids)
    return _checked(spec, projection, z, labels=labels, where=where, row_weights=row_weights, **options)


def _of_hidden(shift: Shift, hidden: Array, z, labels, where, row_weights, segment_ids):
    """Labels and what belongs to them, moved to the hidden state that predicts them: the one ``shift`` places before."""
    shape = z.shape[:-1]
    labels, where = checks.labels(labels, z, -1), checks.where(where, shape, z.shape)
    row_weights, segment_ids = checks.row_weights(row_weights, shape), checks.segment_ids(segment_ids, shape)
    if shift.places == 0:
        if segment_ids is not None:
            raise ValueError(
                "segment_ids keeps a hidden state from predicting a label of another segment, shift places later; got "
                "segment_ids with shift=0. Pass shift=1, or mask rows with where."
            )
        return labels, where, row_weights
    checks.sequence(shift, hidden, labels)
    kept = jnp.broadcast_to(with_label(shift, shape[-1]), shape)
    if where is not None:
        kept = kept & to_hidden(shift, where)
    if segment_ids is not None:
        kept = kept & (segment_ids == to_hidden(shift, segment_ids))
    return to_hidden(shift, labels), kept, None if row_weights is None else to_hidden(shift, row_weights)


def _checked(
    spec: Spec,
    source: Array | Projection,
    z,
    *,
    labels=None,
    targets=None,
    where,
    row_weights=None,
    class_weights=None,
    class_mask,
    ignore_index=None,
    softcap,
    temperature: Any,
) -> tuple[Spec, Rows]:
    """``z``: the shape and dtype of the logits, whether they are the source or its product."""
    shape = checks.batch_shape(z, spec.axis)
    spec = spec._replace(softcap=checks.softcap(softcap), ignore_index=checks.ignore_index(ignore_index, labels))
    rows = Rows(
        logits=source,
        target=checks.labels(labels, z, spec.axis) if targets is None else checks.targets(targets, z),
        where=checks.where(where, shape, z.shape),
        row_weights=checks.row_weights(row_weights, shape),
        class_weights=checks.class_weights(class_weights, z.shape[spec.axis]),
        class_mask=checks.class_mask(class_mask, z, spec.axis),
        temperature=_temperature(temperature),
    )
    if guards.enabled():
        _check_values(spec, rows, z)
    return spec, rows


def _temperature(value: Any) -> Maybe:
    return checks.scalar("temperature", value, low=0.0, above=True, off=1.0)


def taken_terms(given: dict[str, Any]) -> dict[str, Any]:
    """The scalar options of a loss, taken out of ``given``."""
    return {name: given.pop(name) for name in LossOptions._fields}


def check_terms(**given) -> LossOptions:
    """Guard the scalar options of a loss."""
    ranges = {name: OPTION_RANGES[name] for name in given}
    checked = {name: checks.scalar(name, given[name], low=low, high=high) for name, (low, high) in ranges.items()}
    options = LossOptions(**checked)
    if guards.enabled():
        guards.require_options(options)
    return options


def _check_values(spec: Spec, rows: Rows, z) -> None:
    valid = rows.where
    if is_soft(rows.target):
        guards.require_distribution("targets", rows.target, spec.axis, valid, spec.axis_name)
    else:
        valid = valid_rows(rows.target, rows.where, spec.ignore_index)
        _check_labels(spec, rows.target, valid, total_classes(z.shape[spec.axis], spec.axis_name))
    if spec.linear is None:
        check_logit_values("logits", rows.logits, spec.axis, valid)
    else:
        check_projection_values(rows.logits, valid)
    guards.require_finite("row_weights", rows.row_weights)
    guards.require_between("class_weights", rows.class_weights, 0.0, jnp.inf)
    guards.require_between("temperature", rows.temperature, 0.0, jnp.inf, above=True)


def _check_labels(spec: Spec, labels: Array, valid, classes: int) -> None:
    known = class_index(labels, classes) >= 0
    known = known if valid is None else known | ~valid
    if spec.shift.places:  # report the places that the caller knows
        labels, known = to_labels(spec.shift, labels), to_labels(spec.shift, known)
    guards.require("labels", labels, known, f"a class id in [0, {classes})")


def check_logit_values(name: str, z: Array, axis: int, valid) -> None:
    """Demand finite logits, or -inf, in the valid rows."""
    finite = jnp.isfinite(z) | (z == -jnp.inf)
    finite = finite if valid is None else finite | ~jnp.expand_dims(valid, axis)
    guards.require(name, z, finite, "finite numbers, or -inf for a masked class")


def check_projection_values(projection: Projection, valid, prefix: str = "") -> None:
    """Demand finite hidden states in the valid rows, and a finite head and bias."""
    hidden, head, bias = projection
    finite = jnp.isfinite(hidden)
    guards.require(f"{prefix}hidden", hidden, finite if valid is None else finite | ~valid[..., None], "finite numbers")
    guards.require(f"{prefix}head", head, jnp.isfinite(head), "finite numbers")
    if bias is not None:
        check_logit_values(f"{prefix}bias", bias, -1, None)
