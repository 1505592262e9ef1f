"""Kernels of a TPU for given logits: the state in one reading, the gradient in one reading and one writing.

The mathematics is traced into the kernels: ``_row.block.block_state`` of a block of rows and classes, joined to what was
seen of these rows by ``_row.state.merge``, and ``_row.block.gradient_of_logits``. A class that is masked, or beyond the last
one in the last block, has a logit of -inf in the kernel. What a kernel is otherwise: ``tpu_rows.py``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._row.block import Operands, Wanted, block_state, gradient_of_logits, is_soft
from .._row.state import NO_CLASS, State, merge
from .tpu_rows import Block, Call, Read, folded, mapped


def state(call: Call, wanted: Wanted, operands: Operands) -> State:
    """``block_state`` of operands whose last axis is that of the classes."""
    like, treedef = jax.tree.flatten(jax.eval_shape(partial(block_state, wanted), operands))

    def of_block(block: Block) -> list[Array]:
        new = block_state(wanted, _operands(block, block.given))
        if new.argmax is not None:
            new = new._replace(argmax=jnp.where(new.argmax == NO_CLASS, NO_CLASS, new.argmax + block.start))
        return jax.tree.leaves(new)

    def joined(block: Block, seen: list[Array], new: list[Array]) -> list[Array]:
        return jax.tree.leaves(merge(treedef.unflatten(seen), treedef.unflatten(new), block.given.temperature))

    fields = folded(call, "state", _given(operands), [field.dtype for field in like], of_block, joined)
    return treedef.unflatten([field.reshape(operands.logits.shape[:-1]) for field in fields])


def gradient(call: Call, wanted: Wanted, operands: Operands, state: State, g: State) -> Array:
    """``gradient_of_logits``."""
    numbers = state._replace(argmax=None), g._replace(argmax=None)

    def of_block(block: Block) -> list[Array]:
        given, numbers = block.given
        return [gradient_of_logits(wanted, _operands(block, given), *numbers)]

    given = _given(operands), jax.tree.map(lambda x: Read("rows", x.reshape(-1)), numbers)
    (of_logits,) = mapped(call, "gradient", given, [operands.logits.dtype], of_block)
    return of_logits.reshape(operands.logits.shape)


def _given(operands: Operands) -> Any:
    """The operands as a kernel reads them. Labels are below 2**24, so exact in float32."""
    logits, target, prior, mask, temperature = operands
    v = logits.shape[-1]
    whole = partial(jnp.reshape, shape=(-1, v))
    return Operands(
        logits=Read("whole", whole(logits)),
        target=Read("whole", _readable(whole(target))) if is_soft(target) else Read("rows", target.reshape(-1)),
        prior=None if prior is None else Read("classes", prior),
        class_mask=None if mask is None else _mask(mask, whole),
        temperature=None if temperature is None else Read("call", temperature),
    )


def _mask(mask: Array, whole: Callable) -> Read:
    return Read("classes", mask.astype(jnp.int32)) if mask.ndim == 1 else Read("whole", whole(mask).astype(jnp.int8))


def _readable(x: Array) -> Array:
    """In a dtype of a TPU's vectors, of which float16 is none."""
    return x if x.dtype in (jnp.float32, jnp.bfloat16) else x.astype(jnp.float32)


def _operands(block: Block, given: Operands) -> Operands:
    """The operands of this step, in float32, -inf in the place of a masked class."""
    logits, target = given.logits.astype(jnp.float32), given.target
    if given.class_mask is not None:
        allowed = jnp.broadcast_to(given.class_mask.astype(jnp.int32), logits.shape) != 0
        logits = jnp.where(allowed, logits, -jnp.inf)
    return Operands(
        logits=block.before(logits, -jnp.inf),
        target=block.before(target.astype(jnp.float32), 0.0) if target.ndim > 1 else _own(block, target, logits.shape[-1]),
        prior=None if given.prior is None else block.before(given.prior, 0.0)[0],
        temperature=given.temperature,
    )


def _own(block: Block, label: Array, classes: int) -> Array:
    """A step's own index of each label, -1 for one in another block."""
    label = label.astype(jnp.int32) - block.start
    return jnp.where((label >= 0) & (label < classes), label, -1)
