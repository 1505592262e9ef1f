"""Formula 1, over distributions: families against scipy, closed forms against quadrature and Monte Carlo, gradients."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from crossent_jax import information
from crossent_jax.information import (
    Bernoulli,
    Beta,
    Categorical,
    ClosedForm,
    Dirichlet,
    Estimate,
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
from .oracle import x64

BETWEEN_TWO = (information.cross_entropy, information.kl_divergence)
TOLERANCE = 1e-6  # of closed forms against quadrature, in 64 bits
TRIL = np.array([[1.0, 0.0], [0.4, 0.7]])
POINT = np.array([0.3, -0.2])
PROBABILITIES = np.array([0.5, 0.2, 0.3])

CONTINUOUS = {
    "normal": (Normal, (35.0, 5.0), scipy.stats.norm(35, 5)),
    "narrow normal": (Normal, (0.3, 0.1), scipy.stats.norm(0.3, 0.1)),
    "wide normal": (Normal, (0.3, 2.0), scipy.stats.norm(0.3, 2)),
    "log-normal": (LogNormal, (0.2, 0.6), scipy.stats.lognorm(0.6, scale=np.exp(0.2))),
    "exponential": (Exponential, (2.5,), scipy.stats.expon(scale=1 / 2.5)),
    "gamma": (Gamma, (3.5, 2.0), scipy.stats.gamma(3.5, scale=0.5)),
    "gamma, infinite at 0": (Gamma, (0.6, 2.0), scipy.stats.gamma(0.6, scale=0.5)),
    "beta": (Beta, (2.5, 1.5), scipy.stats.beta(2.5, 1.5)),
    "laplace": (Laplace, (-1.0, 0.7), scipy.stats.laplace(-1, 0.7)),
    "uniform": (Uniform, (0.25, 0.75), scipy.stats.uniform(0.25, 0.5)),
    "wide uniform": (Uniform, (-2.0, 3.0), scipy.stats.uniform(-2, 5)),
}
DISCRETE = {
    "bernoulli": (Bernoulli, (0.8,), scipy.stats.bernoulli(1 / (1 + np.exp(-0.8)))),
    "categorical": (Categorical, (np.log(PROBABILITIES),), scipy.stats.rv_discrete(values=([0, 1, 2], PROBABILITIES))),
    "poisson": (Poisson, (3.5,), scipy.stats.poisson(3.5)),
}
FAMILIES = CONTINUOUS | DISCRETE
SUPPORTS = {name: frozen.support() for name, (_, _, frozen) in CONTINUOUS.items()}
CONTAINED = [
    (first, second)
    for first, second in itertools.product(CONTINUOUS, repeat=2)
    if SUPPORTS[first][0] >= SUPPORTS[second][0] and SUPPORTS[first][1] <= SUPPORTS[second][1]
]


def made(name):
    family, parameters, _ = FAMILIES[name]
    return family(*map(jnp.asarray, parameters))


def closed_form(measure, p, q):
    """None where none is known."""
    try:
        return measure(p, q, method=ClosedForm())
    except ValueError:
        return None


# --- families against scipy ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_log_prob_and_moments(name):
    frozen = FAMILIES[name][2]
    x = np.concatenate([frozen.ppf([0.01, 0.2, 0.5, 0.9, 0.999]), [-7.0, 50.0]])
    with x64():
        family = made(name)
        expected = frozen.logpmf(x) if family.discrete else frozen.logpdf(x)
        log_prob, *moments = grid.quick(lambda p, x: (p.log_prob(x), p.mean(), p.variance()))(family, jnp.asarray(x))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments, [frozen.mean(), frozen.var()], rtol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_follow_the_distribution(name):
    frozen, drawn = FAMILIES[name][2], made(name).sample(jax.random.key(3), (20_000,))
    assert drawn.shape == (20_000,)
    assert abs(drawn.mean() - frozen.mean()) < 4 * frozen.std() / 20_000**0.5
    if name not in DISCRETE:
        assert scipy.stats.kstest(np.asarray(drawn), frozen.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_entropy_is_scipys(name):
    with x64():
        entropy = grid.quick(information.entropy)(made(name))
    np.testing.assert_allclose(entropy, FAMILIES[name][2].entropy(), rtol=1e-9, atol=1e-12)


def test_vectors_are_scipys():
    normal = scipy.stats.multivariate_normal(POINT, TRIL @ TRIL.T)
    dirichlet = scipy.stats.dirichlet([1.5, 2.5, 0.7])
    with x64():
        ours = MultivariateNormal(jnp.asarray(POINT), jnp.asarray(TRIL))
        np.testing.assert_allclose(ours.log_prob(jnp.asarray([1.0, 2.0])), normal.logpdf([1.0, 2.0]), rtol=1e-12)
        np.testing.assert_allclose(information.entropy(ours), normal.entropy(), rtol=1e-12)
        other = Dirichlet(jnp.asarray([1.5, 2.5, 0.7]))
        np.testing.assert_allclose(other.log_prob(jnp.asarray(PROBABILITIES)), dirichlet.logpdf(PROBABILITIES), rtol=1e-12)
        np.testing.assert_allclose(information.entropy(other), dirichlet.entropy(), rtol=1e-12)


# --- the methods against each other ----------------------------------------------------------------


@grid.quick
def by_every_method(p, q):
    """Of cross-entropy and KL: by default, and in closed form where one is known; then by quadrature, whose nodes are those
    of cross-entropy and whose KL of two families is that of one."""
    closed = [closed_form(measure, p, q) for measure in BETWEEN_TWO]
    by_quadrature = [
        measure(p, q, method=Quadrature())
        for measure, exact in zip(BETWEEN_TWO, closed, strict=True)
        if exact is not None and (measure is information.cross_entropy or type(p) is type(q))
    ]
    return [measure(p, q) for measure in BETWEEN_TWO], closed, by_quadrature


@pytest.mark.parametrize(("first", "second"), CONTAINED)
def test_closed_forms_agree_with_quadrature(first, second):
    with x64():
        by_default, closed, by_quadrature = by_every_method(made(first), made(second))
    cross_entropy = scipy_cross_entropy(first, second)
    expected = cross_entropy, 0 if first == second else cross_entropy - scipy_cross_entropy(first, first)
    np.testing.assert_allclose(by_default, expected, rtol=TOLERANCE, atol=TOLERANCE)
    for default, exact in zip(by_default, closed, strict=True):
        assert exact is None or default == exact
    np.testing.assert_allclose(closed[: len(by_quadrature)], by_quadrature, rtol=TOLERANCE, atol=TOLERANCE)


def test_without_a_closed_form_the_default_is_quadrature():
    p, q = made("gamma"), made("laplace")
    by_default, closed, _ = by_every_method(p, q)
    by_quadrature = grid.quick(lambda p, q: [measure(p, q, method=Quadrature()) for measure in BETWEEN_TWO])(p, q)
    assert closed == [None, None] and by_default == by_quadrature


@cache
def scipy_cross_entropy(first, second):
    """By scipy's entropy, or by Gauss-Legendre's rule between quantiles, where each density is largest."""
    p, q = FAMILIES[first][2], FAMILIES[second][2]
    if first == second:
        return p.entropy()
    tails = np.logspace(-14, -1, 14)
    breaks = np.unique(np.append(p.ppf([*tails, 0.5, *(1 - tails)]), np.clip(q.median(), *p.support())))
    pairs = itertools.pairwise(breaks)
    return sum(scipy.integrate.fixed_quad(lambda x: -p.pdf(x) * q.logpdf(x), a, b, n=50)[0] for a, b in pairs)


def test_which_pairs_have_a_closed_form():
    """All of one family; and whatever the moments of p allow."""

    def is_known(measure, first, second):
        return jax.eval_shape(partial(closed_form, measure), made(first), made(second)) is not None

    kl = {pair for pair in CONTAINED if is_known(information.kl_divergence, *pair)}
    assert {(name, name) for name in CONTINUOUS} <= kl
    assert {("gamma", "exponential"), ("exponential", "gamma"), ("laplace", "normal"), ("normal", "laplace")} <= kl
    assert {("log-normal", "gamma"), ("gamma", "log-normal"), ("beta", "gamma"), ("uniform", "beta")} <= kl
    assert ("gamma", "laplace") not in kl
    assert is_known(information.cross_entropy, "poisson", "poisson")
    assert not is_known(information.cross_entropy, "bernoulli", "poisson")


@pytest.mark.parametrize(("first", "second"), [("normal", "normal"), ("gamma", "log-normal"), ("laplace", "normal")])
def test_float32_keeps_five_digits(first, second):
    @grid.quick
    def by_default_and_quadrature(*given):
        return [[measure(*given), measure(*given, method=Quadrature())] for measure in BETWEEN_TWO]

    for by_default, by_quadrature in by_default_and_quadrature(made(first), made(second)):
        assert by_quadrature.dtype == jnp.float32
        np.testing.assert_allclose(by_default, by_quadrature, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("loc", [0.0, 1.0])
def test_quadrature_finds_p_wherever_it_is(loc, scale):
    p = Normal(loc * scale * 100, scale)
    np.testing.assert_allclose(
        information.entropy(p, method=Quadrature()), scipy.stats.norm(0, scale).entropy(), rtol=1e-5, atol=1e-5
    )


BY_EVERY_MEASURE = [("poisson", "poisson"), ("normal", "laplace"), ("gamma", "log-normal")]
MONTE_CARLO = [*((name, name) for name in FAMILIES), *BY_EVERY_MEASURE[1:], ("beta", "gamma")]


@partial(grid.quick, static_argnums=(3, 4))
def estimates(key, p, q, samples, every_measure):
    """Of the cross-entropy, of every measure: of KL and the entropy too: by Monte Carlo, and by default."""
    given = [(measure, p, q) for measure in BETWEEN_TWO] + [(information.entropy, p)]
    given = given if every_measure else given[:1]
    return [(measure(*of, method=MonteCarlo(key, samples)), measure(*of)) for measure, *of in given]


@pytest.mark.parametrize(("first", "second"), MONTE_CARLO)
def test_monte_carlo_is_within_its_error(first, second):
    p, q = made(first), moved(first) if first == second else made(second)
    for estimate, expected in estimates(jax.random.key(5), p, q, 20_000, (first, second) in BY_EVERY_MEASURE):
        assert isinstance(estimate, Estimate)
        assert abs(estimate.value - expected) <= 4 * estimate.standard_error + 1e-5
        assert estimate.standard_error < 0.1


def moved(name):
    """A distribution of the same family with other parameters and a support that holds p's."""
    family, parameters, _ = FAMILIES[name]
    if family is Uniform:
        return Uniform(parameters[0] - 1, parameters[1] + 2)
    return family(*(jnp.asarray(parameter) * 1.2 + 0.1 for parameter in parameters))


