"""One test per trap of the design (section 5) that concerns hidden states and a head, and the promises of ``shift`` and of a
row loss of one's own."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax
from crossent_jax import linear_cross_entropy, linear_loss, linear_row_stats, linear_token_log_probs
from crossent_jax._api.label_losses import user_loss_of_rows
from crossent_jax._row.user_loss import trace

from . import grid, oracle

pytestmark = pytest.mark.usefixtures("small_blocks")
backends = pytest.mark.parametrize("backend", grid.BACKENDS)
reductions = pytest.mark.parametrize("reduction", ("sum", "none"))
ROWS, FEATURES, CLASSES = 7, 3, 11
EVERYTHING = {name: on for name, (_, on) in grid.SCALARS.items()} | {"softcap": 4.0}
GEN = grid.rng("linear traps")
HIDDEN = GEN.standard_normal((ROWS, FEATURES)).astype(np.float32)
HEAD = GEN.standard_normal((FEATURES, CLASSES)).astype(np.float32)
BIAS = GEN.standard_normal(CLASSES).astype(np.float32)
LABELS = grid.labels(GEN, ROWS, CLASSES)


@partial(grid.quick, static_argnames=("ignore_index", "reduction", "implementation", "softcap"))
def jitted_value_and_gradients(hidden, labels, bias, scalars, **options):
    def total(hidden, head, bias):
        out = linear_cross_entropy(hidden, head, labels, bias=bias, chunk_rows=3, **scalars, **options)
        return jnp.sum(out), out

    (_, out), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(hidden, HEAD, bias)
    return out, gradients


def value_and_gradients(hidden, labels, *, bias=BIAS, **options):
    """The output, and the gradients of hidden, head and bias of its sum: one program for a set of options."""
    scalars = {name: np.float32(options.pop(name)) for name in grid.SCALARS if name in options}
    return jax.tree.map(np.asarray, jitted_value_and_gradients(hidden, labels, bias, scalars, **options))


def ignoring(how, labels, row):
    keep = np.arange(len(labels)) != row
    return {
        "where": (labels, {"where": keep}),
        "ignore_index": (np.where(keep, labels, -100), {"ignore_index": -100}),
        "row_weights": (labels, {"row_weights": keep.astype(np.float32)}),
    }[how]


IGNORING = [("where", reduction, backend) for reduction in ("sum", "none") for backend in grid.BACKENDS]
IGNORING += [("ignore_index", "sum", "reference"), ("ignore_index", "none", "xla")]
IGNORING += [("row_weights", "sum", "xla"), ("row_weights", "none", "xla"), ("row_weights", "none", "reference")]


@pytest.mark.parametrize("how, reduction, backend", IGNORING)
def test_ignored_rows_add_exactly_nothing_even_from_nan(how, reduction, backend):
    """Not to the value, and not to the head's gradient, which multiplies dz with the poisoned hidden state."""
    labels, mask = ignoring(how, LABELS, 2)
    options = {"reduction": reduction, "implementation": backend} | mask | EVERYTHING
    clean, clean_gradients = value_and_gradients(HIDDEN, labels, **options)
    for poison in ([np.nan] * FEATURES, [np.inf, 0, 0], [-np.inf, np.inf, 1e38]):
        hidden = HIDDEN.copy()
        hidden[2] = poison
        value, gradients = value_and_gradients(hidden, labels, **options)
        np.testing.assert_array_equal(value, clean)
        assert not gradients[0][2].any()
        for gradient, clean_gradient in zip(gradients, clean_gradients, strict=True):
            assert np.isfinite(gradient).all()
            np.testing.assert_array_equal(gradient, clean_gradient)


@backends
@reductions
@pytest.mark.parametrize("label", (-1, CLASSES))
def test_label_out_of_range_is_nan_and_trains_nothing(label, reduction, backend):
    labels = LABELS.copy()
    labels[4] = label
    out, gradients = value_and_gradients(HIDDEN, labels, reduction=reduction, implementation=backend, **EVERYTHING)
    others = np.arange(ROWS) != 4
    right, right_gradients = value_and_gradients(
        HIDDEN, LABELS, reduction=reduction, implementation=backend, where=others, **EVERYTHING
    )
    if reduction == "none":
        assert np.isnan(out[4])
        np.testing.assert_allclose(out[others], right[others], rtol=2e-6)
    else:
        assert np.isnan(out)
    for gradient, expected in zip(gradients, right_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=8 * 6e-8 * np.abs(expected).max())
    assert not gradients[0][4].any()


