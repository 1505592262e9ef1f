"""Held-out scores: the plain negative log-likelihood, without smoothing and z-loss, whatever the model was trained on."""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crossent_jax import LossSum, cross_entropy

from .batches import Examples, in_order
from .losses import PADDING


class Score(NamedTuple):
    """`nats`: summed over all labels. `nll`: nats per label. `accuracy`: the share of labels that got the largest logit."""

    nats: float
    nll: float
    accuracy: float


@partial(jax.jit, static_argnums=0)
def score_batch(apply: Callable, parameters, batch: Examples) -> tuple[LossSum, LossSum]:
    """Sums and counts, not means: batches with unequal padding add up exactly."""
    logits = apply(parameters, batch.inputs)
    loss = cross_entropy(logits, batch.labels, ignore_index=PADDING, reduction="loss_sum")
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == batch.labels, dtype=jnp.float32)
    return loss, LossSum(correct, loss.weight)


def score(apply: Callable, parameters, examples: Examples, batch_size: int) -> Score:
    """The score over all examples; the same, up to rounding, for every batch size."""
    parts = [score_batch(apply, parameters, batch) for batch in in_order(examples, batch_size)]
    loss, correct = (reduce(operator.add, column) for column in zip(*parts, strict=True))
    return Score(float(loss.total), float(loss.mean()), float(correct.mean()))
