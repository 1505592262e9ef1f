"""What ``explain`` says of a linear call: its scheme, its chunks, and what these cost."""

from functools import partial

import jax
import jax.numpy as jnp

from ..backends.record import Backend
from .cuts import Cut, Sizes, cost, cut_rows
from .projection import Projection, product_dtype
from .rows import devices_of_rows, gives_exponentials, sizes_of
from .spec import LinearSpec

IF_PLAIN = ", if loss_fn reads no entropy, ce_prior or argmax"


def describe(
    backend: Backend,
    linear: LinearSpec,
    projection: Projection,
    reduction: str,
    only_labels: bool | None = False,
    distributions: int = 1,
) -> str:
    """One line for where this process runs; for accelerators lines with bytes, and advice where there is some.
    ``only_labels``: whether the loss reads nothing of a class but its logit, and the labels; None: not known here."""
    sizes = sizes_of(linear, projection, distributions)
    unwritten = only_labels is not False and gives_exponentials(linear, backend, projection)
    batch, devices, platform = projection.hidden.shape[:-1], devices_of_rows(projection.hidden), jax.default_backend()
    on_gpu, on_tpu = sizes, sizes._replace(unwritten=unwritten)
    cut = partial(cut_rows, batch, limits=linear.limits, devices=devices)
    here = cut(on_gpu if platform in ("cpu", "gpu") else on_tpu, on_cpu=platform == "cpu")
    if backend.dense_gradient is None:
        return f"chunks recomputed by JAX, any transform, {_chunks(here)}"
    if reduction == "none":
        return f"recompute: 4 products when differentiated (1 if not), O(rows) numbers kept, {_chunks(here)}"
    first = f"gradient in forward: 3 products when differentiated (1 if not), the gradients kept, {_chunks(here)}"
    costs = _costs("GPU" if unwritten else "GPU or TPU", on_gpu, cut(on_gpu, on_cpu=False))
    if unwritten:
        costs += _costs("TPU", on_tpu, cut(on_tpu, on_cpu=False), IF_PLAIN if only_labels is None else "")
    return "\n  ".join([first, *costs, *_advice(projection)])


def _chunks(rows: Cut) -> str:
    return f"{rows.chunks} chunk{'' if rows.chunks == 1 else 's'} of at most {rows.rows} rows"


def _costs(device: str, sizes: Sizes, rows: Cut, condition: str = "") -> list[str]:
    """Of one device, and of numbers, where no size is a symbol."""
    if not all(isinstance(size, int) for size in sizes[:3]):
        return []
    memory, traffic, least = cost(sizes, rows)
    return [
        f"on a {device}: {_chunks(rows)}, {memory / 2**20:,.0f} MiB beside inputs and gradients, {traffic / 1e9:.3g} GB "
        f"read and written, of which {least / traffic:.0%} would be the least possible{condition}"
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
