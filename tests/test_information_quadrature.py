"""Quadrature and Monte Carlo where densities are narrow, infinite or 0 at an end, against scipy in 64 bits and exact
numbers; distributions of other libraries by stand-ins that have their attributes."""

import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from crossent_jax import information
from crossent_jax.information import Beta, Dirichlet, Gamma, Grid, Laplace, MonteCarlo, Normal, Quadrature, Uniform

from . import grid
from .oracle import x64

KEY = jax.random.key(4)

# --- narrow densities ------------------------------------------------------------------------------


def js_by_scipy(p, q):
    """In 64 bits, by Gauss-Legendre's rule of 40 points between many break points around both densities."""
    around = np.concatenate([side.mean() + side.std() * np.linspace(-12, 12, 97) for side in (p, q)])
    pairs = itertools.pairwise(np.unique(around))

    def integrand(x):
        a, b = p.logpdf(x), q.logpdf(x)
        middle = np.logaddexp(a, b) - np.log(2)
        return 0.5 * (np.exp(a) * (a - middle) + np.exp(b) * (b - middle))

    return sum(scipy.integrate.fixed_quad(integrand, a, b, n=40)[0] for a, b in pairs)


NARROW = np.array(
    [[4, 0.02, 0, 3], [0, 3, 4, 0.02], [-2, 1e-3, 0, 1], [0.3, 0.5, 0, 2], [1, 1e-2, 30, 5], [0, 1e-2, 0, 1e3]]
)


def test_jensen_shannon_of_a_narrow_side_off_the_others_centre():
    columns = map(jnp.asarray, NARROW.T.astype(np.float32))
    found = grid.quick(lambda a, b, c, d: information.js_divergence(Normal(a, b), Normal(c, d)))(*columns)
    expected = [js_by_scipy(scipy.stats.norm(*of[:2]), scipy.stats.norm(*of[2:])) for of in NARROW]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_cross_entropy_of_a_narrow_bend_inside_p():
    """q is a mixture whose narrow part lies off p's centre; what it says of itself is only its samples' place."""
    p, narrow, wide = Normal(0.0, 3.0), Normal(4.0, 0.02), Normal(0.0, 3.0)
    q = (lambda x: jnp.logaddexp(narrow.log_prob(x), wide.log_prob(x)) - math.log(2), narrow.sample)
    found = grid.quick(lambda: information.kl_divergence(p, q))()
    a, b = scipy.stats.norm(0, 3), scipy.stats.norm(4, 0.02)
    breaks = np.unique([*(3 * np.linspace(-12, 12, 97)), *(4 + 0.02 * np.linspace(-12, 12, 97))])

    def integrand(x):
        return a.pdf(x) * (a.logpdf(x) - np.logaddexp(a.logpdf(x), b.logpdf(x)) + np.log(2))

    expected = sum(scipy.integrate.fixed_quad(integrand, *ends, n=40)[0] for ends in itertools.pairwise(breaks))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_gradients_where_break_points_coincide():
    """In the places of two equal kinks: KL of Laplace distributions, by its closed form."""
    given = Laplace(0.5, 1.0), Laplace(0.5, 2.0)
    of = [lambda g, m=method: information.kl_divergence(*g, method=m) for method in (None, Quadrature())]
    closed, found = grid.quick(lambda g: [jax.tree.leaves(jax.grad(f)(g)) for f in of])(given)
    np.testing.assert_allclose(found, closed, atol=2e-5)


# --- ends ------------------------------------------------------------------------------------------


def test_a_density_that_is_0_or_infinite_at_an_end_of_p():
    """``E_U[-log q]`` over (0, 1) of q = Beta(a, b) is ``log B(a, b) + a + b - 2``."""
    a, b = jnp.asarray([2.0, 0.5, 1.0, 3.0]), jnp.asarray([3.0, 0.5, 2.0, 1.0])
    p = Uniform(jnp.zeros(4), jnp.ones(4))
    methods = [None, Quadrature(), MonteCarlo(KEY, 20_000)]
    closed, quadrature, sampled = grid.quick(
        lambda a, b: [information.cross_entropy(p, Beta(a, b), method=m) for m in methods]
    )(a, b)
    expected = scipy.special.betaln(a, b) + np.asarray(a) + np.asarray(b) - 2
    np.testing.assert_allclose(closed, expected, rtol=1e-5)
    np.testing.assert_allclose(quadrature, expected, rtol=1e-5)
    assert (np.abs(sampled.value - expected) <= 4 * sampled.standard_error).all()