def test_monte_carlo_of_vectors():
    p = MultivariateNormal(jnp.asarray(POINT), jnp.asarray(TRIL))
    q = MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    first, second = Dirichlet(jnp.asarray([1.5, 2.5, 0.7])), Dirichlet(jnp.asarray([2.0, 1.2, 0.9]))
    for a, b, every_measure in ((p, q, True), (first, second, False)):
        for estimate, expected in estimates(jax.random.key(7), a, b, 40_000, every_measure):
            assert abs(estimate.value - expected) <= 4 * estimate.standard_error
        with pytest.raises(ValueError, match="vector"):
            information.kl_divergence(a, b, method=Quadrature())


def test_kl_of_multivariate_normals_by_its_textbook_formula():
    first, second = np.array([[1.0, 0.0], [0.4, 0.7]]), np.array([[0.8, 0.0], [-0.3, 1.5]])
    means = np.array([0.3, -0.2]), np.array([0.0, 1.0])
    covariances = first @ first.T, second @ second.T
    inverse, apart = np.linalg.inv(covariances[1]), means[1] - means[0]
    expected = 0.5 * (
        np.trace(inverse @ covariances[0])
        - 2
        + apart @ inverse @ apart
        + np.log(np.linalg.det(covariances[1]) / np.linalg.det(covariances[0]))
    )
    with x64():
        p, q = (MultivariateNormal(jnp.asarray(m), jnp.asarray(s)) for m, s in zip(means, (first, second), strict=True))
        np.testing.assert_allclose(information.kl_divergence(p, q), expected, rtol=1e-12)
        np.testing.assert_allclose(
            information.cross_entropy(p, q) - information.entropy(p), information.kl_divergence(p, q), rtol=1e-12
        )


