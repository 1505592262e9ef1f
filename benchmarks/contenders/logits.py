"""Losses of given logits: the formulas that people write, and other libraries.

Each formula computes in the logits' own dtype, as its authors wrote it: a fast wrong answer is shown with its error.
"""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import optax

import crossent_jax

from .contender import formula, of_torch

ALL_MODES = ("forward", "value_and_grad", "eager")


IMPLEMENTATIONS = {"ours": None, "ours-kernel": "pallas_tpu", "ours-reference": "reference"}


def ours(name: str):
    return partial(crossent_jax.cross_entropy, implementation=IMPLEMENTATIONS[name])


def naive(logits, labels):
    probabilities = jax.nn.softmax(logits)
    return -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], 1)).mean()


def naive_one_hot(logits, labels):
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -(one_hot * jnp.log(jax.nn.softmax(logits))).sum(-1).mean()


def logsumexp(logits, labels):
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()


def optax_integer(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def optax_one_hot(logits, labels):
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.losses.softmax_cross_entropy(logits, one_hot).mean()


def t5x(logits, labels):
    """Float32 log-probabilities times one-hot targets, with the square of the partition function at weight 0."""
    logits = logits.astype(jnp.float32)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    log_z = jnp.log(jnp.exp(logits - top).sum(-1, keepdims=True)) + top
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return (-(one_hot * (logits - log_z)).sum(-1) + 0.0 * log_z[:, 0] ** 2).mean()


def torch_loss(case):
    del case
    return importlib.import_module("torch").nn.functional.cross_entropy


def torch_float32_loss(case):
    loss = torch_loss(case)
    return lambda logits, labels: loss(logits.float(), labels)


def torch_compiled(case):
    return importlib.import_module("torch").compile(torch_float32_loss(case), dynamic=False)


def liger(case):
    del case
    return importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy


def quack(case):
    del case
    loss = importlib.import_module("quack.cross_entropy").cross_entropy
    return lambda logits, labels: loss(logits, labels, reduction="mean")


FORMULAS = {
    "naive": formula("softmax, then log, at the label", naive),
    "naive-one-hot": formula("one-hot times log of softmax", naive_one_hot),
    "logsumexp": formula("logsumexp minus the label's logit", logsumexp),
    "optax-integer": formula("softmax_cross_entropy_with_integer_labels", optax_integer, modes=ALL_MODES),
    "optax-one-hot": formula("softmax_cross_entropy on one-hot labels", optax_one_hot),
    "t5x": formula("the form of T5X and MaxText: float32, one-hot, z-loss 0", t5x),
}
CROSS_ENTROPY = {
    "ours": formula("crossent_jax.cross_entropy", ours("ours"), modes=ALL_MODES),
    "ours-kernel": formula("the same, implementation='pallas_tpu'", ours("ours-kernel"), platforms=("tpu",), ranked=False),
    "ours-reference": formula("the same, implementation='reference'", ours("ours-reference")),
    **FORMULAS,
    "torch": of_torch("torch.nn.functional.cross_entropy", torch_loss),
    "torch-float32": of_torch("the same on logits.float()", torch_float32_loss, dtypes=("bfloat16", "float16")),
    "torch-compile": of_torch("torch.compile of torch-float32", torch_compiled, platforms=("gpu",)),
    "liger": of_torch("liger_cross_entropy", liger, "liger_kernel", platforms=("gpu",)),
    "quack": of_torch("quack.cross_entropy", quack, "quack", platforms=("gpu",)),
}