@backends
@reductions
def test_a_bias_of_minus_infinity_masks_a_class(reduction, backend):
    """As if its column were not there; the class itself gets an exact zero."""
    masked = next(j for j in range(CLASSES) if j not in LABELS)
    bias = np.where(np.arange(CLASSES) == masked, -np.inf, BIAS).astype(np.float32)
    options = {"reduction": reduction, "implementation": backend, "label_smoothing": 0.1}
    out, (dx, dw, db) = value_and_gradients(HIDDEN, LABELS, bias=bias, **options)
    left = np.arange(CLASSES) != masked
    z = HIDDEN.astype(float) @ HEAD.astype(float) + BIAS
    labels = np.cumsum(left)[LABELS] - 1
    call = {"label_smoothing": 0.1, "reduction": reduction}
    exact = oracle.exact_loss(z[:, left], labels, **call).astype(float)
    dz = np.zeros_like(z)
    dz[:, left] = oracle.gradients(z[:, left], labels, **call)["z"]
    slack = ROWS * FEATURES * oracle.statistics_eps("float32") * np.abs(z).max()
    assert np.all(np.abs(out - exact) <= oracle.loss_slack(exact) + slack)
    for ours, right in ((dx, dz @ HEAD.T), (dw, HIDDEN.T @ dz), (db, dz.sum(0))):
        assert np.all(np.abs(ours - right) <= slack)
    assert not dw[:, masked].any() and db[masked] == 0


@backends
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_all_rows_ignored(reduction, backend):
    """0, and zero gradients, even of NaN."""
    out, gradients = value_and_gradients(
        np.full_like(HIDDEN, np.nan), LABELS, where=np.zeros(ROWS, bool), reduction=reduction, implementation=backend,
        **EVERYTHING,
    )  # fmt: skip
    assert not out.any() and not any(gradient.any() for gradient in gradients)
    total = linear_cross_entropy(
        HIDDEN, HEAD, LABELS, where=np.zeros(ROWS, bool), reduction=reduction, implementation=backend
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(total))


# --- shift -----------------------------------------------------------------------------------------

BATCH, LENGTH = 2, 7
SEQUENCES = GEN.standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)
TOKENS = GEN.integers(0, CLASSES, (BATCH, LENGTH)).astype(np.int32)
WHERE = GEN.uniform(size=(BATCH, LENGTH)) < 0.8
WEIGHTS = GEN.uniform(0.3, 2, (BATCH, LENGTH)).astype(np.float32)
SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2], [3, 3, 3, 3, 3, 4, 4]], np.int32)


