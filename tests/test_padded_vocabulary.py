"""A masked class is as if it were not there, with every option: a padded vocabulary has the loss of the vocabulary."""

import jax
import numpy as np
import pytest

import crossent_jax

from . import grid

ROWS, CLASSES, PADDED, FEATURES = 4, 7, 11, 3
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.02, "focal_gamma": 1.5, "poly_epsilon": 0.7, "entropy_weight": 0.3}


def padded(x, fill):
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, PADDED - CLASSES)], constant_values=fill)


def calls(how):
    """Losses of logits, and of hidden states and a head; with labels, and with targets."""
    return {
        "hard": lambda a, o: crossent_jax.cross_entropy(a["logits"], a["labels"], implementation=how, **o),
        "soft": lambda a, o: crossent_jax.soft_cross_entropy(a["logits"], a["targets"], implementation=how, **o),
        "linear": lambda a, o: crossent_jax.linear_cross_entropy(
            a["hidden"], a["head"], a["labels"], implementation=how, **o
        ),
        "linear soft": lambda a, o: crossent_jax.linear_soft_cross_entropy(
            a["hidden"], a["head"], a["targets"], reduction="sum", implementation=how, **o
        ),
    }


@pytest.mark.parametrize("how", grid.BACKENDS)
@pytest.mark.parametrize("name", ("hard", "soft", "linear", "linear soft"))
def test_the_loss_of_a_padded_vocabulary_is_that_of_the_vocabulary(name, how):
    """Whatever the padding holds: logits, class weights; class weights make the smoothing's share of a class."""
    gen, loss = grid.rng("padded"), calls(how)[name]
    small = {
        "logits": grid.logits(gen, ROWS, CLASSES),
        "targets": grid.targets(gen, ROWS, CLASSES),
        "hidden": gen.standard_normal((ROWS, FEATURES)).astype(np.float32),
        "head": gen.standard_normal((FEATURES, CLASSES)).astype(np.float32),
        "class_weights": gen.uniform(0.3, 2, CLASSES).astype(np.float32),
    }
    large = small | {name: padded(small[name], fill) for name, fill in (("logits", 9), ("targets", 0), ("head", 2))}
    large["class_weights"] = padded(small["class_weights"], 5)
    labels, mask = np.array([0, 6, 3, 1]), np.arange(PADDED) < CLASSES

    @grid.quick
    def run(given, masks):
        def total(given):
            return loss(given | {"labels": labels}, OPTIONS | {"class_weights": given["class_weights"]} | masks)

        return jax.value_and_grad(total)(given)

    (value, gradients), (expected, theirs) = run(large, {"class_mask": mask}), run(small, {})
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    for name, gradient in theirs.items():
        found = np.asarray(gradients[name])
        found = found if name == "hidden" else found[..., :CLASSES]
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-6, err_msg=name)
    for name in ("logits", "head", "class_weights"):  # a target there would have an infinite loss
        np.testing.assert_array_equal(np.asarray(gradients[name])[..., CLASSES:], 0, err_msg=name)


@pytest.mark.parametrize("how", grid.BACKENDS)
@pytest.mark.parametrize("name", ("soft", "linear soft", "hard"))
def test_smoothing_of_one_leaves_nothing_of_a_masked_target(name, how):
    """The label's term has weight 0: its infinite loss adds 0, to the value and to every gradient."""
    given = {
        "logits": np.float32([[1, 2, 3]]),
        "targets": np.float32([[0.5, 0, 0.5]]),
        "labels": np.array([2]),
        "hidden": np.float32([[1]]),
        "head": np.float32([[1, 2, 3]]),
    }
    options = {"label_smoothing": np.float32(1), "class_mask": np.array([True, True, False])}
    floating = {key: x for key, x in given.items() if key != "labels"}
    run = grid.quick(jax.value_and_grad(lambda floats: calls(how)[name](given | floats, options)))
    value, gradients = run(floating)
    p = 1 / (1 + np.exp(-np.float64([-1, 1])))
    np.testing.assert_allclose(value, -np.mean(np.log(p)), rtol=1e-6)
    expected = np.float64([[p[0] - 0.5, p[1] - 0.5, 0]])
    moved = gradients["head"] if name.startswith("linear") else gradients["logits"]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)
    assert all(np.all(np.isfinite(gradient)) for gradient in jax.tree.leaves(gradients))
