"""Every bad input of a linear loss has a documented outcome: an error that names the argument, what came, what was expected,
and the fix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax import guards, linear_cross_entropy, linear_loss, linear_soft_cross_entropy, linear_token_log_probs

HIDDEN = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)
HEAD = np.linspace(-1, 2, 21, dtype=np.float32).reshape(3, 7)
LABELS = np.arange(5, dtype=np.int32)
TARGETS = np.full((5, 7), 1 / 7, np.float32)
HARD = (HIDDEN, HEAD, LABELS)


def nll(stats, *row):
    return stats.nll


# (error, words of the message, function, positional arguments, keyword arguments)
REFUSED = {
    "another d": (
        ValueError,
        "head 4 features (4, 7) hidden 3 (5, 3) agree",
        linear_cross_entropy,
        (HIDDEN, np.ones((4, 7), np.float32), LABELS),
        {},
    ),
    "transposed head": (
        ValueError,
        "head 7 hidden 3 transposed head_vocab_axis=0",
        linear_cross_entropy,
        (HIDDEN, HEAD.T, LABELS),
        {},
    ),
    "head that is not transposed": (
        ValueError,
        "head 7 hidden 3 transposed head_vocab_axis=1",
        linear_cross_entropy,
        HARD,
        {"head_vocab_axis": 0},
    ),
    "labels of another batch": (ValueError, "labels (5,) (4,)", linear_cross_entropy, (HIDDEN, HEAD, LABELS[:4]), {}),
    "labels with an axis of 1": (
        ValueError,
        "labels (5,) (5, 1) squeeze",
        linear_cross_entropy,
        (HIDDEN, HEAD, LABELS[:, None]),
        {},
    ),
    "float labels": (
        TypeError,
        "labels integer float32 astype",
        linear_cross_entropy,
        (HIDDEN, HEAD, LABELS.astype(np.float32)),
        {},
    ),
    "short bias": (
        ValueError,
        "bias one entry per class (7,) (6,)",
        linear_cross_entropy,
        HARD,
        {"bias": np.ones(6, np.float32)},
    ),
    "integer bias": (TypeError, "bias floating int32 astype", linear_cross_entropy, HARD, {"bias": np.ones(7, np.int32)}),
    "head of rank 1": (ValueError, "head two axes (3,)", linear_cross_entropy, (HIDDEN, HEAD[:, 0], LABELS), {}),
    "head of rank 3": (ValueError, "head two axes (1, 3, 7)", linear_cross_entropy, (HIDDEN, HEAD[None], LABELS), {}),
    "head of no classes": (
        ValueError,
        "head 0 classes (3, 0) at least 1",
        linear_cross_entropy,
        (HIDDEN, HEAD[:, :0], LABELS),
        {},
    ),
    "integer hidden": (
        TypeError,
        "hidden floating int32 astype",
        linear_cross_entropy,
        (HIDDEN.astype(np.int32), HEAD, LABELS),
        {},
    ),
    "scalar hidden": (
        ValueError,
        "hidden feature axis scalar (..., d)",
        linear_cross_entropy,
        (np.float32(1), HEAD, LABELS),
        {},
    ),
    "integer head": (
        TypeError,
        "head floating int32 astype",
        linear_cross_entropy,
        (HIDDEN, HEAD.astype(np.int32), LABELS),
        {},
    ),
    "text hidden": (TypeError, "hidden array 'high'", linear_cross_entropy, ("high", HEAD, LABELS), {}),
    "chunk_rows 0": (ValueError, "chunk_rows at least 1 None 0", linear_cross_entropy, HARD, {"chunk_rows": 0}),
    "chunk_rows -3": (ValueError, "chunk_rows at least 1 None -3", linear_cross_entropy, HARD, {"chunk_rows": -3}),
    "chunk_rows 2.5": (TypeError, "chunk_rows static integer 2.5", linear_cross_entropy, HARD, {"chunk_rows": 2.5}),
    "chunk_rows True": (TypeError, "chunk_rows static integer True", linear_cross_entropy, HARD, {"chunk_rows": True}),
    **{
        f"memory_budget {value}": (
            error,
            f"memory_budget {words} {value}",
            linear_cross_entropy,
            HARD,
            {"memory_budget": value},
        )
        for value, error, words in (
            (0, ValueError, "at least 1 None"),
            (-3, ValueError, "at least 1 None"),
            (2.5, TypeError, "static integer bytes"),
            (True, TypeError, "static integer bytes"),
            (10, ValueError, "bytes is too small by head's float32 gradient a chunk of one row pass at least"),
        )
    },
    "both limits": (
        ValueError,
        "chunk_rows memory_budget not both 4 1000",
        linear_cross_entropy,
        HARD,
        {"chunk_rows": 4, "memory_budget": 1000},
    ),
    "integer logits_dtype": (
        TypeError,
        "logits_dtype floating int32",
        linear_cross_entropy,
        HARD,
        {"logits_dtype": jnp.int32},
    ),
    "logits_dtype int": (TypeError, "logits_dtype floating int", linear_cross_entropy, HARD, {"logits_dtype": int}),
    "text logits_dtype": (
        TypeError,
        "logits_dtype None floating 'nonsense'",
        linear_cross_entropy,
        HARD,
        {"logits_dtype": "nonsense"},
    ),
    "head_vocab_axis 2": (
        ValueError,
        "head_vocab_axis 1 0 (d, v) (v, d) 2",
        linear_cross_entropy,
        HARD,
        {"head_vocab_axis": 2},
    ),
    "shift -1": (ValueError, "shift at least 0 -1", linear_cross_entropy, HARD, {"shift": -1}),
    "shift 1.5": (TypeError, "shift static integer 1.5", linear_cross_entropy, HARD, {"shift": 1.5}),
    "shift of no sequence": (
        ValueError,
        "shift=1 sequence axis hidden",
        linear_cross_entropy,
        (HIDDEN[0], HEAD, LABELS[0]),
        {"shift": 1},
    ),
    "segment_ids without shift": (
        ValueError,
        "segment_ids shift=0 shift=1 where",
        linear_cross_entropy,
        HARD,
        {"segment_ids": LABELS},
    ),
    "float segment_ids": (
        TypeError,
        "segment_ids integer float32 astype",
        linear_cross_entropy,
        HARD,
        {"segment_ids": HIDDEN[:, 0], "shift": 1},
    ),
    "segment_ids shape": (
        ValueError,
        "segment_ids (5,) (4,)",
        linear_cross_entropy,
        HARD,
        {"segment_ids": LABELS[:4], "shift": 1},
    ),
    "where over classes": (ValueError, "where (5,) class_mask", linear_cross_entropy, HARD, {"where": TARGETS > 0}),
    "row_weights shape": (ValueError, "row_weights (5,) (7,)", linear_cross_entropy, HARD, {"row_weights": TARGETS[0]}),
    "class_weights shape": (
        ValueError,
        "class_weights (7,) (5,)",
        linear_cross_entropy,
        HARD,
        {"class_weights": TARGETS[:, 0]},
    ),
    "smoothing above 1": (ValueError, "label_smoothing at most 1 1.5", linear_cross_entropy, HARD, {"label_smoothing": 1.5}),
    "unknown reduction": (ValueError, "reduction 'mean' 'avg'", linear_cross_entropy, HARD, {"reduction": "avg"}),
    "unknown implementation": (
        ValueError,
        "implementation 'xla' 'cuda'",
        linear_cross_entropy,
        HARD,
        {"implementation": "cuda"},
    ),
    "integer targets": (TypeError, "targets floating", linear_soft_cross_entropy, HARD, {}),
    "targets of another shape": (
        ValueError,
        "targets (5, 7) (7,)",
        linear_soft_cross_entropy,
        (HIDDEN, HEAD, TARGETS[0]),
        {},
    ),
    "row_args of another batch": (
        ValueError,
        "row_args[1] (5,) (4,)",
        linear_loss,
        (nll, *HARD, HIDDEN[:, 0], HIDDEN[:4, 0]),
        {},
    ),
    "loss_fn not callable": (TypeError, "loss_fn function 0.5", linear_loss, (0.5, *HARD), {}),
    "loss_fn of a vector": (
        TypeError,
        "loss_fn one floating scalar float32[3]",
        linear_loss,
        (lambda stats, x: stats.nll * x, *HARD, HIDDEN),
        {},
    ),
    "loss_fn of an integer": (
        TypeError,
        "loss_fn one floating scalar int32",
        linear_loss,
        (lambda stats: stats.argmax, *HARD),
        {},
    ),
    "loss_fn of two numbers": (
        TypeError,
        "loss_fn one floating scalar",
        linear_loss,
        (lambda stats: (stats.nll, stats.lse), *HARD),
        {},
    ),
    "loss_fn of nothing": (TypeError, "loss_fn one floating scalar nothing", linear_loss, (lambda stats: None, *HARD), {}),
    "an array as head_vocab_axis": (
        TypeError,
        "head_vocab_axis static integer",
        linear_cross_entropy,
        HARD,
        {"head_vocab_axis": np.array(1)},
    ),
    "head_vocab_axis of a float": (
        TypeError,
        "head_vocab_axis static 1.0",
        linear_cross_entropy,
        HARD,
        {"head_vocab_axis": 1.0},
    ),
    "typo": (TypeError, "chunk_row", linear_cross_entropy, HARD, {"chunk_row": 3}),
    "class weights of a row loss": (TypeError, "class_weights", linear_loss, (nll, *HARD), {"class_weights": TARGETS[0]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    error, words, function, arguments, options = REFUSED[case]
    with pytest.raises(error) as raised:
        function(*arguments, **options)
    for word in words.split(" "):
        assert word in str(raised.value), f"{word!r} is not in: {raised.value}"


MIXED = {"hidden": ("bfloat16", "float32"), "head": ("float32", "bfloat16"), "both 16 bits": ("bfloat16", "float16")}


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("case", MIXED)
def test_mixed_dtypes_meet_in_the_wider_one(case, reduction):
    """The value is that of promoting by hand; each gradient has the dtype of its own primal, rounded to it."""
    hidden, head = (jnp.asarray(x, dtype) for x, dtype in zip((HIDDEN, HEAD), MIXED[case], strict=True))

    def total(hidden, head):
        options = {"reduction": reduction, "chunk_rows": 2, "label_smoothing": 0.1}
        return jnp.sum(linear_cross_entropy(hidden, head, LABELS, **options))

    value, gradients = jax.value_and_grad(total, (0, 1))(hidden, head)
    expected, wide = jax.value_and_grad(total, (0, 1))(hidden.astype(jnp.float32), head.astype(jnp.float32))
    assert value.dtype == jnp.float32 and value == expected
    for gradient, right, primal in zip(gradients, wide, (hidden, head), strict=True):
        assert gradient.dtype == primal.dtype
        again = primal is hidden and reduction == "mean"  # kept in its own dtype, then multiplied by the cotangent
        rtol = float(jnp.finfo(primal.dtype).eps) if again else 0
        np.testing.assert_allclose(*(x.astype(np.float32) for x in (gradient, right.astype(primal.dtype))), rtol=rtol)


# (words of the message, arguments of the call)
SHIFTED = {"shift": 1, "chunk_rows": 2}
BAD_VALUES = {
    "NaN hidden": ("hidden[1, 2] nan finite", {"hidden": HIDDEN * np.where(np.arange(15).reshape(5, 3) == 5, np.nan, 1)}),
    "infinite head": ("head[2, 1] inf finite", {"head": np.where(np.arange(21).reshape(3, 7) == 15, np.inf, HEAD)}),
    "NaN bias": ("bias[4] nan", {"bias": np.array([0, -np.inf, 0, 0, np.nan, 0, 0])}),
    "label": ("labels[3] 9 [0, 7)", {"labels": np.array([0, 1, 2, 9, 3])}),
    "label under shift": ("labels[3] 9 [0, 7)", {"labels": np.array([0, 1, 2, 9, 3])} | SHIFTED),
    "last label under shift": ("labels[4] -1 [0, 7)", {"labels": np.array([0, 1, 2, 3, -1])} | SHIFTED),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_named_with_its_place(case, wrap):
    words, given = BAD_VALUES[case]
    arrays = {"hidden": HIDDEN, "head": HEAD, "labels": LABELS} | {k: v for k, v in given.items() if np.ndim(v)}
    arrays = {k: v.astype(np.int32 if k == "labels" else np.float32) for k, v in arrays.items()}
    static = {k: v for k, v in given.items() if not np.ndim(v)}
    with pytest.raises(ValueError) as raised:
        with guards.values():
            wrap(lambda arrays: linear_cross_entropy(**arrays, **static))(arrays)
    for word in words.split(" "):
        assert word in str(raised.value), raised.value


def test_values_that_do_not_count_pass():
    """NaN in an ignored row, -inf in the bias, and under ``shift`` the first label, which no state predicts."""
    hidden, labels = HIDDEN.copy(), np.array([99, 1, 2, 3, 4], np.int32)
    hidden[[2, 4]] = np.nan  # the state of label 3, which where ignores, and the last, which predicts nothing
    where, bias = np.arange(5) != 3, np.array([0, 0, 0, 0, 0, -np.inf, 0], np.float32)
    with guards.values():
        ours = linear_token_log_probs(hidden, HEAD, labels, bias=bias, where=where, shift=1)
    z = HIDDEN.astype(float) @ HEAD.astype(float) + bias
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = [0, log_p[0, 1], log_p[1, 2], 0, log_p[3, 4]]
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_reference_refuses_no_less():
    with pytest.raises(ValueError, match="head_vocab_axis=0"):
        crossent_jax.linear_row_stats(HIDDEN, HEAD.T, LABELS, implementation="reference")
