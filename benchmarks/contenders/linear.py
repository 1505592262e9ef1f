"""Losses of hidden states and a head: ours, the logits held whole, chunks under ``jax.checkpoint``, other libraries, and the
bare matrix products that no exact scheme can do without."""

import importlib

import jax
import jax.numpy as jnp

import crossent_jax
from crossent_jax._jax.pieces import cut, read, scan_rows
from crossent_jax._linear.cuts import Limits, Sizes, cut_rows

from . import logits
from .contender import Contender, formula, of_torch

GRADIENTS = ("value_and_grad",)
other_chip: str | None = None  # that is compiled for and is not here


def ours(hidden, head, labels):
    return crossent_jax.linear_cross_entropy(hidden, head, labels)


def ours_reference(hidden, head, labels):
    return crossent_jax.linear_cross_entropy(hidden, head, labels, implementation="reference")


def ours_in_4_gib(hidden, head, labels):
    return crossent_jax.linear_cross_entropy(hidden, head, labels, memory_budget=4 * 2**30)


def ours_per_token(hidden, head, labels):
    return crossent_jax.linear_cross_entropy(hidden, head, labels, reduction="none").mean()


def ours_ignored(case):
    """Value and gradients where two of sixteen sequences count."""
    counts = jnp.arange(case.shape.n) * 16 // case.shape.n % 8 == 0

    def loss(hidden, head, labels):
        where = counts & (labels >= 0)  # which a compiler does not know
        return crossent_jax.linear_cross_entropy(hidden, head, labels, where=where)

    return jax.value_and_grad(loss, (0, 1))


def float32_logits(hidden, head):
    return jnp.dot(hidden, head, preferred_element_type=jnp.float32)


def of_logits(loss):
    return lambda hidden, head, labels: loss(float32_logits(hidden, head), labels)


def logsumexp_sum(hidden, head, labels):
    return of_logits(logits.logsumexp)(hidden, head, labels) * len(labels)


