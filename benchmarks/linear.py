"""Linear cross-entropy, value and gradients of hidden states and head: ``python -m benchmarks.linear``.

Beside it, in the same rounds: the naive formula, ``jax.checkpoint`` over chunks of rows at the best of several sizes (at
most half of the rows, as ours), and the three bare matrix products of our own chunks. torch, if installed, on its own, with
its own bare products. Ratios are our time over theirs (below 1: ours is faster), worst first. Temporary bytes are held
against the head's float32 gradient, 1.2 chunks of float32 logits and 64 bytes a row.
"""

import argparse
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import crossent_jax
from crossent_jax._linear_rows import cut_rows
from crossent_jax._pieces import cut, read, scan_rows

from .environment import write
from .shapes import LINEAR
from .timing import geometric_mean, median_ratio, medians, rounds_of

CHECKPOINT_ROWS = (128, 512, 1024)


def inputs(n: int, d: int, v: int, dtype: str):
    """Logits of deviation 3."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (n, d)).astype(dtype)
    head = (3 * d**-0.5 * jax.random.normal(keys[1], (d, v))).astype(dtype)
    return hidden, head, jax.random.randint(keys[2], (n,), 0, v)


def ours(hidden, head, labels):
    return crossent_jax.linear_cross_entropy(hidden, head, labels)


def float32_logits(hidden, head):
    return jnp.dot(hidden, head, preferred_element_type=jnp.float32)


def naive(hidden, head, labels):
    """softmax, then log."""
    probabilities = jax.nn.softmax(float32_logits(hidden, head))
    return -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], 1)).mean()


def logsumexp_sum(hidden, head, labels):
    logits = float32_logits(hidden, head)
    return (jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]).sum()


def checkpointed(size: int):
    """The formula on chunks of rows, recomputed in the backward pass; rows that do not fill a chunk go last."""

    def loss(hidden, head, labels):
        n, chunk = hidden.shape[0], jax.checkpoint(logsumexp_sum)
        count = n // size
        whole = hidden[: count * size].reshape(count, size, -1), labels[: count * size].reshape(count, size)
        total, _ = jax.lax.scan(lambda total, rows: (total + chunk(rows[0], head, rows[1]), None), jnp.float32(0), whole)
        return (total + chunk(hidden[count * size :], head, labels[count * size :])) / n

    return loss


def bare_products(size: int):
    """``(x W, z W^T, x^T z)`` chunk by chunk: what no exact scheme of three products can do without."""

    def products(hidden, head, labels):
        del labels

        def chunk(total, start, size, fresh):
            del fresh
            x = read(hidden, start, size, 0)
            z = float32_logits(x, head).astype(x.dtype)
            dx = jax.lax.dot_general(z, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            dw = jax.lax.dot_general(x, z, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return total + dw, dx.astype(x.dtype)

        total, dx = scan_rows(cut(hidden.shape[0], size), chunk, jnp.zeros(head.shape, jnp.float32), 0)
        return dx, total.astype(head.dtype)

    return products


def torch_runs(hidden, head, labels) -> dict:
    """torch's linear layer and cross-entropy, and the three products of all rows; empty without torch."""
    try:
        import torch
    except ImportError:
        return {}
    kind = torch.bfloat16 if hidden.dtype == jnp.bfloat16 else torch.float32
    x, w = (torch.from_numpy(np.array(a, np.float32)).to(kind).requires_grad_() for a in (hidden, head))
    y = torch.from_numpy(np.array(labels)).long()

    def loss():
        value = torch.nn.functional.cross_entropy(x @ w, y)
        return (value.detach(), *torch.autograd.grad(value, (x, w)))

    def products():
        with torch.no_grad():
            z = x @ w
            return z @ w.T, x.T @ z

    return {"torch": loss, "torch products": products}


