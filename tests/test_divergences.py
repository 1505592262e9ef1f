"""Divergences of two sets of logits: float64 values and gradients of every kind, exactness near and at the limits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid
from .oracle import x64

INF = np.inf
N, V = 5, 37
ONES = np.ones(N, np.float32)
KINDS = {
    "forward_kl": {},
    "reverse_kl": {},
    "js": {"beta": 0.3},
    "jeffreys": {},
    "total_variation": {},
    "renyi": {"order": 0.5},
    "alpha": {"order": 0.3},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(dtype="float32", spread=3.0, near=None, shape=(N, V), seed=0):
    """Student's and teacher's logits. ``near``: the size of their difference."""
    gen = np.random.default_rng(seed)
    teacher = spread * gen.standard_normal(shape)
    student = spread * gen.standard_normal(shape) if near is None else teacher + near * gen.standard_normal(shape)
    return student.astype(grid.numpy_dtype(dtype)), teacher.astype(grid.numpy_dtype(dtype))


def log_softmax(xp, z, allowed):
    """-inf off the allowed classes."""
    u = xp.where(allowed, z, 0)
    top = xp.max(xp.where(allowed, u, -INF), -1, keepdims=True)
    total = xp.sum(xp.where(allowed, xp.exp(u - top), 0), -1, keepdims=True)
    return xp.where(allowed, u - top - xp.log(total), 0)


def true_rows(xp, z, w, kind, *, beta=0.5, order=None, temperature=1.0, softcap=None, class_mask=None):
    """The divergence of each row, from its definition; both sides have the same classes."""
    allowed = np.ones(z.shape, bool) if class_mask is None else np.broadcast_to(class_mask, z.shape)
    if softcap is not None:
        z, w = (softcap * xp.tanh(x / softcap) for x in (z, w))
    log_p, log_t = (log_softmax(xp, x / temperature, allowed) for x in (z, w))
    p, t = (xp.where(allowed, xp.exp(x), 0) for x in (log_p, log_t))
    log_m = xp.log(xp.where(allowed, beta * t + (1 - beta) * p, 1))

    def kl(a, log_a, log_b):
        return xp.sum(a * (log_a - log_b), -1)

    def power():
        return xp.sum(xp.where(allowed, xp.exp(order * log_t + (1 - order) * log_p), 0), -1)

    return {
        "forward_kl": lambda: kl(t, log_t, log_p),
        "reverse_kl": lambda: kl(p, log_p, log_t),
        "js": lambda: beta * kl(t, log_t, log_m) + (1 - beta) * kl(p, log_p, log_m),
        "jeffreys": lambda: kl(t, log_t, log_p) + kl(p, log_p, log_t),
        "total_variation": lambda: xp.sum(xp.abs(p - t), -1) / 2,
        "renyi": lambda: xp.log(power()) / (order - 1),
        "alpha": lambda: (power() - 1) / (order * (order - 1)),
    }[kind]()


def exact(z, w, kind, **options):
    return np.float64(true_rows(np, np.asarray(z, np.longdouble), np.asarray(w, np.longdouble), kind, **options))


@partial(grid.quick, static_argnums=0)
def gradients_of_rows(kind, z, w, weights, options):
    return jax.grad(lambda *both: jnp.sum(weights * true_rows(jnp, *both, kind, **options)), (0, 1))(z, w)


def exact_gradients(z, w, kind, weights=None, **options):
    """In float64, of the weighted sum of the rows; a soft cap of 1e9 is none there."""
    z, w, weights = (np.asarray(x, np.float64) for x in (z, w, np.ones(len(z)) if weights is None else weights))
    with x64():
        both = gradients_of_rows(kind, z, w, weights, {"temperature": 1.0, "softcap": 1e9} | options)
    return [np.asarray(g) for g in both]


def exact_probabilities(z, w, temperature=1.0, softcap=None):
    sides = (np.float64(x) if softcap is None else softcap * np.tanh(np.float64(x) / softcap) for x in (z, w))
    return [np.exp(log_softmax(np, x / temperature, np.ones(x.shape, bool))) for x in sides]


def ours(kind, **options):
    return partial(crossent_jax.divergence, kind=kind, reduction="none", **KINDS[kind], **options)


@partial(grid.quick, static_argnames=("kind", "implementation", "softcap"))
def jitted_rows_of(kind, z, w, cotangent, **options):
    value, pull = jax.vjp(ours(kind, **options), z, w)
    return value, pull(cotangent)


def rows_of(*arguments, **options):
    """The loss of each row and the gradients of their sum with the cotangent: one program for all tests."""
    return jax.tree.map(np.asarray, jitted_rows_of(*arguments, **options))


def value_and_gradients(function, *arguments):
    """The loss of each row and the gradients of their sum, in one program."""

    def both(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jnp.ones_like(value))

    return jax.tree.map(np.asarray, grid.quick(both)(*arguments))


def assert_close_gradients(found, true, dtype, probabilities, value):
    """Within 4 ulp of the row's largest element and of the largest term that it is a difference of, p sum(chi)."""
    for a, b, p in zip(found, true, probabilities, strict=True):
        size = np.abs(b).max(-1, keepdims=True) + (p * value[:, None]).max(-1, keepdims=True)
        assert a.dtype == jnp.dtype(dtype)
        assert np.all(np.abs(np.float64(a) - b) <= 4 * float(jnp.finfo(dtype).eps) * size)


