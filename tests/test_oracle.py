"""The oracle agrees with itself: three roads to one number, none of them the library's."""

import numpy as np
import pytest

from . import grid, oracle

EVERYTHING = {name: on for name, (_, on) in grid.SCALARS.items()}


def problem(kind, rows=3, classes=6):
    gen = grid.rng("oracle", kind)
    label = grid.labels(gen, rows, classes)
    arrays = grid.random_arrays(gen, rows, classes, label)
    z = grid.logits(gen, rows, classes, "float64")
    target = label if kind == "hard" else grid.targets(gen, rows, classes, arrays["class_mask"], "float64")
    return z, target, arrays


@pytest.mark.parametrize("softcap", (None, 4.0))
@pytest.mark.parametrize("kind", grid.TARGETS)
def test_gradient_of_formula_is_its_complex_step(kind, softcap):
    z, target, arrays = problem(kind)
    options = EVERYTHING | arrays | {"softcap": softcap}
    ours = oracle.gradients(z, target, **options)["z"]
    exact = oracle.complex_step_gradient(lambda x: oracle.exact_loss_of_complex(x, target, **options), z)
    np.testing.assert_allclose(ours, exact.astype(np.float64), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", grid.TARGETS)
def test_gradients_of_options_are_finite_differences(kind):
    z, target, arrays = problem(kind)
    options = EVERYTHING | arrays
    ours = oracle.gradients(z, target, **options)
    for name in grid.SCALARS:
        step = np.longdouble(1e-7)
        high = oracle.exact_loss(z, target, **(options | {name: options[name] + step}))
        low = oracle.exact_loss(z, target, **(options | {name: options[name] - step}))
        np.testing.assert_allclose(ours[name], float((high - low) / (2 * step)), rtol=1e-9, err_msg=name)


def test_a_hand_computed_row():
    """p = (1/2, 1/4, 1/4), label 1: nll = log 4, entropy = 1.5 log 2, ce_prior = (log 2 + 2 log 4) / 3."""
    stats = oracle.exact_statistics(np.log(np.array([[2.0, 1.0, 1.0]])), np.array([1]))
    log2 = np.log(np.longdouble(2))
    expected = {"lse": 2 * log2, "nll": 2 * log2, "entropy": 1.5 * log2, "ce_prior": 5 * log2 / 3}
    for name, value in expected.items():
        np.testing.assert_allclose(float(stats[name][0]), float(value), rtol=1e-15, err_msg=name)
