"""Every bad input has a documented outcome: an error that names the argument, what was expected, what came, and the fix."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax import binary_cross_entropy, cross_entropy, kl, row_stats, soft_cross_entropy, token_log_probs

LOGITS = np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7)
LABELS = np.arange(5, dtype=np.int32)
TARGETS = np.full((5, 7), 1 / 7, np.float32)

# (error, words of the message, function, positional arguments, keyword arguments)
REFUSED = {
    "scalar logits": (ValueError, "logits class axis scalar", cross_entropy, (np.float32(1), 0), {}),
    "integer logits": (TypeError, "logits floating int32 astype", cross_entropy, (LOGITS.astype(np.int32), LABELS), {}),
    "bool logits": (TypeError, "logits floating bool", cross_entropy, (LOGITS > 0, LABELS), {}),
    "complex logits": (TypeError, "logits floating complex64", cross_entropy, (LOGITS.astype(np.complex64), LABELS), {}),
    "text logits": (TypeError, "logits array 'high'", cross_entropy, ("high", LABELS), {}),
    "no logits": (TypeError, "logits array None", cross_entropy, (None, LABELS), {}),
    "no classes": (ValueError, "logits 0 classes at least 1", cross_entropy, (LOGITS[:, :0], LABELS), {}),
    "probabilities as labels": (TypeError, "labels float32 (5, 7) soft_cross_entropy", cross_entropy, (LOGITS, TARGETS), {}),
    "float labels": (TypeError, "labels integer float32 astype", cross_entropy, (LOGITS, LABELS.astype(np.float32)), {}),
    "bool labels": (TypeError, "labels integer bool", cross_entropy, (LOGITS, LABELS > 2), {}),
    "labels of one row": (ValueError, "labels (5,) (1,)", cross_entropy, (LOGITS, LABELS[:1]), {}),
    "labels with an axis of 1": (ValueError, "labels (5,) (5, 1) squeeze", cross_entropy, (LOGITS, LABELS[:, None]), {}),
    "one-hot labels": (ValueError, "labels (5,) (5, 7) argmax", cross_entropy, (LOGITS, np.eye(5, 7, dtype=np.int32)), {}),
    "labels of another axis": (ValueError, "labels (7,) (5,)", cross_entropy, (LOGITS, LABELS), {"axis": 0}),
    "axis out of range": (ValueError, "axis 2 (5, 7)", cross_entropy, (LOGITS, LABELS), {"axis": 2}),
    "axis not an integer": (TypeError, "axis integer 1.0", cross_entropy, (LOGITS, LABELS), {"axis": 1.0}),
    "integer targets": (TypeError, "targets floating cross_entropy", soft_cross_entropy, (LOGITS, LABELS), {}),
    "targets of another shape": (ValueError, "targets (5, 7) (7,)", soft_cross_entropy, (LOGITS, TARGETS[0]), {}),
    "where over classes": (ValueError, "where (5,) class_mask", cross_entropy, (LOGITS, LABELS), {"where": LOGITS > 0}),
    "where of one row": (ValueError, "where (5,) (1,)", cross_entropy, (LOGITS, LABELS), {"where": LABELS[:1] > 0}),
    "where of floats": (TypeError, "where boolean != 0", cross_entropy, (LOGITS, LABELS), {"where": LABELS * 1.0}),
    "class_mask of rows": (
        ValueError,
        "class_mask (7,) (5,) where",
        cross_entropy,
        (LOGITS, LABELS),
        {"class_mask": LABELS > 0},
    ),
    "bool row_weights": (
        TypeError,
        "row_weights floating where",
        cross_entropy,
        (LOGITS, LABELS),
        {"row_weights": LABELS > 0},
    ),
    "row_weights shape": (ValueError, "row_weights (5,) (7,)", cross_entropy, (LOGITS, LABELS), {"row_weights": TARGETS[0]}),
    "class_weights shape": (
        ValueError,
        "class_weights (7,) (5,)",
        cross_entropy,
        (LOGITS, LABELS),
        {"class_weights": TARGETS[:, 0]},
    ),
    "smoothing above 1": (
        ValueError,
        "label_smoothing at most 1 1.5",
        cross_entropy,
        (LOGITS, LABELS),
        {"label_smoothing": 1.5},
    ),
    "negative smoothing": (
        ValueError,
        "label_smoothing at least 0",
        cross_entropy,
        (LOGITS, LABELS),
        {"label_smoothing": -0.1},
    ),
    "NaN smoothing": (ValueError, "label_smoothing nan", cross_entropy, (LOGITS, LABELS), {"label_smoothing": np.nan}),
    "text smoothing": (
        TypeError,
        "label_smoothing number '0.1'",
        cross_entropy,
        (LOGITS, LABELS),
        {"label_smoothing": "0.1"},
    ),
    "smoothing per row": (
        TypeError,
        "label_smoothing scalar (5,)",
        cross_entropy,
        (LOGITS, LABELS),
        {"label_smoothing": TARGETS[:, 0]},
    ),
    "NaN z_loss": (ValueError, "z_loss finite nan", cross_entropy, (LOGITS, LABELS), {"z_loss": np.nan}),
    "infinite z_loss": (ValueError, "z_loss finite inf", cross_entropy, (LOGITS, LABELS), {"z_loss": np.inf}),
    "negative gamma": (ValueError, "focal_gamma at least 0", cross_entropy, (LOGITS, LABELS), {"focal_gamma": -1.0}),
    "NaN poly": (ValueError, "poly_epsilon finite nan", cross_entropy, (LOGITS, LABELS), {"poly_epsilon": np.nan}),
    "NaN entropy weight": (ValueError, "entropy_weight finite", cross_entropy, (LOGITS, LABELS), {"entropy_weight": np.nan}),
    "bool option": (TypeError, "z_loss number True", cross_entropy, (LOGITS, LABELS), {"z_loss": True}),
    "temperature 0": (ValueError, "temperature above 0", cross_entropy, (LOGITS, LABELS), {"temperature": 0.0}),
    "temperature below 0": (ValueError, "temperature above 0 -2", cross_entropy, (LOGITS, LABELS), {"temperature": -2.0}),
    "softcap 0": (ValueError, "softcap above 0", cross_entropy, (LOGITS, LABELS), {"softcap": 0.0}),
    "traced softcap": (TypeError, "softcap static", cross_entropy, (LOGITS, LABELS), {"softcap": jnp.float32(3)}),
    "float ignore_index": (TypeError, "ignore_index static integer", cross_entropy, (LOGITS, LABELS), {"ignore_index": 0.5}),
    "unknown reduction": (ValueError, "reduction 'mean' 'avg'", cross_entropy, (LOGITS, LABELS), {"reduction": "avg"}),
    "unhashable reduction": (
        ValueError,
        "reduction 'mean' ['mean']",
        cross_entropy,
        (LOGITS, LABELS),
        {"reduction": ["mean"]},
    ),
    "unknown implementation": (
        ValueError,
        "implementation 'xla' 'cuda'",
        cross_entropy,
        (LOGITS, LABELS),
        {"implementation": "cuda"},
    ),
    "axis_name not a name": (TypeError, "axis_name mesh axis", cross_entropy, (LOGITS, LABELS), {"axis_name": 3}),
    "a typo": (TypeError, "label_smothing", cross_entropy, (LOGITS, LABELS), {"label_smothing": 0.1}),
    "binary labels shape": (ValueError, "labels (5, 7) (5,)", binary_cross_entropy, (LOGITS, LABELS), {}),
    "complex binary labels": (
        TypeError,
        "labels complex64",
        binary_cross_entropy,
        (LOGITS, LOGITS.astype(np.complex64)),
        {},
    ),
    "pos_weight shape": (
        ValueError,
        "pos_weight (7,) (5,)",
        binary_cross_entropy,
        (LOGITS, TARGETS),
        {"pos_weight": TARGETS[:, 0]},
    ),
    "negative pos_weight": (
        ValueError,
        "pos_weight at least 0",
        binary_cross_entropy,
        (LOGITS, TARGETS),
        {"pos_weight": -1.0},
    ),
    "alpha above 1": (ValueError, "focal_alpha at most 1", binary_cross_entropy, (LOGITS, TARGETS), {"focal_alpha": 2.0}),
    "no such mesh axis": (
        ValueError,
        "axis_name 'model' shard_map",
        cross_entropy,
        (LOGITS, LABELS),
        {"axis_name": "model"},
    ),
    "strings": (TypeError, "logits numbers <U1", cross_entropy, (np.full((2, 3), "a"), LABELS), {}),
    "times": (TypeError, "labels numbers datetime64", cross_entropy, (LOGITS, np.zeros(4, "datetime64[D]")), {}),
    "lists of two lengths": (ValueError, "logits rectangular", cross_entropy, ([[1.0, 2.0], [1.0]], LABELS), {}),
    "a dict": (TypeError, "logits numbers dict", cross_entropy, ({"logits": LOGITS}, LABELS), {}),
    "a shape": (TypeError, "logits explain", cross_entropy, (jax.ShapeDtypeStruct((4, 7), np.float32), LABELS), {}),
    "a list of backends": (
        ValueError,
        "implementation ['xla']",
        cross_entropy,
        (LOGITS, LABELS),
        {"implementation": ["xla"]},
    ),
    "logits for logarithms": (
        ValueError,
        "log_p kl_divergence log_softmax",
        crossent_jax.kl,
        (),
        {"log_p": LOGITS, "q": TARGETS},
    ),
    "probabilities for logarithms": (
        ValueError,
        "log_q probabilities q=",
        crossent_jax.kl,
        (),
        {"p": TARGETS, "log_q": TARGETS},
    ),
    "binary integer logits": (TypeError, "logits floating", binary_cross_entropy, (LABELS, LABELS), {}),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("chex_asserts", [True, False], ids=["chex on", "chex off"])
def test_refused_with_the_argument_the_expectation_and_what_came(case, chex_asserts):
    error, words, function, arguments, options = REFUSED[case]
    try:
        if not chex_asserts:
            chex.disable_asserts()
        with pytest.raises(error) as raised:
            function(*arguments, **options)
    finally:
        chex.enable_asserts()
    for word in words.split(" "):
        assert word in str(raised.value)


FORWARD = {
    "cross_entropy": lambda z: cross_entropy(z, LABELS),
    "kl_divergence": lambda z: crossent_jax.kl_divergence(z, LOGITS),
    "linear_cross_entropy": lambda z: crossent_jax.linear_cross_entropy(z, TARGETS.T, LABELS),
    "info_nce": lambda z: crossent_jax.info_nce(z, LOGITS, temperature=1.0),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_says_what_to_do(name):
    """A note on JAX's own error: which option has it, or that none has."""
    with pytest.raises(TypeError) as raised:
        jax.jvp(FORWARD[name], (jnp.asarray(LOGITS),), (jnp.asarray(LOGITS),))
    demand = "have no forward mode" if name == "info_nce" else 'needs implementation="reference"'
    assert any(demand in note for note in raised.value.__notes__)


