"""Fused divergences against those of whole logits: three kinds of teacher, both schemes, every option that meets chunks."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid
from .oracle import x64

N, D, E, V, K = 11, 8, 6, 37, 5
INF = np.inf


def drawn(dtype="float32", seed=0):
    gen = np.random.default_rng(seed)

    def normal(*shape):
        return gen.standard_normal(shape).astype(grid.numpy_dtype(dtype))

    return {
        "hidden": normal(N, D), "head": normal(D, V), "bias": normal(V),
        "teacher_hidden": normal(N, E), "teacher_head": normal(E, V), "teacher_bias": normal(V),
    }  # fmt: skip


@partial(grid.quick, static_argnames="k")
def top_k_of(teacher_logits, k=K):
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(teacher_logits), k)
    return indices[:, ::-1], log_probs[:, ::-1]


def fused(parts, teacher, **options):
    given = {name: parts[name] for name in ("bias",)}
    if teacher == "logits":
        given["teacher_logits"] = parts["teacher_logits"]
    elif teacher == "head":
        given |= {name: parts[name] for name in ("teacher_hidden", "teacher_head", "teacher_bias")}
    return crossent_jax.linear_divergence(parts["hidden"], parts["head"], **given, **options)


def whole(parts, teacher, **options):
    z = jnp.dot(parts["hidden"], parts["head"], preferred_element_type=jnp.float32) + parts["bias"][None].astype(jnp.float32)
    if teacher == "head":
        w = jnp.dot(parts["teacher_hidden"], parts["teacher_head"], preferred_element_type=jnp.float32)
        w = w + parts["teacher_bias"][None].astype(jnp.float32)
    else:
        w = parts["teacher_logits"]
    return crossent_jax.divergence(z, w, **options)


def case(teacher, dtype="float32"):
    parts = drawn(dtype)
    if teacher == "logits":
        logits = 2 * parts.pop("teacher_hidden") @ parts.pop("teacher_head")
        parts["teacher_logits"] = logits.astype(parts["head"].dtype)
        del parts["teacher_bias"]
    return parts


def assert_close(found, expected, rtol=2e-5):
    for name in expected:
        size = np.abs(np.float64(expected[name])).max()
        np.testing.assert_allclose(np.float64(found[name]), np.float64(expected[name]), atol=rtol * size, err_msg=name)
        assert found[name].dtype == expected[name].dtype


@pytest.mark.parametrize(
    "teacher, reduction, options",
    [
        ("logits", "mean", {}),
        ("logits", "none", {}),
        ("head", "mean", {"kind": "js", "beta": 0.3, "temperature": 1.7, "scale_by_temperature_squared": True}),
        ("head", "none", {"kind": "js", "beta": 0.3, "temperature": 1.7}),
        ("head", "mean", {"kind": "reverse_kl", "softcap": 3.0}),
        ("logits", "mean", {"kind": "renyi", "order": 2.0}),
        ("head", "none", {"kind": "jeffreys", "implementation": "reference"}),
    ],
    ids=str,
)
def test_value_and_every_gradient(teacher, reduction, options):
    parts = case(teacher)
    weights = np.random.default_rng(3).standard_normal(N, np.float32)

    def total(loss, parts):
        value = loss(parts, teacher, reduction=reduction, **options)
        return jnp.sum(weights * value) if reduction == "none" else value

    value, gradients = grid.quick(jax.value_and_grad(partial(total, partial(fused, chunk_rows=4))))(parts)
    expected, expected_gradients = grid.quick(jax.value_and_grad(partial(total, whole)))(parts)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("teacher", ["logits", "head"])
def test_bfloat16(teacher):
    parts = case(teacher, "bfloat16")
    value, gradients = grid.quick(jax.value_and_grad(lambda p: fused(p, teacher, chunk_rows=4)))(parts)
    wide = {name: x.astype(np.float32) for name, x in parts.items()}
    expected, expected_gradients = grid.quick(jax.value_and_grad(lambda p: whole(p, teacher)))(wide)
    assert value.dtype == jnp.float32 and all(gradients[name].dtype == jnp.bfloat16 for name in gradients)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close({k: np.float32(x) for k, x in gradients.items()}, expected_gradients, rtol=2.0**-7)


def test_float64():
    with x64():
        parts = {name: x.astype(np.float64) for name, x in case("head").items()}
        value, gradients = grid.quick(jax.value_and_grad(lambda p: fused(p, "head", chunk_rows=3)))(parts)
        z = parts["hidden"] @ parts["head"] + parts["bias"]
        w = parts["teacher_hidden"] @ parts["teacher_head"] + parts["teacher_bias"]
        np.testing.assert_allclose(value, crossent_jax.kl_divergence(z, w), rtol=1e-13)
        assert all(g.dtype == jnp.float64 for g in gradients.values())


@cache
def sums_of_whole(teacher):
    return grid.quick(jax.value_and_grad(lambda parts: whole(parts, teacher, reduction="sum")))


@pytest.mark.parametrize(
    "teacher, reduction, implementation",
    [("logits", "sum", None), ("head", "none", None), ("head", "sum", None), ("head", "sum", "reference")],
)
def test_rows_that_do_not_count(teacher, reduction, implementation):
    """Ignored rows may hold NaN anywhere: exactly zero gradients, and nothing of them in the heads'."""
    parts = case(teacher)
    kept = np.array([0, 1, 3, 4, 5, 6, 8, 9])
    where = np.isin(np.arange(N), [*kept, 10])
    weights = (np.arange(N) != 10).astype(np.float32)
    options = {"where": where, "row_weights": weights, "reduction": reduction, "chunk_rows": 4}
    dead = np.array([2, 7, 10])
    rows = [name for name in parts if parts[name].shape[0] == N]
    poisoned = parts | {
        name: np.where(np.isin(np.arange(N), dead)[:, None], np.float32(np.nan), parts[name]) for name in rows
    }

    def total(parts):
        return jnp.sum(fused(parts, teacher, implementation=implementation, **options))

    value, gradients = jax.tree.map(np.asarray, grid.quick(jax.value_and_grad(total))(poisoned))
    alone = parts | {name: parts[name][kept] for name in rows}
    expected, expected_gradients = sums_of_whole(teacher)(alone)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(np.all(gradients[name][dead] == 0) for name in rows)
    assert_close(gradients | {name: gradients[name][kept] for name in rows}, expected_gradients)


