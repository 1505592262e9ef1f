"""KL of arrays of probabilities or their logarithms: scipy, zeros and infinities in value and both gradients."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special

import crossent_jax

INF = np.inf
FORMS = list(itertools.product(["p", "log_p"], ["q", "log_q"]))
every_form = pytest.mark.parametrize("forms", FORMS, ids="-".join)


def drawn(shape=(4, 9), zeros=True):
    gen = np.random.default_rng(2)
    p, q = (gen.dirichlet(np.ones(shape[-1]), shape[:-1]) for _ in range(2))
    if zeros:
        p[..., 1] = p[..., 2] = q[..., 2] = 0
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return np.float32(p), np.float32(q)


def given(forms, p, q):
    with np.errstate(divide="ignore"):
        return {name: jnp.asarray(np.log(x) if name.startswith("log") else x) for name, x in zip(forms, (p, q), strict=True)}


@every_form
def test_scipy(forms):
    p, q = drawn()
    true = scipy.special.rel_entr(np.float64(p), np.float64(q)).sum(-1)
    np.testing.assert_allclose(crossent_jax.kl(**given(forms, p, q)), true, rtol=2e-6)


def torch_sums():
    """The committed answers of torch.nn.functional.kl_div(reduction="sum"), zeros of the target left to other tests."""
    answers = json.loads((Path(__file__).parent / "fixtures" / "torch.json").read_text())
    arrays = {name: np.array(x["data"], x["dtype"]).reshape(x["shape"]) for name, x in answers["arrays"].items()}
    for case in answers["cases"]:
        if case["function"] == "kl_div" and case["options"].get("reduction") == "sum":
            log_q, target = (np.float32(arrays[case["arguments"][name]]) for name in ("input", "target"))
            target = np.broadcast_to(target, log_q.shape)
            yield {"log_q": log_q, "log_p" if case["options"].get("log_target") else "p": target}, case


@pytest.mark.parametrize("arrays, case", list(torch_sums()))
def test_torch(arrays, case):
    """Values, and the gradient of the log-probabilities, of arrays of any sum."""
    value, gradients = jax.value_and_grad(lambda arrays: crossent_jax.kl(**arrays).sum())(arrays)
    np.testing.assert_allclose(value, case["value"], rtol=2e-6)
    np.testing.assert_allclose(gradients["log_q"], case["gradients"]["input"], rtol=2e-6)


@every_form
def test_arrays_of_any_sum(forms):
    p, q = drawn()
    p, q = 3 * p, 0.5 * q
    true = scipy.special.rel_entr(np.float64(p), np.float64(q)).sum(-1)
    np.testing.assert_allclose(crossent_jax.kl(**given(forms, p, q)), true, rtol=2e-6)


@every_form
def test_gradients_of_both(forms):
    p, q = drawn()
    arrays = given(forms, p, q)
    found = jax.grad(lambda arrays: crossent_jax.kl(**arrays).sum())(arrays)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(np.float64(p) / np.float64(q))
        right = {"p": ratio + 1, "log_p": p * (ratio + 1), "q": -p / q, "log_q": -p}
    for name, gradient in found.items():
        some = np.isfinite(right[name]) & (p > 0)
        np.testing.assert_allclose(gradient[some], right[name][some], rtol=1e-4, atol=1e-6)
        assert np.all(gradient[p == 0] == 0)


@every_form
def test_infinite_where_q_is_zero_and_p_is_not(forms):
    p, q = np.float32([[0.5, 0.5, 0.0]]), np.float32([[1.0, 0.0, 0.0]])
    value, gradient = jax.value_and_grad(lambda arrays: crossent_jax.kl(**arrays).sum())(given(forms, p, q))
    assert value == INF
    right = {"p": [0.3069, INF, 0], "log_p": [0.1534, INF, 0], "q": [-0.5, -INF, 0], "log_q": [-0.5, -0.5, 0]}
    for name in forms:
        np.testing.assert_allclose(gradient[name][0], right[name], atol=1e-4)


@every_form
@pytest.mark.parametrize("zeros", [False, True])
def test_identical_arrays(forms, zeros):
    p, _ = drawn(zeros=zeros)
    value = crossent_jax.kl(**given(forms, p, p))
    assert np.all(np.abs(value) <= (0 if forms in (("p", "q"), ("log_p", "log_q")) else 2e-7))


def test_close_arrays_keep_their_digits():
    p, q = drawn((3, 65), zeros=False)
    q = np.float32(p * (1 + 1e-3 * np.random.default_rng(0).standard_normal(p.shape)))
    true = scipy.special.rel_entr(np.float64(p), np.float64(q)).sum(-1)
    np.testing.assert_allclose(crossent_jax.kl(p=jnp.asarray(p), q=jnp.asarray(q)), true, rtol=1e-5)


def test_probabilities_below_the_smallest_normal_number():
    """As logarithms; as they are, a CPU takes them for 0. float16's are normal in float32."""
    right = np.log(0.5) - 0.5 * np.log(1e-40)
    log_q = np.log([1.0, 1e-40]).astype(np.float32)
    np.testing.assert_allclose(crossent_jax.kl(p=jnp.array([0.5, 0.5]), log_q=log_q), right, rtol=1e-6)
    half = np.array([1, 6e-8], np.float16)
    right = np.log(0.5) - 0.5 * np.log(half[1].astype(np.float64))
    np.testing.assert_allclose(crossent_jax.kl(p=np.array([0.5, 0.5], np.float16), q=half), right, rtol=1e-6)