def test_the_gradient_of_a_loss_sum_says_total():
    with pytest.raises(TypeError, match=r"differentiate \.total"):
        jax.grad(lambda z: cross_entropy(z, LABELS, reduction="loss_sum"))(LOGITS)


def test_values_known_in_a_traced_call_are_not_watched():
    """Constants of a jitted function are traced as everything in it: no callback unless guards are on."""
    text = str(jax.make_jaxpr(lambda: kl(log_p=jnp.log(TARGETS), log_q=np.log(TARGETS)))())
    assert "callback" not in text


@pytest.mark.parametrize("function", [cross_entropy, token_log_probs, row_stats])
def test_every_function_of_labels_checks_them(function):
    with pytest.raises(ValueError, match="labels must have the shape"):
        function(LOGITS, LABELS[:3])


def test_errors_are_raised_under_jit_and_vmap_too():
    with pytest.raises(TypeError, match="use soft_cross_entropy"):
        jax.jit(cross_entropy)(LOGITS, TARGETS)
    with pytest.raises(ValueError, match="labels must have the shape"):
        jax.vmap(cross_entropy)(LOGITS, LABELS[:, None])


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_empty_batch(implementation):
    logits, labels = jnp.zeros((0, 7)), jnp.zeros(0, int)
    for reduction, expected in [("mean", 0.0), ("sum", 0.0), ("none", np.zeros(0))]:
        options = {"reduction": reduction, "implementation": implementation}
        np.testing.assert_array_equal(cross_entropy(logits, labels, **options), expected)
    gradient = jax.grad(lambda z: cross_entropy(z, labels, implementation=implementation))(logits)
    assert gradient.shape == (0, 7)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_one_class_has_no_loss_and_no_gradient(implementation):
    loss, gradient = jax.value_and_grad(lambda z: cross_entropy(z, jnp.zeros(3, int), implementation=implementation))(
        jnp.array([[5.0], [-3.0], [0.0]])
    )
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_all_rows_ignored_is_zero_with_zero_gradient(implementation):
    labels = jnp.full(5, -100)
    logits = jnp.asarray(LOGITS).at[0].set(jnp.nan)
    for reduction in ("mean", "sum"):
        loss, gradient = jax.value_and_grad(
            lambda z, reduction=reduction: cross_entropy(
                z, labels, ignore_index=-100, reduction=reduction, implementation=implementation
            )
        )(logits)
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_labels_out_of_range_give_nan_and_train_nothing(dtype, implementation):
    bad = [7, 100] + ([-1, -7, -100] if np.issubdtype(dtype, np.signedinteger) else [])
    if np.dtype(dtype).itemsize == 8:
        bad += [2**32, 2**32 + 3]
    if dtype == np.uint32:
        bad += [2**32 - 1]
    labels = np.array(bad, dtype)
    logits = np.resize(LOGITS, (len(bad), 7))
    options = {"reduction": "none", "implementation": implementation}
    assert np.isnan(cross_entropy(logits, labels, **options)).all()
    gradient = jax.grad(lambda z: cross_entropy(z, labels, **options).sum())(jnp.asarray(logits))
    np.testing.assert_array_equal(gradient, 0)


