"""Pairs of distributions: soft labels, divergences, contrastive losses."""

import importlib

import jax
import jax.numpy as jnp
import optax

import crossent_jax

from ..operations import TEMPERATURE
from .contender import formula, of_torch


def ours_soft(logits, targets):
    return crossent_jax.soft_cross_entropy(logits, targets)


def ours_soft_reference(logits, targets):
    return crossent_jax.soft_cross_entropy(logits, targets, implementation="reference")


def naive_soft(logits, targets):
    return -(targets * jnp.log(jax.nn.softmax(logits))).sum(-1).mean()


def log_softmax_soft(logits, targets):
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def optax_soft(logits, targets):
    return optax.losses.softmax_cross_entropy(logits, targets).mean()


def torch_soft(case):
    del case
    loss = importlib.import_module("torch").nn.functional.cross_entropy
    return lambda logits, targets: loss(logits, targets.to(logits.dtype))


def naive_kl(logits, teacher):
    p, t = jax.nn.softmax(logits), jax.nn.softmax(jax.lax.stop_gradient(teacher))
    return (t * (jnp.log(t) - jnp.log(p))).sum(-1).mean()


def log_softmax_kl(logits, teacher):
    log_t = jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
    return (jnp.exp(log_t) * (log_t - jax.nn.log_softmax(logits))).sum(-1).mean()


def optax_kl(logits, teacher):
    log_t = jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(logits), log_t).mean()


def torch_kl(case):
    del case
    functional = importlib.import_module("torch").nn.functional

    def loss(logits, teacher):
        log_p, log_t = functional.log_softmax(logits, -1), functional.log_softmax(teacher.detach(), -1)
        return functional.kl_div(log_p, log_t, reduction="batchmean", log_target=True)

    return loss


def ours_info_nce(queries, keys):
    """Both directions as linear losses: the other side's vectors are the head."""
    own = jnp.arange(len(queries))
    options = {"head_vocab_axis": 0, "temperature": TEMPERATURE}
    rows = crossent_jax.linear_cross_entropy(queries, keys, own, **options)
    return (rows + crossent_jax.linear_cross_entropy(keys, queries, own, **options)) / 2


def naive_info_nce(queries, keys):
    logits = jnp.dot(queries, keys.T, preferred_element_type=jnp.float32) / TEMPERATURE
    rows, columns = jax.nn.softmax(logits, axis=1), jax.nn.softmax(logits, axis=0)
    return -(jnp.log(jnp.diagonal(rows)) + jnp.log(jnp.diagonal(columns))).mean() / 2


def log_softmax_info_nce(queries, keys):
    logits = jnp.dot(queries, keys.T, preferred_element_type=jnp.float32) / TEMPERATURE
    rows, columns = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
    return -(jnp.diagonal(rows) + jnp.diagonal(columns)).mean() / 2


def torch_info_nce(case):
    del case
    torch = importlib.import_module("torch")

    def loss(queries, keys):
        logits = queries @ keys.T / TEMPERATURE
        own = torch.arange(len(queries), device=queries.device)
        return (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2

    return loss


SOFT_CROSS_ENTROPY = {
    "ours": formula("crossent_jax.soft_cross_entropy", ours_soft),
    "ours-reference": formula("the same, implementation='reference'", ours_soft_reference),
    "naive": formula("targets times log of softmax", naive_soft),
    "log-softmax": formula("targets times log_softmax", log_softmax_soft),
    "optax": formula("softmax_cross_entropy", optax_soft),
    "torch": of_torch("cross_entropy with probabilities", torch_soft),
}
KL_DIVERGENCE = {
    "naive": formula("softmax, log, difference", naive_kl),
    "log-softmax": formula("the same on log_softmax", log_softmax_kl),
    "optax": formula("kl_divergence_with_log_targets", optax_kl),
    "torch": of_torch("kl_div with log targets", torch_kl),
}
INFO_NCE = {
    "ours": formula("linear_cross_entropy both ways, no matrix of the batch", ours_info_nce),
    "naive": formula("softmax of the matrix, log of its diagonal", naive_info_nce),
    "log-softmax": formula("log_softmax of the matrix", log_softmax_info_nce),
    "torch": of_torch("cross_entropy both ways", torch_info_nce),
}
