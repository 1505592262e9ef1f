"""Logits that a mesh splits while the whole array is in view (no shard_map): Auto and Explicit axes, rows and classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import crossent_jax

ROWS, CLASSES = 8, 12
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "entropy_weight": 0.1}


def everything(logits, labels, class_weights, row_weights, class_mask):
    weights = {"class_weights": class_weights, "row_weights": row_weights, "class_mask": class_mask}
    return crossent_jax.cross_entropy(logits, labels, **weights, **OPTIONS)


def plain(logits, labels, class_weights, row_weights, class_mask):
    del class_weights, row_weights, class_mask
    return crossent_jax.cross_entropy(logits, labels)


def arguments():
    random = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 4, 5, 9, 10, 11], np.int32)
    mask = np.arange(CLASSES) != 3
    logits, class_weights, row_weights = (random.random(shape, np.float32) for shape in [(ROWS, CLASSES), CLASSES, ROWS])
    return logits, labels, class_weights, row_weights, mask


@pytest.mark.parametrize("loss", [plain, everything])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("split", [("data", None), (None, "model"), ("data", "model")], ids=str)
def test_split_logits_give_the_loss_and_the_gradients_of_whole_ones(loss, axis_type, split):
    """optax's integer-label loss raises for classes split over an Explicit axis."""
    given = arguments()
    differentiated = jax.value_and_grad(loss, argnums=(0, 2, 3))
    value, gradients = differentiated(*map(jnp.asarray, given))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type, axis_type))
    rows, classes = split
    specs = [PartitionSpec(rows, classes), *map(PartitionSpec, (rows, None, rows, None))]
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(given, specs, strict=True)]
        split_value, split_gradients = jax.jit(differentiated)(*placed)
    np.testing.assert_allclose(split_value, value, rtol=3e-7)
    for got, expected in zip(split_gradients, gradients, strict=True):
        sums_in_another_order = 8 * np.finfo(np.float32).eps * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=sums_in_another_order)
    assert split_gradients[0].sharding.spec == PartitionSpec(rows, classes)