MAPS = {"plain": {}, "warm": {"temperature": 2.5}, "capped": {"softcap": 4.0, "temperature": 0.7}}
CASES = [(kind, "float32", "plain") for kind in KINDS]
CASES += [(kind, "float32", "capped") for kind in ("forward_kl", "reverse_kl", "jeffreys", "alpha")]
CASES += [("forward_kl", "float32", "warm"), ("forward_kl", "float16", "plain"), ("reverse_kl", "float16", "capped")]
CASES += [(kind, "bfloat16", "warm") for kind in ("forward_kl", "js", "total_variation", "renyi")]


@pytest.mark.parametrize("kind, dtype, logit_map", CASES)
def test_value_and_gradients(kind, dtype, logit_map):
    z, w = drawn(dtype)
    options = MAPS[logit_map]
    value, found = rows_of(kind, z, w, ONES, **options)
    true = exact(z, w, kind, **KINDS[kind], **options)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, true, rtol=2e-6)
    gradients = exact_gradients(z, w, kind, **KINDS[kind], **options)
    assert_close_gradients(found, gradients, dtype, exact_probabilities(z, w, **options), true)


MASKED_CASES = [(kind, None, 1) for kind in KINDS]
MASKED_CASES += [(kind, "reference", 2) for kind in ("forward_kl", "reverse_kl", "js", "total_variation", "renyi")]


