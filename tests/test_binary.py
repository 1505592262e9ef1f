"""Binary decisions: sums without selects on a CPU, and again with them; derivatives at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossent_jax import binary_cross_entropy

from . import grid

SHAPE = (37, 29)
CASES = {  # what decision (3, 5), a yes, and (3, 6), a no, get; the sum is infinite, NaN or neither
    "ordinary": (2.0, -3.0),
    "infinitely right": (np.inf, -np.inf),
    "infinitely wrong": (-np.inf, -3.0),
    "largest numbers": (3e38, -3e38),
    "not a number": (np.nan, -3.0),
}


def batch(case):
    gen = grid.rng("binary")
    z, y = 4 * gen.standard_normal(SHAPE).astype(np.float32), gen.random(SHAPE) < 0.5
    z[3, 5:7], y[3, 5:7] = CASES[case], (True, False)
    return z, y


def exact(z, y, pos_weight=1.0):
    z = z.astype(np.float64)
    return np.where(y, pos_weight * np.logaddexp(0, -z), np.logaddexp(0, z))


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_every_kind_of_decision(weighted, one_device):
    weight = np.linspace(0.5, 3, SHAPE[1], dtype=np.float32) if weighted else None
    run = jax.jit(jax.value_and_grad(lambda z, y: binary_cross_entropy(z, y, pos_weight=weight, reduction="sum")))
    alone = jax.jit(lambda z, y: binary_cross_entropy(z, y, pos_weight=weight, reduction="sum"))
    for case in CASES:
        z, y = batch(case)
        with np.errstate(invalid="ignore"):
            expected = np.sum(exact(z, y, 1.0 if weight is None else weight))
            miss = np.exp(-np.logaddexp(0, np.float64(np.where(y, z, -z))))
        (value, gradient), once_more = run(z, y), alone(z, y)
        np.testing.assert_allclose([value, once_more], expected, rtol=1e-6, err_msg=case)
        slope = np.where(y, 1.0 if weight is None else weight, 1) * miss
        np.testing.assert_allclose(gradient, np.where(y, -slope, slope), rtol=2e-6, atol=1e-30, err_msg=case)


def test_derivatives_at_zero():
    """Where the magnitude of a logit has no slope: 1/2 - y, and 1/4."""
    y = jnp.array([0.0, 0.25, 1.0])
    slope = jax.grad(lambda z: binary_cross_entropy(z, y, reduction="sum"))
    np.testing.assert_allclose(slope(jnp.zeros(3)), [0.5, 0.25, -0.5])
    np.testing.assert_allclose(jax.jacrev(slope)(jnp.zeros(3)), np.eye(3) / 4)


def test_a_small_label_of_a_far_logit():
    """The loss of a label of 1e-6 is not what is left of two large terms."""
    z, y = jnp.full(8, -20.0), jnp.full(8, 1e-6)
    np.testing.assert_allclose(jax.jit(binary_cross_entropy)(z, y), 20 * 1e-6 + np.log1p(np.exp(-20)), rtol=1e-6)