def test_a_support_that_does_not_hold_p_on_every_path():
    """Where q is infinite at its own end too, and where no node and no sample falls outside of it."""
    beta, narrow = Beta(2.0, 0.5), Normal(0.5, 1e-3)
    methods = [Quadrature(), MonteCarlo(KEY, 50), Grid(0.49, 0.51, 1001)]
    for p, of in ((Normal(0.0, 1.0), methods[:2]), (narrow, methods)):
        found = grid.quick(lambda p, of=of: [information.kl_divergence(p, beta, method=m) for m in of])(p)
        assert found[0] == np.inf and all(x == np.inf for x in found[2:])
        assert found[1].value == np.inf and found[1].standard_error == 0


def test_an_integral_that_goes_on_beyond_the_last_nodes():
    """Of Gamma(0.14, 1) the 1e-5 of the mass that lies below the smallest float weighs in the entropy."""
    with pytest.raises(ValueError, match="go(es)? on beyond"):
        information.entropy(Gamma(0.14, 1.0), method=Quadrature())
    found = jax.jit(lambda c: information.entropy(Gamma(c, 1.0), method=Quadrature()))
    assert np.isnan(found(0.14))
    np.testing.assert_allclose(found(0.5), scipy.stats.gamma(0.5).entropy(), rtol=1e-5)


# --- Monte Carlo -----------------------------------------------------------------------------------

SMALL = {
    "beta": lambda c: (Beta(c[0], c[1]), Beta(c[1] + 0.3, c[0] + 0.2)),
    "gamma": lambda c: (Gamma(c[0], c[1]), Gamma(c[1], 2.0)),
    "dirichlet": lambda c: (Dirichlet(jnp.stack([c[0], c[1], c[0] + 1])), Dirichlet(jnp.stack([c[1], c[1], c[0]]))),
}


@pytest.mark.parametrize(
    "family, concentrations", [("gamma", (0.02, 0.05)), ("beta", (0.02, 0.05)), ("dirichlet", (0.02, 0.05))]
)
def test_samples_at_an_infinite_density(family, concentrations):
    """Entropy and KL, and the means of 64 gradients, within 4 standard errors of the closed forms."""
    measures = [lambda p, q, **options: information.entropy(p, **options), information.kl_divergence]

    def by(c, method):
        found = [measure(*SMALL[family](c), method=method) for measure in measures]
        return jnp.stack([x.value if isinstance(x, information.Estimate) else x for x in found])

    @grid.quick
    def sampled_with_jacobians(c, keys):
        def twice(c, key):
            return (by(c, MonteCarlo(key, 500)),) * 2

        return jax.vmap(jax.jacrev(twice, has_aux=True), (None, 0))(c, keys)

    with x64():
        closed, step = grid.quick(lambda c: by(c, None)), 1e-6 * np.eye(2)
        c = np.float64(concentrations)
        slopes = [np.asarray(closed(c + s) - closed(c - s)) / 2e-6 for s in step]
        closed_forms = np.stack(slopes, -1), np.asarray(closed(c))
    by_sampling = sampled_with_jacobians(jnp.asarray(concentrations), jax.random.split(KEY, 64))
    for sampled, exact in zip(map(np.asarray, by_sampling), closed_forms, strict=True):
        assert np.isfinite(sampled).all()
        error = np.std(sampled, axis=0, ddof=1) / 8
        assert (np.abs(np.mean(sampled, 0) - exact) <= 4 * error + 1e-5 * np.abs(exact)).all()


# --- distributions of other libraries, by stand-ins ------------------------------------------------


def test_the_kink_of_an_object_is_a_break_point():
    """Its samples show about where it is, ``loc`` says it: in 64 bits the difference counts."""
    with x64():
        frozen = Laplace(np.float64(0.3), np.float64(1))
        made = SimpleNamespace(log_prob=frozen.log_prob, sample=frozen.sample, loc=0.3)
        np.testing.assert_allclose(information.entropy(made, method=Quadrature(128)), 1 + np.log(2), rtol=1e-12)


def stand_in(name: str, library: str = "numpyro", **attributes):
    made = type(name, (SimpleNamespace,), {"__module__": f"{library}.distributions"})(**attributes)
    return made


def truncated(**says):
    """A standard normal distribution on [-1, 1]."""
    frozen = scipy.stats.truncnorm(-1, 1)
    total = float(np.log(np.diff(scipy.stats.norm.cdf([-1, 1])))[0])
    normal = Normal(0.0, 1.0)
    return frozen, stand_in(
        "TruncatedNormal",
        log_prob=lambda x: jnp.where(jnp.abs(x) <= 1, normal.log_prob(x) - total, says.pop("outside", -jnp.inf)),
        sample=lambda key, shape: jax.random.truncated_normal(key, -1.0, 1.0, shape),
        **says,
    )


BOUNDS = SimpleNamespace(lower_bound=-1.0, upper_bound=1.0, is_discrete=False)
SAID = {
    "support": lambda: truncated(support=BOUNDS),
    "bijector": lambda: truncated(
        experimental_default_event_space_bijector=lambda: SimpleNamespace(forward=lambda x: 1 - 2 * jax.nn.sigmoid(x))
    ),
}