@pytest.mark.parametrize("kind, implementation, mask_rank", MASKED_CASES)
def test_class_mask_is_a_smaller_vocabulary(kind, implementation, mask_rank):
    kept = np.arange(3 * V // 2) % 3 != 1
    mask = kept if mask_rank == 1 else np.broadcast_to(kept, (N, len(kept)))
    whole = np.full((2, N, len(kept)), np.nan, np.float32)
    whole[..., kept] = drawn()
    value, gradients = rows_of(kind, *whole, ONES, class_mask=mask, implementation=implementation)
    alone, gradients_alone = rows_of(kind, *drawn(), ONES)
    np.testing.assert_allclose(value, alone, rtol=1e-5, atol=1e-7)
    for found, expected in zip(gradients, gradients_alone, strict=True):
        assert np.all(found[:, ~kept] == 0)
        np.testing.assert_allclose(found[:, kept], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.optimized
@every_kind
def test_identical_logits_have_exactly_no_divergence_and_no_gradient(kind):
    for shift in (0.0, 64.0):
        z, _ = drawn(shape=(64, 257))
        w = z + shift if shift else z
        z = w - shift if shift else z  # what the addition rounded is the same on both sides
        value, pull = jax.vjp(ours(kind), z, w)
        assert np.all(value == 0) or shift and np.all(np.abs(value) < 1e-12)
        assert all(np.all(np.abs(g) <= (2e-7 if shift else 0)) for g in pull(jnp.ones(64)))


@pytest.mark.optimized
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("size", [1e-5, 1.4e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_small_kl_keeps_its_digits(kind, size, temperature):
    """1.4e-5 makes divergences of 1e-10, where differences of float32 log-probabilities have lost them all."""
    z, w = drawn(near=size, shape=(64, 257))
    value = ours(kind, temperature=temperature)(z, w)
    true = exact(z, w, kind, temperature=temperature)
    np.testing.assert_allclose(value, true, rtol=3e-6)
    assert np.all(value > 0)


@every_kind
@pytest.mark.parametrize("offsets", [(1000.0, 0.0), (0.0, -1000.0), (1000.0, 1000.0)], ids=str)
def test_offset_of_all_logits(kind, offsets):
    z, w = (x + offset for x, offset in zip(drawn(), offsets, strict=True))
    np.testing.assert_allclose(rows_of(kind, z, w, ONES)[0], exact(z, w, kind, **KINDS[kind]), rtol=2e-6)


@pytest.mark.optimized
@every_kind
def test_never_negative(kind):
    for near in (1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 1.0):
        z, w = drawn(near=near, shape=(256, 33))
        assert np.all(ours(kind)(z, w) >= (0 if kind not in ("renyi", "alpha") else -1e-12))


def test_js_is_symmetric_and_bounded():
    z, w = drawn(spread=40.0)
    js = partial(crossent_jax.js_divergence, reduction="none")
    np.testing.assert_allclose(js(z, w), js(w, z), rtol=1e-6)
    np.testing.assert_allclose(js(z, w, beta=0.2), js(w, z, beta=0.8), rtol=1e-6)
    apart = jnp.array([[0.0, -INF]]), jnp.array([[-INF, 0.0]])
    np.testing.assert_allclose(js(*apart), np.log(2), rtol=1e-7)
    assert np.all(js(z, w) <= np.float32(np.log(2)))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_js_of_one_side_alone_is_nothing(beta):
    z, w = drawn()
    value, pull = jax.vjp(partial(crossent_jax.js_divergence, beta=beta, reduction="none"), z, w)
    assert np.all(np.abs(value) < 1e-10) and all(np.all(np.abs(g) < 1e-6) for g in pull(jnp.ones(N)))


def test_kl_is_cross_entropy_less_entropy():
    z, w = drawn()
    targets = jax.nn.softmax(w)
    entropy = crossent_jax.row_stats(w, jnp.zeros(N, int)).entropy
    cross_entropy = crossent_jax.soft_cross_entropy(z, targets, reduction="none")
    np.testing.assert_allclose(crossent_jax.kl_divergence(z, w, reduction="none"), cross_entropy - entropy, rtol=1e-5)


@pytest.mark.parametrize("order", [0.1, 0.999, 1.001, 40.0])
def test_renyi_orders(order):
    z, w = drawn()
    options = {"kind": "renyi", "order": order}
    value, gradients = value_and_gradients(partial(crossent_jax.divergence, reduction="none", **options), z, w)
    np.testing.assert_allclose(value, exact(z, w, **options), rtol=2e-5)
    for found, true in zip(gradients, exact_gradients(z, w, **options), strict=True):
        np.testing.assert_allclose(found, true, atol=2e-5 * np.abs(true).max())


@pytest.mark.parametrize("kind", ["renyi", "alpha"])
def test_order_one_is_kl(kind):
    z, w = drawn()
    one = crossent_jax.divergence(z, w, kind=kind, order=1, reduction="none")
    assert np.array_equal(one, crossent_jax.kl_divergence(z, w, reduction="none"))


@pytest.mark.parametrize("order", [0.1, 0.5, 0.9, 2.0, 3.0])
def test_renyi_at_every_distance(order):
    """The sum of powers goes to 0 below order 1, where 1 plus its excess has no digits, and overflows above."""
    apart = np.array([1e-2, 0.5, 2.0, 5.0, 10.0, 20.0, 30.0, 36.0, 40.0, 60.0, 66.0, 120.0], np.float32)
    z, w = (np.stack(sides, -1) for sides in ((0 * apart, apart), (apart, 0 * apart)))
    options = {"kind": "renyi", "order": order}
    value, gradients = value_and_gradients(partial(crossent_jax.divergence, reduction="none", **options), z, w)
    np.testing.assert_allclose(value, exact(z, w, **options), rtol=3e-6)
    for found, true in zip(gradients, exact_gradients(z, w, **options), strict=True):
        np.testing.assert_allclose(found, true, atol=3e-6)


@pytest.mark.parametrize("order", [0.5, 2.0])
def test_renyi_of_disjoint_classes_is_infinite(order):
    z, w = np.float32([[0.3, -INF, 1.0]]), np.float32([[-INF, 3.0, -INF]])
    value, gradients = value_and_gradients(
        partial(crossent_jax.divergence, kind="renyi", order=order, reduction="none"), z, w
    )
    assert value == INF and all(np.all(np.asarray(gradient) == 0) for gradient in gradients)


# --- limits ---------------------------------------------------------------------------------------

MASKED = np.float32([[0.5, -INF, 1.0, -0.3]])
WHOLE = np.float32([[0.1, 0.2, -1.0, 0.4]])
LN2 = np.log(2)


@grid.quick
def limits(z, w):
    """Value and gradients of the kinds that :func:`test_teacher_without_a_class` knows the limits of."""
    kinds = ("forward_kl", "reverse_kl", "jeffreys", "js", "total_variation")
    return {kind: jax.value_and_grad(partial(crossent_jax.divergence, kind=kind), (0, 1))(z, w) for kind in kinds}


def test_teacher_without_a_class():
    """A masked vocabulary of the teacher: t = 0 where p is not."""
    kept = [0, 2, 3]
    p = np.exp(log_softmax(np, np.float64(WHOLE), np.ones((1, 4), bool)))[0]
    t = np.exp(log_softmax(np, np.float64(MASKED)[:, kept], np.ones((1, 3), bool)))[0]
    forward = np.sum(t * np.log(t / p[kept]))
    m = (np.array([t[0], 0, t[1], t[2]]) + p) / 2
    js = (np.sum(t * np.log(t / m[kept])) + np.sum(p * np.log(p / m))) / 2
    expected = {"forward_kl": forward, "reverse_kl": INF, "jeffreys": INF, "js": js,
                "total_variation": (np.abs(t - p[kept]).sum() + p[1]) / 2}  # fmt: skip
    for kind, (found, gradients) in jax.tree.map(np.asarray, limits(WHOLE, MASKED)).items():
        np.testing.assert_allclose(found, expected[kind], rtol=1e-6)
        assert all(np.all(np.isfinite(g)) for g in gradients) and gradients[1][0, 1] == 0
        if kind in ("reverse_kl", "jeffreys"):
            assert np.all(gradients[0] == 0)  # no finite limit
    grads = [np.asarray(g) for g in jax.grad(crossent_jax.kl_divergence, (0, 1))(WHOLE, MASKED)]
    np.testing.assert_allclose(grads[0][0], p - np.array([t[0], 0, t[1], t[2]]), rtol=1e-5, atol=1e-7)
    ratio = np.log(t / p[kept])
    np.testing.assert_allclose(grads[1][0, kept], t * (ratio - forward), rtol=1e-5, atol=1e-7)


def test_student_without_a_class_of_the_teacher():
    value, gradients = jax.value_and_grad(crossent_jax.kl_divergence, (0, 1))(MASKED, WHOLE)
    to_student, to_teacher = (np.asarray(g) for g in gradients)
    kept = [0, 2, 3]
    t = exact_probabilities(WHOLE, WHOLE)[0]
    p = exact_probabilities(MASKED[:, kept], WHOLE)[0]
    assert value == INF and to_student[0, 1] == 0 and np.all(to_teacher == 0)
    np.testing.assert_allclose(to_student[:, kept], p - t[:, kept], rtol=1e-5)
    reverse = crossent_jax.reverse_kl_divergence(MASKED, WHOLE)
    np.testing.assert_allclose(reverse, np.sum(p * np.log(p / t[:, kept])), rtol=1e-5)


@every_kind
def test_rows_without_any_class(kind):
    z, w = drawn()
    z[[0, 1]] = w[[0, 2]] = -INF
    value, gradients = rows_of(kind, z, w, ONES)
    np.testing.assert_array_equal(value[:3], [0, INF, INF])
    assert np.all(np.isfinite(value[3:]))
    assert all(np.all(g[:3] == 0) for g in gradients)


@every_kind
@pytest.mark.parametrize("bad", [np.nan, INF])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_and_inf_show_in_their_row_alone(kind, bad, side):
    both = drawn()
    clean, _ = rows_of(kind, *both, ONES)
    both[side][2, 5] = bad
    others = np.arange(N) != 2
    value, gradients = rows_of(kind, *both, np.float32(others))
    assert np.isnan(value[2])
    np.testing.assert_allclose(value[others], clean[others], rtol=1e-6)
    for g in gradients:  # a caller who masks the loss gets no NaN back
        assert np.all(np.isfinite(g)) and np.all(g[2] == 0)


def test_a_one_hot_teacher_is_a_label():
    z, _ = drawn()
    labels = np.array([3, 0, 36, 7, 7])
    one_hot = np.where(labels[:, None] == np.arange(V), 0, -INF).astype(np.float32)
    found, (gradient, _) = rows_of("forward_kl", z, one_hot, ONES)
    hard, (gradient_hard,) = value_and_gradients(lambda z: crossent_jax.cross_entropy(z, labels, reduction="none"), z)
    np.testing.assert_allclose(found, hard, rtol=1e-6)
    np.testing.assert_allclose(gradient, gradient_hard, rtol=1e-5, atol=1e-7)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "implementation, reduction", [(None, "mean"), ("reference", "sum"), (None, "loss_sum"), ("reference", "none")]
)
def test_rows_weights_and_reductions(implementation, reduction):
    z, w = drawn()
    z[1] = w[3] = np.nan
    where, weights = np.array([True, False, True, True, True]), np.float32([0.5, 1.0, 2.0, 0.0, 1.0])
    rows = np.nan_to_num(exact(np.nan_to_num(z), np.nan_to_num(w), "forward_kl"))
    scale = np.array([0.5, 0, 2, 0, 1])
    total = (scale * rows).sum()

    def loss(z, w, weights):
        out = crossent_jax.kl_divergence(
            z, w, where=where, row_weights=weights, reduction=reduction, implementation=implementation
        )
        return out.mean() if reduction == "loss_sum" else out.sum() if reduction == "none" else out

    expected = total if reduction in ("sum", "none") else total / 3.5
    value, gradients = jax.tree.map(np.asarray, grid.quick(jax.value_and_grad(loss, (0, 1, 2)))(z, w, weights))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert all(np.all(g[[1, 3]] == 0) for g in gradients[:2])
    norm = 1 if reduction in ("sum", "none") else 3.5
    true = exact_gradients(np.nan_to_num(z), np.nan_to_num(w), "forward_kl", weights=scale / norm)
    for found, expect in zip(gradients[:2], true, strict=True):
        np.testing.assert_allclose(found, expect, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("kind", ["forward_kl", "js", "renyi"])
def test_temperature_is_differentiable(kind):
    z, w = drawn()
    with x64():
        wide = [np.float64(x) for x in (z, w)]
        true = grid.quick(jax.grad(lambda t: true_rows(jnp, *wide, kind, temperature=t, **KINDS[kind]).sum()))(1.7)
    found = grid.quick(jax.grad(lambda t: ours(kind, temperature=t)(z, w).sum()))(np.float32(1.7))
    np.testing.assert_allclose(found, true, rtol=1e-5)


def test_beta_is_differentiable():
    z, w = drawn()
    with x64():
        wide = [np.float64(x) for x in (z, w)]
        true = grid.quick(jax.grad(lambda b: true_rows(jnp, *wide, "js", beta=b).sum()))(0.3)
    found = grid.quick(jax.grad(lambda b: crossent_jax.js_divergence(z, w, beta=b, reduction="sum")))(np.float32(0.3))
    np.testing.assert_allclose(found, true, rtol=1e-5)


def test_temperature_squared():
    z, w = drawn()
    plain = crossent_jax.kl_divergence(z, w, temperature=3.0)
    scaled = crossent_jax.kl_divergence(z, w, temperature=3.0, scale_by_temperature_squared=True)
    np.testing.assert_allclose(scaled, 9 * plain, rtol=1e-6)
    assert crossent_jax.kl_divergence(z, w, scale_by_temperature_squared=True) == crossent_jax.kl_divergence(z, w)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_teacher_gradient_is_exact_or_stopped_at_every_temperature(temperature, implementation):
    """A peer gives 0 at temperature 1 and the gradient at 2."""
    z, w = drawn()
    loss = partial(crossent_jax.kl_divergence, temperature=temperature, reduction="sum", implementation=implementation)
    both = [jax.grad(partial(loss, stop_teacher_gradient=stop), (0, 1)) for stop in (True, False)]
    stopped, given = jax.tree.map(np.asarray, grid.quick(lambda *p: [gradients(*p) for gradients in both])(z, w))
    true = exact_gradients(z, w, "forward_kl", temperature=temperature)
    assert np.array_equal(stopped[0], given[0]) and np.all(stopped[1] == 0)
    np.testing.assert_allclose(given[1], true[1], rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("implementation", [None, "reference"])
def test_hard_and_soft_targets_in_one_pass(implementation):
    z, w = drawn()
    labels = np.array([3, -100, 36, 99, 0])
    options = {"reduction": "none", "implementation": implementation}

    def both(z):
        return crossent_jax.kl_divergence(
            z, w, labels=labels, label_weight=0.3, ignore_index=-100, temperature=2.0,
            scale_by_temperature_squared=True, **options,
        )  # fmt: skip

    def apart(z):
        soft = 4 * crossent_jax.kl_divergence(z, w, temperature=2.0, **options)
        return 0.7 * soft + 0.3 * crossent_jax.cross_entropy(z, labels, ignore_index=-100, **options)

    kept = [0, 2, 4]
    value, (found,) = value_and_gradients(both, z)
    expected, (true,) = value_and_gradients(apart, z)
    np.testing.assert_allclose(value[kept], expected[kept], rtol=1e-6)
    assert value[1] == 0 and np.isnan(value[3])
    np.testing.assert_allclose(found[kept], true[kept], rtol=1e-5, atol=1e-6)
    assert np.all(found[[1, 3]] == 0)


@pytest.mark.parametrize(
    "kind, shape, axis", [("js", (2, V, 3), 1), ("forward_kl", (V, N), 0), ("forward_kl", (2, 3, V), -1), ("js", (V,), 0)]
)
def test_any_class_axis(kind, shape, axis):
    z, w = drawn(shape=shape)
    value, gradients = value_and_gradients(ours(kind, axis=axis), z, w)
    rows = [np.moveaxis(x, axis, -1).reshape(-1, V) for x in (z, w)]
    expected, gradients_expected = value_and_gradients(ours(kind), *rows)
    np.testing.assert_allclose(np.ravel(value), expected, rtol=1e-6)
    for g, g_expected in zip(gradients, gradients_expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(g, axis, -1).reshape(-1, V), g_expected, rtol=1e-6, atol=1e-8)


def test_empty_batch():
    z = jnp.zeros((0, V))
    assert crossent_jax.kl_divergence(z, z) == 0
    assert crossent_jax.kl_divergence(z, z, reduction="none").shape == (0,)
    assert jax.grad(crossent_jax.kl_divergence)(z, z).shape == (0, V)


def test_float64_and_mixed_dtypes():
    z, w = drawn()
    with x64():
        wide = jnp.asarray(np.float64(z)), jnp.asarray(np.float64(w))
        value = crossent_jax.kl_divergence(*wide, reduction="none")
        mixed = crossent_jax.kl_divergence(z, wide[1], reduction="none")
        assert value.dtype == mixed.dtype == np.float64
        np.testing.assert_allclose(value, exact(z, w, "forward_kl"), rtol=1e-13)
        np.testing.assert_allclose(mixed, value, rtol=1e-13)
        small = crossent_jax.kl_divergence(wide[1] + 1e-6 * wide[0], wide[1], reduction="none")
        np.testing.assert_allclose(small, exact(wide[1] + 1e-6 * wide[0], wide[1], "forward_kl"), rtol=1e-4)
    gradients = jax.grad(crossent_jax.kl_divergence, (0, 1))(z.astype(jnp.bfloat16), w)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


# --- a user's own ---------------------------------------------------------------------------------


def hellinger(log_p, log_t):
    return (jnp.exp(log_p / 2) - jnp.exp(log_t / 2)) ** 2 / 2


def forward_kl_of_logs(log_p, log_t):
    return jnp.exp(log_t) * (log_t - log_p)


def forward_kl_with_derivatives(log_p, log_t):
    t = jnp.exp(log_t)
    return t * (log_t - log_p), -t, t * (log_t - log_p + 1)


@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize("function", [forward_kl_of_logs, forward_kl_with_derivatives])
def test_a_users_kl_is_ours(function, implementation):
    z, w = drawn()
    options = {"temperature": 1.5, "implementation": implementation}
    found, gradients = value_and_gradients(
        partial(crossent_jax.divergence, kind=function, reduction="none", **options), z, w
    )
    expected, gradients_expected = rows_of("forward_kl", z, w, ONES, **options)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    for g, g_expected in zip(gradients, gradients_expected, strict=True):
        np.testing.assert_allclose(g, g_expected, rtol=1e-4, atol=1e-6)


def test_a_users_divergence_meets_masked_classes():
    kept = [0, 2, 3]
    masked, whole = np.where(MASKED == -INF, MASKED, WHOLE), MASKED
    function = partial(crossent_jax.divergence, kind=forward_kl_of_logs, reduction="none")
    value, gradients = value_and_gradients(function, masked, whole)
    np.testing.assert_allclose(value, exact(masked[:, kept], whole[:, kept], "forward_kl"), rtol=1e-6)
    assert all(np.all(np.isfinite(g)) and g[0, 1] == 0 for g in gradients)


def test_a_users_divergence_with_a_closure_over_an_array():
    z, w = drawn()
    weights = jnp.asarray(np.linspace(0, 1, V, dtype=np.float32))

    def weighted(log_p, log_t):
        return jnp.broadcast_to(weights[None, : log_p.shape[-1]], log_p.shape) * hellinger(log_p, log_t)

    p, t = exact_probabilities(z, w)
    expected = (np.asarray(weights) * (np.sqrt(p) - np.sqrt(t)) ** 2).sum(-1) / 2
    np.testing.assert_allclose(crossent_jax.divergence(z, w, kind=weighted, reduction="none"), expected, rtol=1e-5)


@pytest.mark.parametrize("linear", [False, True], ids=["dense", "linear"])
def test_what_a_users_divergence_closes_over_has_derivatives(linear):
    """A number and an array of each class, under jit: ``sum_j scale w_j t_j (log t_j - log p_j)``."""
    student, teacher = map(jnp.asarray, drawn(shape=(N, 11)))
    weights = jnp.linspace(0.5, 2, 11)

    def loss(scale, weights, student):
        def kind(log_p, log_t):
            each = jnp.broadcast_to(scale * weights[None, : log_p.shape[-1]], log_p.shape)
            return each * jnp.exp(log_t) * (log_t - log_p)

        if not linear:
            return crossent_jax.divergence(student, teacher, kind=kind)
        head = jnp.eye(11)
        return crossent_jax.linear_divergence(student, head, teacher_logits=teacher, kind=kind, chunk_rows=2)

    def formula(scale, weights, student):
        log_p, log_t = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
        return jnp.mean(jnp.sum(scale * weights[None] * jnp.exp(log_t) * (log_t - log_p), -1))

    ours, right = (grid.quick(jax.value_and_grad(f, (0, 1, 2)))(2.0, weights, student) for f in (loss, formula))
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_equal_functions_share_a_compilation():
    z, w = drawn(shape=(3, 11))
    loss = jax.jit(lambda z, w: crossent_jax.divergence(z, w, kind=lambda a, b: jnp.exp(b) * (b - a)))
    loss(z, w)
    from crossent_jax._pairs import rows

    before = rows.pair_loss_jitted._cache_size()
    for _ in range(3):
        crossent_jax.divergence(z, w, kind=lambda a, b: jnp.exp(b) * (b - a))
    assert rows.pair_loss_jitted._cache_size() - before <= 1


# --- transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forward_kl", "js", "renyi"])
def test_transforms_agree(kind):
    z, w = drawn()

    def total(*both, implementation=None):
        return ours(kind, implementation=implementation)(*both).sum()

    @grid.quick
    def transforms(z, w):
        reference = partial(total, implementation="reference")
        gradients = jax.jacrev(reference, (0, 1))(z, w), jax.jacfwd(reference, (0, 1))(z, w)
        one_teacher = jax.vmap(jax.grad(total), (0, None))(z, w[0])
        return gradients, jax.vmap(ours(kind))(z, w), one_teacher

    (reverse, forward), mapped, one_teacher = transforms(z, w)
    value, fused = rows_of(kind, z, w, ONES)
    for a, b, c in zip(reverse, forward, fused, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mapped, value, rtol=1e-5)
    _, (each, _) = rows_of(kind, z, np.broadcast_to(w[0], w.shape), ONES)
    np.testing.assert_allclose(one_teacher, each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward_kl", "js"])
def test_second_derivatives(kind):
    z, w = drawn(shape=(2, 5))
    with x64():
        z, w = np.float64(z), np.float64(w)
        true = grid.quick(jax.hessian(lambda z: true_rows(jnp, z, w, kind, **KINDS[kind]).sum()))(z)
        found = grid.quick(jax.hessian(lambda z: ours(kind, implementation="reference")(z, w).sum()))(z)
        np.testing.assert_allclose(found, true, rtol=1e-8, atol=1e-10)
        again = grid.quick(jax.jacrev(jax.grad(lambda z: ours(kind)(z, w).sum())))(z)
        np.testing.assert_allclose(again, true, rtol=1e-8, atol=1e-10)
