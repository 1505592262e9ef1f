"""What is said of distributions that cannot be measured: parameters, supports, densities, methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossent_jax import information
from crossent_jax.information import (
    Bernoulli,
    Beta,
    Categorical,
    ClosedForm,
    Dirichlet,
    Exponential,
    Gamma,
    Grid,
    Laplace,
    LogNormal,
    MonteCarlo,
    MultivariateNormal,
    Normal,
    Poisson,
    Quadrature,
    Uniform,
)

from . import grid

KEY = jax.random.key(0)


def half(x):
    """A density that adds up to 1/2."""
    return Normal(0.0, 1.0).log_prob(x) - np.log(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(0.0, 0.0), "scale of Normal must be greater than 0; got 0.0"),
        (lambda: Normal(0.0, jnp.asarray([1.0, -1.0])), "scale of Normal must be greater than 0"),
        (lambda: Normal(0.0, float("nan")), "scale of Normal must be greater than 0"),
        (lambda: Gamma(-1.0, 1.0), "concentration of Gamma"),
        (lambda: Beta(1.0, 0.0), "concentration0 of Beta"),
        (lambda: Uniform(1.0, 1.0), "high of Uniform must be greater than low"),
        (lambda: Categorical([-jnp.inf, -jnp.inf]), "logits of Categorical must be less than infinity"),
        (lambda: Bernoulli(float("nan")), "logits of Bernoulli must be numbers"),
        (lambda: Poisson(-1.0), "rate of Poisson must be at least 0"),
        (lambda: Normal(jnp.zeros(3), jnp.ones(2)), "the parameters of Normal must have one shape"),
        (lambda: Categorical(0.5), "logits of Categorical"),
        (lambda: Dirichlet([1.0]), "k at least 2"),
        (lambda: MultivariateNormal(jnp.zeros(2), jnp.eye(3)), "scale_tril"),
        (lambda: MultivariateNormal(jnp.zeros(2), jnp.ones((2, 2))), "lower triangular"),
        (lambda: MultivariateNormal(jnp.zeros(2), -jnp.eye(2)), "positive diagonal"),
        (lambda: Grid(1.0, 0.0), "low of Grid must be less than high"),
        (lambda: Quadrature(points=1), "points must be an integer of at least 2"),
        (lambda: MonteCarlo(KEY, samples=1), "samples must be an integer of at least 2"),
    ],
)
def test_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: information.kl_divergence(Normal(0.0, 1.0), [0.5, 0.5]), TypeError, "both be arrays or both distributions"),
        (
            lambda: information.kl_divergence(Normal(0.0, 1.0), Poisson(1.0)),
            ValueError,
            "both be discrete or both continuous",
        ),
        (
            lambda: information.kl_divergence(Dirichlet([1.0, 1.0]), Normal(0.0, 1.0)),
            ValueError,
            "of events of one shape",
        ),
        (
            lambda: information.kl_divergence(Normal(jnp.zeros(2), 1.0), Normal(jnp.zeros(3), 1.0)),
            ValueError,
            "one batch shape",
        ),
        (
            lambda: information.kl_divergence(Categorical(jnp.zeros(2)), Categorical(jnp.zeros(3))),
            ValueError,
            "the same number of outcomes",
        ),
        (
            lambda: information.cross_entropy(Categorical([0.0, 1.0]), Poisson(2.0), method=ClosedForm()),
            ValueError,
            r"no closed form of cross_entropy is known for Categorical and Poisson: pass method=",
        ),
        (lambda: information.entropy(Normal(0.0, 1.0), method="quadrature"), TypeError, "method must be None or one of"),
        (lambda: information.entropy(Normal(0.0, 1.0), axis=0), ValueError, "axis are for arrays"),
        (lambda: information.entropy((half, None)), ValueError, "needs to know where p lies"),
        (lambda: information.entropy((half, None), method=MonteCarlo(KEY)), ValueError, "has no sample"),
        (
            lambda: information.perplexity(Normal(0.0, 1.0), method=MonteCarlo(KEY)),
            ValueError,
            "the exponential of an estimate is biased",
        ),
        (
            lambda: information.kl_divergence(Poisson(1.0), Poisson(2.0), method=Grid(0.0, 10.0, 100)),
            ValueError,
            "must be integers for a discrete p",
        ),
    ],
)
def test_what_cannot_be_measured(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("method", [None, Quadrature(), Grid(-8.0, 8.0, 401)])
def test_a_density_that_does_not_add_up(method):
    p = (half, Normal(0.0, 1.0).sample)
    with pytest.raises(ValueError, match=r"adds up to 0\.5\d* over the nodes"):
        information.entropy(p, method=method)


def test_a_grid_that_misses_p():
    with pytest.raises(ValueError, match="or lies elsewhere"):
        information.entropy(Normal(35.0, 5.0), method=Grid(0.0, 35.0))
    traced = jax.jit(lambda loc: information.entropy(Normal(loc, 5.0), method=Grid(0.0, 35.0)))
    assert jnp.isnan(traced(35.0))


@pytest.mark.parametrize("method", [Quadrature(), MonteCarlo(KEY)])
def test_a_log_prob_that_is_nan(method):
    q = (lambda x: jnp.log(jnp.asarray(x)), None)  # NaN for negative x
    with pytest.raises(ValueError, match="log_prob of a pair of callables is NaN at"):
        information.kl_divergence(Normal(0.0, 1.0), q, method=method)


TRACED = {  # of -1, and of 1: in range
    "normal": lambda t: Normal(0.0, t),
    "log-normal": lambda t: LogNormal(0.0, t),
    "laplace": lambda t: Laplace(0.0, t),
    "exponential": lambda t: Exponential(t),
    "gamma of no concentration": lambda t: Gamma(jnp.maximum(t, 0), 1.0),
    "gamma": lambda t: Gamma(2.0, t),
    "beta": lambda t: Beta(2.0, t),
    "uniform": lambda t: Uniform(0.0, t),
    "poisson": lambda t: Poisson(t),
    "categorical": lambda t: Categorical(jnp.stack([jnp.log(t), t])),
    "bernoulli": lambda t: Bernoulli(jnp.log(t)),
    "dirichlet": lambda t: Dirichlet(jnp.stack([t, 0 * t + 2])),
    "vector": lambda t: MultivariateNormal(jnp.zeros(2), jnp.eye(2) * t),
    "vector of no triangle": lambda t: MultivariateNormal(jnp.zeros(2), jnp.eye(2) + jnp.eye(2, k=1) * jnp.minimum(t, 0)),
}


@pytest.mark.parametrize("family", TRACED)
def test_traced_parameters_out_of_range_are_nan(family):
    """In every measure and in the log-density, inside and outside of the support."""
    make = TRACED[family]

    @functools.partial(grid.quick, static_argnums=0)
    def found(vector, t):
        p, one = make(t), make(jnp.ones_like(t))
        measures = [information.entropy(p)]
        for measure in (information.cross_entropy, information.kl_divergence):
            measures += [measure(p, one), measure(one, p)]
        if p.event_dimensions == 0 and p.discrete:
            measures.append(information.js_divergence(p, one))
        points = (
            jnp.stack([jnp.asarray([0.5, 0.5]), jnp.asarray([-1.0, 3.0])]) if vector else jnp.asarray([0.0, 1.0, -1.0, 0.5])
        )
        return jnp.concatenate([jnp.stack(measures), p.log_prob(points)])

    vector = "vector" in family or family == "dirichlet"
    assert jnp.isnan(found(vector, jnp.float32(-1.0))).all()
    assert not jnp.isnan(found(vector, jnp.float32(1.0))).any()
