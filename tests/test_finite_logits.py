"""A finite logit is never a masked class, and never NaN: at the lowest number of its dtype, which is how actions are masked
in reinforcement learning, the class counts for nothing, in values and in every derivative, at any temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax import tuning

from . import grid, oracle

ROWS, CLASSES, FEATURES, LOW = 4, 7, 3, 5
LOWEST = float(np.finfo(np.float32).min)
TERMS = {"z_loss": 0.02, "focal_gamma": 1.5, "poly_epsilon": 0.7, "entropy_weight": 0.3}
TEMPERATURES = (0.5, 1e-3, 1.7, 1.0)
LABELS = np.array([0, 6, 3, 1], np.int32)


def arguments():
    """A call in which the class LOW is asked for by nobody."""
    gen = grid.rng("finite logits")
    allowed = np.arange(CLASSES) != LOW
    return {
        "logits": grid.logits(gen, ROWS, CLASSES),
        "teacher": grid.logits(gen, ROWS, CLASSES),
        "targets": grid.targets(gen, ROWS, CLASSES, allowed),
        "hidden": gen.standard_normal((ROWS, FEATURES)).astype(np.float32),
        "head": gen.standard_normal((FEATURES, CLASSES)).astype(np.float32),
        "bias": gen.standard_normal(CLASSES).astype(np.float32),
    }


def with_low_class(given, names, value, dtype="float32"):
    """The last axis of ``names`` at LOW is ``value``."""
    changed = {}
    for name in names:
        x = np.array(given[name], grid.numpy_dtype(dtype))
        x[..., LOW] = value
        changed[name] = x
    return given | changed


def without_class(given):
    return {name: x if name == "hidden" else np.delete(x, LOW, -1) for name, x in given.items()}


def dense(a, temperature, how, labels):
    stats = crossent_jax.row_stats(a["logits"], labels, temperature=temperature, implementation=how)
    hard = crossent_jax.cross_entropy(a["logits"], labels, temperature=temperature, implementation=how, **TERMS)
    soft = crossent_jax.soft_cross_entropy(a["logits"], a["targets"], temperature=temperature, implementation=how, **TERMS)
    return jnp.sum(stats.nll + 0.3 * stats.entropy + 0.1 * stats.lse + stats.target_probability) + hard + 2 * soft


def linear(a, temperature, how, labels):
    call, options = (a["hidden"], a["head"]), {"bias": a["bias"], "temperature": temperature, "implementation": how}
    stats = crossent_jax.linear_row_stats(*call, labels, chunk_rows=3, **options)
    hard = crossent_jax.linear_cross_entropy(*call, labels, **options, **TERMS)
    soft = crossent_jax.linear_soft_cross_entropy(*call, a["targets"], chunk_rows=2, **options, **TERMS)
    own = crossent_jax.linear_loss(lambda s: s.nll**2 - 0.1 * s.entropy, *call, labels, **options)
    return jnp.sum(stats.nll + 0.3 * stats.entropy) + hard + 2 * soft + own


def pairs(a, temperature, how, labels):
    kinds = ("forward_kl", "reverse_kl", "js", "jeffreys", "total_variation")
    options = {"temperature": temperature, "implementation": how}
    return sum((i + 1) * crossent_jax.divergence(a["logits"], a["teacher"], kind=k, **options) for i, k in enumerate(kinds))


def capped(a, temperature, how, labels):
    """No logit is near the cap, but for the one that is the lowest: it is at the cap, far below the others."""
    options = {"softcap": 1e30, "temperature": temperature, "implementation": how}
    return crossent_jax.cross_entropy(a["logits"], labels, entropy_weight=0.3, **options)


CALLS = {
    dense: (("logits",), ("logits", "targets")),
    linear: (("bias",), ("hidden", "head", "bias", "targets")),
    pairs: (("logits", "teacher"), ("logits", "teacher")),
    capped: (("logits",), ("logits",)),
}


def program(function, how):
    """Value and gradients of the arrays that matter and of the temperature."""

    def total(moving, temperature, still, labels):
        return function(still | moving, temperature, how, labels)

    def run(given, temperature, labels):
        moving = {name: given[name] for name in CALLS[function][1]}
        value, (gradients, of_temperature) = jax.value_and_grad(total, (0, 1))(moving, temperature, given, labels)
        return value, gradients | {"temperature": of_temperature}

    return grid.quick(run)


def assert_close(found, expected, label):
    scale = max(1.0, np.max(np.abs(expected)))
    np.testing.assert_allclose(np.float64(found), expected, rtol=1e-5, atol=1e-5 * scale, err_msg=label)


@pytest.mark.parametrize("how", grid.BACKENDS)
@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_the_lowest_logit_is_a_class_that_is_not_there(function, how):
    given, run = arguments(), program(function, how)
    low, fewer_labels = CALLS[function][0], np.where(LABELS > LOW, LABELS - 1, LABELS).astype(np.int32)
    for temperature in TEMPERATURES:
        value, gradients = run(with_low_class(given, low, LOWEST), np.float32(temperature), LABELS)
        expected, theirs = run(without_class(given), np.float32(temperature), fewer_labels)
        assert_close(value, expected, f"value at {temperature}")
        for name, gradient in gradients.items():
            found = gradient if name in ("hidden", "temperature") else np.delete(gradient, LOW, -1)
            assert_close(found, theirs[name], f"{name} at {temperature}")
        for name in set(gradients) - {"hidden", "temperature", "targets"}:  # d loss / d target is -log p, which is huge
            np.testing.assert_array_equal(np.asarray(gradients[name])[..., LOW], 0, err_msg=f"{name} at {temperature}")


@pytest.mark.parametrize("how", grid.BACKENDS)
def test_the_lowest_bfloat16_logit(how):
    given, run = with_low_class(arguments(), ["logits"], 0.0, "bfloat16"), program(dense, how)
    lowest = float(jnp.finfo(jnp.bfloat16).min)
    value, gradients = run(with_low_class(given, ["logits"], lowest, "bfloat16"), np.float32(0.5), LABELS)
    fewer = without_class(given)
    expected, theirs = run(fewer, np.float32(0.5), np.where(LABELS > LOW, LABELS - 1, LABELS).astype(np.int32))
    assert_close(value, expected, "value")
    np.testing.assert_array_equal(np.delete(gradients["logits"], LOW, -1), theirs["logits"])
    assert_close(gradients["temperature"], theirs["temperature"], "temperature")


@pytest.mark.parametrize("how", grid.BACKENDS)
def test_values(how):
    """Three classes of which one is out of reach: a softmax of two."""
    z, labels, half = np.float32([[1, 2, LOWEST]]), np.array([0]), np.float32(0.5)

    @grid.quick
    def run(temperature):
        plain = lambda t: crossent_jax.cross_entropy(z, labels, temperature=t, implementation=how)  # noqa: E731
        options = {"temperature": temperature, "implementation": how}
        return (
            crossent_jax.row_stats(z, labels, **options).entropy[0],
            crossent_jax.cross_entropy(z, labels, entropy_weight=0.1, **options),
            crossent_jax.soft_cross_entropy(z, np.float32([[0.5, 0.5, 0]]), **options),
            jax.grad(plain)(temperature),
        )

    p = 1 / (1 + np.exp(2.0))
    entropy, nll = -p * np.log(p) - (1 - p) * np.log1p(-p), -np.log(p)
    slope = -2 * 2 * (1 - p)  # d nll / dT, the logits 2 apart at T = 1/2: -(2 / T) (1 - p)
    np.testing.assert_allclose(run(half), [entropy, nll - 0.1 * entropy, nll - 1, slope], rtol=2e-6)


@pytest.mark.parametrize("how", grid.BACKENDS)
def test_any_spread_temperature_and_cap(how):
    """The label is the largest, or all are alike, so every answer is known: nll 0 or log 3, whatever the numbers."""

    def loss(z, label, temperature, softcap):
        options = {"temperature": temperature, "softcap": softcap, "implementation": how}
        return crossent_jax.cross_entropy(z, label, entropy_weight=0.5, **options)

    run = grid.quick(jax.value_and_grad(loss, (0, 2)), static_argnums=3)
    for softcap in (None, 1e39, 1e30):
        for row in ([3e38, -3e38, LOWEST], [-LOWEST, 0, LOWEST], [1e3, 0, LOWEST]):
            for temperature in (1.0, 0.5, 1e-20, 1e-40):
                value, (dz, dt) = run(np.float32([row]), np.array([0]), np.float32(temperature), softcap)
                assert (value, dt) == (0, 0) and not np.any(dz), (row, temperature, softcap)
        for same in (LOWEST, -LOWEST, 1e-39, 0.0):
            for temperature in (1.0, 0.5, 1e-3):
                value, (dz, dt) = run(np.float32([[same] * 3]), np.array([2]), np.float32(temperature), softcap)
                np.testing.assert_allclose(value, 0.5 * np.log(3), rtol=1e-6)
                slope = 0 if softcap == 1e30 and abs(same) > softcap else 1
                np.testing.assert_allclose(dz, slope * np.float32([[1, 1, -2]]) / 3 / temperature, rtol=1e-5)
                np.testing.assert_allclose(dt, 0, atol=1e-5)


@pytest.mark.parametrize("softcap", (1e-3, 1e19, 1e20, 1e37, 3e38))
def test_a_soft_cap_of_any_size_is_its_formula(softcap):
    z = np.float32([[0.01, 3.0, -0.3, 900.0]])
    with oracle.x64():
        wide = jnp.asarray(z, jnp.float64)
        expected = np.asarray(-jax.nn.log_softmax(softcap * jnp.tanh(wide / softcap))[:, 1])
    found = crossent_jax.cross_entropy(z, np.array([1]), softcap=softcap, reduction="none")
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("how", grid.BACKENDS)
def test_infinity_is_nan_under_a_soft_cap_too(how):
    z = np.float32([[np.inf, 1, 2], [0, 1, 2]])
    found = crossent_jax.cross_entropy(z, np.array([1, 1]), softcap=30.0, reduction="none", implementation=how)
    assert np.isnan(found[0]) and np.isfinite(found[1])


@pytest.mark.parametrize("temperature", (0.0, -1.0, np.nan))
def test_a_traced_temperature_out_of_range_is_nan(temperature):
    value = jax.jit(lambda t: crossent_jax.cross_entropy(np.float32([[1, 2]]), np.array([0]), temperature=t))(temperature)
    assert np.isnan(value)


def test_fit_temperature_with_masked_actions():
    gen = grid.rng("fit temperature")
    z, labels = 3 * grid.logits(gen, 40, CLASSES), gen.integers(0, LOW, 40)
    expected = tuning.fit_temperature(np.delete(z, LOW, -1), labels)
    found = tuning.fit_temperature(with_low_class({"z": z}, ["z"], LOWEST)["z"], labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


FAR = [3e38, -3e38, LOWEST], [LOWEST, LOWEST, LOWEST]


APART = {"reverse_kl": np.log(3), "total_variation": 2 / 3, "js": np.log(1.5) / 2 + np.log(2) / 6}


@pytest.mark.parametrize("how", grid.BACKENDS)
@pytest.mark.parametrize("kind", APART)
def test_divergences_of_rows_further_apart_than_their_dtype_holds(kind, how):
    """One class against three alike: p = (1, 0, 0), t = (1/3, 1/3, 1/3), and m = (2/3, 1/6, 1/6) between them."""

    def loss(z, w, temperature):
        return crossent_jax.divergence(z, w, kind=kind, temperature=temperature, implementation=how)

    run = grid.quick(jax.value_and_grad(loss, (0, 1, 2)))
    for temperature in (1.0, 0.5, 1e-20):
        found, (dz, dw, dt) = run(np.float32([FAR[0]]), np.float32([FAR[1]]), np.float32(temperature))
        np.testing.assert_allclose(found, APART[kind], rtol=1e-6)
        np.testing.assert_allclose(dz, 0, atol=1e-6 / temperature)
        assert dt == 0 and np.all(np.isfinite(dw)) and dw[0, 0] < 0


@pytest.mark.parametrize("temperature", (1.0, 0.5, 1e-40))
def test_binary_cross_entropy_of_extreme_logits(temperature):
    """Sure and right: 0, and nothing moves. Sure and wrong: the largest number there is."""
    run = grid.quick(jax.value_and_grad(lambda z, y, t: crossent_jax.binary_cross_entropy(z, y, temperature=t), (0, 2)))
    for sign, y in ((-1, 0.0), (1, 1.0)):
        value, (dz, dt) = run(np.float32([-sign * LOWEST]), np.float32([y]), np.float32(temperature))
        assert (value, dt) == (0, 0) and not np.any(dz)
        value, (dz, _) = run(np.float32([sign * LOWEST]), np.float32([y]), np.float32(temperature))
        tiny = max(temperature, float(np.finfo(np.float32).tiny))
        assert value == np.float32(-LOWEST)
        np.testing.assert_allclose(dz, -sign / tiny, rtol=1e-6)
    value, (dz, dt) = run(np.float32([0]), np.float32([1]), np.float32(temperature))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert dt == 0
