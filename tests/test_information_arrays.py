"""Formula 2, over the outcomes of arrays: against scipy and float64, any axis, logarithms, bases, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats

from crossent_jax import LossSum, guards, information

from . import grid
from .oracle import x64

MEASURES = {
    "cross_entropy": lambda p, q: -scipy.special.xlogy(p, q).sum(-1),
    "kl_divergence": lambda p, q: scipy.stats.entropy(p, q, axis=-1),
    "js_divergence": lambda p, q: scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2,
}


def pairs(shape=(3, 5, 7), zeros=True):
    """p with zeros, q positive but where p is 0 too."""
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(shape[-1]), shape[:-1]), random.dirichlet(np.ones(shape[-1]), shape[:-1])
    if zeros:
        p[..., 0] = q[..., 0] = p[..., 1] = 0
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    return p.astype(np.float32), q.astype(np.float32)


def logs(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


@pytest.mark.parametrize("measure", MEASURES)
def test_against_scipy(measure):
    p, q = pairs()
    expected = MEASURES[measure](np.float64(p), np.float64(q))
    found = getattr(information, measure)(p, q)
    assert found.dtype == jnp.float32 and found.shape == (3, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(information.entropy(p), scipy.stats.entropy(np.float64(p), axis=-1), rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("measure", MEASURES)
def test_any_axis_logarithms_and_bases(measure, axis):
    function = getattr(information, measure)
    p, q = pairs()
    expected = function(p, q)
    p, q = np.moveaxis(p, -1, axis), np.moveaxis(q, -1, axis)

    @grid.quick
    def variants(p, q, log_p, log_q):
        exact = function(p, q, axis=axis), function(p, q, axis=axis, base=10) * np.log(10)
        of_logs = function(log_p=log_p, log_q=log_q, axis=axis), function(p, log_q=log_q, axis=axis)
        entropies = information.entropy(log_p=log_p, axis=axis), information.entropy(p, axis=axis)
        return exact, (*of_logs, function(log_p=log_p, q=q, axis=axis)), entropies

    exact, of_logs, entropies = variants(p, q, logs(p), logs(q))
    for found in exact:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for found in of_logs:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(*entropies, rtol=1e-5)


def test_64_bits_and_bfloat16():
    """A bfloat16 array may miss a sum of 1 by its own rounding: of these tenths by 0.002."""
    assert information.entropy(jnp.full(10, 0.1, jnp.bfloat16)).dtype == jnp.float32
    p, q = pairs()
    with x64():
        wide = information.kl_divergence(np.float64(p) / np.float64(p).sum(-1, keepdims=True), np.float32(q))
        assert wide.dtype == jnp.float64
    narrow = information.entropy(jnp.asarray([0.25, 0.5, 0.25], jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, 1.5 * np.log(2), rtol=1e-6)


def test_outcomes_that_are_impossible():
    assert information.cross_entropy([0.5, 0.5], [1.0, 0.0]) == jnp.inf
    assert information.kl_divergence([0.5, 0.5], [1.0, 0.0]) == jnp.inf
    np.testing.assert_allclose(information.js_divergence([1.0, 0.0], [0.0, 1.0]), np.log(2), rtol=1e-6)
    assert information.js_divergence([1.0, 0.0], [0.0, 1.0], beta=0.0) == 0
    assert str(information.entropy([1, 0, 0])) == "0.0"  # integers; and not -0.0


@pytest.mark.parametrize("measure", ["kl_divergence", "js_divergence"])
def test_exactly_0_for_identical_arrays_and_symmetric(measure):
    p, q = pairs()
    function = getattr(information, measure)
    assert (function(p, p) == 0).all() and (function(p, q) > 0).all()
    if measure == "js_divergence":
        np.testing.assert_array_equal(function(p, q), function(q, p))


@pytest.mark.parametrize("relative", [1e-3, 1e-4])
def test_close_arrays_keep_four_digits_and_are_never_negative(relative):
    """Of float32 probabilities, and of float32 logarithms, against float64 of the same numbers, normalised."""
    random = np.random.default_rng(4)
    p = random.dirichlet(np.ones(40), 100)
    q = p * (1 + relative * random.normal(size=p.shape))
    p, q = (np.float32(x / x.sum(-1, keepdims=True)) for x in (p, q))
    log_p, log_q = np.log(p), np.log(q)
    measures = [
        information.kl_divergence,
        information.js_divergence,
        lambda *x, **y: information.js_divergence(*x, **y, beta=0.2),
    ]
    found = grid.quick(lambda p, q, log_p, log_q: [(m(p, q), m(log_p=log_p, log_q=log_q)) for m in measures])
    for measure, pair in enumerate(found(p, q, log_p, log_q)):
        for values, given in zip(pair, ((p, q), (np.exp(np.float64(log_p)), np.exp(np.float64(log_q)))), strict=True):
            a, b = (np.float64(x) / np.float64(x).sum(-1, keepdims=True) for x in given)
            m = (b, (a + b) / 2, 0.2 * a + 0.8 * b)[measure]
            share = (1, 0.5, 0.2)[measure]
            expected = share * scipy.stats.entropy(a, m, axis=-1) + (1 - share) * scipy.stats.entropy(b, m, axis=-1)
            assert (np.array(values) > 0).all()
            np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("measure", ["entropy", "cross_entropy", "kl_divergence", "js_divergence"])
def test_gradients_by_central_differences(measure):
    """Along directions that keep the sum, at positive probabilities, with respect to both arrays."""
    p, q = pairs((4, 6), zeros=False)
    function = getattr(information, measure)
    with x64():
        given = [np.float64(x) / np.float64(x).sum(-1, keepdims=True) for x in ((p,) if measure == "entropy" else (p, q))]
        direction = np.random.default_rng(1).normal(size=p.shape)
        direction -= direction.mean(-1, keepdims=True)
        for i in range(len(given)):

            def along(t, i=i):
                return function(*(x + t * direction if j == i else x for j, x in enumerate(map(jnp.asarray, given)))).sum()

            step, value = 1e-6, grid.quick(along)
            expected = (value(step) - value(-step)) / (2 * step)
            np.testing.assert_allclose(grid.quick(jax.grad(along))(0.0), expected, rtol=1e-6)


def test_gradients_at_zeros_are_finite():
    p, q = (jnp.asarray(x) for x in pairs())
    for function in (information.cross_entropy, information.kl_divergence, information.js_divergence):
        for gradient in grid.quick(jax.grad(lambda p, q, f=function: f(p, q).sum(), argnums=(0, 1)))(p, q):
            assert np.isfinite(gradient).all()
    assert np.isfinite(grid.quick(jax.grad(lambda p: information.entropy(p).sum()))(p)).all()


def test_mutual_information():
    random = np.random.default_rng(2)
    joint = random.dirichlet(np.ones(12), 5).reshape(5, 3, 4)
    first, second = joint.sum(2), joint.sum(1)
    expected = [
        scipy.stats.entropy(joint[i].ravel(), np.outer(first[i], second[i]).ravel()) for i in range(5)
    ]  # KL from independence
    joint = joint.astype(np.float32)
    independent = np.einsum("ni,nj->nij", first, second).astype(np.float32)

    @grid.quick
    def found(joint, log_joint, moved, first, second, independent):
        mutual, entropy = information.mutual_information, information.entropy
        parts = entropy(first) + entropy(second) - entropy(joint.reshape(5, 12))
        return [mutual(joint), mutual(log_joint=log_joint), mutual(moved, axes=(0, 2))], parts, mutual(independent)

    given = joint, np.log(joint), np.moveaxis(joint, 0, 1), np.float32(first), np.float32(second), independent
    mutuals, parts, of_independent = found(*given)
    for mutual in mutuals:
        np.testing.assert_allclose(mutual, expected, rtol=1e-5)
    np.testing.assert_allclose(mutuals[0], parts, rtol=1e-4)
    np.testing.assert_allclose(of_independent, 0, atol=1e-6)
    assert (of_independent >= 0).all()


def test_perplexity_and_bits_per_byte():
    np.testing.assert_allclose(information.perplexity(np.full(7, 1 / 7)), 7, rtol=1e-5)
    p, q = pairs()
    np.testing.assert_allclose(information.perplexity(p, q), np.exp(information.cross_entropy(p, q)), rtol=1e-6)
    np.testing.assert_allclose(
        information.bits_per_byte(jnp.asarray([10.0, 20.0]), jnp.asarray([5, 40])),
        [2 / np.log(2), 0.5 / np.log(2)],
        rtol=1e-6,
    )


def test_jit_and_vmap():
    p, q = (jnp.asarray(x) for x in pairs())
    for name in MEASURES:
        function = getattr(information, name)
        expected = function(p, q)
        np.testing.assert_allclose(jax.jit(function)(p, q), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.vmap(function))(p, q), expected, rtol=1e-6)


# --- bad input -------------------------------------------------------------------------------------

WRONG = {
    "not normalised": ([0.5, 0.4], "a sum of 1"),
    "negative": ([1.5, -0.5], "probabilities in"),
    "NaN": ([float("nan"), 1.0], "probabilities in"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("measure", ["entropy", *MEASURES])
def test_arrays_that_are_not_probabilities(measure, wrong):
    values, message = WRONG[wrong]
    function, good = getattr(information, measure), [0.5, 0.5]
    with pytest.raises(ValueError, match=message):
        function(values) if measure == "entropy" else function(values, good)
    if measure != "entropy":
        with pytest.raises(ValueError, match=message):
            function(good, values)


def test_traced_arrays_are_checked_by_the_guard():
    with pytest.raises(ValueError, match="a sum of 1"), guards.values():
        jax.jit(information.entropy)(jnp.asarray([0.5, 0.4]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: information.entropy(), ValueError, "give p or log_p"),
        (lambda: information.entropy([1.0], log_p=[0.0]), ValueError, "give p or log_p"),
        (lambda: information.kl_divergence([0.5, 0.5]), ValueError, "give q or log_q"),
        (lambda: information.cross_entropy([0.5, 0.5], [0.2, 0.3, 0.5]), ValueError, "the shape of p"),
        (lambda: information.entropy(0.5), ValueError, "p must"),
        (lambda: information.entropy([0.5, 0.5], axis=1), ValueError, "axis"),
        (lambda: information.entropy([0.5, 0.5], base=1), ValueError, "base must be a number greater than 1"),
        (lambda: information.entropy([0.5, 0.5], base="2"), ValueError, "base must be"),
        (lambda: information.js_divergence([1.0], [1.0], beta=1.5), ValueError, r"beta must be a number in \[0, 1\]"),
        (
            lambda: information.entropy([0.5, 0.5], method=information.Quadrature()),
            ValueError,
            "method is for distributions",
        ),
        (lambda: information.entropy("even"), TypeError, "p must be an array"),
        (lambda: information.mutual_information([[0.5, 0.5]], axes=(0, 0)), ValueError, "two different axes"),
        (lambda: information.mutual_information([[0.5, 0.4]]), ValueError, "a sum of 1"),
        (lambda: information.bits_per_byte(1.0, 0), ValueError, "greater than 0"),
        (
            lambda: information.bits_per_byte(LossSum(jnp.ones(()), jnp.ones(())), 5),
            TypeError,
            "got a LossSum.*loss_sum.total",
        ),
        (lambda: information.bits_per_byte(jnp.ones(2), jnp.ones(3)), ValueError, "the shape of total_nll"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
