"""compat.torch against PyTorch's own float64 answers (tests/fixtures/torch.json, by make_torch_fixtures.py)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossent_jax.compat import torch as F

from .oracle import x32, x64

FIXTURES = json.loads((Path(__file__).parent / "fixtures" / "torch.json").read_text())
ARRAYS = {name: np.array(x["data"], x["dtype"]).reshape(x["shape"]) for name, x in FIXTURES["arrays"].items()}
MODES = {"float32": (x32, np.float32, 2e-6, 8 * 2**-23), "float64": (x64, np.float64, 1e-11, 1e-11)}

DIFFERENT = {  # (input, target, weight): tests below show both outcomes
    ("z_masked", "y", "weight_zero"),
    ("z_masked", "t", "weight_zero"),
    ("z_nan", "y", None),
    ("log_p", "q_zero", None),
    ("log_p_masked", "q_zero", None),
    ("log_p", "log_q_masked", None),
    ("b_infinite", "hits_infinite", None),
}


def key(case) -> tuple:
    return tuple(case["arguments"].get(name) for name in ("input", "target", "weight"))


def title(case) -> str:
    return "-".join([case["function"].split("_")[0], *case["arguments"].values(), *map(str, case["options"].values())])


def answer(function, input, target, weight=None) -> dict:
    """The one case of these arrays."""
    (found,) = [c for c in FIXTURES["cases"] if c["function"] == function and key(c) == (input, target, weight)]
    return found


SAME = [case for case in FIXTURES["cases"] if "raises" not in case and key(case) not in DIFFERENT]
RAISING = [case for case in FIXTURES["cases"] if "raises" in case]


def arguments(case, dtype) -> dict:
    return {
        name: jnp.asarray(ARRAYS[array], dtype if ARRAYS[array].dtype.kind == "f" else np.int32)
        for name, array in case["arguments"].items()
    }


def cotangent(value):
    return jnp.asarray(1 + np.arange(value.size) % 3, value.dtype).reshape(value.shape)


def value_and_gradients(case, dtype):
    """Our answer to a case, and the gradient of each of its floating arguments."""
    given = arguments(case, dtype)
    floating = {name: x for name, x in given.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def loss(floating):
        return getattr(F, case["function"])(**(given | floating), **case["options"])

    value, pull = jax.vjp(loss, floating)
    return jax.tree.map(np.asarray, (value, pull(cotangent(value))[0]))


def assert_gradient(ours, torchs, tolerance):
    torchs = np.array(torchs).reshape(ours.shape)
    largest = np.max(np.abs(torchs), initial=0, where=np.isfinite(torchs))
    np.testing.assert_allclose(ours, torchs, rtol=0, atol=tolerance * largest)


UNREDUCED = [case for case in SAME if case["options"].get("reduction") == "none"]
CASES = [(case, "float32") for case in SAME] + [(case, "float64") for case in UNREDUCED]


@pytest.mark.parametrize("case, mode", CASES, ids=[f"{title(case)}-{mode}" for case, mode in CASES])
def test_value_and_gradients_are_pytorchs(case, mode):
    context, dtype, value_tolerance, gradient_tolerance = MODES[mode]
    with context():
        value, gradients = value_and_gradients(case, dtype)
    truth = np.array(case["value"])
    assert value.dtype == dtype and value.shape == truth.shape
    scale = np.maximum(1, np.abs(np.where(np.isfinite(truth), truth, 0)))
    assert np.array_equal(np.isnan(value), np.isnan(truth))
    np.testing.assert_allclose(value / scale, truth / scale, rtol=0, atol=value_tolerance)
    for name, gradient in gradients.items():
        assert gradient.dtype == dtype and not np.any(np.isnan(gradient))
        smoothing_of_masked = case["function"] == "cross_entropy" and not np.all(np.isfinite(truth))
        if name in case["gradients"] and not smoothing_of_masked:
            assert_gradient(gradient, case["gradients"][name], gradient_tolerance)


def test_the_table_covers_every_option_and_every_rank():
    seen = {(c["function"], name, str(value)) for c in SAME for name, value in c["options"].items()}
    for reduction in ("none", "mean", "sum"):
        for function in ("cross_entropy", "kl_div", "binary_cross_entropy_with_logits"):
            assert (function, "reduction", reduction) in seen
    ranks = {(len(ARRAYS[c["arguments"]["input"]].shape), c["arguments"]["target"][0]) for c in SAME}
    assert {(1, "y"), (1, "t"), (2, "y"), (2, "t"), (4, "y"), (4, "t")} <= ranks


def test_pytorch_raises_for_its_own_reasons():
    """And not because the script that asked it was wrong."""
    reasons = (
        "out of bounds",
        "ignore_index",
        "label_smoothing must",
        "not a valid value",
        "Integral",
        "must be the same as",
    )
    assert len(RAISING) == 8 and all(any(reason in case["raises"] for reason in reasons) for case in RAISING)


@pytest.mark.parametrize("case", RAISING, ids=title)
def test_where_pytorch_raises(case):
    given = arguments(case, np.float32)
    if "y_too_large" in key(case) or "y_negative" in key(case):  # data, not shapes: NaN, as documented
        value, gradients = value_and_gradients(case, np.float32)
        row = np.array([i for i, y in enumerate(given["target"]) if not 0 <= y < 5])
        assert np.array_equal(np.flatnonzero(np.isnan(value)), row)
        assert not np.any(gradients["input"][row]) and np.any(gradients["input"], 1).sum() == 6
        return
    with pytest.raises((TypeError, ValueError)):
        getattr(F, case["function"])(**given, **case["options"])


Z, Y = np.zeros((4, 7), np.float32), np.zeros(4, np.int32)
REFUSED = {
    "target must have input's shape without the class axis": lambda: F.cross_entropy(Z, np.zeros(5, np.int32)),
    "target must have input's shape, for probabilities": lambda: F.cross_entropy(Z, Z[:, :6]),
    "weight must have one entry per class": lambda: F.cross_entropy(Z, Y, weight=Z[0, :3]),
    "ignore_index must be a Python integer": lambda: F.cross_entropy(Z, Y, ignore_index="x"),
    "input must have a class axis": lambda: F.cross_entropy(np.float32(0), Y),
    "input and target must broadcast": lambda: F.kl_div(Z, Z[:, :6]),
    "target must have input's shape": lambda: F.binary_cross_entropy_with_logits(Z, Y),
    "pos_weight must broadcast to input's shape": lambda: F.binary_cross_entropy_with_logits(Z, Z, pos_weight=Z[0, :3]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_errors_name_pytorchs_arguments(message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        REFUSED[message]()


# Each row of the module's table of differences


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gives_float32(dtype):
    z, y = jnp.array([[1.0, 2.5, -3.0]], dtype), jnp.array([1])
    exact = F.cross_entropy(z.astype(jnp.float32), y)
    assert F.cross_entropy(z, y).dtype == jnp.float32 and F.cross_entropy(z, y) == exact
    assert F.kl_div(z, jnp.abs(z), reduction="sum").dtype == jnp.float32
    assert F.binary_cross_entropy_with_logits(z, jnp.ones_like(z)).dtype == jnp.float32


def test_zero_weight_or_target_at_an_infinite_loss_adds_nothing():
    smooth, soft = (answer("cross_entropy", "z_masked", target, "weight_zero") for target in ("y", "t"))
    for case in (smooth, soft):
        theirs, ours = np.array(case["value"]), value_and_gradients(case, np.float32)[0]
        assert np.isnan(theirs[0]) and np.isfinite(ours[0])
        np.testing.assert_allclose(ours[1:], theirs[1:], rtol=2e-6)
    z, w = ARRAYS["z_masked"][0], ARRAYS["weight_zero"]
    log_p = z - np.log(np.sum(np.exp(z)))
    kept = [0, 2, 3, 4]
    smoothed = w * (0.9 * np.eye(5)[0] + 0.1 / len(kept))  # a class of logit -inf is not there, nor in the smoothing
    for case, target in ((smooth, smoothed), (soft, w * ARRAYS["t"][0])):
        np.testing.assert_allclose(value_and_gradients(case, np.float32)[0][0], -target[kept] @ log_p[kept], rtol=2e-6)


def test_nan_in_an_ignored_row():
    case = answer("cross_entropy", "z_nan", "y")
    value, gradients = value_and_gradients(case, np.float32)
    assert np.all(np.isnan(case["gradients"]["input"][2])) and not np.any(gradients["input"][2])
    np.testing.assert_allclose(value, case["value"], rtol=2e-6)
    rest = [0, 1, 3, 4, 5, 6]
    assert_gradient(gradients["input"][np.array(rest)], [case["gradients"]["input"][i] for i in rest], 8 * 2**-23)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_of_the_weights(smoothing):
    z, y = jnp.asarray(ARRAYS["z"], jnp.float32), jnp.asarray(ARRAYS["y_positive"])
    weight = ARRAYS["weight"].astype(np.float32)
    ours = jax.grad(lambda w: F.cross_entropy(z, y, w, label_smoothing=smoothing))(jnp.asarray(weight))

    def plain(w):
        log_p = np.float64(z) - np.log(np.sum(np.exp(np.float64(z)), 1, keepdims=True))
        target = (1 - smoothing) * np.eye(5)[y] + smoothing / 5
        return -np.sum(w * target * log_p) / np.sum(w[np.array(y)])

    numeric = [(plain(weight + h) - plain(weight - h)) / 2e-6 for h in 1e-6 * np.eye(5)]
    np.testing.assert_allclose(ours, numeric, rtol=1e-4, atol=1e-6)
    b, t = (jnp.asarray(ARRAYS[name], jnp.float32) for name in ("b", "hits_soft"))
    positive = jax.grad(lambda w: F.binary_cross_entropy_with_logits(b, t, pos_weight=w, reduction="sum"))(jnp.float32(2.0))
    np.testing.assert_allclose(positive, np.sum(np.float64(t) * np.logaddexp(0, -np.float64(b))), rtol=1e-5)


@pytest.mark.parametrize("input, target", [("log_p", "q_zero"), ("log_p_masked", "q_zero"), ("log_p", "log_q_masked")])
def test_kl_div_of_zero_targets(input, target):
    case = answer("kl_div", input, target)
    theirs, (ours, gradients) = np.array(case["value"]), value_and_gradients(case, np.float32)
    zero = ARRAYS[target] == (-np.inf if "log" in target else 0)
    assert zero.any() and np.all(np.isnan(theirs[zero]) | (theirs[zero] == 0)) and not np.any(ours[zero])
    np.testing.assert_allclose(ours[~zero], theirs[~zero], rtol=2e-6, atol=2e-6)
    assert np.all(np.isnan(np.array(case["gradients"]["target"])[zero])) and not np.any(gradients["target"][zero])
    assert_gradient(gradients["target"][~zero], np.array(case["gradients"]["target"])[~zero], 8 * 2**-23)
    assert_gradient(gradients["input"], case["gradients"]["input"], 8 * 2**-23)


def test_infinite_logit_on_the_targets_side():
    case = answer("binary_cross_entropy_with_logits", "b_infinite", "hits_infinite")
    ours, gradients = value_and_gradients(case, np.float32)
    assert np.all(np.isnan(case["value"][:2])) and np.array_equal(ours[:2], [0, 0])
    assert_gradient(gradients["input"], case["gradients"]["input"], 8 * 2**-23)


# What the fixtures do not show


def test_kl_div_mean_gives_no_warning_and_divides_by_the_elements():
    log_p, q = (jnp.asarray(ARRAYS[name], jnp.float32) for name in ("log_p", "q"))
    np.testing.assert_allclose(30 * F.kl_div(log_p, q), 6 * F.kl_div(log_p, q, reduction="batchmean"), rtol=1e-6)


def test_pos_weight_does_not_broadcast_the_target():
    with pytest.raises(ValueError, match="shape"):
        F.binary_cross_entropy_with_logits(jnp.zeros((2, 3)), jnp.zeros(3), pos_weight=jnp.ones(3))
    with pytest.raises(ValueError):
        F.binary_cross_entropy_with_logits(jnp.zeros(3), jnp.zeros(3), pos_weight=jnp.ones((2, 3)))


def test_smoothing_of_a_masked_class_as_a_traced_number():
    z, y = jnp.array([[1.0, -jnp.inf, 0.5]]), jnp.array([0])
    loss = jax.jit(lambda eps: F.cross_entropy(z, y, label_smoothing=eps))
    assert loss(jnp.float32(0.1)) == np.inf
    np.testing.assert_allclose(loss(jnp.float32(0.0)), F.cross_entropy(z, y), rtol=1e-6)


def test_jit_vmap_and_forward_mode():
    z, y, w = jnp.asarray(ARRAYS["z"], jnp.float32), jnp.asarray(ARRAYS["y"]), jnp.asarray(ARRAYS["weight"], jnp.float32)
    loss = jax.jit(lambda z: F.cross_entropy(z, y, w, label_smoothing=0.1, implementation="reference"))
    np.testing.assert_allclose(jax.jacfwd(loss)(z), jax.jacrev(loss)(z), rtol=1e-5, atol=1e-7)
    batch = jnp.stack([z, 2 * z])
    each = jnp.stack([F.cross_entropy(z, y, w), F.cross_entropy(2 * z, y, w)])
    np.testing.assert_allclose(jax.vmap(lambda z: F.cross_entropy(z, y, w))(batch), each, rtol=1e-6)
    with pytest.raises(TypeError):
        jax.jacfwd(lambda z: F.cross_entropy(z, y))(z)


def test_numpy_arguments():
    assert F.cross_entropy(ARRAYS["z"].astype(np.float32), ARRAYS["y"]).dtype == jnp.float32
    assert F.kl_div(ARRAYS["log_p"].astype(np.float32), ARRAYS["q"].astype(np.float32), reduction="sum").shape == ()
