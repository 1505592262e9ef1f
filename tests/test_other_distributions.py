"""Distributions of distrax, numpyro and TensorFlow Probability: recognised where a family is known, measured by quadrature
or Monte Carlo where not, and their own divergences as oracles of ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import crossent_jax
from crossent_jax import information
from crossent_jax.information import ClosedForm, MonteCarlo, Normal, Quadrature

REASON = "an optional library is not installed: pip install crossent-jax[frameworks]"
distrax = pytest.importorskip("distrax", reason=REASON)
numpyro = pytest.importorskip("numpyro.distributions", reason=REASON)
tfd = pytest.importorskip("tensorflow_probability.substrates.jax", reason=REASON).distributions
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

PROBABILITIES, LOGITS = jnp.asarray([0.2, 0.5, 0.3]), jnp.asarray([0.1, -1.0, 2.0])
TRIL = jnp.asarray([[1.0, 0.0], [0.4, 0.7]])
PLACE = jnp.asarray([0.3, -0.2])


@pytest.fixture(autouse=True)
def promotion_as_in_a_program_of_a_user():
    """The libraries mix ranks and dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


SIMPLE = {  # parameters of p and of q, of the family of that name in every library
    "Normal": ((0.3, 0.5), (0.0, 2.0)),
    "LogNormal": ((0.3, 0.5), (0.0, 0.2)),
    "Laplace": ((0.3, 0.5), (0.0, 2.0)),
    "Exponential": ((3.0,), (2.0,)),
    "Gamma": ((3.0, 2.0), (2.0, 2.5)),
    "Beta": ((3.0, 2.0), (2.0, 2.5)),
    "Dirichlet": ((jnp.asarray([1.0, 2.0]),), (jnp.asarray([3.0, 2.0]),)),
    "Uniform": ((0.0, 1.0), (-1.0, 3.0)),
    "Poisson": ((3.0,), (2.0,)),
}
OF_LOGITS = {"Bernoulli": (0.3, 0.5), "Categorical": (PROBABILITIES, LOGITS)}  # probabilities of p, logits of q
SCALES = jnp.asarray([1.0, 2.0])
VECTORS = {
    "distrax": lambda: (distrax.MultivariateNormalTri(PLACE, TRIL), distrax.MultivariateNormalDiag(jnp.zeros(2), SCALES)),
    "numpyro": lambda: (
        numpyro.MultivariateNormal(PLACE, scale_tril=TRIL),
        numpyro.MultivariateNormal(jnp.zeros(2), covariance_matrix=jnp.diag(SCALES**2)),
    ),
    "tensorflow_probability": lambda: (
        tfd.MultivariateNormalTriL(PLACE, TRIL),
        tfd.MultivariateNormalDiag(jnp.zeros(2), SCALES),
    ),
}
LIBRARIES = {"distrax": distrax, "numpyro": numpyro, "tensorflow_probability": tfd}
MISSING = {("distrax", name) for name in ("LogNormal", "Exponential", "Poisson")}  # distrax has no such families
CASES = [
    (library, name)
    for library in LIBRARIES
    for name in (*SIMPLE, *OF_LOGITS, "MultivariateNormal")
    if (library, name) not in MISSING
]


def pair(library: str, name: str):
    if name == "MultivariateNormal":
        return VECTORS[library]()
    family = getattr(LIBRARIES[library], name)
    if name in OF_LOGITS:
        probabilities, logits = OF_LOGITS[name]
        return family(probs=probabilities), family(logits=logits)
    return tuple(family(*parameters) for parameters in SIMPLE[name])


def their_kl(p, q):
    """By the library's own formula, or None where it has none."""
    try:
        return p.kl_divergence(q) if hasattr(p, "kl_divergence") else numpyro.kl_divergence(p, q)
    except NotImplementedError:
        return None


@pytest.mark.parametrize(("library", "name"), CASES)
def test_recognised_and_as_the_library_says(library, name):
    p, q = pair(library, name)
    ours = information.kl_divergence(p, q, method=ClosedForm())
    theirs = their_kl(p, q)
    if theirs is not None:
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    estimate = information.kl_divergence(p, q, method=MonteCarlo(jax.random.key(0), 20_000))
    assert abs(estimate.value - ours) <= 4 * estimate.standard_error + 1e-6
    if hasattr(p, "entropy") and name != "Poisson":
        try:
            theirs = p.entropy()
        except NotImplementedError:
            return
        np.testing.assert_allclose(information.entropy(p), theirs, rtol=2e-5)


def test_most_oracles_exist():
    """Of the cases above, those whose library has a formula of its own."""
    found = {case for case in CASES if their_kl(*pair(*case)) is not None}
    assert len(found) >= 25 and {library for library, _ in found} == set(LIBRARIES)


