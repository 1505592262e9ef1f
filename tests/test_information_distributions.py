"""Formula 1, over distributions: families against scipy, closed forms against quadrature and Monte Carlo, gradients."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
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


# --- large concentrations --------------------------------------------------------------------------

# Entropies, and their derivatives by every parameter, to 17 digits (mpmath, 50 digits).
ENTROPIES = {
    "gamma": (
        lambda c: Gamma(c[..., 0], jnp.ones_like(c[..., 0])),
        [
            ([0.01], -94.945796725247966, [9902.6050013930301]),
            ([3.5], 1.9430820007339663, [0.17410560974941284]),
            ([10.0], 2.5360541784809796, [0.053502978864828285]),
            ([1000.0], 4.8724827560179718, [0.00050033350003329998]),
            ([1e6], 8.3266934788533931, [5.000003333335e-7]),
        ],
    ),
    "beta": (
        lambda c: Beta(c[..., 0], c[..., 1]),
        [
            ([0.5, 0.5], -0.24156447527049044, [0.82246703342411322, 0.82246703342411322]),
            ([40.0, 7.0], -1.5788160121066995, [-0.019584405163411167, 0.046433576890913646]),
            ([1200.0, 98800.0], -6.5552576806269189, [0.00040189816128116046, -9.939320440587342e-6]),
            ([1e6, 1e6], -6.5285377666175073, [-2.49999874999875e-7, -2.49999874999875e-7]),
        ],
    ),
    "dirichlet": (
        Dirichlet,
        [
            ([0.7, 1.5, 2.5], -1.3070038046387308, [1.2531008727611079, -0.064514974519614907, -0.33265050839762755]),
            ([30.0, 200.0, 4.0], -5.8533707010169239, [0.0063350994559452465, -0.0081997959822009081, 0.13782298261905765]),
            ([1e5, 3e5, 2e4], -12.518190460391298, [-9.5235517746668793e-7, -4.285718140590145e-6, 1.9048444843200187e-5]),
        ],
    ),
    "poisson": (
        lambda c: Poisson(c[..., 0]),
        [
            ([3.5], 2.0151725225129723, [0.15394667416691873]),
            ([31.5], 3.1412429958231815, [0.01595984365686412]),
            ([3000.0], 5.4220945346204326, [0.00016667592901430041]),
            ([1e6], 8.3266933954999994, [5.0000008333341667e-7]),
        ],
    ),
}


@pytest.mark.parametrize("family", ENTROPIES)
def test_entropies_of_large_concentrations(family):
    make, table = ENTROPIES[family]
    given, values, gradients = (np.array(column) for column in zip(*table, strict=True))

    def entropy(c):
        return information.entropy(make(c))

    found = grid.quick(jax.vmap(jax.value_and_grad(entropy)))(given.astype(np.float32))
    np.testing.assert_allclose(found[0], values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], gradients, rtol=1e-5)


def test_divergences_and_densities_of_large_concentrations():
    """In 64 bits to 12 digits; float32 gives what the float32 of its parameters allows. By mpmath."""

    @grid.quick
    def found(beta, gamma, beta_at, gamma_at, poisson_at):
        kl = information.kl_divergence
        divergences = kl(Beta(*beta[:2]), Beta(*beta[2:])), kl(Gamma(*gamma[:2]), Gamma(*gamma[2:]))
        densities = Beta(*beta_at[:2]).log_prob(beta_at[2]), Gamma(*gamma_at[:2]).log_prob(gamma_at[2])
        return (*divergences, *densities, Poisson(poisson_at[0]).log_prob(poisson_at[1]))

    given = [
        [(1e5, 1e5, 2e5, 2e5), (0.5, 3.0, 2.0, 1.0), (1200.0, 98800.0, 1100.0, 99000.0), (1e5, 3.0, 100010.0, 3.0)],
        [(1e5, 2.0, 2e5, 4.0), (0.5, 3.0, 2.0, 1.0), (1e6, 10.0, 1e6, 10.01), (3e4, 2.0, 30003.0, 2.000244140625)],
        [(12.5, 4.5, 0.75), (1e6, 3e6, 0.25), (0.5, 1e5, 1e-5)],
        [(12.5, 4.5, 3.0), (1e6, 2.0, 500500.0), (0.5, 1e-3, 1e-5)],
        [(3.5, 0.0), (1e6, 1001000.0), (0.5, 7.0)],
    ]
    expected = [
        [0.15342703472002733, 3.4815696872089314, 4.4416349869074978, 1.4998700112489821e-8],
        [0.15342682638669401, 4.2367913401103212, 0.49966691646683319, 7.3081422129250271e-6],
        [1.3234019261866871, 7.5189520528454676, 9.9405642720621951],
        [-0.79933873254975833, -7.6342131317601145, 1.7302201400693456],
        [-3.5, -8.3270270622201348, -13.877191624985031],
    ]
    with x64():
        wide = found(*(np.array(x).T for x in given))
    narrow = found(*(np.array(x, np.float32).T for x in given))
    for exact, of_64_bits, of_32 in zip(expected, wide, narrow, strict=True):
        np.testing.assert_allclose(of_64_bits, exact, rtol=1e-12)
        np.testing.assert_allclose(of_32, exact, rtol=1e-4)


def test_poisson_of_large_rates_by_quadrature():
    """The integers follow the standard deviation. Of two normals of one variance, a deviation apart, Jensen-Shannon is
    0.111: the difference to Poisson is of order ``1 / sqrt(rate)``."""
    rates = jnp.asarray([3000.0, 1e6, 1e9])
    p, q = Poisson(rates), Poisson(rates + jnp.sqrt(rates))

    @grid.quick
    def found(p, q):
        return (
            *(information.entropy(p, method=method) for method in (None, Quadrature())),
            *(information.kl_divergence(p, q, method=method) for method in (None, Quadrature())),
            information.js_divergence(p, q),
        )

    entropy, summed, divergence, by_quadrature, js = found(p, q)
    np.testing.assert_allclose(summed, entropy, rtol=1e-5)
    np.testing.assert_allclose(by_quadrature, divergence, rtol=1e-4)
    np.testing.assert_allclose(js, 0.1114, rtol=0.02)
    normals = information.js_divergence(Normal(0.0, 1.0), Normal(1.0, 1.0))
    np.testing.assert_allclose(js[1:], normals, rtol=1e-3)


# --- scales whose squares float32 does not hold ----------------------------------------------------

BY_SCALE = {  # of the scale and its inverse
    "normal": (lambda s, r: Normal(0 * s, s), lambda s, r: Normal(s, 2 * s)),
    "laplace": (lambda s, r: Laplace(0 * s, s), lambda s, r: Laplace(s, 2 * s)),
    "exponential": (lambda s, r: Exponential(r), lambda s, r: Exponential(0.5 * r)),
    "gamma": (lambda s, r: Gamma(3.0, r), lambda s, r: Gamma(2.0, 0.5 * r)),
    "uniform": (lambda s, r: Uniform(0 * s, s), lambda s, r: Uniform(-s, 2 * s)),
    "uniform from normal": (lambda s, r: Uniform(0 * s, s), lambda s, r: Normal(s, 2 * s)),
    "laplace from normal": (lambda s, r: Laplace(0 * s, s), lambda s, r: Normal(s, 2 * s)),
    "gamma from normal": (lambda s, r: Gamma(3.0, r), lambda s, r: Normal(s, 2 * s)),
    "uniform from laplace": (lambda s, r: Uniform(-s, s), lambda s, r: Laplace(0.5 * s, 2 * s)),
    "vector": (
        lambda s, r: MultivariateNormal(jnp.zeros(1), s * jnp.ones((1, 1))),
        lambda s, r: MultivariateNormal(s * jnp.ones(1), 2 * s * jnp.ones((1, 1))),
    ),
}


@pytest.mark.parametrize("family", BY_SCALE)
def test_scales_change_an_entropy_by_their_logarithm_and_no_divergence(family):
    """From 1e-20 to 1e20, whose squares float32 does not hold; the gradient too."""
    p, q = (lambda t, make=make: make(jnp.exp(t), jnp.exp(-t)) for make in BY_SCALE[family])

    @grid.quick
    @jax.vmap
    def found(t):
        cross, slope = jax.value_and_grad(lambda t: information.cross_entropy(p(t), q(t)))(t)
        return cross - t, information.kl_divergence(p(t), q(t)), slope

    cross, divergence, slope = found(np.array([0, -46, 46], np.float32))
    np.testing.assert_allclose(cross, np.repeat(cross[:1], 3), rtol=2e-5)
    np.testing.assert_allclose(divergence, np.repeat(divergence[:1], 3), rtol=2e-5)
    np.testing.assert_allclose(slope, 1, rtol=1e-5)


def test_log_normal_of_a_wide_logarithm():
    p, q = LogNormal(0.0, 1e20), LogNormal(1e20, 2e20)
    np.testing.assert_allclose(information.cross_entropy(p, q), np.log(2e20) + 0.5 * np.log(2 * np.pi) + 0.25, rtol=1e-5)
    np.testing.assert_allclose(information.kl_divergence(p, q), np.log(2) - 0.25, rtol=1e-5)


# --- small divergences -----------------------------------------------------------------------------


def rows(*columns):
    return jnp.stack(columns, -1)


CLOSE = {
    "normal": lambda e: (Normal(1 + 0 * e, 2.7), Normal(1 + e, 2.7 * (1 + e))),
    "log-normal": lambda e: (LogNormal(0 * e, 1.0), LogNormal(e, 1.0)),
    "exponential": lambda e: (Exponential(3.3 + 0 * e), Exponential(3.3 * (1 + e))),
    "gamma": lambda e: (Gamma(3 + 0 * e, 2.0), Gamma(3 * (1 + e), 2 * (1 + e))),
    "beta": lambda e: (Beta(2 + 0 * e, 3.0), Beta(2 * (1 + e), 3.0)),
    "laplace": lambda e: (Laplace(0 * e, 1.0), Laplace(e, 1 + e)),
    "poisson": lambda e: (Poisson(3 + 0 * e), Poisson(3 * (1 + e))),
    "uniform": lambda e: (Uniform(-1.3 + 0 * e, 2.7), Uniform(-1.3 - e, 2.7 * (1 + e))),
    "dirichlet": lambda e: (
        Dirichlet(rows(1 + 0 * e, 2 + 0 * e, 0.4 + 0 * e)),
        Dirichlet(rows(1 + 0 * e, 2 * (1 + e), 0.4 * (1 - e))),
    ),
    "vector": lambda e: (
        MultivariateNormal(rows(0 * e, 1 + 0 * e), triangles(1.7 + 0 * e, -0.4 + 0 * e, 0.9 + 0 * e)),
        MultivariateNormal(rows(e, 1 - e), triangles(1.7 * (1 + e), -0.4 * (1 - e), 0.9 * (1 + e))),
    ),
    "categorical": lambda e: (
        Categorical(rows(0 * e, 1 + 0 * e, -13 + 0 * e)),
        Categorical(rows(e, 1 - e, -13 * (1 - e))),
    ),
    "bernoulli": lambda e: (Bernoulli(1.3 + 0 * e), Bernoulli(1.3 * (1 + e))),
    "rare bernoulli": lambda e: (Bernoulli(-13.8 + 0 * e), Bernoulli(-13.8 * (1 + e))),
}


def triangles(first, below, second):
    return jnp.stack([rows(first, 0 * first), rows(below, second)], -2)


def textbook(p, q):
    """``KL(p || q)`` by the formulas of the textbooks, in float64."""
    a, b = ({name: np.float64(x) for name, x in vars(side).items()} for side in (p, q))
    kind = type(p)
    if kind in (Normal, LogNormal):
        squares = (a["scale"] ** 2 + (a["loc"] - b["loc"]) ** 2) / b["scale"] ** 2
        return np.log(b["scale"] / a["scale"]) + squares / 2 - 0.5
    if kind is MultivariateNormal:
        m = np.linalg.solve(b["scale_tril"], a["scale_tril"])
        d = np.linalg.solve(b["scale_tril"], (a["loc"] - b["loc"])[..., None])
        return 0.5 * ((m**2).sum((-2, -1)) + (d**2).sum((-2, -1)) - 2) - np.log(np.linalg.det(m))
    if kind is Exponential:
        return np.log(a["rate"] / b["rate"]) + b["rate"] / a["rate"] - 1
    if kind is Poisson:
        return a["rate"] * np.log(a["rate"] / b["rate"]) + b["rate"] - a["rate"]
    if kind is Laplace:
        d = np.abs(a["loc"] - b["loc"])
        return np.log(b["scale"] / a["scale"]) + (a["scale"] * np.exp(-d / a["scale"]) + d) / b["scale"] - 1
    if kind is Uniform:
        return np.log((b["high"] - b["low"]) / (a["high"] - a["low"]))
    if kind is Gamma:
        (c, r), (d, s) = ((x["concentration"], x["rate"]) for x in (a, b))
        own = scipy.special.gammaln(d) - scipy.special.gammaln(c) + (c - d) * scipy.special.digamma(c)
        return own + d * np.log(r / s) + c * (s / r - 1)
    if kind in (Beta, Dirichlet):
        c, d = (np.stack(list(x.values()), -1) if kind is Beta else x["concentration"] for x in (a, b))
        logs = scipy.special.digamma(c) - scipy.special.digamma(c.sum(-1, keepdims=True))
        return log_beta(d) - log_beta(c) + ((c - d) * logs).sum(-1)
    c, d = (x["logits"] if kind is Categorical else np.stack([0 * x["logits"], x["logits"]], -1) for x in (a, b))
    c, d = scipy.special.log_softmax(c, -1), scipy.special.log_softmax(d, -1)
    return (np.exp(c) * (c - d)).sum(-1)


def log_beta(c):
    return scipy.special.gammaln(c).sum(-1) - scipy.special.gammaln(c.sum(-1))


def test_a_close_pair_of_every_family_keeps_four_digits():
    """In float32, of the same float32 parameters; and exactly 0 for the same parameters."""
    apart = np.array([1e-3, 1e-4], np.float32)
    made = {family: make(jnp.asarray(apart)) for family, make in CLOSE.items()}

    @grid.quick
    def divergences(made):
        return {
            family: (information.kl_divergence(p, q), information.kl_divergence(p, p)) for family, (p, q) in made.items()
        }

    for family, (found, of_one) in divergences(made).items():
        p, q = made[family]
        assert (of_one == 0).all(), family
        np.testing.assert_allclose(found, textbook(p, q), rtol=1e-4, err_msg=family)


def test_jensen_shannon_of_close_finite_families():
    p, q = CLOSE["categorical"](jnp.asarray([1e-3, 1e-4], jnp.float32))
    probabilities = [scipy.special.softmax(np.float64(x.logits), -1) for x in (p, q)]
    expected = [skewed_js(*probabilities, beta) for beta in (0.5, 0.2)]
    js = grid.quick(lambda p, q: [information.js_divergence(p, q, beta=beta) for beta in (0.5, 0.2, 0.0, 1.0)])
    *found, first, last = js(p, q)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (np.array([first, last]) <= 1e-15).all()
    assert (np.array(js(p, p)) <= 1e-15).all()


def skewed_js(p, q, beta):
    m = beta * p + (1 - beta) * q
    return (beta * p * np.log(p / m) + (1 - beta) * q * np.log(q / m)).sum(-1)


def test_rare_outcomes():
    """KL of a probability of 1e-6 from 2e-6."""
    p, q = 1e-6, 2e-6
    expected = p * np.log(p / q) + (1 - p) * (np.log1p(-p) - np.log1p(-q))
    logits = [np.float32(np.log(x) - np.log1p(-x)) for x in (p, q)]
    np.testing.assert_allclose(information.kl_divergence(*map(Bernoulli, logits)), expected, rtol=1e-5)
    certain = Bernoulli(jnp.asarray([jnp.inf, -jnp.inf]))
    np.testing.assert_allclose(information.kl_divergence(certain, Bernoulli(0.0)), np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    "family", ["normal", "log-normal", "exponential", "gamma", "beta", "laplace", "poisson", "dirichlet", "vector"]
)
def test_a_small_kl_keeps_its_digits(family):
    """In float32, against 64 bits of the same float32 parameters."""
    p, q = CLOSE[family](np.float32(2e-6))
    found = information.kl_divergence(p, q)
    with x64():
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (p, q))
        expected = float(information.kl_divergence(*wide))
    assert 1e-13 < expected < 1e-10
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# --- supports --------------------------------------------------------------------------------------


def test_densities_off_the_support_and_on_its_edge():
    inf, nan = np.inf, np.nan

    @grid.quick
    def found():
        flat = Dirichlet(jnp.ones(3)).log_prob(jnp.asarray([[0.5, 0.5, 0], [1, 0, 0], [0.5, 0.4, 0], [0.7, 0.5, -0.2]]))
        bent = Dirichlet(jnp.asarray([2.0, 1.0, 0.5])).log_prob(jnp.asarray([[0, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5]]))
        between = jnp.asarray([0.5, -1.0, 1.5, inf, nan])
        counts = [p.log_prob(between) for p in (Poisson(3.0), Categorical(jnp.zeros(2)), Bernoulli(0.0))]
        ends = [p.log_prob(jnp.asarray([0.0, inf, -1.0])) for p in (Gamma(1.0, 2.0), Gamma(2.0, 2.0), Exponential(2.0))]
        return flat, bent, counts, ends

    flat, bent, counts, ends = found()
    np.testing.assert_allclose(flat, [np.log(2), np.log(2), -inf, -inf], rtol=1e-5)
    edge = scipy.stats.dirichlet([2.0, 1.0, 0.5]).logpdf([0.5, 1e-15, 0.5 - 1e-15])
    np.testing.assert_allclose(bent, [-inf, inf, edge], rtol=1e-5)
    np.testing.assert_array_equal(counts, [[-inf] * 4 + [nan]] * 3)
    np.testing.assert_allclose(ends, [[np.log(2), -inf, -inf], [-inf] * 3, [np.log(2), -inf, -inf]], rtol=1e-6)


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
