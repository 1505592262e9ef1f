"""What devices that share the classes of a row send for it: few numbers, in as few rounds as the loss has dependences."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import crossent_jax
from benchmarks.collectives import collectives

from . import grid

ROWS, CLASSES, FEATURES = 72, 40, 12
GEN = grid.rng("collectives")
LOGITS, TEACHER = (jnp.asarray(GEN.standard_normal((ROWS, CLASSES)), jnp.float32) for _ in range(2))
HIDDEN, HEAD = (jnp.asarray(GEN.standard_normal(shape), jnp.float32) for shape in ((ROWS, FEATURES), (FEATURES, CLASSES)))
LABELS = jnp.arange(ROWS) % CLASSES
TERMS = {"label_smoothing": 0.1, "z_loss": 0.01, "focal_gamma": 2.0, "poly_epsilon": 0.5, "entropy_weight": 0.1}
TERMS |= {"softcap": 5.0, "temperature": 1.5, "where": LABELS != 3, "row_weights": jnp.linspace(0.2, 1, ROWS)}
OVER = {"axis_name": "model"}


def loss(z, options):
    return crossent_jax.cross_entropy(z, LABELS, **OVER, **options)


def loss_of_hidden(head, **options):
    return crossent_jax.linear_cross_entropy(HIDDEN, head, LABELS, chunk_rows=24, **OVER, **options)


def statistics(z, _):
    return sum(jnp.sum(x.astype(jnp.float32)) for x in crossent_jax.row_stats(z, LABELS, **OVER))


COLUMNS, CLASS = P(None, "model"), P("model")
MASK, WEIGHTS = jnp.arange(CLASSES) % 5 != 4, jnp.linspace(0.5, 2, CLASSES)
TWO_ROUNDS = {"maximum": 1, "add": 1}
CASES = {  # a function of arrays that are split; the arrays; their specs; bytes a row; rounds
    "labels": (loss, (LOGITS, {}), 12, TWO_ROUNDS),
    "labels, some classes masked": (loss, (LOGITS, {"class_mask": MASK}), 12, TWO_ROUNDS),
    "every term": (lambda z, options: loss(z, TERMS | options), (LOGITS, {"class_mask": MASK}), 24, TWO_ROUNDS),
    "every option": (
        lambda z, options: loss(z, TERMS | options),
        (LOGITS, {"class_mask": MASK, "class_weights": WEIGHTS}),
        32,
        TWO_ROUNDS,
    ),
    "statistics": (statistics, (LOGITS, {}), 28, TWO_ROUNDS | {"minimum": 1}),
    "targets": (partial(crossent_jax.soft_cross_entropy, **OVER), (LOGITS, TEACHER), 16, TWO_ROUNDS),
    "a head": (loss_of_hidden, (HEAD,), 12, {"maximum": 3, "add": 3}),
    "a head, every term": (partial(loss_of_hidden, **TERMS), (HEAD,), 24, {"maximum": 3, "add": 3}),
    "KL": (partial(crossent_jax.kl_divergence, **OVER), (LOGITS, TEACHER), 24, {"maximum": 1, "add": 2}),
    "reverse KL": (partial(crossent_jax.reverse_kl_divergence, **OVER), (LOGITS, TEACHER), 24, {"maximum": 1, "add": 2}),
    "Jensen-Shannon": (partial(crossent_jax.js_divergence, **OVER), (LOGITS, TEACHER), 28, {"maximum": 1, "add": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_a_row_and_rounds(case):
    """Of value and gradients of what is split; a head's loop has three chunks. Counted in the optimised program: XLA joins
    the sums of a round (jax 0.7.2, 0.10.2 and 0.12.0.1 alike)."""
    function, arrays, bytes_of_a_row, rounds = CASES[case]
    specs = jax.tree.map(lambda x: COLUMNS if x.ndim == 2 else CLASS, arrays)
    floating = tuple(i for i, x in enumerate(arrays) if not isinstance(x, dict))
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P())
    found = collectives(grid.quick(jax.value_and_grad(split, floating)).lower(*arrays).compile().as_text())
    assert sum(each.times * each.size for each in found) == ROWS * bytes_of_a_row
    assert Counter(each.combines for each in found for _ in range(each.times)) == rounds


def test_labels_that_types_say_may_differ_between_devices():
    """Then no device knows of all labels whether they are of a class, and the devices add up what each has found."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    labels = LABELS.at[0].set(CLASSES)

    def of_shard(z, again):
        return crossent_jax.token_log_probs(z, again[0], **OVER)

    split = jax.shard_map(of_shard, mesh=mesh, in_specs=(COLUMNS, P("model", None)), out_specs=P())
    found = grid.quick(split)(LOGITS, jnp.broadcast_to(labels, (8, ROWS)))
    np.testing.assert_allclose(found, crossent_jax.token_log_probs(LOGITS, labels), rtol=1e-6)