@pytest.mark.parametrize(
    "reduction, shift, backend",
    [("none", 1, "xla"), ("mean", 1, "xla"), ("loss_sum", 2, "xla"), ("none", 2, "reference"), ("mean", 1, "reference")],
)
def test_shift_is_slicing_by_hand(reduction, shift, backend):
    """What belongs to labels is sliced like them; the states after the last label get an exact zero."""
    options = {"reduction": reduction, "label_smoothing": 0.1, "chunk_rows": 4, "implementation": backend}
    same = SEGMENTS[:, shift:] == SEGMENTS[:, :-shift]

    def ours(hidden, head, weights):
        given = {"shift": shift, "where": WHERE, "row_weights": weights, "segment_ids": SEGMENTS}
        out = linear_cross_entropy(hidden, head, TOKENS, **given, **options)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out)), out

    def by_hand(hidden, head, weights):
        given = {"where": WHERE[:, shift:] & same, "row_weights": weights[:, shift:]}
        z = jnp.einsum("btd,dv->btv", hidden[:, :-shift], head)
        out = crossent_jax.cross_entropy(z, TOKENS[:, shift:], label_smoothing=0.1, reduction=reduction, **given)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out)), out

    arguments = SEQUENCES, HEAD, WEIGHTS
    (_, out), gradients = grid.quick(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(*arguments)
    (_, expected), right = grid.quick(jax.value_and_grad(by_hand, (0, 1, 2), has_aux=True))(*arguments)
    if reduction == "none":
        expected = np.pad(expected, ((0, 0), (shift, 0)))
    for got, wanted in zip(jax.tree.leaves((out, gradients)), jax.tree.leaves((expected, right)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)
    assert not np.asarray(gradients[0])[:, -shift:].any()


@backends
def test_shifted_results_are_indexed_by_label(backend):
    log_probs = np.asarray(linear_token_log_probs(SEQUENCES, HEAD, TOKENS, shift=1, implementation=backend))
    stats = jax.tree.map(np.asarray, linear_row_stats(SEQUENCES, HEAD, TOKENS, shift=1, implementation=backend))
    z = SEQUENCES.astype(float) @ HEAD.astype(float)
    exact = z - np.log(np.exp(z).sum(-1, keepdims=True))
    for b in range(BATCH):
        for t in range(1, LENGTH):
            assert abs(log_probs[b, t] - exact[b, t - 1, TOKENS[b, t]]) < 4e-6
            assert stats.argmax[b, t] == z[b, t - 1].argmax()
    assert not log_probs[:, 0].any() and np.all(stats.argmax[:, 0] == -1) and not stats.lse[:, 0].any()


# --- a loss of one's own ---------------------------------------------------------------------------


def clipped(stats, advantage, old):
    ratio = jnp.exp(-stats.nll - old[0])
    surrogate = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return surrogate - 0.01 * stats.entropy + 1e-3 * stats.lse**2 + 0.1 * stats.ce_prior * old[1]


@pytest.mark.parametrize(
    "reduction, shift, backend",
    [("none", 0, "xla"), ("mean", 1, "xla"), ("loss_sum", 0, "xla"), ("sum", 0, "reference"), ("none", 1, "reference")],
)
def test_linear_loss_is_the_formula_on_dense_statistics(shift, reduction, backend):
    """With row_args of any trailing shape, weights, and an array that the function closes over: all get their gradients."""
    advantages, old = np.cos(3.0 * TOKENS).astype(np.float32), -2 + 0.1 * np.stack([WEIGHTS, WEIGHTS**2], -1)
    arguments = SEQUENCES, HEAD, advantages, old.astype(np.float32), np.float32(0.7), WEIGHTS

    def contracted(out):
        return sum(
            jnp.vdot(jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)), leaf.reshape(-1)) for leaf in jax.tree.leaves(out)
        )

    def ours(hidden, head, advantages, old, scale, weights):
        options = {"reduction": reduction, "where": WHERE, "row_weights": weights, "shift": shift, "chunk_rows": 4}

        def loss_fn(stats, *row):
            return scale * clipped(stats, *row)

        return contracted(linear_loss(loss_fn, hidden, head, TOKENS, advantages, old, implementation=backend, **options))

    def formula(hidden, head, advantages, old, scale, weights):
        given, kept = weights, jnp.asarray(WHERE)
        z = jnp.einsum("btd,dv->btv", hidden, head)
        if shift:
            z, kept = jnp.roll(z, 1, 1), kept & (jnp.arange(LENGTH) > 0)[None]
        stats = crossent_jax.row_stats(z, TOKENS, where=kept)
        each = jax.vmap(jax.vmap(lambda *row: scale * clipped(*row)))(stats, advantages, old)
        each = jnp.where(kept, given * each, 0)
        total, weight = each.sum(), jnp.where(kept, given, 0).sum()
        return contracted({"none": each, "sum": total, "mean": total / weight, "loss_sum": (total, weight)}[reduction])

    names = tuple(range(len(arguments)))
    value, gradients = grid.quick(jax.value_and_grad(ours, names))(*arguments)
    expected, right = grid.quick(jax.value_and_grad(formula, names))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=4e-6, atol=4e-6)
    for gradient, wanted in zip(gradients, right, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=4e-6 * max(1, np.abs(wanted).max()))


def scaled(scale):
    return lambda stats: scale * stats.nll + stats.entropy


def test_a_fresh_lambda_of_the_same_code_does_not_compile_anew():
    first = linear_loss(scaled(2.0), HIDDEN, HEAD, LABELS)
    before = user_loss_of_rows._cache_size()
    for _ in range(3):
        assert linear_loss(scaled(2.0), HIDDEN, HEAD, LABELS) == first
    assert user_loss_of_rows._cache_size() == before
    nll, entropy = (getattr(crossent_jax.row_stats(HIDDEN @ HEAD, LABELS), name).mean() for name in ("nll", "entropy"))
    np.testing.assert_allclose(first, 2 * nll + entropy, rtol=2e-6)
    np.testing.assert_allclose(linear_loss(scaled(5.0), HIDDEN, HEAD, LABELS), 5 * nll + entropy, rtol=2e-6)