def exact_loss(hidden, head, labels) -> float:
    """In float64, a block of rows at a time."""
    x, w, y = (np.asarray(a, np.float64 if a.ndim == 2 else None) for a in (hidden, head, labels))
    total = 0.0
    for start in range(0, len(y), 256):
        z = x[start : start + 256] @ w
        top = z.max(1)
        chosen = z[np.arange(len(z)), y[start : start + 256]]
        total += float(np.sum(np.log(np.exp(z - top[:, None]).sum(1)) - (chosen - top)))
    return total / len(y)


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def measure(n: int, d: int, v: int, dtype: str, seconds: float) -> dict:
    """One row of the table."""
    arguments, rows = inputs(n, d, v, dtype), cut_rows((n,), d, v, None).rows
    losses = {"ours": ours, "naive": naive} | {f"checkpoint {s}": checkpointed(s) for s in CHECKPOINT_ROWS if s <= n // 2}
    programs = {name: compiled(jax.value_and_grad(f, (0, 1)), *arguments) for name, f in losses.items()}
    programs["products"] = compiled(bare_products(rows), *arguments)
    if d >= 1024:
        programs["frozen head"] = compiled(jax.value_and_grad(ours), *arguments)
    rounds = rounds_of({name: partial(program, *arguments) for name, program in programs.items()}, seconds)
    ratios = {name: median_ratio(rounds["ours"], rounds[name]) for name in programs if name not in ("ours", "frozen head")}
    best = max((name for name in ratios if name.startswith("checkpoint")), key=ratios.__getitem__)
    times = {name: float(np.median(rounds[name])) for name in programs}
    torch_times = medians(torch_runs(*arguments), seconds)
    row = {
        "shape": [n, d, v],
        "dtype": dtype,
        "chunk_rows": rows,
        "milliseconds": times | torch_times,
        "to_naive": ratios["naive"],
        "to_checkpoint": ratios[best],
        "best_checkpoint": best,
        "to_products": ratios["products"],
        "temporary_bytes": programs["ours"].memory_analysis().temp_size_in_bytes,
        "temporary_bytes_allowed": int(4 * d * v + 1.2 * 4 * rows * v + 64 * n),
        "temporary_bytes_of_naive": programs["naive"].memory_analysis().temp_size_in_bytes,
        "error": abs(float(programs["ours"](*arguments)[0]) - exact_loss(*arguments)),
    }
    if "frozen head" in programs:
        row["frozen_head_to_both"] = median_ratio(rounds["frozen head"], rounds["ours"])
        row["frozen_head_products"] = len(re.findall(r" dot\(", programs["frozen head"].as_text()))
    if torch_times:
        row["to_torch"] = times["ours"] / torch_times["torch"]
        row["products_to_torch_products"] = times["products"] / torch_times["torch products"]
    return row


def show(row: dict) -> None:
    times = "  ".join(f"{name} {value:.0f}" for name, value in row["milliseconds"].items())
    extra = "".join(f", {key} {row[key]:.2f}" for key in ("frozen_head_to_both", "to_torch") if key in row)
    print(
        f"{row['dtype']:>8} {'x'.join(map(str, row['shape'])):<16} naive {row['to_naive']:.2f}, {row['best_checkpoint']} "
        f"{row['to_checkpoint']:.2f}, products {row['to_products']:.2f}{extra}  | ms: {times}  | temp "
        f"{row['temporary_bytes']:,} of {row['temporary_bytes_allowed']:,} B allowed  | error {row['error']:.1e}",
        flush=True,
    )


def summarize(rows: list[dict]) -> dict:
    """Worst before mean; None where no row counts. The targets stand in the keys."""
    narrow = [row for row in rows if row["shape"][1] <= 128]
    wide = [row for row in rows if row["shape"][1] >= 256]

    def of(statistic, key, rows):
        values = [row[key] for row in rows if key in row]
        return statistic(values) if values else None

    return {
        "rows": len(rows),
        "naive, worst (1.05)": of(max, "to_naive", rows),
        "naive, worst at d <= 128 (0.85)": of(max, "to_naive", narrow),
        "naive, geometric mean (0.95)": of(geometric_mean, "to_naive", rows),
        "best checkpoint, worst (0.85)": of(max, "to_checkpoint", rows),
        "products, worst at d >= 256 (1.1)": of(max, "to_products", wide),
        "products, geometric mean at d >= 256": of(geometric_mean, "to_products", wide),
        "frozen head, worst (0.75)": of(max, "frozen_head_to_both", rows),
        "frozen head, products (2)": of(max, "frozen_head_products", rows),
        "torch, worst at d <= 128 (0.6 in float32)": of(max, "to_torch", narrow),
        "bare products to torch's, worst at d <= 128": of(max, "products_to_torch_products", narrow),
        "memory within bound": all(row["temporary_bytes"] <= row["temporary_bytes_allowed"] for row in rows),
        "error, worst": of(max, "error", rows),
    }


def shape(text: str) -> tuple[int, int, int]:
    try:
        n, d, v = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}: give rows,features,classes, such as 1024,256,65536") from None
    return n, d, v


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--shape", nargs="+", type=shape, default=LINEAR, help="rows,features,classes (default: all)")
    parser.add_argument("--seconds", type=float, default=1.5, help="time per function and shape (default 1.5)")
    parser.add_argument("--out", type=Path, help="write the rows and the summary as JSON")
    options = parser.parse_args()
    rows = []
    for dtype in options.dtype:
        for n, d, v in options.shape:
            rows.append(measure(n, d, v, dtype, options.seconds))
            show(rows[-1])
    summary = {dtype: summarize([row for row in rows if row["dtype"] == dtype]) for dtype in options.dtype}
    print(json.dumps(summary, indent=1))
    if options.out:
        write(options.out, summary=summary, rows=rows)


if __name__ == "__main__":
    main()