def test_two_dtypes_under_strict_promotion():
    p, q = jax.nn.softmax(jnp.arange(6.0)), jax.nn.softmax(jnp.arange(6.0)[::-1]).astype(jnp.bfloat16)
    right = crossent_jax.kl(p=p, q=q.astype(jnp.float32))
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_array_equal(crossent_jax.kl(p=p, q=q), right)


def test_forward_mode_and_vmap():
    p, q = map(jnp.asarray, drawn())
    forward = jax.jacfwd(lambda p: crossent_jax.kl(p=p, q=q).sum())(p)
    np.testing.assert_allclose(forward, jax.grad(lambda p: crossent_jax.kl(p=p, q=q).sum())(p), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda p, q: crossent_jax.kl(p=p, q=q))(p, q), crossent_jax.kl(p=p, q=q), rtol=1e-6)


def test_axis_where_and_reductions():
    p, q = map(jnp.asarray, drawn())
    rows = crossent_jax.kl(p=p, q=q)
    np.testing.assert_allclose(crossent_jax.kl(p=p.T, q=q.T, axis=0), rows, rtol=1e-6)
    where = jnp.array([True, False, True, True])
    poisoned = p.at[1, 0].set(jnp.nan)
    loss = lambda p, q: crossent_jax.kl(p=p, q=q, where=where, reduction="mean")  # noqa: E731
    value, gradients = jax.value_and_grad(loss, (0, 1))(poisoned, q)
    np.testing.assert_allclose(value, rows[jnp.array([0, 2, 3])].mean(), rtol=1e-6)
    assert all(np.all(g[1] == 0) for g in gradients)


def test_jensen_shannon_of_scipy():
    p, q = drawn(zeros=False)
    ours = crossent_jax.js_divergence(jnp.log(q), jnp.log(p), reduction="none")
    np.testing.assert_allclose(
        ours, scipy.spatial.distance.jensenshannon(np.float64(p), np.float64(q), axis=-1) ** 2, rtol=2e-6
    )


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"p": 1}, ValueError, "give q or log_q, one of the two; got neither"),
        ({"p": 1, "log_p": 1, "q": 1}, ValueError, "give p or log_p, one of the two; got both"),
        ({"p": jnp.ones((2, 3)), "q": jnp.ones((2, 4))}, ValueError, "q must have the shape of p"),
        ({"p": jnp.ones(3, int), "q": jnp.ones(3)}, TypeError, "p must have a floating dtype"),
        ({"p": jnp.ones(3), "q": jnp.ones(3), "axis": 1}, ValueError, "axis 1 is outside p"),
        ({"p": jnp.ones(3), "q": jnp.ones(3), "reduction": "avg"}, ValueError, "reduction must be one of"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        crossent_jax.kl(**arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"p": jnp.array([0.5, 0.6])}, "the sum of p is 1.1"),
        ({"q": jnp.array([-0.5, 1.5])}, r"q\[0\] is -0.5: expected probabilities"),
        ({"log_q": jnp.array([0.0, 0.0])}, "the sum of exp of log_q is 2.0"),
    ],
)
def test_value_guards(change, message):
    arguments = {"p": jnp.array([0.5, 0.5])} | ({} if "log_q" in change else {"q": jnp.array([0.5, 0.5])}) | change
    with pytest.raises(ValueError, match=message), crossent_jax.guards.values():
        crossent_jax.kl(**arguments)
