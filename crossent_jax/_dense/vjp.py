"""The state of rows of logits through a backend: the only custom_vjp of the losses of logits.

Only the state is opaque to JAX. ``finalize``, the merge over shards and the loss are plain jax.numpy, so their derivatives,
and those of any loss a user writes, are JAX's own.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from .._jax.versions import typed_like
from .._row.block import Operands, Wanted, is_soft
from .._row.state import Maybe, State
from ..backends.record import Backend
from .blocks import gradient_by_rows, keeps_exponentials, state_and_exponentials, state_by_rows
from .shards import jointly_varying, merge_shards


def row_state(
    backend: Backend, wanted: Wanted, operands: Operands, live, axis_name: str | None, known: Maybe = None
) -> State:
    """The state of whole rows, joined over the shards of ``axis_name``. ``live``: rows that can count, None for all.
    ``known``: rows whose label is of a class (:func:`known_labels`)."""
    if backend.dense_gradient is None and live is not None:
        target = without_dead_values(operands.target, live, wanted.axis) if is_soft(operands.target) else operands.target
        operands = operands._replace(logits=without_dead_values(operands.logits, live, wanted.axis), target=target)
    state = dense_state(backend, wanted, jointly_varying(operands))
    classes, soft = operands.logits.shape[wanted.axis], is_soft(operands.target)
    return merge_shards(state, axis_name, classes, operands.temperature, soft=soft, known=known)


def without_dead_values(x: jax.Array, live, axis: int) -> jax.Array:
    """Zeros for NaN and inf in rows that do not count: JAX's own derivative would multiply them by their cotangent 0,
    which the backends' gradients never do."""
    return jnp.where(jnp.expand_dims(live, axis) | jnp.isfinite(x), x, 0)


def dense_state(backend: Backend, wanted: Wanted, operands: Operands) -> State:
    """The backend's state, with the backend's gradient where it has one and JAX's where it has none."""
    if backend.dense_gradient is None:
        return backend.dense_state(wanted, operands)
    return _opaque_state(backend, wanted, operands)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _opaque_state(backend: Backend, wanted: Wanted, operands: Operands) -> State:
    return mapped_together(state_by_rows(backend, wanted, operands))


def _forward(backend, wanted, operands):
    wanted = wanted._replace(gradient_follows=True)
    if keeps_exponentials(wanted, operands):
        state, kept = state_and_exponentials(backend, wanted, operands)
    else:
        state, kept = state_by_rows(backend, wanted, operands), operands
    state = mapped_together(state)
    return state, (kept, state)


def mapped_together(state: State) -> State:
    """The same state, every field of which depends on every other, in a way that XLA folds to nothing.

    Under vmap a field that depends on unmapped operands alone is one value for the whole batch, and so is its cotangent, the
    sum over the batch; the backward rule, which runs per example, would count that sum once per example (one row of logits
    scored with many labels: jax 0.7.2 and 0.10.2 give that wrong gradient silently, 0.12 raises).
    """
    same = reduce(jnp.logical_and, [field == field for field in jax.tree.leaves(state)])
    state = jax.tree.map(lambda field: typed_like(field, same), state)  # labels may lie otherwise than the logits
    return jax.tree.map(lambda field: jnp.where(same, field, field), state)


def _backward(backend, wanted, residuals, cotangent):
    operands, state = residuals
    gradient = gradient_by_rows(backend, wanted, operands, state, cotangent)
    typed: list[Any] = [None if g is None else typed_like(g, x) for g, x in zip(gradient, operands, strict=True)]
    return (Operands(*typed),)


_opaque_state.defvjp(_forward, _backward)
