"""Everything that differs between the supported JAX versions (0.7.2 to 0.12)."""

import math
from typing import Any

import jax
import jax.core


def sums_exponentials_at_once() -> bool:
    """Whether XLA's CPU backend sums exponentials of rows without writing them to memory: of the versions that were tried
    0.10 and 0.12 do, 0.7.2 does not (64 MiB at (512, 32768))."""
    return jax.__version_info__ >= (0, 10)


def in_a_tpu_kernel(function: Any) -> dict[str, Any]:
    """For ``jax.lax.platform_dependent``: the name under which Pallas lowers a TPU's kernel. Before jax 0.9.1 it stops at a
    ``default`` (findings/platform_dependent_in_a_tpu_kernel.sh)."""
    return {"mosaic": function}


def varying_axes(x) -> frozenset[str]:
    """Names of the mesh axes over which ``x`` varies inside ``jax.shard_map``; empty elsewhere."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(getattr(aval, "vma", ()) if manual is None else manual.varying)


def explicit_sharding(x):
    """The sharding in the type of ``x`` if its mesh has Explicit axes, else None (Auto axes do not show in types)."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    axis_types = getattr(getattr(sharding, "mesh", None), "axis_types", ())
    return sharding if jax.sharding.AxisType.Explicit in axis_types else None


def is_split(x, axis: int) -> bool:
    """Whether the type of ``x`` says that ``axis`` is sharded."""
    sharding = explicit_sharding(x)
    return sharding is not None and sharding.spec[axis % x.ndim] is not None


def devices_along(x, axis: int) -> int:
    """Over how many devices the type of ``x`` says that ``axis`` is split; 1 where it says nothing."""
    mesh, names = mesh_axes(x, axis)
    return math.prod(mesh.shape[name] for name in names)


def mesh_axes(x, axis: int) -> tuple[Any, tuple[str, ...]]:
    """``(mesh, names of the mesh axes over which the type of x says that axis is split)``; none where it says nothing."""
    sharding = explicit_sharding(x)
    return (None, ()) if sharding is None else (sharding.mesh, tuple(jax.tree.leaves(sharding.spec[axis % x.ndim])))


def regrouped(x, axes: int, shape: tuple[Any, ...], like):
    """``x`` with its first ``axes`` axes reshaped. If the type of ``like`` says that its first axis is split, so is the
    first one here, before and after; the others are made whole, and all of them where ``like`` is."""
    of_like = explicit_sharding(like)
    sharding = of_like or explicit_sharding(x)  # arrays that are on no mesh stand beside arrays that are
    if sharding is None:
        return x.reshape(*shape, *x.shape[axes:])
    first = None if of_like is None or like.ndim == 1 else of_like.spec[0]
    rest = jax.typeof(x).sharding.spec[axes:]
    before, after = (jax.P(*[first, *[None] * count][:count], *rest) for count in (axes, len(shape)))
    x = jax.sharding.reshard(x, sharding.update(spec=before))
    return jax.lax.reshape(x, (*shape, *x.shape[axes:]), out_sharding=sharding.update(spec=after))


def whole_along(x, axis: int):
    """``x`` with an axis that is not split, on an Explicit mesh."""
    sharding = explicit_sharding(x)
    if sharding is None or not is_split(x, axis):
        return x
    spec = [None if i == axis % x.ndim else names for i, names in enumerate(sharding.spec)]
    return jax.sharding.reshard(x, sharding.update(spec=jax.P(*spec)))


def on_axis(x, axis_name: str):
    """``x`` with its first axis, and no other, split over a mesh axis, on an Explicit mesh."""
    return jax.sharding.reshard(x, jax.P(axis_name, *[None] * (x.ndim - 1)))


def typed_like(x, other):
    """``x`` with the sharding that the type of ``other`` says."""
    sharding = explicit_sharding(other)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def lookup(vector, index):
    """``vector[index]``, sharded like ``index``."""
    sharding = explicit_sharding(index)
    return vector[index] if sharding is None else vector.at[index].get(out_sharding=sharding)


def is_bound(axis_name: str) -> bool:
    """Whether there is a mesh axis, or an axis of ``jax.vmap``, of that name where this is called."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def is_told(axis_name: str) -> bool:
    """Whether types say which arrays vary over a mesh axis: inside ``jax.shard_map`` with ``check_vma``."""
    return axis_name in varying_axes(jax.lax.axis_index(axis_name))


def to_varying(x, axes: frozenset[str]):
    """``x`` typed as varying over ``axes`` as well."""
    missing = tuple(sorted(axes - varying_axes(x)))
    if not missing:
        return x
    pcast = getattr(jax.lax, "pcast", None)
    return pcast(x, missing, to="varying") if pcast else getattr(jax.lax, "pvary")(x, missing)  # noqa: B009


def joint_axes(tree) -> frozenset[str]:
    """The mesh axes over which any array of ``tree`` varies."""
    return frozenset().union(*(varying_axes(leaf) for leaf in jax.tree.leaves(tree)))


def axes_between(x, other) -> tuple[str, ...]:
    """The mesh axes over which ``x`` varies and ``other`` does not."""
    return tuple(sorted(varying_axes(x) - varying_axes(other)))


def summed_over(axes: tuple[str, ...], x):
    """The sum of ``x`` over mesh axes."""
    return jax.lax.psum(x, axes) if axes else x


def varying_over(axes: frozenset[str], tree):
    """Every array of ``tree``, typed as varying over ``axes`` as well."""
    return jax.tree.map(lambda leaf: to_varying(leaf, axes), tree)


def shape_varying_like(shape: tuple[int, ...], dtype, other):
    """The type of an array that varies over the mesh axes over which ``other`` does."""
    manual = getattr(jax.typeof(other), "manual_axis_type", None)
    varying: dict[str, Any] = {"vma": varying_axes(other)} if manual is None else {"manual_axis_type": manual}
    return jax.ShapeDtypeStruct(shape, dtype, **varying)


def is_local() -> bool:
    """Whether this is traced where all arrays are one device's own: inside ``jax.shard_map`` over every axis of the mesh."""
    types = jax.sharding.get_abstract_mesh().axis_types
    return bool(types) and all(kind == jax.sharding.AxisType.Manual for kind in types)


def is_concrete(x) -> bool:
    """Whether the values of ``x`` are known now, outside every trace."""
    return not isinstance(x, jax.core.Tracer)
