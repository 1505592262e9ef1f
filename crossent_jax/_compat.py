"""Everything that differs between the supported JAX versions (0.7.2 to 0.12)."""

import jax
import jax.core


def varying_axes(x) -> frozenset[str]:
    """Names of the mesh axes over which ``x`` varies inside ``jax.shard_map``; empty elsewhere."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(getattr(aval, "vma", ()) if manual is None else manual.varying)


def to_varying(x, axes: frozenset[str]):
    """``x`` typed as varying over ``axes`` as well."""
    missing = tuple(sorted(axes - varying_axes(x)))
    if not missing:
        return x
    pcast = getattr(jax.lax, "pcast", None)
    return pcast(x, missing, to="varying") if pcast else getattr(jax.lax, "pvary")(x, missing)  # noqa: B009


def is_concrete(x) -> bool:
    """Whether the values of ``x`` are known now, outside every trace."""
    return not isinstance(x, jax.core.Tracer)
