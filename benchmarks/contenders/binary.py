"""Losses of yes/no decisions."""

import importlib

import jax.numpy as jnp
import optax

import crossent_jax

from .contender import formula, of_torch


def ours(logits, labels):
    return crossent_jax.binary_cross_entropy(logits, labels)


def naive(logits, labels):
    return (jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))).mean()


def of_optax(logits, labels):
    return optax.losses.sigmoid_binary_cross_entropy(logits, labels).mean()


def torch(case):
    del case
    loss = importlib.import_module("torch").nn.functional.binary_cross_entropy_with_logits
    return lambda logits, labels: loss(logits, labels.to(logits.dtype))


BINARY_CROSS_ENTROPY = {
    "ours": formula("crossent_jax.binary_cross_entropy", ours),
    "naive": formula("max(z, 0) - z y + log1p(exp(-|z|))", naive),
    "optax": formula("sigmoid_binary_cross_entropy", of_optax),
    "torch": of_torch("binary_cross_entropy_with_logits", torch),
}
