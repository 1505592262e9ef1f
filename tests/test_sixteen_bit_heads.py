"""Hidden states and heads of 16 bits: their gradients are as good as the one rounding at the end, whatever the losses are
multiplied by, and over however many devices they are added up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import crossent_jax

from . import grid

ROWS, FEATURES, CLASSES = 1021, 16, 4099
LAST = 6e-8  # float16's smallest number: a gradient is rounded to a multiple of it
KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN = jax.random.normal(KEYS[0], (ROWS, FEATURES))
HEAD = jax.random.normal(KEYS[1], (FEATURES, CLASSES)) / 4
LABELS = jax.random.randint(KEYS[2], (ROWS,), 0, CLASSES)
OTHER = jax.random.normal(KEYS[3], (ROWS, FEATURES))


def log_probs(hidden, head, labels=LABELS):
    return jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), labels[:, None], 1)[:, 0]


def divergences(hidden, head):
    teacher, student = jax.nn.log_softmax(OTHER @ HEAD), jax.nn.log_softmax(hidden @ head)
    return jnp.sum(jnp.exp(student) * (student - teacher), -1)


def contrastive(queries, keys):
    z = queries @ keys.T / 0.5
    return -(jnp.diagonal(jax.nn.log_softmax(z, 1)) + jnp.diagonal(jax.nn.log_softmax(z, 0))).mean() / 2


def linear_divergence(hidden, head, reduction="mean"):
    teacher = {"teacher_hidden": OTHER, "teacher_head": HEAD}
    return crossent_jax.linear_divergence(hidden, head, kind="reverse_kl", reduction=reduction, **teacher)


WEIGHTS = np.full(ROWS, 1 / ROWS, np.float32)
LOSSES = {
    "mean": lambda x, w: crossent_jax.linear_cross_entropy(x, w, LABELS),
    "mean of rows": lambda x, w: crossent_jax.linear_cross_entropy(x, w, LABELS, reduction="none").mean(),
    "small weights": lambda x, w: crossent_jax.linear_cross_entropy(
        x, w, LABELS, row_weights=WEIGHTS, reduction="sum", logits_dtype=jnp.float16
    ),
    "log-probabilities": lambda x, w: -crossent_jax.linear_token_log_probs(x, w, LABELS).mean(),
    "divergence": linear_divergence,
    "divergence of rows": lambda x, w: linear_divergence(x, w, "none").mean(),
}
FORMULAS = {name: lambda x, w: -log_probs(x, w).mean() for name in LOSSES}
FORMULAS |= {name: lambda x, w: divergences(x, w).mean() for name in LOSSES if "divergence" in name}


def gradients(loss, *arrays):
    return grid.quick(jax.grad(loss, (0, 1)))(*arrays)


def error(ours, right):
    """Root mean square, relative; float16's own last rounding left out."""
    last = LAST / 2 * np.sqrt(ours.size) if ours.dtype == np.float16 else 0
    ours, right = np.asarray(ours, np.float64), np.asarray(right, np.float64)
    return max(0, np.linalg.norm(ours - right) - last) / np.linalg.norm(right)


@pytest.mark.parametrize("name", LOSSES)
def test_float16_gradients(name):
    """A rounding to float16 is off by 2.5e-4 on average; without care for its exponents it was 5e-3 and more."""
    arrays = HIDDEN.astype(jnp.float16), HEAD.astype(jnp.float16)
    right = gradients(FORMULAS[name], *(x.astype(jnp.float32) for x in arrays))
    for ours, exact in zip(gradients(LOSSES[name], *arrays), right, strict=True):
        assert ours.dtype == jnp.float16
        assert error(ours, exact) <= (5e-4 if name != "small weights" else 1e-3)  # its logits are rounded too


def test_float16_contrastive_gradients():
    arrays = HIDDEN.astype(jnp.float16) / 4, OTHER.astype(jnp.float16) / 4
    right = gradients(contrastive, *(x.astype(jnp.float32) for x in arrays))
    ours = gradients(lambda q, k: crossent_jax.info_nce(q, k, temperature=0.5), *arrays)
    for got, exact in zip(ours, right, strict=True):
        assert error(got, exact) <= 5e-4