def test_stopped_teacher_takes_no_products():
    parts = case("head")

    def dots(**options):
        loss = partial(fused, teacher="head", chunk_rows=4, **options)
        return jax.jit(jax.grad(loss)).lower(parts).as_text().count("stablehlo.dot_general")

    assert dots() - dots(stop_teacher_gradient=True) == 2
    gradients = grid.quick(jax.grad(lambda p: fused(p, "head", stop_teacher_gradient=True)))(parts)
    assert all(np.all(gradients[name] == 0) for name in gradients if name.startswith("teacher"))
    frozen = jax.grad(lambda hidden: fused(parts | {"hidden": hidden}, "head"))
    assert jax.jit(frozen).lower(parts["hidden"]).as_text().count("stablehlo.dot_general") == 3


def test_heads_in_both_layouts():
    parts = case("head")
    expected = fused(parts, "head")
    turned = parts | {"head": parts["head"].T}
    np.testing.assert_allclose(fused(turned, "head", head_vocab_axis=0, teacher_head_vocab_axis=1), expected, rtol=1e-6)
    turned["teacher_head"] = parts["teacher_head"].T
    np.testing.assert_allclose(fused(turned, "head", head_vocab_axis=0), expected, rtol=1e-6)


def test_labels_beside_the_teacher():
    parts = case("logits")
    labels = np.random.default_rng(1).integers(0, V, N)
    labels[3] = -100
    options = {"labels": labels, "ignore_index": -100, "label_weight": 0.25, "temperature": 2.0}
    value, gradients = grid.quick(jax.value_and_grad(lambda p: fused(p, "logits", chunk_rows=4, **options)))(parts)
    expected, expected_gradients = grid.quick(jax.value_and_grad(lambda p: whole(p, "logits", **options)))(parts)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close(gradients, expected_gradients)


def test_batch_axes_and_a_mask_of_rows():
    parts = case("logits")
    shaped = {name: x[:10].reshape(2, 5, *x.shape[1:]) if x.shape[0] == N else x for name, x in parts.items()}
    mask = np.random.default_rng(2).random((2, 5, V)) > 0.3
    found = fused(shaped, "logits", reduction="none", class_mask=mask, chunk_rows=4)
    flat = {name: x[:10] if x.shape[0] == N else x for name, x in parts.items()}
    expected = whole(flat, "logits", reduction="none", class_mask=mask.reshape(10, V))
    np.testing.assert_allclose(found.reshape(10), expected, rtol=1e-5)


def test_empty_batch():
    parts = {name: x[:0] if x.shape[0] == N else x for name, x in case("logits").items()}
    assert fused(parts, "logits") == 0 and fused(parts, "logits", reduction="none").shape == (0,)


# --- top k ----------------------------------------------------------------------------------------


