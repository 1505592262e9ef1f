"""From the rows of a projection to a fused call: how the rows are cut, and the way back to the caller's batch shape."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._dense.shards import merge_shards
from .._dense.vjp import without_dead_values
from .._jax.dtypes import statistics_dtype
from .._jax.pieces import is_known
from .._jax.row_blocks import on_one_device
from .._jax.versions import devices_along, is_split, joint_axes, regrouped, varying_over
from .._row.block import Operands, Wanted, are_exponentials_enough, block_state, is_plain, is_soft
from .._row.losses import Shared
from .._row.state import State
from ..backends import BACKENDS
from ..backends.record import Backend
from .chunk import Fused, Plan, Plans, wants_padding
from .counted import Masks, spares
from .cuts import WHOLE, Cut, Sizes, cpu_blocks, cut_rows, lies_in_gradient, rows_of_a_chunk
from .fused import Loss, fused_sum, linear_state
from .projection import Layout, Projection, product_dtype
from .spec import LinearSpec, Spec


def devices_of_rows(hidden: Array) -> int:
    """Over how many devices the type of the hidden states says that their first axis is split, if that is one of rows."""
    return devices_along(hidden, 0) if hidden.ndim > 1 else 1


def sizes_of(linear: LinearSpec, projection: Projection, distributions: int = 1) -> Sizes:
    """What decides the size of a chunk, on one of the devices over which types say that rows and classes are split."""
    *batch, features = projection.hidden.shape
    classes = projection.head.shape[linear.vocab_axis] // devices_along(projection.head, linear.vocab_axis)
    logits = jnp.dtype(linear.logits_dtype or plan_dtype(projection))
    logit_bytes = 4 if logits == jnp.float16 else logits.itemsize
    rows, item = math.prod(batch), product_dtype(projection).itemsize
    return Sizes(rows // devices_of_rows(projection.hidden), features, classes, logit_bytes, item, distributions)


def gives_exponentials(linear: LinearSpec, backend: Backend, projection: Projection) -> bool:
    """Whether a TPU's product gives exponentials in place of logits, of a loss that reads no more of a class. Not where
    logits are written: to be rounded, to be joined over devices, or for gradients that are made from them."""
    split, dtype = is_split(projection.head, linear.vocab_axis), product_dtype(projection)
    from_logits = projection.bias is not None or dtype == jnp.float16
    return backend.dense_state is block_state and _is_accumulated(linear, projection) and not (split or from_logits)


def _is_accumulated(linear: LinearSpec, projection: Projection) -> bool:
    """Whether logits are as the product adds them up."""
    return linear.logits_dtype in (None, str(plan_dtype(projection)))


def projection_state(spec: Spec, wanted: Wanted, projection: Projection, operands: Operands, masks: Masks) -> State:
    """The state of whole rows, joined over the shards of ``spec.axis_name``: of the batch's shape."""
    batch = projection.hidden.shape[:-1]
    plans, counted, fused = _fused(spec, wanted, projection, operands, masks)
    state = linear_state(plans, counted, fused)
    state = jax.tree.map(lambda field: regrouped(field, field.ndim, batch, projection.hidden), state)
    classes, soft = _classes(spec, projection), is_soft(operands.target)
    return merge_shards(state, spec.axis_name, classes, operands.temperature, soft=soft, known=masks.known)


def projection_sum(
    spec: Spec,
    wanted: Wanted,
    projection: Projection,
    operands: Operands,
    masks: Masks,
    losses,
    of_rows: Any,
    shared: Shared,
) -> Array:
    """The sum of the losses of all rows: ``losses(state, of_rows, shared)`` of whole rows, of any batch shape."""
    plans, counted, fused = _fused(spec, wanted, projection, operands, masks)
    rows, batch_axes = fused.projection.hidden.shape[:-1], projection.hidden.ndim - 1
    of_rows = jax.tree.map(lambda x: regrouped(x, batch_axes, rows, projection.hidden), (masks.known, of_rows))
    shared = jax.tree.map(lambda x: jnp.asarray(x, plan_dtype(projection)), shared)
    loss = Loss(losses, spec.axis_name, is_soft(operands.target))
    if BACKENDS[spec.backend].dense_gradient is None:
        return loss(linear_state(plans, counted, fused), of_rows, shared, _classes(spec, projection))
    of_rows, shared = _varying_like(fused, (of_rows, shared), spec.axis_name)
    return fused_sum(plans, loss, counted, fused, of_rows, shared)