@grid.quick
def skewed_both_ways(p, q):
    js = information.js_divergence
    return js(p, q), js(q, p), js(p, q, beta=0.2), js(q, p, beta=0.8), js(p, q, beta=0.0), js(p, q, beta=1.0)


@pytest.mark.parametrize(("first", "second"), [("wide normal", "laplace"), ("gamma", "log-normal"), ("poisson", "poisson")])
def test_jensen_shannon(first, second):
    with x64():
        p, q = made(first), moved(first) if first == second else made(second)
        whole, other, skewed, other_skewed, *of_one_alone = skewed_both_ways(p, q)
        np.testing.assert_allclose(whole, other, rtol=1e-9)
        np.testing.assert_allclose(skewed, other_skewed, rtol=1e-9)
        assert 0 < whole <= np.log(2)
        estimate = grid.quick(lambda key: information.js_divergence(p, q, method=MonteCarlo(key, 20_000)))(jax.random.key(2))
        assert abs(estimate.value - whole) <= 4 * estimate.standard_error
        assert of_one_alone == [0, 0]


# --- small divergences -----------------------------------------------------------------------------

CLOSE = {
    "normal": lambda e: (Normal(1.0, 2.7), Normal(1.0 + e, 2.7 * (1 + e))),
    "log-normal": lambda e: (LogNormal(0.0, 1.0), LogNormal(e, 1.0)),
    "exponential": lambda e: (Exponential(3.3), Exponential(3.3 * (1 + e))),
    "gamma": lambda e: (Gamma(3.0, 2.0), Gamma(3.0 * (1 + e), 2.0 * (1 + e))),
    "beta": lambda e: (Beta(2.0, 3.0), Beta(2.0 * (1 + e), 3.0)),
    "laplace": lambda e: (Laplace(0.0, 1.0), Laplace(e, 1.0 + e)),
    "poisson": lambda e: (Poisson(3.0), Poisson(3.0 * (1 + e))),
    "dirichlet": lambda e: (Dirichlet(jnp.asarray([1.0, 2.0])), Dirichlet(jnp.asarray([1.0, 2.0 * (1 + e)]))),
}