def compressed(z, indices, log_probs, tail):
    """Logits of k + 1 outcomes of both sides, the definition: float64."""
    p, t = np.exp(z - z.max(-1, keepdims=True)), np.exp(log_probs)
    p /= p.sum(-1, keepdims=True)
    listed = np.take_along_axis(p, indices, -1)
    t = t / t.sum(-1, keepdims=True) if tail == "renormalize" else t
    rest = [1 - x.sum(-1, keepdims=True) for x in (listed, t)]
    return np.concatenate([listed, rest[0]], -1), np.concatenate([t, np.maximum(rest[1], 0)], -1)


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("kind", ["forward_kl", "js"])
def test_top_k_teacher(tail, kind):
    parts = case("logits")
    indices, log_probs = top_k_of(parts["teacher_logits"])
    options = {"kind": kind, "top_k_tail": tail, "chunk_rows": 4, "reduction": "none"}

    def ours(hidden, head, log_probs):
        return crossent_jax.linear_divergence(hidden, head, teacher_top_k=(indices, log_probs), **options)

    value = ours(parts["hidden"], parts["head"], log_probs)
    z = np.float64(parts["hidden"]) @ np.float64(parts["head"])
    p, t = compressed(z, np.asarray(indices), np.float64(log_probs), tail)
    m = (p + t) / 2

    def kl(a, b):
        return np.sum(np.where(a > 1e-12, a * np.log(np.where(a > 1e-12, a / b, 1)), 0), -1)

    true = kl(t, p) if kind == "forward_kl" else (kl(t, m) + kl(p, m)) / 2
    np.testing.assert_allclose(value, true, rtol=2e-5, atol=1e-6)

    def naive(hidden, head, log_probs):
        log_p = jax.nn.log_softmax(hidden @ head)
        listed = jnp.take_along_axis(log_p, indices, -1)
        rest = jnp.log(-jnp.expm1(jax.nn.logsumexp(listed, -1, keepdims=True)))
        log_t = jax.nn.log_softmax(log_probs) if tail == "renormalize" else log_probs
        out = jnp.sum(jnp.exp(log_t) * (log_t - listed), -1, keepdims=True)
        if tail == "bucket":
            left = -jnp.expm1(jax.nn.logsumexp(log_t, -1, keepdims=True))
            out = out + left * (jnp.log(left) - rest)
        return out.sum()

    if kind == "forward_kl":
        found = grid.quick(jax.grad(lambda *a: ours(*a).sum(), (0, 1, 2)))(parts["hidden"], parts["head"], log_probs)
        expected = grid.quick(jax.grad(naive, (0, 1, 2)))(parts["hidden"], parts["head"], log_probs)
        for a, b in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5)
        moved = np.float64(expected[2])  # the naive formula does not know that log-probabilities add up to 1
        np.testing.assert_allclose(
            found[2] - found[2].mean(-1, keepdims=True), moved - moved.mean(-1, keepdims=True), atol=0.5
        )


def test_all_classes_listed_is_the_teacher():
    parts = case("logits")
    everything = top_k_of(parts["teacher_logits"], V)
    expected = fused(parts, "logits", reduction="none", temperature=1.0)
    for tail in ("bucket", "renormalize"):
        found = crossent_jax.linear_divergence(
            parts["hidden"], parts["head"], bias=parts["bias"], teacher_top_k=everything, top_k_tail=tail, reduction="none"
        )
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_bad_indices_of_a_teacher_are_their_rows_alone():
    parts = case("logits")
    indices, log_probs = top_k_of(parts["teacher_logits"])
    clean = crossent_jax.linear_divergence(
        parts["hidden"], parts["head"], teacher_top_k=(indices, log_probs), reduction="none"
    )
    indices = np.array(indices)
    indices[1, 2], indices[2, 0], indices[4, 1] = V, -1, indices[4, 3]

    def loss(hidden, head):
        return crossent_jax.linear_divergence(
            hidden, head, teacher_top_k=(indices, log_probs), reduction="none", chunk_rows=4
        )

    @grid.quick
    def value_and_gradients(hidden, head):
        value, pull = jax.vjp(loss, hidden, head)
        return value, pull(jnp.ones(N))

    value, (to_hidden, to_head) = jax.tree.map(np.asarray, value_and_gradients(parts["hidden"], parts["head"]))
    bad = np.isin(np.arange(N), [1, 2, 4])
    assert np.all(np.isnan(value[bad])) and np.array_equal(value[~bad], np.asarray(clean)[~bad])
    assert np.all(to_hidden[bad] == 0) and np.all(np.isfinite(to_head))