def plan_dtype(projection: Projection) -> jnp.dtype:
    """Of statistics and sums."""
    return statistics_dtype(product_dtype(projection))


def _classes(spec: Spec, projection: Projection) -> int:
    assert spec.linear is not None, "a projection comes with a linear spec"
    return projection.head.shape[spec.linear.vocab_axis]


def _fused(
    spec: Spec, wanted: Wanted, projection: Projection, operands: Operands, masks: Masks
) -> tuple[Plans, Masks, Fused]:
    """The plans, the masks if they spare anything, and the arrays with rows as (outer, inner)."""
    linear, hidden, batch = spec.linear, projection.hidden, projection.hidden.shape[:-1]
    assert linear is not None, "a projection comes with a linear spec"
    backend, live, masks = BACKENDS[spec.backend], masks.live, masks._replace(known=None)
    masks = masks if backend.dense_gradient is not None and spares(masks, projection, operands) else Masks()
    seen_as = batch if masks.live is None else (math.prod(batch),)
    if backend.dense_gradient is None and live is not None:
        hidden = without_dead_values(hidden, live, -1)
    only_labels = not wanted.argmax and operands.temperature is None and are_exponentials_enough(wanted, operands)
    by_guess = only_labels and gives_exponentials(linear, backend, projection)
    sizes, devices = sizes_of(linear, projection), devices_of_rows(hidden)
    on_a_tpu = sizes._replace(unwritten=by_guess)
    each = ((sizes, True), (sizes, False), (on_a_tpu, False))
    cuts = [cut_rows(seen_as, of, linear.limits, on_cpu, devices) for of, on_cpu in each]

    def reshaped(x):
        return regrouped(x, len(batch), cuts[0].shape, projection.hidden)

    mask, target = operands.class_mask, operands.target
    if is_soft(target) and backend.dense_gradient is None and live is not None:
        target = without_dead_values(target, live, -1)
    operands = operands._replace(
        target=reshaped(target), class_mask=mask if mask is None or mask.ndim == 1 else reshaped(mask)
    )
    fused = Fused(projection._replace(hidden=reshaped(hidden)), operands)
    return _plans(linear, backend, wanted, fused, cuts, on_a_tpu), jax.tree.map(reshaped, masks), fused


def _plans(linear: LinearSpec, backend: Backend, wanted: Wanted, fused: Fused, cuts: list[Cut], sizes: Sizes) -> Plans:
    """``cuts``: of a CPU, a GPU, a TPU; ``sizes``: of a TPU. With a last chunk apart the place of the head's gradient would
    not be free for what chunks keep."""
    projection, operands = fused
    cpu, gpu, tpu = cuts
    classes, axis = projection.head.shape[linear.vocab_axis], len(cpu.shape) - 1
    layout = Layout(linear.vocab_axis, linear.logits_dtype or str(plan_dtype(projection)))
    plain = is_plain(wanted, operands)
    blocks = cpu_blocks(cpu.rows, classes, product_dtype(projection).itemsize, plain)
    kept = plain and blocks.gradient != classes and _is_accumulated(linear, projection)
    by_label = plain and backend.dense_gradient is not None and on_one_device(projection.hidden)
    of_chunk = partial(Plan, backend, wanted, layout, axis)
    apart = not (is_known(sizes.rows) and lies_in_gradient(sizes, rows_of_a_chunk(sizes, tpu)))
    return Plans(
        of_chunk(cpu.chunk, blocks, exponentials=kept, by_label=by_label),
        of_chunk(gpu.chunk, WHOLE, padded=wants_padding(fused)),
        of_chunk(tpu.chunk, WHOLE, exponentials=True, marked=True, last_apart=apart, by_guess=sizes.unwritten),
    )


def _varying_like(fused: Fused, tree: Any, axis_name: str | None) -> Any:
    """What the losses read besides the state, cast to the mesh axes over which the losses vary: those of any operand but the
    one over which the classes are split, whose shards are joined before."""
    return varying_over(joint_axes((fused, tree)) - {axis_name}, tree)
