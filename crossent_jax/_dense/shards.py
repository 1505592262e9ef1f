"""A vocabulary split over a mesh axis: local labels, and the merge of the shards' states.

Each shard holds ``v_local`` consecutive classes. The merge is a ``pmax`` of the row maxima and one ``psum`` of the other
fields that were asked for, O(n) numbers whatever the vocabulary; labels are global ids, so that each device knows
``target_mass`` by itself. Both stand outside the custom_vjp, so JAX itself transposes them. Bytes a row, float32:

| | maximum | summed | bytes |
|---|---|---|---|
| a loss of labels | 4 | ``exp_sum``, ``target_dot`` | 12 |
| and entropy, label smoothing | 4 | ``exp_dot``; ``prior_dot``, ``prior_mass`` | 24 |
| and class weights | 4 | ``prior_count``; once, the label's weight | 32 |
| a loss of targets | 4 | ``exp_sum``, ``target_dot``, ``target_mass`` | 16 |
| ``argmax`` | 4 more, by a ``pmin`` | | |
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._jax.versions import joint_axes, varying_axes, varying_over
from .._row.labels import local_index
from .._row.state import NO_CLASS, Maybe, State, rebase


def total_classes(local_classes: int, axis_name: str | None) -> int:
    """Classes over all shards."""
    return local_classes if axis_name is None else local_classes * jax.lax.axis_size(axis_name)


def local_labels(index, local_classes: int, axis_name: str | None):
    """The shard's own index of each label, -1 where another shard holds it."""
    if axis_name is None:
        return index
    return local_index(index, jax.lax.axis_index(axis_name) * local_classes, local_classes)


def known_labels(index, axis_name: str | None) -> Maybe:
    """Whether each label, a global id, is of a class: the ``target_mass`` of whole rows. None, not known, where types say
    that the devices of ``axis_name`` may have different labels, and where the classes are not split."""
    return None if axis_name is None or axis_name in varying_axes(index) else index >= 0


def sum_over(x, axis_name: str | None):
    """Sum of the shards' parts."""
    return x if axis_name is None or x is None else jax.lax.psum(x, axis_name)


def jointly_varying(operands: Any) -> Any:
    """Cast every operand to the mesh axes over which any of them varies.

    Done outside the custom_vjp, so that JAX inserts the sums over shards for operands that were replicated.
    """
    return varying_over(joint_axes(operands), operands)


def merge_shards(
    state: State, axis_name: str | None, local_classes: int, temperature: Maybe, *, soft: bool, known: Maybe = None
) -> State:
    """The state of whole rows from the state of each shard. ``known``: :func:`known_labels`.

    A masked label is at -inf from every maximum: its distance has no derivative, and so none when it is moved from a shard's
    maximum to the row's (the temperature's derivative would depend on where classes are cut). Of targets (``soft``) the move
    is that of the unmasked classes, which the mass counts alone.
    """
    if axis_name is None:
        return state
    maximum = jax.lax.pmax(jax.lax.stop_gradient(state.maximum), axis_name)
    index = state.argmax
    if index is not None:
        start = jax.lax.axis_index(axis_name) * local_classes
        index = jnp.where(index == NO_CLASS, NO_CLASS, index + start)
    of_label = state.target_dot
    state = rebase(state._replace(argmax=index), maximum, temperature)
    if not soft:
        state = state._replace(target_dot=jnp.where(of_label == -jnp.inf, of_label, state.target_dot))
    least = None if index is None else jax.lax.pmin(state.argmax, axis_name)
    mass = None if known is None else known.astype(state.target_mass.dtype)
    parts = state._replace(maximum=None, argmax=None, target_mass=state.target_mass if mass is None else None)
    # summed one by one, XLA joins them: jax 0.7.2 cannot transpose a joint psum of which some parts are constants
    rest = jax.tree.map(lambda part: jax.lax.psum(part, axis_name), parts)
    rest = rest if mass is None else rest._replace(target_mass=mass)
    return rest._replace(maximum=maximum, argmax=least)
