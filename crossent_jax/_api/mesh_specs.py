"""The specs of ``sharded``: what the axes of its arguments are, and which axes of the ambient mesh split them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from .._jax.pieces import is_known

# What the axes of an argument are; of all others an array is a number.
HIDDEN, HEADS = ("hidden", "teacher_hidden"), ("head", "teacher_head")
OF_ROWS = ("labels", "where", "row_weights", "segment_ids", "row_args", "teacher_top_k")
OF_LOGITS, OF_CLASSES = ("targets", "teacher_logits"), ("bias", "teacher_bias", "class_weights", "class_mask")
ARRAYS = HIDDEN + HEADS + OF_ROWS + OF_LOGITS + OF_CLASSES


def free_axes() -> set[str]:
    """Of the ambient mesh, but for those over which a ``jax.shard_map`` around this runs."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}


def is_inside() -> bool:
    """Whether a ``jax.shard_map`` is around this: JAX (to 0.12.0.1) cannot keep anything of one in another between forward
    and backward pass (``findings/nested_shard_map_gradient.sh``)."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def devices_of(names: tuple[str, ...]) -> int:
    """How many devices the axes of these names have together."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in names)


def require_spec(name: str, spec: Any) -> None:
    """``name``: of the argument of ``sharded``."""
    if not isinstance(spec, P):
        raise TypeError(f"{name} must be a jax.P, the mesh axes that split each axis of {name}; got {spec!r}.")


def refuse_made_here(options: dict[str, Any], names: tuple[str, ...]) -> None:
    """Take these options away, which ``sharded`` makes itself and a call may not give."""
    for name in names:
        if options.pop(name, None) is not None:
            raise ValueError(f"{name} follows from the specs of sharded: leave it out.")


def parted(values: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(arrays, all other values)``: what is an array, or has one of these names and is given."""
    arrays = {name: x for name, x in values.items() if isinstance(x, jax.Array | np.ndarray)}
    arrays |= {name: x for name, x in values.items() if name in names and x is not None}
    return arrays, {name: x for name, x in values.items() if name not in arrays}


def names_of(spec: P, ndim: int, what: str) -> list[tuple[str, ...]]:
    """The mesh axes of each array axis."""
    if len(spec) > ndim:
        raise ValueError(f"{what}={spec} has more axes than {what}, which has {ndim}.")
    names = [() if part is None else part if isinstance(part, tuple) else (part,) for part in spec]
    known = free_axes()
    unknown = [name for part in names for name in part if name not in known]
    if unknown:
        raise ValueError(f"{what}={spec} names {unknown[0]!r}, which must be an axis of the ambient mesh, {_has(known)}.")
    flat = [name for part in names for name in part]
    twice = [name for name in flat if flat.count(name) > 1]
    if twice:
        raise ValueError(f"{what}={spec} names {twice[0]!r} twice: a mesh axis splits one axis of an array.")
    return [*names, *[()] * (ndim - len(names))]


def _has(known: set[str]) -> str:
    if known:
        return f"which has {', '.join(sorted(known))}"
    if jax.sharding.get_abstract_mesh().axis_names:
        return "all of whose axes a jax.shard_map around this has"
    return "of which there is none: `with jax.set_mesh(mesh):`"


def require_divided(name: str, x, spec: P, fix_of: Callable[[str, int], str]) -> None:
    """Demand that devices divide the axes of an argument that they split. ``fix_of(name, axis)``: what to do about it."""
    for axis, names in enumerate(names_of(spec, x.ndim, name)):
        devices, length = devices_of(names), x.shape[axis]
        if is_known(length) and length % devices:
            over = " and ".join(map(repr, names))
            raise ValueError(
                f"{name} of shape {tuple(x.shape)} is split by {spec}: the {devices} devices of {over} must divide its axis "
                f"{axis}; got {length}. {fix_of(name, axis)}"
            )


def placed(x, spec: P):
    """Along the Explicit axes of a mesh an array must have the sharding that the spec says."""
    mesh = jax.sharding.get_abstract_mesh()
    explicit = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    names = [part if isinstance(part, tuple) else (part,) for part in spec]
    kept = [tuple(name for name in part if name in explicit) or None for part in names]
    return jax.sharding.reshard(x, P(*kept)) if explicit else x


def mapped(here: Callable, whole: Callable, arrays: dict[str, Any], specs: dict[str, Any], out_specs: P, fix_of: Callable):
    """``here(arrays)`` inside ``jax.shard_map`` over the free axes, of arrays by name. What is refused there is refused by
    ``whole(arrays)``, in the shapes that the caller knows."""
    inside = jax.checkpoint(here) if is_inside() else here
    run = jax.shard_map(inside, in_specs=(specs,), out_specs=out_specs, axis_names=free_axes())
    try:
        for name, x in arrays.items():
            jax.tree.map(lambda x, spec, name=name: require_divided(name, x, spec, fix_of), x, specs[name])
        return run(jax.tree.map(placed, arrays, specs))
    except (TypeError, ValueError) as error:
        refused = error
    jax.eval_shape(whole, arrays)
    raise refused