@pytest.mark.parametrize("says", SAID)
def test_the_support_that_an_object_says(says):
    frozen, p = SAID[says]()
    np.testing.assert_allclose(information.entropy(p), frozen.entropy(), rtol=3e-6)
    assert information.kl_divergence(Normal(0.0, 0.1), p) == np.inf
    found = information.kl_divergence(p, Normal(0.0, 1.0), method=MonteCarlo(KEY, 20_000))
    expected = -np.log(np.diff(scipy.stats.norm.cdf([-1, 1])))[0]
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)


def test_a_support_that_is_not_said_is_refused():
    _, p = truncated()
    with pytest.raises(ValueError, match="Give low and high"):
        information.entropy(p)
    assert np.isnan(jax.jit(lambda: information.entropy(p))())
    np.testing.assert_allclose(information.entropy(p, method=Quadrature(low=-1, high=1)), 0.68279, atol=1e-5)


def test_ends_that_are_known_only_later():
    """Traced ends of an object, one of them infinite."""

    @jax.jit
    def entropy(scale, high):
        support = SimpleNamespace(lower_bound=0.0 * scale, upper_bound=high, is_discrete=False)
        p = stand_in(
            "HalfNormal",
            log_prob=lambda x: Normal(0.0, scale).log_prob(x) + math.log(2),
            sample=lambda key, shape: jnp.abs(scale * jax.random.normal(key, shape)),
            support=support,
        )
        return information.entropy(p)

    np.testing.assert_allclose(entropy(2.0, jnp.inf), scipy.stats.halfnorm(scale=2).entropy(), rtol=1e-5)


def test_counts_of_a_library_that_does_not_call_them_discrete():
    p = stand_in(
        "Geometric",
        "tensorflow_probability",
        dtype=jnp.float32,
        log_prob=lambda x: x * math.log(0.7) + math.log(0.3),
        sample=lambda key, shape: jax.random.geometric(key, 0.3, shape) - 1,
    )
    np.testing.assert_allclose(information.entropy(p), scipy.stats.geom(0.3).entropy(), rtol=1e-5)


def normals(loc):
    return stand_in("Normal", loc=jnp.asarray(loc), scale=jnp.ones(3), batch_shape=(3,), log_prob=lambda x: None)


def independent(loc):
    return stand_in("Independent", base_dist=normals(loc), event_shape=(3,), batch_shape=(), log_prob=lambda x: None)


LOC = np.array([0.0, 1.0, 3.0])
KL_OF_EACH = 0.5 * LOC**2  # of N(loc, 1) from N(0, 1)


def test_independent_and_masked():
    p, q = independent(LOC), independent(np.zeros(3))
    np.testing.assert_allclose(information.kl_divergence(p, q), KL_OF_EACH.sum(), rtol=1e-6)
    vector = information.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    np.testing.assert_allclose(information.kl_divergence(p, vector), KL_OF_EACH.sum(), rtol=1e-6)
    mask = jnp.asarray([True, False, True])
    masked = stand_in("MaskedDistribution", base_dist=normals(LOC), _mask=mask, log_prob=lambda x: None)
    found = information.kl_divergence(masked, normals(np.zeros(3)))
    np.testing.assert_allclose(found, np.where(mask, KL_OF_EACH, 0), rtol=1e-6)
    estimate = information.kl_divergence(p, q, method=MonteCarlo(KEY, 5000))
    assert estimate.value.shape == () and abs(estimate.value - KL_OF_EACH.sum()) <= 4 * estimate.standard_error


def test_parameters_that_are_given_otherwise():
    log_rate = stand_in("Gamma", concentration=2.0, rate=None, log_rate=jnp.log(3.0), log_prob=lambda x: None)
    np.testing.assert_allclose(information.entropy(log_rate), scipy.stats.gamma(2, scale=1 / 3).entropy(), rtol=1e-5)
    upper = jnp.asarray([[1.0, 2.0], [0.0, -3.0]])
    entropy = math.log(2 * math.pi * math.e) + math.log(3)  # |det| of the factor is 3
    given = {"loc": None, "batch_shape": (), "event_shape": (2,)}
    for factor in (dict(scale_tri=upper, is_lower=False), dict(scale_tri=upper.T, is_lower=True)):
        p = stand_in("MultivariateNormalTri", "distrax", **given, **factor, log_prob=lambda x: None)
        assert information.entropy(p) == pytest.approx(entropy, rel=1e-6)
        covariance = np.array(upper @ upper.T if not factor["is_lower"] else upper.T @ upper)
        q = information.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
        expected = 0.5 * (np.trace(covariance) - 2 - math.log(9))
        np.testing.assert_allclose(jax.jit(lambda p=p, q=q: information.kl_divergence(p, q))(), expected, rtol=1e-5)
