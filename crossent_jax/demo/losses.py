"""The training loss by crossent_jax, from logits and without them, and as a textbook writes it: means over the labels that
are not -1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from crossent_jax import cross_entropy, linear_cross_entropy

PADDING = -1
LABEL_SMOOTHING = 0.02
Z_LOSS = 1e-4
OPTIONS = {"ignore_index": PADDING, "label_smoothing": LABEL_SMOOTHING, "z_loss": Z_LOSS}


def exact_loss(logits: Float[Array, "*rows v"], labels: Int[Array, "*rows"]) -> Float[Array, ""]:
    """The formula of `naive_loss`, computed by crossent_jax."""
    return cross_entropy(logits, labels, **OPTIONS)


def fused_loss(
    features: Float[Array, "*rows d"], embedding: Float[Array, "v d"], bias: Float[Array, " v"], labels: Int[Array, "*rows"]
) -> Float[Array, ""]:
    """`exact_loss` of the logits `features @ embedding.T + bias`, without holding them."""
    return linear_cross_entropy(features, embedding, labels, head_vocab_axis=0, bias=bias, **OPTIONS)


def naive_loss(logits: Float[Array, "*rows v"], labels: Int[Array, "*rows"]) -> Float[Array, ""]:
    """-Σ_j t_j log(softmax(z)_j) + λ (log Σ_j exp z_j)²,  t = (1 - ε) onehot + ε / v.

    The logarithm is taken of probabilities that have already been rounded, and of sums of unscaled exponentials.
    """
    vocab_size = logits.shape[-1]
    log_probabilities = jnp.log(jax.nn.softmax(logits))
    targets = (1 - LABEL_SMOOTHING) * jax.nn.one_hot(labels, vocab_size, dtype=logits.dtype)
    smoothed = -jnp.sum((targets + LABEL_SMOOTHING / vocab_size) * log_probabilities, axis=-1)
    log_normaliser = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    is_real = (labels != PADDING).astype(logits.dtype)
    return jnp.sum((smoothed + Z_LOSS * log_normaliser**2) * is_real) / jnp.sum(is_real)
