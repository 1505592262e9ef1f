"""What ``explain`` says of a linear call: its scheme, its chunks, and what these cost."""

import jax
import jax.numpy as jnp

from ..backends.record import Backend
from .cuts import Cut, Sizes, cost, cut_rows
from .projection import Projection, product_dtype
from .rows import devices_of_rows, sizes_of
from .spec import LinearSpec


def describe(backend: Backend, linear: LinearSpec, projection: Projection, reduction: str, distributions: int = 1) -> str:
    """One line for where this process runs; for accelerators a line with bytes, and advice where there is some."""
    sizes, devices = sizes_of(linear, projection, distributions), devices_of_rows(projection.hidden)
    here, elsewhere = (
        cut_rows(projection.hidden.shape[:-1], sizes, linear.limits, on_cpu, devices)
        for on_cpu in (jax.default_backend() == "cpu", False)
    )
    if backend.dense_gradient is None:
        return f"chunks recomputed by JAX, any transform, {_chunks(here)}"
    if reduction == "none":
        return f"recompute: 4 products when differentiated (1 if not), O(rows) numbers kept, {_chunks(here)}"
    first = f"gradient in forward: 3 products when differentiated (1 if not), the gradients kept, {_chunks(here)}"
    return "\n  ".join([first, *_costs(sizes, elsewhere), *_advice(projection)])


def _chunks(rows: Cut) -> str:
    return f"{rows.chunks} chunk{'' if rows.chunks == 1 else 's'} of at most {rows.rows} rows"


def _costs(sizes: Sizes, rows: Cut) -> list[str]:
    """Of one device, and of numbers, where no size is a symbol."""
    if not all(isinstance(size, int) for size in sizes[:3]):
        return []
    memory, traffic, least = cost(sizes, rows)
    return [
        f"on a GPU or TPU: {_chunks(rows)}, {memory / 2**20:,.0f} MiB beside inputs and gradients, {traffic / 1e9:.3g} GB "
        f"read and written, of which {least / traffic:.0%} would be the least possible"
    ]


def _advice(projection: Projection) -> list[str]:
    """GPUs before compute capability 8 multiply bfloat16 in float32: XLA converts both sides inside every chunk."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    if capability is None or float(capability) >= 8 or product_dtype(projection) != jnp.bfloat16:
        return []
    return [
        f"this GPU (compute capability {capability}) has no bfloat16 products and takes float32 ones in their place: "
        "cast hidden and head to float16, of which it has fast ones"
    ]