def checkpointed(size: int):
    """The formula on chunks of at most half of the rows, recomputed in the backward pass; the rest goes last."""

    def loss(hidden, head, labels):
        n, chunk = hidden.shape[0], jax.checkpoint(logsumexp_sum)
        rows = min(size, max(1, n // 2))
        count = n // rows
        whole = hidden[: count * rows].reshape(count, rows, -1), labels[: count * rows].reshape(count, rows)
        total, _ = jax.lax.scan(lambda total, part: (total + chunk(part[0], head, part[1]), None), jnp.float32(0), whole)
        if count * rows < n:
            total += chunk(hidden[count * rows :], head, labels[count * rows :])
        return total / n

    return loss


def chunk_rows(shape) -> int:
    """Of ours, by default."""
    on_cpu = not other_chip and jax.default_backend() == "cpu"
    return cut_rows((shape.n,), Sizes(shape.n, shape.d, shape.v), Limits(), on_cpu).rows


def whole_products(case):
    """The bare products of all rows at once."""
    return bare_products(case, case.shape.n)


def bare_products(case, size=None):
    """``(x W, z W^T, x^T z)`` chunk by chunk, in our chunks."""

    def products(hidden, head, labels):
        del labels

        def chunk(total, start, size, fresh):
            del fresh
            x = read(hidden, start, size, 0)
            z = float32_logits(x, head).astype(x.dtype)
            dx = jax.lax.dot_general(z, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            dw = jax.lax.dot_general(x, z, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return total + dw, dx.astype(x.dtype)

        pieces = cut(hidden.shape[0], size or chunk_rows(case.shape))
        total, dx = scan_rows(pieces, chunk, jnp.zeros(head.shape, jnp.float32), 0)
        return dx, total.astype(head.dtype)

    return products


def four_products(case):
    """The logits of every chunk once more, before the three products."""
    size, three = chunk_rows(case.shape), bare_products(case)

    def products(hidden, head, labels):
        starts = jnp.array([min(start, hidden.shape[0] - size) for start in range(0, hidden.shape[0], size)])

        def first_column(carry, start):
            z = float32_logits(jax.lax.dynamic_slice_in_dim(hidden, start, size), head)
            return carry, jax.lax.optimization_barrier(z)[:, 0]

        return jax.lax.scan(first_column, (), starts)[1], three(hidden, head, labels)

    return products


def tokamax(case):
    del case
    loss = importlib.import_module("tokamax").linear_softmax_cross_entropy_loss
    return lambda hidden, head, labels: loss(hidden, labels, head, reduction="mean")


def torch_loss(case):
    loss = logits.torch_loss(case)
    return lambda hidden, head, labels: loss(hidden @ head, labels)


def torch_products(case):
    del case

    def products(hidden, head, labels):
        del labels
        z = hidden @ head
        return z @ head.T, hidden.T @ z

    return products


def torch_compiled(case):
    loss = logits.torch_loss(case)
    return importlib.import_module("torch").compile(
        lambda hidden, head, labels: loss((hidden @ head).float(), labels), dynamic=False
    )


def liger(case):
    del case
    loss = importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    return lambda hidden, head, labels: loss(hidden, head.T, labels)


def cut_cross_entropy(case):
    """Without the filter that drops small gradients: an exact answer against exact answers."""
    del case
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda hidden, head, labels: loss(hidden, head.T, labels, filter_eps=None)


def quack(case):
    del case
    loss = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return lambda hidden, head, labels: loss(hidden, head.T, labels, reduction="mean")


HALF, KERNEL = ("bfloat16", "float16"), {"platforms": ("gpu",), "head_by_class": True}
LINEAR_CROSS_ENTROPY = {
    "ours": formula("crossent_jax.linear_cross_entropy", ours),
    "ours-reference": formula("the same, implementation='reference'", ours_reference),
    "ours-per-token": formula("reduction='none', then the mean", ours_per_token, ranked=False, products=4, modes=GRADIENTS),
    "ours-4GiB": formula("memory_budget of 4 GiB", ours_in_4_gib, modes=GRADIENTS, platforms=("gpu", "tpu")),
    "ours-frozen-head": formula(
        "the gradient of hidden alone", ours, ranked=False, products=2, differentiated=1, modes=GRADIENTS, least_width=1024
    ),
    "ours-ignored": Contender(
        "7/8 of the rows ignored, in whole sequences",
        ours_ignored,
        modes=GRADIENTS,
        ranked=False,
        is_loss=False,
        least_width=256,
    ),
    **{f"checkpoint-{s}": formula(f"jax.checkpoint over {s} rows", checkpointed(s)) for s in (128, 512, 1024)},
    "naive": formula("softmax of the whole logits, then log", of_logits(logits.naive)),
    "logsumexp": formula("logsumexp of the whole logits", of_logits(logits.logsumexp)),
    "optax-integer": formula("optax on the whole logits", of_logits(logits.optax_integer)),
    "t5x": formula("the form of T5X and MaxText on the whole logits", of_logits(logits.t5x)),
    "tokamax": Contender("tokamax's own choice", tokamax, packages=("tokamax",)),
    "products": Contender("three bare products, our chunks", bare_products, modes=GRADIENTS, ranked=False, is_loss=False),
    "products-whole": Contender(
        "three bare products, all rows at once",
        whole_products,
        modes=GRADIENTS,
        ranked=False,
        is_loss=False,
        platforms=("gpu", "tpu"),
    ),
    "products-4": Contender(
        "the logits once more",
        four_products,
        modes=GRADIENTS,
        ranked=False,
        is_loss=False,
        products=4,
        platforms=("gpu", "tpu"),
    ),
    "torch": of_torch("linear layer and cross_entropy", torch_loss),
    "torch-products": of_torch("its three bare products", torch_products, ranked=False, is_loss=False, modes=GRADIENTS),
    "torch-compile": of_torch("torch.compile, float32 loss", torch_compiled, platforms=("gpu",)),
    "liger": of_torch("liger_fused_linear_cross_entropy", liger, "liger_kernel", **KERNEL),
    "cce": of_torch("cut_cross_entropy without its filter", cut_cross_entropy, "cut_cross_entropy", dtypes=HALF, **KERNEL),
    "quack": of_torch("chunked_linear_cross_entropy", quack, "quack", dtypes=HALF, **KERNEL),
}
