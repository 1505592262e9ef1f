"""A row that does not count contributes exactly 0, to the value and to every gradient, whatever it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid

ROWS, CLASSES, FEATURES, BAD = 4, 7, 3, 2


def dense(a, how):
    return crossent_jax.soft_cross_entropy(a["logits"], a["targets"], row_weights=a["row_weights"], implementation=how)


def dense_weighted(a, how):
    return crossent_jax.soft_cross_entropy(
        a["logits"],
        a["targets"],
        row_weights=a["row_weights"],
        class_weights=a["class_weights"],
        label_smoothing=0.1,
        poly_epsilon=0.5,
        implementation=how,
    )


def linear(a, how):
    options = {"row_weights": a["row_weights"], "chunk_rows": 3, "implementation": how}
    return crossent_jax.linear_soft_cross_entropy(a["hidden"], a["head"], a["targets"], **options)


def linear_rows(a, how):
    options = {"row_weights": a["row_weights"], "class_weights": a["class_weights"], "implementation": how}
    return jnp.sum(crossent_jax.linear_soft_cross_entropy(a["hidden"], a["head"], a["targets"], reduction="none", **options))


def divergence(a, how):
    return crossent_jax.divergence(a["logits"], a["targets"], row_weights=a["row_weights"], implementation=how)


def binary(a, how):
    del how
    return crossent_jax.binary_cross_entropy(a["logits"][:, 0], a["targets"][:, 0], row_weights=a["row_weights"])


@pytest.mark.parametrize("bad", (np.nan, np.inf))
@pytest.mark.parametrize("how", grid.BACKENDS)
@pytest.mark.parametrize(
    "function", (dense, dense_weighted, linear, linear_rows, divergence, binary), ids=lambda f: f.__name__
)
def test_bad_numbers_of_a_row_of_weight_zero(function, how, bad):
    gen = grid.rng("weight zero")
    given = {
        "logits": grid.logits(gen, ROWS, CLASSES),
        "targets": grid.targets(gen, ROWS, CLASSES),
        "hidden": gen.standard_normal((ROWS, FEATURES)).astype(np.float32),
        "head": gen.standard_normal((FEATURES, CLASSES)).astype(np.float32),
        "class_weights": gen.uniform(0.5, 2, CLASSES).astype(np.float32),
        "row_weights": np.float32([1, 0.5, 0, 2]),
    }
    run = grid.quick(jax.value_and_grad(lambda a: function(a, how)))
    value, gradients = run(given)
    for poisoned in ("targets", "logits", "hidden"):
        row = given[poisoned].copy()
        row[BAD, :2] = bad
        found, theirs = run(given | {poisoned: row})
        np.testing.assert_allclose(found, value, rtol=1e-6)
        for name in set(gradients) - {"row_weights"}:
            np.testing.assert_allclose(theirs[name], gradients[name], rtol=1e-5, atol=1e-7, err_msg=f"{poisoned}: {name}")
        for name in ("targets", "logits", "hidden"):
            np.testing.assert_array_equal(theirs[name][BAD], 0)
        assert np.all(np.isfinite(np.delete(theirs["row_weights"], BAD)))


@pytest.mark.parametrize("how", grid.BACKENDS)
@pytest.mark.parametrize("weighted", (False, True))
def test_labels_of_no_class_alone_train_nothing(weighted, how):
    """The mean of losses that are all NaN is NaN; its gradients are 0."""
    gen = grid.rng("no class")
    hidden, head = gen.standard_normal((2, FEATURES)).astype(np.float32), np.eye(FEATURES, CLASSES, dtype=np.float32)
    options: dict = {"class_weights": np.ones(CLASSES, np.float32)} if weighted else {}
    options["implementation"] = how
    labels = np.array([-1, CLASSES])
    for loss in (
        lambda x, w: crossent_jax.linear_cross_entropy(x, w, labels, **options),
        lambda x, w: crossent_jax.cross_entropy(x @ w, labels, **options),
    ):
        value, gradients = grid.quick(jax.value_and_grad(loss, (0, 1)))(hidden, head)
        assert np.isnan(value)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)
