"""Divergences with the classes split over a mesh axis in jax.shard_map, or rows split over devices, equal the whole."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import crossent_jax

from . import grid

ROWS, CLASSES, SHARDS, FEATURES = 9, 24, 8, 6
KEYS = jax.random.split(jax.random.key(0), 5)
LOGITS, TEACHER = (3 * jax.random.normal(key, (ROWS, CLASSES)) for key in KEYS[:2])
HIDDEN, HEAD = jax.random.normal(KEYS[2], (ROWS, FEATURES)), jax.random.normal(KEYS[3], (FEATURES, CLASSES))
TEMPERATURE = jnp.float32(1.5)
TEACHER_HEAD = jax.random.normal(KEYS[4], (FEATURES, CLASSES))
LABELS = jnp.arange(ROWS) * 5 % CLASSES
OPTIONS = {
    "forward_kl": {"labels": LABELS, "label_weight": 0.3, "scale_by_temperature_squared": True},
    "js": {"beta": 0.3, "where": LABELS != 5, "row_weights": jnp.linspace(0.5, 1.5, ROWS)},
    "renyi": {"order": 0.5, "softcap": 5.0},
}


def mesh():
    return jax.make_mesh((SHARDS,), ("model",), axis_types=(AxisType.Auto,))


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def over_classes(loss, specs, check_vma):
    return jax.shard_map(partial(loss, axis_name="model"), mesh=mesh(), in_specs=specs, out_specs=P(), check_vma=check_vma)


def loss_of_logits(z, w, temperature, kind, **more):
    return crossent_jax.divergence(z, w, kind=kind, temperature=temperature, **OPTIONS[kind], **more)


@cache
def whole_of_logits(kind):
    return grid.quick(jax.value_and_grad(partial(loss_of_logits, kind=kind), (0, 1, 2)))(LOGITS, TEACHER, TEMPERATURE)


@pytest.mark.parametrize(
    "kind, implementation, check_vma",
    [
        ("forward_kl", None, True),
        ("js", None, False),
        ("renyi", None, True),
        ("forward_kl", "reference", False),
        ("js", "reference", True),
    ],
)
def test_logits(kind, implementation, check_vma):
    loss = partial(loss_of_logits, kind=kind, implementation=implementation)
    sharded = over_classes(loss, (P(None, "model"), P(None, "model"), P()), check_vma)
    assert_same(jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(LOGITS, TEACHER, TEMPERATURE), whole_of_logits(kind))


LOG_PROBS, INDICES = jax.lax.top_k(jax.nn.log_softmax(TEACHER), 5)
SPLIT = {"logits": TEACHER, "head": TEACHER_HEAD, "top_k": jnp.zeros((1, CLASSES))}


def loss_of_projections(hidden, head, split, log_probs, teacher, **more):
    given = {
        "logits": {"teacher_logits": split},
        "head": {"teacher_hidden": jnp.sin(HIDDEN), "teacher_head": split},
        "top_k": {"teacher_top_k": (INDICES, log_probs)},
    }[teacher]
    return ROWS * jnp.mean(crossent_jax.linear_divergence(hidden, head, kind="js", chunk_rows=4, **given, **more))


@cache
def whole_of_projections(teacher):
    both = jax.value_and_grad(partial(loss_of_projections, teacher=teacher), (0, 1, 2, 3))
    return grid.quick(both)(HIDDEN, HEAD, SPLIT[teacher], LOG_PROBS)


@pytest.mark.parametrize(
    "teacher, reduction, check_vma",
    [
        ("logits", "mean", True),
        ("logits", "none", False),
        ("head", "mean", False),
        ("head", "none", True),
        ("top_k", "mean", True),
        ("top_k", "mean", False),
    ],
)
def test_projections(teacher, reduction, check_vma):
    loss = partial(loss_of_projections, teacher=teacher, reduction=reduction)
    sharded = over_classes(loss, (P(), P(None, "model"), P(None, "model"), P()), check_vma)
    found = jax.jit(jax.value_and_grad(sharded, (0, 1, 2, 3)))(HIDDEN, HEAD, SPLIT[teacher], LOG_PROBS)
    assert_same(found, whole_of_projections(teacher))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("split", ["rows", "classes"])
def test_split_arrays_without_shard_map(kind, split):
    dense = jax.value_and_grad(crossent_jax.js_divergence, (0, 1))
    devices = jax.make_mesh((SHARDS,), ("model",), axis_types=(kind,))
    spec = P("model", None) if split == "rows" else P(None, "model")
    z, w = LOGITS[:8], TEACHER[:8]
    with jax.set_mesh(devices):
        placed = [jax.device_put(x, NamedSharding(devices, spec)) for x in (z, w)]
        found = jax.jit(dense)(*placed)
    assert_same(found, dense(z, w))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_of_a_projection_split_over_devices(kind):
    def loss(hidden, head, teacher_hidden, teacher_head):
        return crossent_jax.linear_divergence(
            hidden, head, teacher_hidden=teacher_hidden, teacher_head=teacher_head, chunk_rows=16
        )

    both = jax.value_and_grad(loss, (0, 1, 2, 3))
    hidden = jax.random.normal(KEYS[0], (8, 6, FEATURES))
    arguments = hidden, HEAD, jnp.cos(hidden), TEACHER_HEAD
    devices = jax.make_mesh((SHARDS,), ("data",), axis_types=(kind,))
    specs = P("data"), P(), P("data"), P()
    with jax.set_mesh(devices):
        placed = [jax.device_put(x, NamedSharding(devices, s)) for x, s in zip(arguments, specs, strict=True)]
        found = jax.jit(both)(*placed)
    assert_same(found, grid.quick(both)(*arguments))