SCALE = 1.0
SETTINGS = types.SimpleNamespace(scale=1.0)
MODULE = types.ModuleType("settings")


def scaled_by_helper(stats):
    return SCALE * stats.nll


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda stats: SCALE * stats.nll,
        lambda: lambda stats: scaled_by_helper(stats),
        lambda: lambda stats: (lambda nll: SCALE * nll)(stats.nll),
        lambda: lambda stats: SETTINGS.scale * stats.nll,
        lambda: lambda stats: MODULE.scale * stats.nll,
    ],
    ids=["global", "helper", "inner function", "object", "module"],
)
def test_a_number_outside_the_function_that_changes_is_read_again(make, monkeypatch):
    nll = crossent_jax.row_stats(HIDDEN @ HEAD, LABELS).nll.mean()
    for number in (1.0, 3.0):
        monkeypatch.setitem(globals(), "SCALE", number)
        SETTINGS.scale = MODULE.scale = number
        np.testing.assert_allclose(linear_loss(make(), HIDDEN, HEAD, LABELS), number * nll, rtol=2e-6)


def test_a_closed_over_array_that_changes_is_read_again():
    nll = crossent_jax.row_stats(HIDDEN @ HEAD, LABELS).nll.mean()
    for number in (1.0, 3.0):
        array = jnp.float32(number)
        np.testing.assert_allclose(
            linear_loss(lambda stats, a=array: a * stats.nll, HIDDEN, HEAD, LABELS), number * nll, rtol=2e-6
        )


READS = {
    "nll": lambda stats: stats.nll,
    "entropy lse": lambda stats: stats.lse - stats.entropy,
    "ce_prior nll": lambda stats: jnp.where(stats.nll > 1, stats.ce_prior, 0),
    "": lambda stats: jnp.float32(1),
}


@pytest.mark.parametrize("names", READS)
def test_statistics_that_a_loss_does_not_read_are_not_computed(names):
    assert trace(READS[names], (), 1, jnp.dtype("float32")).reads == frozenset(names.split())

    def exponentials(function):
        return str(jax.make_jaxpr(lambda x: linear_loss(function, x, HEAD, LABELS, chunk_rows=ROWS))(HIDDEN)).count(
            "reduce_sum"
        )

    if "entropy" not in names:
        assert exponentials(READS[names]) < exponentials(lambda stats: READS[names](stats) + stats.entropy)


def test_an_ignored_row_of_a_row_loss_is_not_seen():
    """NaN in its hidden state and its row_args reaches nothing."""
    hidden, advantages, keep = HIDDEN.copy(), np.ones(ROWS, np.float32), np.arange(ROWS) != 3
    clean = advantages.copy()
    hidden[3], advantages[3] = np.nan, np.nan

    def mean(hidden, head, advantages):
        return linear_loss(lambda stats, a: a * stats.nll**2, hidden, head, LABELS, advantages, where=keep, chunk_rows=2)

    value, gradients = jax.value_and_grad(mean, (0, 1, 2))(hidden, HEAD, advantages)
    expected, right = jax.value_and_grad(mean, (0, 1, 2))(HIDDEN, HEAD, clean)
    assert value == expected
    for gradient, wanted in zip(gradients, right, strict=True):
        np.testing.assert_array_equal(gradient, wanted)


@pytest.mark.parametrize("reduction", ("sum", "none"))
def test_one_hot_is_subtracted_before_the_cast(reduction):
    """A confident row in bfloat16: p - 1 is -2e-3, which p rounded to 1 would lose."""
    hidden, head = (
        np.array([[1.0]]).astype(grid.numpy_dtype("bfloat16")),
        np.array([[6.2, 0.0]]).astype(grid.numpy_dtype("bfloat16")),
    )

    def total(head):
        return jnp.sum(linear_cross_entropy(hidden, head, np.array([0]), reduction=reduction))

    miss = 1 / (1 + np.exp(float(head[0, 0])))
    np.testing.assert_allclose(jax.grad(total)(head).astype(np.float32), [[-miss, miss]], rtol=2.0**-7)
