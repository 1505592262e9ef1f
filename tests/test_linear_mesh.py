"""Linear losses on a mesh without ``shard_map``: rows split over devices stay where they are, whatever the axis types."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import crossent_jax

from . import grid

BATCH, SEQUENCE, FEATURES, CLASSES = 8, 17, 16, 4104  # more classes than a CPU's block of them
KEYS = jax.random.split(jax.random.key(0), 3)
HIDDEN = jax.random.normal(KEYS[0], (BATCH, SEQUENCE, FEATURES))
HEAD = jax.random.normal(KEYS[1], (FEATURES, CLASSES))
LABELS = jax.random.randint(KEYS[2], (BATCH, SEQUENCE), 0, CLASSES)
BY_ROWS, BY_CLASSES = {"hidden": P("devices"), "head": P()}, {"hidden": P(), "head": P(None, "devices")}


def loss(reduction):
    def mean(hidden, head, labels):
        out = crossent_jax.linear_cross_entropy(
            hidden, head, labels, chunk_rows=32, shift=1, label_smoothing=0.1, reduction=reduction
        )
        return jnp.mean(out)

    return jax.value_and_grad(mean, (0, 1))


@cache
def whole(reduction):
    return grid.quick(loss(reduction))(HIDDEN, HEAD, LABELS)


def placed(mesh, split):
    specs = (split["hidden"], split["head"], split["hidden"])
    arrays = (HIDDEN, HEAD, LABELS)
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("split", [BY_ROWS, BY_CLASSES], ids=["rows", "classes"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_split_batch_gives_the_same(kind, split, reduction):
    mesh = jax.make_mesh((BATCH,), ("devices",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        got = jax.jit(loss(reduction))(*placed(mesh, split))
    for ours, right in zip(jax.tree.leaves(got), jax.tree.leaves(whole(reduction)), strict=True):
        np.testing.assert_allclose(ours, right, rtol=0, atol=2e-6 * max(1, np.abs(right).max()))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_are_never_gathered(kind, reduction):
    """Each device cuts its own sequences into chunks; only sums travel."""
    mesh = jax.make_mesh((BATCH,), ("devices",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        text = jax.jit(loss(reduction)).lower(*placed(mesh, BY_ROWS)).compile().as_text()
    assert " all-reduce(" in text
    assert not any(f" {name}" in text for name in ("all-gather(", "all-to-all(", "collective-permute("))
