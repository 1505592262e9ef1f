"""Every number of the tutorial that the library grew from, and the correction of every one that is wrong in it.

Ages: p = N(35, sigma), q = N(40, sigma). Dog or cat: p = (1, 0), q = (0.8, 0.2). Five images: labels 1 0 1 1 0, predicted
probabilities 0.8 0.2 0.6 0.9 0.3.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax import information
from crossent_jax.information import Grid, Normal, Quadrature

AGES = Grid(0.0, 100.0, 100)
LABELS = jnp.asarray([1.0, 0.0, 1.0, 1.0, 0.0])
PREDICTIONS = jnp.asarray([0.8, 0.2, 0.6, 0.9, 0.3])


def ages(sigma):
    return Normal(35.0, sigma), Normal(40.0, sigma)


def test_ages_in_closed_form():
    np.testing.assert_allclose(information.cross_entropy(*ages(5.0)), 3.5284, atol=5e-5)
    np.testing.assert_allclose(information.kl_divergence(*ages(5.0)), 0.5, rtol=1e-6)
    np.testing.assert_allclose(information.cross_entropy(*ages(10.0)), 3.8465, atol=5e-5)
    np.testing.assert_allclose(information.kl_divergence(*ages(10.0)), 0.125, rtol=1e-6)


def test_ages_on_the_grid_of_100_points():
    np.testing.assert_allclose(information.cross_entropy(*ages(5.0), method=AGES), 3.5284, atol=5e-5)
    np.testing.assert_allclose(information.cross_entropy(*ages(10.0), method=AGES), 3.8441, atol=5e-5)


def test_ages_by_quadrature():
    for sigma in (5.0, 10.0):
        exact = information.cross_entropy(*ages(sigma))
        np.testing.assert_allclose(information.cross_entropy(*ages(sigma), method=Quadrature()), exact, rtol=1e-6)


def test_0_336_is_no_cross_entropy_of_ages():
    """H as a function of sigma is least at sigma = 5, the distance of the means: 1/2 log(2 pi 25) + 1/2 + 1/2 would be the
    value there; the least of ``log sigma + 25 / (2 sigma^2)`` is at sigma = 5."""
    sigmas = jnp.linspace(0.5, 40.0, 500)
    values = jax.vmap(lambda sigma: information.cross_entropy(*ages(sigma)))(sigmas)
    np.testing.assert_allclose(values.min(), information.cross_entropy(*ages(5.0)), atol=1e-4)
    least = information.entropy(Normal(35.0, 5.0))
    np.testing.assert_allclose(least, 3.028, atol=5e-4)
    np.testing.assert_allclose(information.entropy(Normal(35.0, 5.0), base=2), 4.369, atol=5e-4)
    assert values.min() > least > 0.336


def test_multiplying_the_densities_is_no_cross_entropy():
    """The literal recipe, multiply, sum and negate, is negative whatever the densities."""
    x = jnp.linspace(0.0, 100.0, 100)
    for sigma in (5.0, 10.0):
        p, q = (jnp.exp(density.log_prob(x)) for density in ages(sigma))
        assert -jnp.sum(p * q) < 0


def test_dog_and_cat():
    np.testing.assert_allclose(information.cross_entropy([1.0, 0.0], [0.8, 0.2]), 0.2231, atol=5e-5)
    np.testing.assert_allclose(information.cross_entropy([1.0, 0.0], [0.8, 0.2], base=2), 0.3219, atol=5e-5)
    assert information.cross_entropy([1.0, 0.0], [1.0, 0.0]) == 0  # 0 log 0 = 0
    logits = jnp.log(jnp.asarray([0.8, 0.2]))
    np.testing.assert_allclose(crossent_jax.cross_entropy(logits, 0), 0.2231, atol=5e-5)


def test_five_images():
    logits = jnp.log(PREDICTIONS) - jnp.log1p(-PREDICTIONS)
    positives = crossent_jax.binary_cross_entropy(logits, LABELS, reduction="none") * LABELS
    np.testing.assert_allclose(positives.mean(), 0.1679, atol=5e-5)  # its arithmetic, which ignores the negatives
    np.testing.assert_allclose(crossent_jax.binary_cross_entropy(logits, LABELS), 0.2838, atol=5e-5)


def test_all_dogs_is_not_a_perfect_prediction():
    """Its loss, of the positives alone, falls to 0 where every image is called a dog; binary cross-entropy grows."""
    sure = jnp.full(5, 20.0)
    losses = crossent_jax.binary_cross_entropy(sure, LABELS, reduction="none")
    assert (losses * LABELS).mean() < 1e-8
    np.testing.assert_allclose(losses.mean(), 8.0, rtol=1e-6)  # 2 of 5, 20 nats each


@pytest.mark.parametrize("p", [[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
def test_a_perfect_prediction_costs_the_entropy(p):
    own = information.entropy(p)
    np.testing.assert_allclose(information.cross_entropy(p, p), own, rtol=1e-6)
    assert (own == 0) == (max(p) == 1)


def test_cross_entropy_is_entropy_and_divergence():
    p, q = [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]
    parts = information.entropy(p) + information.kl_divergence(p, q)
    np.testing.assert_allclose(information.cross_entropy(p, q), parts, rtol=1e-6)


@pytest.mark.parametrize("mean", [-3.0, 0.0, 7.0])
def test_entropy_of_a_density_may_be_negative(mean):
    np.testing.assert_allclose(information.entropy(Normal(mean, 0.1)), -0.8836, atol=5e-5)