@pytest.mark.parametrize("logistic", [distrax.Logistic, numpyro.Logistic, tfd.Logistic])
def test_a_distribution_that_is_not_recognised(logistic):
    """By quadrature and Monte Carlo, from log_prob and sample alone. The entropy of a logistic distribution is 2."""
    p = logistic(3.0, 1.0)
    with pytest.raises(ValueError, match="no closed form"):
        information.entropy(p, method=ClosedForm())
    np.testing.assert_allclose(information.entropy(p), 2, rtol=1e-5)
    estimate = information.entropy(p, method=MonteCarlo(jax.random.key(0), 20_000))
    assert abs(estimate.value - 2) <= 4 * estimate.standard_error


@pytest.mark.parametrize("normal", [distrax.Normal, numpyro.Normal, tfd.Normal])
def test_gradients_reach_the_parameters_of_the_library(normal):
    for method in (None, Quadrature()):

        def kl(parameters, method=method):
            return information.kl_divergence(normal(*parameters), Normal(0.0, 2.0), method=method)

        found = jax.jit(jax.grad(kl))((0.3, 0.5))
        np.testing.assert_allclose(found, (0.3 / 4, 0.5 / 4 - 1 / 0.5), rtol=1e-4)


@pytest.mark.parametrize("categorical", [distrax.Categorical, tfd.Categorical])
def test_kl_of_logits_is_the_categorical_one(categorical):
    """The divergences of logits against an independent implementation: value, and gradients to both sides."""
    random = np.random.default_rng(0)
    student, teacher = (jnp.asarray(random.normal(size=(7, 33)) * 3, jnp.float32) for _ in range(2))

    def theirs(student, teacher):
        return categorical(logits=teacher).kl_divergence(categorical(logits=student)).sum()

    def ours(student, teacher):
        return crossent_jax.kl_divergence(student, teacher, reduction="sum")

    np.testing.assert_allclose(ours(student, teacher), theirs(student, teacher), rtol=1e-5)
    pairs = (jax.grad(f, argnums=(0, 1))(student, teacher) for f in (ours, theirs))
    for mine, right in zip(*pairs, strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-5)
    reverse = crossent_jax.reverse_kl_divergence(student, teacher, reduction="sum")
    np.testing.assert_allclose(reverse, theirs(teacher, student), rtol=1e-5)


def entropies_by_scipy():
    """Of objects that are not recognised: by the support that they say, or as counts."""
    frozen = scipy.stats
    return {
        "truncated": (lambda: numpyro.TruncatedNormal(0.0, 1.0, low=-1.0, high=1.0), frozen.truncnorm(-1, 1)),
        "circle": (lambda: numpyro.VonMises(2.5, 5.0), frozen.vonmises(5.0)),
        "infinite at 0": (lambda: numpyro.Weibull(1.0, 0.5), frozen.weibull_min(0.5)),
        "moved end": (lambda: numpyro.Pareto(1.0, 3.0), frozen.pareto(3.0)),
        "counts": (lambda: numpyro.Geometric(0.3), frozen.geom(0.3)),
        "tfp truncated": (lambda: tfd.TruncatedNormal(0.0, 1.0, -1.0, 1.0), frozen.truncnorm(-1, 1)),
        "tfp triangular": (lambda: tfd.Triangular(0.0, 3.0, 1.0), frozen.triang(1 / 3, 0, 3)),
        "tfp counts": (lambda: tfd.Binomial(10.0, probs=0.3), frozen.binom(10, 0.3)),
        "tfp log-rate": (lambda: tfd.Gamma(2.0, log_rate=0.3), frozen.gamma(2.0, scale=np.exp(-0.3))),
    }


@pytest.mark.parametrize("name", entropies_by_scipy())
def test_entropy_is_scipys(name):
    make, frozen = entropies_by_scipy()[name]
    np.testing.assert_allclose(jax.jit(lambda: information.entropy(make()))(), frozen.entropy(), rtol=5e-6)


def test_an_upper_factor_and_no_mean():
    upper = distrax.MultivariateNormalTri(scale_tri=jnp.asarray([[1.0, 2.0], [0.0, 3.0]]), is_lower=False)
    given = upper, tfd.MultivariateNormalDiag(scale_diag=jnp.asarray([1.0, 3.0])), numpyro.Normal(0.0, 1.0).mask(False)
    found = jax.jit(lambda: [information.entropy(p) for p in given])()
    np.testing.assert_allclose(found, [np.log(2 * np.pi * np.e) + np.log(3)] * 2 + [0], rtol=1e-6)