def test_ignore_index_that_the_labels_cannot_hold_ignores_nothing():
    labels = LABELS.astype(np.uint8)
    ignoring = cross_entropy(LOGITS, labels, ignore_index=-100, reduction="none")
    np.testing.assert_array_equal(ignoring, cross_entropy(LOGITS, LABELS, reduction="none"))


def test_negative_row_weights_are_legal_for_sums():
    weights = np.array([1, -1, 2, -2, 0.5], np.float32)
    each = cross_entropy(LOGITS, LABELS, reduction="none")
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, row_weights=weights, reduction="none"), weights * each)
    total = cross_entropy(LOGITS, LABELS, row_weights=weights, reduction="sum")
    np.testing.assert_allclose(total, np.sum(weights * np.asarray(each)), rtol=1e-6)


def test_weights_that_cancel_do_not_look_like_nothing():
    weights = np.array([1, -1, 0, 0, 0], np.float32)
    assert not np.isfinite(cross_entropy(LOGITS, LABELS, row_weights=weights))


@pytest.mark.parametrize(
    "multiply", (lambda x: 2 * x, lambda x: x * 2, lambda x: jnp.float32(2) * x), ids=("left", "right", "array")
)
def test_a_loss_sum_is_not_repeated_like_a_tuple(multiply):
    with pytest.raises(TypeError):
        multiply(crossent_jax.LossSum(jnp.float32(1), jnp.float32(2)))
