"""The integrands of KL: values against long doubles, derivatives against their formulas and limits, every transform."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from crossent_jax._pairs import integrands

from . import grid
from .oracle import x64

KL, GENERALIZED = integrands.kl, integrands.generalized_kl
INF = np.inf


def of_probabilities(integrand):
    return lambda log_p, t: integrand(integrands.from_probabilities(log_p, t))


def of_logs(integrand):
    return lambda log_p, log_t: integrand(integrands.from_logs(log_p, log_t))


FORMS = [of_probabilities(KL), of_logs(KL), of_probabilities(GENERALIZED), of_logs(GENERALIZED)]
FORM_NAMES = ["kl", "kl_of_logs", "generalized", "generalized_of_logs"]
every_form = pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)


def exact(integrand, log_p, t):
    """Long-double value of an integrand at t > 0 < p. ``exp(x) - 1 - x`` by its series where it cancels."""
    log_p, t = np.asarray(log_p, np.longdouble), np.asarray(t, np.longdouble)
    x = log_p - np.log(t)
    if integrand is KL:
        return -t * x
    term, series = x * x / 2, np.zeros_like(x)
    for n in range(3, 40):
        series, term = series + term, term * x / n
    return np.where(np.abs(x) < 1, t * series, np.exp(log_p) - t - t * x)


def elements(n=401, near=None):
    """Log-probabilities and probabilities, as float32; ``near``: the size of log p - log t."""
    gen = np.random.default_rng(5)
    t = np.exp(-8 * gen.random(n)).astype(np.float32)
    spread = 6 * gen.standard_normal(n) if near is None else near * gen.standard_normal(n)
    return np.minimum(np.log(t) + spread, 0).astype(np.float32), t


@pytest.mark.optimized
@pytest.mark.parametrize("near", [None, 1.0, 0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("integrand", [KL, GENERALIZED])
def test_value(integrand, near):
    log_p, t = elements(near=near)
    ours = of_probabilities(integrand)(jnp.array(log_p), jnp.array(t))
    x = np.abs(np.float64(log_p) - np.log(np.float64(t)))
    rounding_of_log_t = 1.2e-7 * np.maximum(np.abs(np.log(t)), np.abs(log_p)) * t
    slope = np.abs(np.exp(np.float64(log_p)) - t) / t if integrand is GENERALIZED else 1
    allowed = rounding_of_log_t * slope + 1e-6 * np.abs(np.float64(exact(integrand, log_p, t)))
    assert ours.dtype == jnp.float32 and x.max() > 0
    assert np.all(np.abs(np.float64(ours) - np.float64(exact(integrand, log_p, t))) <= allowed)


@pytest.mark.optimized
@pytest.mark.parametrize("x", [0.5, -0.5, 0.499, 0.501, -0.501, 1e-3, -1e-3, 1e-9])
def test_series_and_formula_agree_where_they_meet(x):
    with x64():
        ours = float(of_logs(GENERALIZED)(jnp.float64(x - 1), jnp.float64(-1.0)))
    true = float(
        np.exp(np.longdouble(-1)) * sum(np.longdouble(x) ** n / np.prod(np.arange(1.0, n + 1)) for n in range(2, 30))
    )
    np.testing.assert_allclose(ours, true, rtol=1e-12 if abs(x) > 1e-6 else 1e-6)


@every_form
def test_float64_inside_for_float64(form):
    with x64():
        value = form(jnp.float64(-1.25), jnp.float32(0.5))
    assert value.dtype == np.float64


@every_form
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_float32_inside_for_half_precision(form, dtype):
    log_p, t = jnp.array([-1.3, -0.2], dtype), jnp.array([0.7, 0.3], dtype)
    value, pull = jax.vjp(form, log_p, t)
    assert value.dtype == jnp.float32
    assert np.array_equal(value, form(log_p.astype(jnp.float32), t.astype(jnp.float32)))
    assert {g.dtype for g in pull(jnp.ones_like(value))} == {jnp.dtype(dtype)}


@pytest.mark.optimized
def test_identical_inputs_give_exactly_zero_and_zero_gradient():
    log_p = jax.nn.log_softmax(jnp.array(np.random.default_rng(0).normal(size=(3, 33)), jnp.float32))
    for form in (of_logs(KL), of_logs(GENERALIZED)):
        assert not np.any(form(log_p, log_p))
    assert not np.any(of_probabilities(GENERALIZED)(jnp.log(jnp.exp(log_p)), jnp.exp(log_p)))
    assert not np.any(jax.grad(lambda a, b: of_logs(GENERALIZED)(a, b).sum(), (0, 1))(log_p, log_p))


@pytest.mark.optimized
@pytest.mark.parametrize("near", [3.0, 1e-1, 1e-3, 1e-6, 1e-7])
def test_generalized_kl_is_never_negative_and_positive_for_different_inputs(near):
    log_p, t = elements(near=near)
    value = np.asarray(of_probabilities(GENERALIZED)(jnp.array(log_p), jnp.array(t)))
    assert np.all(value >= 0)
    assert np.all((value > 0) | (np.abs(log_p - np.log(t)) < 1e-6))


def test_both_are_the_same_divergence_of_distributions():
    gen = np.random.default_rng(3)
    log_p, log_t = (jax.nn.log_softmax(jnp.array(gen.normal(size=(4, 33)), jnp.float32)) for _ in range(2))
    a, b = (np.sum(of_logs(integrand)(log_p, log_t), -1) for integrand in (KL, GENERALIZED))
    np.testing.assert_allclose(a, b, rtol=1e-5)


# d / d log p, d / d log t and d / d t, from the module's table
TABLE = {
    KL: (lambda p, t: -t, lambda p, t: t * np.log(t / p) + t, lambda p, t: np.log(t / p) + 1),
    GENERALIZED: (lambda p, t: p - t, lambda p, t: t * np.log(t / p), lambda p, t: np.log(t / p)),
}


@pytest.mark.parametrize("integrand", [KL, GENERALIZED])
def test_derivatives_are_the_table(integrand):
    log_p, t = elements(101)
    p = np.exp(np.float64(log_p))
    with x64():
        log_p, t, log_t = (jnp.array(x, jnp.float64) for x in (log_p, t, np.log(np.float64(t))))
        chi, tau = grid.quick(jax.grad(lambda a, b: of_logs(integrand)(a, b).sum(), (0, 1)))(log_p, log_t)
        chi_again, by_t = grid.quick(jax.grad(lambda a, b: of_probabilities(integrand)(a, b).sum(), (0, 1)))(log_p, t)
    for ours, formula in zip((chi, tau, by_t), TABLE[integrand], strict=True):
        np.testing.assert_allclose(ours, formula(p, np.float64(t)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(chi_again, chi, rtol=1e-9, atol=1e-12)


# log p, t: value and gradients of kl, and of generalized_kl
LIMITS = [
    (-1.0, 0.0, (0.0, 0.0, 0.0), (np.exp(-1.0), np.exp(-1.0), 0.0)),
    (-INF, 0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    (-INF, 0.5, (INF, -0.5, INF), (INF, -0.5, INF)),
    (0.0, 1.0, (0.0, -1.0, 1.0), (0.0, 0.0, 0.0)),
]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("log_p, t, kl, generalized", LIMITS)
@pytest.mark.parametrize("logs", [False, True])
def test_limits(log_p, t, kl, generalized, logs, jit):
    log_p, t = jnp.float32(log_p), jnp.float32(t)
    target = jnp.log(t) if logs else t
    for integrand, expected in ((KL, kl), (GENERALIZED, generalized)):
        form = (of_logs if logs else of_probabilities)(integrand)
        both = jax.value_and_grad(form, (0, 1))
        value, gradients = (jax.jit(both) if jit else both)(log_p, target)
        np.testing.assert_allclose([value, *gradients], expected, rtol=1e-6)


def test_derivative_along_log_p_alone_is_finite_where_the_value_is_infinite():
    for form in (of_probabilities(KL), of_probabilities(GENERALIZED)):
        value, tangent = jax.jvp(lambda a, form=form: form(a, jnp.float32(0.5)), (jnp.float32(-INF),), (jnp.float32(2.0),))
        assert value == INF and tangent == -1.0


def test_zero_targets_from_a_softmax_get_the_right_gradient():
    z = jnp.array([0.3, -INF, -0.7, 1.1], jnp.float32)
    log_p = jax.nn.log_softmax(jnp.array([0.1, 0.2, -1.0, 0.4], jnp.float32))
    kept = jnp.array([0, 2, 3])
    gradient = jax.jit(jax.grad(lambda z, log_p: of_probabilities(KL)(log_p, jax.nn.softmax(z)).sum()))
    whole, alone = gradient(z, log_p), gradient(z[kept], log_p[kept])
    assert whole[1] == 0
    np.testing.assert_allclose(whole[kept], alone, rtol=1e-5, atol=1e-7)


@every_form
@pytest.mark.parametrize("log_p, target", [(np.nan, 0.5), (-1.0, np.nan), (np.nan, 0.0), (-1.0, -0.25)])
def test_nan_shows(form, log_p, target):
    if form in (FORMS[1], FORMS[3]):
        with np.errstate(invalid="ignore", divide="ignore"):
            target = np.log(target)
    assert np.isnan(form(jnp.float32(log_p), jnp.float32(target)))


@every_form
def test_transforms_agree(form):
    log_p = jnp.array([-0.4, -2.0, -INF, -0.6, -0.7], jnp.float32)
    target = jnp.array([0.5, 0.0, 0.0, 0.55, 0.49], jnp.float32)
    if form in (FORMS[1], FORMS[3]):
        target = jnp.log(target)

    def total(log_p, target):
        return form(log_p, target).sum()

    @grid.quick
    def derivatives(log_p, target):
        return *(of(total, (0, 1))(log_p, target) for of in (jax.jacrev, jax.jacfwd)), jax.hessian(total)(log_p, target)

    reverse, forward, hessian = derivatives(log_p, target)
    np.testing.assert_allclose(forward[0], reverse[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(forward[1], reverse[1], rtol=1e-6, atol=1e-7)
    assert np.all(np.isfinite(hessian)) and np.array_equal(hessian, np.diag(np.diag(hessian)))
    one_by_one = jnp.stack([form(a, b) for a, b in zip(log_p, target, strict=True)])
    assert np.array_equal(jax.vmap(form)(log_p, target), one_by_one)
    assert np.array_equal(form(log_p, target), one_by_one)


@every_form
def test_second_derivatives(form):
    @jax.jit
    def total(log_p, target):
        return form(log_p, target).sum()

    for near in (2.0, 0.1):
        log_p, t = elements(9, near)
        target = np.log(np.float64(t)) if form in (FORMS[1], FORMS[3]) else t
        with x64():
            log_p, target = jnp.array(log_p, jnp.float64), jnp.array(target, jnp.float64)
            jax.test_util.check_grads(total, (log_p, target), order=2, eps=1e-5, rtol=2e-4, atol=1e-4)
