"""Linear cross-entropy on an accelerator, value and gradients: ``python -m benchmarks.linear_device``.

In the same rounds: ours as a mean and per token, the naive formula, ``jax.checkpoint`` over chunks, tokamax where it is, the
bare products of our own chunks (three for a mean, four per token), and a square product that stands for the ceiling of the
device. TFLOP/s count 2 n d v for each product that a scheme must do: 6 n d v of a mean, 8 n d v per token. What does not fit
or is not installed is listed with the reason.
"""

import argparse
import importlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import crossent_jax
from crossent_jax._linear_rows import cut_rows

from .environment import write
from .linear import CHECKPOINT_ROWS, bare_products, checkpointed, compiled, float32_logits, inputs, naive, ours, shape
from .timing import median_ratio, rounds_of

PRESETS = ((4096, 4096, 128256), (16384, 4096, 151936))
CEILING = {"cpu": 1024}  # side of the square product; 8192 elsewhere


def per_token(hidden, head, labels):
    return crossent_jax.linear_cross_entropy(hidden, head, labels, reduction="none").sum()


def four_products(size: int):
    """The logits of every chunk once more, before the three products."""

    def products(hidden, head, labels):
        starts = [min(start, hidden.shape[0] - size) for start in range(0, hidden.shape[0], size)]

        def logits(carry, start):
            z = float32_logits(jax.lax.dynamic_slice_in_dim(hidden, start, size), head)
            return carry, jax.lax.optimization_barrier(z)[:, 0]

        return jax.lax.scan(logits, (), jnp.array(starts))[1], bare_products(size)(hidden, head, labels)

    return products


def tokamax_loss():
    """tokamax's loss with its own choice of implementation; raises ImportError without it."""
    tokamax = importlib.import_module("tokamax")
    return lambda hidden, head, labels: tokamax.linear_softmax_cross_entropy_loss(hidden, labels, head, reduction="mean")


def compilers(rows: int, n: int, arguments) -> dict:
    """Zero-argument functions that compile each contender, or raise."""
    losses = {"ours": lambda: ours, "ours per token": lambda: per_token, "naive": lambda: naive, "tokamax": tokamax_loss}
    losses |= {f"checkpoint {size}": partial(checkpointed, size) for size in CHECKPOINT_ROWS if size <= n}
    products = {"3 products": bare_products(rows), "4 products": four_products(rows)}

    def differentiated(make):
        return compiled(jax.value_and_grad(make(), (0, 1)), *arguments)

    return {name: partial(differentiated, make) for name, make in losses.items()} | {
        name: partial(compiled, function, *arguments) for name, function in products.items()
    }


def absence(error: Exception) -> str:
    """Why a contender has no numbers."""
    text = " ".join(str(error).split())
    return ("out of memory: " if "RESOURCE_EXHAUSTED" in text else f"{type(error).__name__}: ") + text[:200]


def attempt(contenders: dict) -> tuple[dict, dict]:
    """``(results, reasons)`` of functions that may fail; any failure of a contender is a cell of the table."""
    results, reasons = {}, {}
    for name, function in contenders.items():
        try:
            results[name] = jax.block_until_ready(function())
        except Exception as error:
            reasons[name] = absence(error)
    return results, reasons


def peak_after(run) -> int | None:
    """The peak of the device's memory since the process began, after one run; None where the device does not count.
    Contenders are first run in the order of their temporary bytes, so that a peak that grows is their own."""
    jax.block_until_ready(run())
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def square_product(dtype: str):
    """The ceiling: ``(function, floating point operations)``."""
    side = CEILING.get(jax.default_backend(), 8192)
    a = jax.random.normal(jax.random.key(3), (side, side)).astype(dtype)
    return partial(compiled(jnp.dot, a, a), a, a), 2 * side**3


def measure(n: int, d: int, v: int, dtype: str, seconds: float) -> dict:
    """All contenders at a shape."""
    arguments, rows = inputs(n, d, v, dtype), cut_rows((n,), d, v, None).rows
    programs, reasons = attempt(compilers(rows, n, arguments))
    temporary = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    runs = {name: partial(programs[name], *arguments) for name in sorted(programs, key=temporary.__getitem__)}
    peaks, failed = attempt({name: partial(peak_after, run) for name, run in runs.items()})
    ceiling, operations = square_product(dtype)
    rounds = rounds_of({name: runs[name] for name in peaks} | {"ceiling": ceiling}, seconds)
    rate = operations / np.median(rounds["ceiling"]) / 1e9
    base = {name: "4 products" if name in ("ours per token", "4 products") else "3 products" for name in peaks}

    def cells(name: str) -> dict:
        milliseconds, count = float(np.median(rounds[name])), 8 if base[name] == "4 products" else 6
        teraflops = count * n * d * v / milliseconds / 1e9
        return {
            "milliseconds": milliseconds,
            "to_products": median_ratio(rounds[name], rounds[base[name]]) if base[name] in peaks else None,
            "teraflops": teraflops,
            "share_of_ceiling": teraflops / rate,
            "temporary_bytes": temporary[name],
            "peak_bytes": peaks[name],
        }

    return {
        "shape": [n, d, v],
        "dtype": dtype,
        "chunk_rows": rows,
        "temporary_bytes_allowed": int(4 * d * v + 1.2 * 4 * rows * v + 64 * n),
        "ceiling_teraflops": float(rate),
        "contenders": {name: cells(name) for name in peaks},
        "absent": reasons | failed,
    }


def show(row: dict) -> None:
    print(
        f"\n{row['dtype']} {'x'.join(map(str, row['shape']))}, chunks of {row['chunk_rows']} rows, ceiling "
        f"{row['ceiling_teraflops']:.2f} TFLOP/s, {row['temporary_bytes_allowed'] / 2**20:,.0f} MiB allowed"
    )
    print(f"{'':<16} {'ms':>9} {'/products':>9} {'TFLOP/s':>8} {'of ceiling':>10} {'temp MiB':>9} {'peak MiB':>9}")
    for name, c in row["contenders"].items():
        ratio = "-" if c["to_products"] is None else f"{c['to_products']:.3f}"
        peak = "-" if c["peak_bytes"] is None else f"{c['peak_bytes'] / 2**20:,.0f}"
        print(
            f"{name:<16} {c['milliseconds']:>9.2f} {ratio:>9} {c['teraflops']:>8.2f} {c['share_of_ceiling']:>10.1%} "
            f"{c['temporary_bytes'] / 2**20:>9,.0f} {peak:>9}"
        )
    for name, why in row["absent"].items():
        print(f"{name:<16} {why}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear_device", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--shape", nargs="+", type=shape, default=PRESETS, help="rows,features,classes (default: presets)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per function and shape (default 3)")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    rows = []
    for n, d, v in options.shape:
        rows.append(measure(n, d, v, options.dtype, options.seconds))
        show(rows[-1])
    if options.out:
        write(options.out, rows=rows)


if __name__ == "__main__":
    main()
