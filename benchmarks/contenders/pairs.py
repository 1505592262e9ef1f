"""Pairs of distributions: soft labels, divergences, contrastive losses."""

import importlib
import math
from functools import partial

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


def ours_kl(logits, teacher):
    return crossent_jax.kl_divergence(logits, teacher, stop_teacher_gradient=True)


def ours_kl_reference(logits, teacher):
    return crossent_jax.kl_divergence(logits, teacher, stop_teacher_gradient=True, implementation="reference")


def ours_js(logits, teacher):
    return crossent_jax.js_divergence(logits, teacher, stop_teacher_gradient=True)


def log_softmax_js(logits, teacher):
    log_p, log_t = jax.nn.log_softmax(logits), jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
    log_m = jnp.logaddexp(log_p, log_t) - math.log(2)
    return ((jnp.exp(log_t) * (log_t - log_m) + jnp.exp(log_p) * (log_p - log_m)).sum(-1) / 2).mean()


def naive_js(logits, teacher):
    p, t = jax.nn.softmax(logits), jax.nn.softmax(jax.lax.stop_gradient(teacher))
    m = (p + t) / 2
    return ((t * jnp.log(t / m) + p * jnp.log(p / m)).sum(-1) / 2).mean()


def ours_linear_kl(hidden, head, teacher_hidden, teacher_head):
    return crossent_jax.linear_divergence(
        hidden, head, teacher_hidden=teacher_hidden, teacher_head=teacher_head, stop_teacher_gradient=True
    )


def _products(hidden, head, teacher_hidden, teacher_head):
    dot = partial(jnp.dot, preferred_element_type=jnp.float32)
    return dot(hidden, head), dot(teacher_hidden, teacher_head)


def naive_linear_kl(*arguments):
    return log_softmax_kl(*_products(*arguments))


def checkpoint_linear_kl(hidden, head, teacher_hidden, teacher_head):
    """The formula on chunks of 1024 rows, recomputed in the backward pass."""
    n, count = len(hidden), -(-len(hidden) // 1024)
    padded = [jnp.pad(x, ((0, count * 1024 - n), (0, 0))).reshape(count, 1024, -1) for x in (hidden, teacher_hidden)]

    @jax.checkpoint
    def chunk(x, y, rows):
        log_p, log_t = (jax.nn.log_softmax(z) for z in _products(x, head, y, teacher_head))
        kl = (jnp.exp(log_t) * (log_t - log_p)).sum(-1)
        return jnp.where(rows < n, kl, 0).sum()

    rows = jnp.arange(count * 1024).reshape(count, 1024)
    return jax.lax.scan(lambda total, xs: (total + chunk(*xs), None), jnp.float32(0), (*padded, rows))[0] / n


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
    return crossent_jax.info_nce(queries, keys, temperature=TEMPERATURE)


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
    "ours": formula("crossent_jax.kl_divergence", ours_kl),
    "ours-reference": formula("the same, implementation='reference'", ours_kl_reference),
    "naive": formula("softmax, log, difference", naive_kl),
    "log-softmax": formula("the same on log_softmax", log_softmax_kl),
    "optax": formula("kl_divergence_with_log_targets", optax_kl),
    "torch": of_torch("kl_div with log targets", torch_kl),
}
JS_DIVERGENCE = {
    "ours": formula("crossent_jax.js_divergence", ours_js),
    "naive": formula("softmax, mean, logs of quotients", naive_js),
    "log-softmax": formula("log_softmax and logaddexp", log_softmax_js),
}
LINEAR_KL_DIVERGENCE = {
    "ours": formula("crossent_jax.linear_divergence", ours_linear_kl, products=4),
    "naive": formula("both products whole, log_softmax", naive_linear_kl, products=4),
    "checkpoint": formula("the same in chunks of 1024 rows under jax.checkpoint", checkpoint_linear_kl, products=4),
}
INFO_NCE = {
    "ours": formula("crossent_jax.info_nce, no matrix of the batch", ours_info_nce),
    "naive": formula("softmax of the matrix, log of its diagonal", naive_info_nce),
    "log-softmax": formula("log_softmax of the matrix", log_softmax_info_nce),
    "torch": of_torch("cross_entropy both ways", torch_info_nce),
}