def test_float16_rows_that_are_nan_or_huge():
    """The others keep their own gradients."""
    hidden = HIDDEN.astype(jnp.float16).at[3].set(jnp.nan)
    weights = jnp.ones(ROWS).at[5].set(1e30).at[3].set(1)

    def loss(x, w):
        return crossent_jax.linear_cross_entropy(x, w, LABELS, row_weights=weights, reduction="none")[7]

    right = gradients(
        lambda x, w: -log_probs(x[7:8], w, LABELS[7:8])[0], HIDDEN.astype(jnp.float16).astype(jnp.float32), HEAD
    )
    assert error(gradients(loss, hidden, HEAD.astype(jnp.float16))[0][7], right[0][7]) <= 1e-3


# --- over devices ----------------------------------------------------------------------------------

DEVICES, CLASSES_OF_MESH = 8, 4096
ROWS_OF_MESH = 1016
MESH = jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Auto,))
SPLITS = {  # specs of hidden and head, and whose gradient is added up over devices
    "rows": (P("devices"), P(), 1),
    "classes": (P(), P(None, "devices"), 0),
}


def linear_over(reduction, kind, axis_name):
    labels, teacher = LABELS[:ROWS_OF_MESH], OTHER[:ROWS_OF_MESH]

    def loss(hidden, head, labels, teacher, teacher_head):
        options = {"reduction": reduction, "axis_name": axis_name}
        if kind is None:
            out = crossent_jax.linear_cross_entropy(hidden, head, labels, **options)
        else:
            sides = {"teacher_hidden": teacher, "teacher_head": teacher_head}
            out = crossent_jax.linear_divergence(hidden, head, kind=kind, **sides, **options)
        return jnp.sum(out)

    return loss, (labels, teacher, HEAD[:, :CLASSES_OF_MESH].astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", [None, "forward_kl"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("split", SPLITS)
def test_parts_are_added_up_in_float32(split, reduction, kind):
    """bfloat16: eight devices are no worse than one. Parts that are rounded before they are added up are 1.4 times as far
    off, or more."""
    of_hidden, of_head, argument = SPLITS[split]
    arrays = HIDDEN[:ROWS_OF_MESH].astype(jnp.bfloat16), HEAD[:, :CLASSES_OF_MESH].astype(jnp.bfloat16)
    loss, rest = linear_over(reduction, kind, "devices" if split == "classes" else None)
    whole, _ = linear_over(reduction, kind, None)
    specs = (of_hidden, of_head, of_hidden, of_hidden, of_head)
    sharded = jax.shard_map(jax.grad(loss, argument), mesh=MESH, in_specs=specs, out_specs=specs[argument])
    ours, one = (grid.quick(function)(*arrays, *rest) for function in (sharded, jax.grad(whole, argument)))
    right = grid.quick(jax.grad(whole, argument))(*(x.astype(jnp.float32) for x in arrays), *rest)
    assert ours.dtype == jnp.bfloat16
    assert error(ours, right) <= 1.05 * error(one, right)


@pytest.mark.parametrize("symmetric", [True, False])
def test_contrastive_parts_are_added_up_in_float32(symmetric):
    queries, keys = (x[:ROWS_OF_MESH].astype(jnp.bfloat16) for x in (HIDDEN, OTHER))

    def loss(axis_name):
        def info_nce(queries, keys):
            return crossent_jax.info_nce(queries, keys, temperature=0.5, symmetric=symmetric, axis_name=axis_name)

        return jax.grad(info_nce, 1)

    sharded = jax.shard_map(loss("devices"), mesh=MESH, in_specs=P("devices"), out_specs=P("devices"))
    ours, one = (grid.quick(function)(queries, keys) for function in (sharded, loss(None)))
    right = grid.quick(loss(None))(queries.astype(jnp.float32), keys.astype(jnp.float32))
    assert error(ours, right) <= 1.05 * error(one, right)