@pytest.mark.parametrize("family", CLOSE)
def test_a_small_kl_keeps_its_digits(family):
    """In float32, against 64 bits of the same float32 parameters; and exactly 0 for the same parameters."""
    p, q = CLOSE[family](np.float32(2e-6))
    found = information.kl_divergence(p, q)
    with x64():
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (p, q))
        expected = float(information.kl_divergence(*wide))
    assert 1e-13 < expected < 1e-10
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert information.kl_divergence(p, p) == 0


# --- supports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Uniform(0.0, 2.0), Uniform(0.0, 1.0)),  # with a closed form
        (Normal(0.0, 1.0), Exponential(1.0)),  # with one
        (Exponential(1.0), Beta(2.0, 2.0)),  # without
        (Laplace(0.0, 1.0), Gamma(2.0, 1.0)),  # without
    ],
)
def test_a_support_that_does_not_hold_p_gives_infinity(p, q):
    methods = None, Quadrature(), MonteCarlo(jax.random.key(0), 1000)
    for found in grid.quick(lambda p, q: [measure(p, q, method=m) for m in methods for measure in BETWEEN_TWO])(p, q):
        assert (found.value if isinstance(found, Estimate) else found) == jnp.inf


def test_impossible_outcomes():
    p = Categorical(jnp.log(jnp.asarray([0.5, 0.5, 0.0])))
    q = Categorical(jnp.log(jnp.asarray([0.5, 0.0, 0.5])))
    assert information.kl_divergence(p, q) == jnp.inf
    np.testing.assert_allclose(information.js_divergence(p, q), 0.5 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(information.entropy(p), np.log(2), rtol=1e-6)
    assert information.kl_divergence(Poisson(0.0), Poisson(2.0)) == 2.0
    assert information.kl_divergence(Poisson(2.0), Poisson(0.0)) == jnp.inf


# --- gradients, jit, vmap --------------------------------------------------------------------------

GRADIENTS = [
    ("normal", "normal"),
    ("gamma", "log-normal"),
    ("laplace", "normal"),
    ("gamma", "exponential"),
    ("beta", "beta"),
]


@pytest.mark.parametrize("measure", ["cross_entropy", "kl_divergence"])
@pytest.mark.parametrize(("first", "second"), GRADIENTS)
def test_gradients_of_the_methods_agree(first, second, measure):
    """With respect to every parameter of both distributions. By quadrature the gradient of cross-entropy is that of KL but
    for log p: one pair has both."""
    by_quadrature = measure == "kl_divergence" or (first, second) == ("gamma", "log-normal")
    measure = getattr(information, measure)
    with x64():
        given = made(first), moved(first) if first == second else made(second)
        value_and_grad = grid.quick(jax.value_and_grad(lambda g: measure(*g)))
        closed = jax.tree.leaves(value_and_grad(given)[1])
        if by_quadrature:
            quadrature = jax.tree.leaves(grid.quick(jax.grad(lambda g: measure(*g, method=Quadrature())))(given))
            np.testing.assert_allclose(quadrature, closed, rtol=1e-6, atol=1e-9)
        differences = central_differences(lambda g: value_and_grad(g)[0], given)
        np.testing.assert_allclose(closed, differences, rtol=1e-6, atol=1e-8)


def central_differences(f, given, step=1e-5):
    leaves, tree = jax.tree.flatten(given)

    def moved_by(i, amount):
        return f(jax.tree.unflatten(tree, [x + amount * (i == j) for j, x in enumerate(leaves)]))

    return [(moved_by(i, step) - moved_by(i, -step)) / (2 * step) for i in range(len(leaves))]


@pytest.mark.parametrize(("first", "second"), [("normal", "normal"), ("gamma", "exponential"), ("poisson", "poisson")])
def test_monte_carlo_gradients_are_unbiased(first, second):
    """The mean of 64 estimates of the gradient lies within 4 of its standard errors."""
    given = made(first), moved(first) if first == second else made(second)
    exact = np.asarray(jax.tree.leaves(grid.quick(jax.grad(lambda g: information.kl_divergence(*g)))(given)))

    @grid.quick
    @jax.vmap
    def estimates(key):
        return jax.grad(lambda g: information.kl_divergence(*g, method=MonteCarlo(key, 500)).value)(given)

    found = np.asarray(jax.tree.leaves(estimates(jax.random.split(jax.random.key(1), 64))))
    error = found.std(1, ddof=1) / 8
    assert (np.abs(found.mean(1) - exact) <= 4 * error + 1e-6).all()


@pytest.mark.parametrize("method", [None, Quadrature()])
def test_vmap_and_jit(method):
    locs, scales = jnp.asarray([0.0, 1.0, 5.0]), jnp.asarray([1.0, 0.5, 3.0])

    def kl(loc, scale):
        return information.kl_divergence(Normal(loc, scale), Laplace(0.5, 2.0), method=method)

    one_by_one = jnp.stack([kl(loc, scale) for loc, scale in zip(locs, scales, strict=True)])
    np.testing.assert_allclose(grid.quick(jax.vmap(kl))(locs, scales), one_by_one, rtol=1e-5)
    batch = grid.quick(kl)(locs, scales)
    assert batch.shape == (3,)
    np.testing.assert_allclose(batch, one_by_one, rtol=1e-5)


def test_batches_broadcast_over_leading_axes():
    p = Normal(jnp.arange(6.0).reshape(2, 3), 1.0)
    for method in (None, Quadrature(), MonteCarlo(jax.random.key(0), 5000)):
        found = grid.quick(lambda p, q, method=method: information.kl_divergence(p, q, method=method))(p, Normal(0.0, 2.0))
        value = found.value if isinstance(found, Estimate) else found
        expected = np.log(2) + (1 + np.arange(6.0).reshape(2, 3) ** 2) / 8 - 0.5
        np.testing.assert_allclose(value, expected, rtol=0.1 if isinstance(found, Estimate) else 1e-5)


# --- objects and callables -------------------------------------------------------------------------


class Triangle:
    """A distribution with no more than the two methods: 2 x on [0, 1]."""

    def log_prob(self, x):
        return jnp.where((x >= 0) & (x <= 1), jnp.log(2 * jnp.where(x > 0, x, 1)), -jnp.inf)

    def sample(self, key, shape):
        return jnp.sqrt(jax.random.uniform(key, shape))


PAIR = (Triangle().log_prob, Triangle().sample)
TRIANGLE_ENTROPY = 0.5 - np.log(2)


@pytest.mark.parametrize("p", [Triangle(), PAIR], ids=["object", "pair"])
def test_objects_and_pairs_of_callables(p):
    ends = Quadrature(low=0.0, high=1.0)

    @grid.quick
    def entropies(key):
        return [information.entropy(p, method=method) for method in (ends, Grid(0.0, 1.0, 20_001), MonteCarlo(key))]

    by_quadrature, on_a_grid, estimate = entropies(jax.random.key(0))
    np.testing.assert_allclose(by_quadrature, TRIANGLE_ENTROPY, rtol=1e-5)
    np.testing.assert_allclose(on_a_grid, TRIANGLE_ENTROPY, rtol=1e-3)
    assert abs(estimate.value - TRIANGLE_ENTROPY) <= 4 * estimate.standard_error
    np.testing.assert_allclose(information.kl_divergence(p, Beta(2.0, 1.0), method=ends), 0, atol=1e-5)
    with pytest.raises(ValueError, match="no closed form of entropy is known"):
        information.entropy(p, method=ClosedForm())


def test_a_smooth_object_needs_no_ends():
    mixture = (
        lambda x: jnp.logaddexp(Normal(-1.0, 1.0).log_prob(x), Normal(2.0, 0.5).log_prob(x)) - np.log(2),
        Normal(0, 2).sample,
    )
    p, q = Normal(-1.0, 1.0), Normal(2.0, 0.5)
    expected = information.js_divergence(p, q)
    half = 0.5 * (information.kl_divergence(p, mixture) + information.kl_divergence(q, mixture))
    np.testing.assert_allclose(half, expected, rtol=1e-5)
    np.testing.assert_allclose(information.kl_divergence(mixture, mixture), 0, atol=1e-6)


def test_units():
    p, q = Normal(0.0, 1.0), Normal(1.0, 2.0)
    for measure in (information.cross_entropy, information.kl_divergence, information.js_divergence):
        np.testing.assert_allclose(measure(p, q, base=2), measure(p, q) / np.log(2), rtol=1e-6)
    key = jax.random.key(0)
    nats, bits = (information.entropy(p, base=base, method=MonteCarlo(key)) for base in (None, 2))
    np.testing.assert_allclose(bits.standard_error, nats.standard_error / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(information.perplexity(p), np.exp(information.entropy(p)), rtol=1e-6)
    np.testing.assert_allclose(information.perplexity(p, q), np.exp(information.cross_entropy(p, q)), rtol=1e-6)
