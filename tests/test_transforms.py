"""Every transform of JAX on every backend: the right answer, or the TypeError that the documentation names."""

import threading
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossent_jax

from . import grid

ROWS, CLASSES = 6, 7
MASK = jnp.arange(CLASSES) != 2
LABELS = jnp.array([0, 1, 3, 4, 5, 6])
LOGITS = 3 * jax.random.normal(jax.random.key(0), (ROWS, CLASSES))
LOG_PROBS = np.asarray(jax.nn.log_softmax(LOGITS))
FORWARD_MODE = [name for name in grid.BACKENDS if name not in grid.CUSTOM_VJP_BACKENDS]
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "entropy_weight": 0.1, "focal_gamma": 2.0, "softcap": 5.0}


def loss(logits, labels=LABELS, **options):
    return crossent_jax.cross_entropy(logits, labels, class_mask=MASK, **OPTIONS, **options)


def plain(logits):
    """``loss`` from its definition."""
    u = 5.0 * jnp.tanh(logits / 5.0)
    u = jnp.where(MASK, u, -1e30)
    lse = jax.nn.logsumexp(u, -1)
    log_p = u - lse[..., None]
    p = jnp.exp(log_p)
    nll = -jnp.take_along_axis(log_p, LABELS[:, None], -1)[..., 0]
    prior = -jnp.sum(jnp.where(MASK, log_p, 0), -1) / (CLASSES - 1)
    entropy = -jnp.sum(jnp.where(MASK, p * log_p, 0), -1)
    return jnp.mean(0.9 * (1 - jnp.exp(-nll)) ** 2 * nll + 0.1 * prior + 0.01 * lse**2 - 0.1 * entropy)


gradient_of_plain, hessian_of_plain = grid.quick(jax.value_and_grad(plain)), grid.quick(jax.hessian(plain))


def close(a, b, tolerance=3e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.fixture(params=grid.BACKENDS)
def implementation(request):
    return request.param


@pytest.fixture
def ours(implementation):
    return lambda logits: loss(logits, implementation=implementation)


def test_value_and_gradient(ours):
    close(jax.value_and_grad(ours)(LOGITS), gradient_of_plain(LOGITS))


def test_jit_and_eager_agree(ours):
    close(jax.jit(jax.value_and_grad(ours))(LOGITS), jax.value_and_grad(ours)(LOGITS), 1e-7)


def test_vmap_of_grad_and_grad_of_vmap(ours):
    batch = np.stack([LOGITS, -LOGITS, 2 * LOGITS])
    expected = np.stack([gradient_of_plain(logits)[1] for logits in batch])
    found = grid.quick(lambda z: (jax.vmap(jax.grad(ours))(z), jax.grad(lambda z: jax.vmap(ours)(z).sum())(z)))(batch)
    close(found, (expected, expected))


def test_vmap_over_single_rows_is_the_batch(implementation):
    def row(logits, label):
        return crossent_jax.cross_entropy(logits, label, implementation=implementation)

    batch = crossent_jax.cross_entropy(LOGITS, LABELS, reduction="none")
    close(jax.vmap(row)(LOGITS, LABELS), batch)
    close(jax.vmap(row, in_axes=(1, 0))(LOGITS.T, LABELS), batch)


OPERANDS = {  # three examples of each
    "logits": np.stack([LOGITS, -LOGITS, 2 * LOGITS]),
    "labels": np.stack([LABELS, LABELS[::-1], 6 - LABELS]),
    "class_weights": np.linspace(0.5, 2, 3 * CLASSES, dtype=np.float32).reshape(3, CLASSES),
    "temperature": np.float32([0.5, 1.0, 2.0]),
}


def gradients_of_shared_operands(mapped, total, implementation):
    """Of ``total(loss of an example, examples)``, the other operands being the first of theirs."""
    shared = {name: batch[0] for name, batch in OPERANDS.items() if name != mapped}
    trained = {name: value for name, value in shared.items() if name != "labels"}

    def of(trained, example):
        options = {"label_smoothing": 0.1, "implementation": implementation} | shared | trained | {mapped: example}
        return crossent_jax.cross_entropy(**options)

    return grid.quick(jax.grad(lambda trained: total(partial(of, trained), OPERANDS[mapped])))(trained)


@cache
def gradients_of_examples_one_by_one(mapped):
    return gradients_of_shared_operands(mapped, lambda of, examples: sum(map(of, examples)), "xla")


@pytest.mark.parametrize("mapped", OPERANDS)
def test_operands_shared_across_a_vmap_get_the_sum_of_their_gradients(mapped, implementation):
    """One row of logits scored with many labels, and the like: the shared operand's gradient counts each example once."""
    got = gradients_of_shared_operands(mapped, lambda of, examples: jax.vmap(of)(examples).sum(), implementation)
    close(got, gradients_of_examples_one_by_one(mapped), 1e-5)


def test_a_row_masked_after_vmap_gets_no_gradient_from_its_nan():
    logits = np.array(LOGITS)
    logits[1, 2] = np.nan
    kept = np.arange(ROWS) != 1

    def total(z):
        return jnp.where(kept, jax.vmap(crossent_jax.cross_entropy)(z, LABELS), 0).sum()

    gradient = np.asarray(grid.quick(jax.grad(total))(logits))
    assert (gradient[1] == 0).all() and np.isfinite(gradient).all()


def test_scan_and_remat(ours):
    def step(total, logits):
        return total + jax.checkpoint(ours)(logits), None

    batch = np.stack([LOGITS, -LOGITS])
    gradient = grid.quick(jax.grad(lambda z: jax.lax.scan(step, jnp.float32(0), z)[0]))(batch)
    close(gradient, np.stack([gradient_of_plain(logits)[1] for logits in batch]))


def test_hessian_and_reverse_over_reverse(ours):
    expected = hessian_of_plain(LOGITS)
    close(grid.quick(jax.hessian(ours))(LOGITS), expected, 1e-5)
    close(grid.quick(jax.jacrev(jax.grad(ours)))(LOGITS), expected, 1e-5)


def test_hessian_vector_product_forward_over_reverse(ours):
    def product(f):
        return grid.quick(lambda z: jax.jvp(jax.grad(f), (z,), (jnp.cos(z),)))(LOGITS)

    close(product(ours), product(plain), 1e-5)


@pytest.mark.parametrize("name", grid.BACKENDS)
def test_forward_mode_is_right_or_refused(name):
    tangent = jnp.cos(LOGITS)

    def ours(logits):
        return loss(logits, implementation=name)

    attempts = [
        lambda f: jax.jvp(f, (LOGITS,), (tangent,)),
        lambda f: jax.linearize(f, LOGITS)[1](tangent),
        lambda f: jax.jacfwd(f)(LOGITS),
    ]
    if name in FORWARD_MODE:
        close(*grid.quick(lambda: [[attempt(f) for attempt in attempts] for f in (ours, plain)])())
    else:
        for attempt in attempts:
            with pytest.raises(TypeError, match="custom_vjp"):
                attempt(ours)


def test_every_statistic_is_differentiable(implementation):
    def plain_stats(logits):
        log_p = jax.nn.log_softmax(logits)
        return (
            jax.nn.logsumexp(logits, -1),
            -log_p[jnp.arange(ROWS), LABELS],
            -log_p.mean(-1),
            -(jnp.exp(log_p) * log_p).sum(-1),
            jnp.exp(log_p[jnp.arange(ROWS), LABELS]),
        )

    def stats(logits):
        found = crossent_jax.row_stats(logits, LABELS, implementation=implementation)
        return found.lse, found.nll, found.ce_prior, found.entropy, found.target_probability

    close(*(grid.quick(jax.jacrev(f))(LOGITS) for f in (stats, plain_stats)))


def test_temperature_is_learnable(implementation):
    def at(temperature):
        return crossent_jax.cross_entropy(LOGITS, LABELS, temperature=temperature, implementation=implementation)

    expected = grid.quick(jax.grad(lambda t: crossent_jax.cross_entropy(LOGITS / t, LABELS)))(np.float32(2))
    close(jax.grad(at)(np.float32(2)), expected)


def test_weights_are_differentiable(implementation):
    def ours(class_weights, row_weights):
        options = {"label_smoothing": 0.2, "implementation": implementation}
        return crossent_jax.cross_entropy(LOGITS, LABELS, class_weights=class_weights, row_weights=row_weights, **options)

    def definition(class_weights, row_weights):
        log_p = jax.nn.log_softmax(LOGITS)
        weight = class_weights[LABELS]
        smooth = -(class_weights * log_p).sum(-1) / CLASSES
        each = -0.8 * weight * log_p[jnp.arange(ROWS), LABELS] + 0.2 * smooth
        return (row_weights * each).sum() / (row_weights * weight).sum()

    weights = jnp.linspace(0.5, 2, CLASSES), jnp.linspace(0.1, 1, ROWS)
    with jax.numpy_rank_promotion("allow"):
        expected = grid.quick(jax.value_and_grad(definition, argnums=(0, 1)))(*weights)
    close(jax.value_and_grad(ours, argnums=(0, 1))(*weights), expected)


def test_soft_targets_are_differentiable(implementation):
    targets = np.float32(np.exp(LOG_PROBS[::-1]))

    def ours(t):
        return crossent_jax.soft_cross_entropy(LOGITS, t, implementation=implementation, reduction="sum")

    close(jax.grad(ours)(targets), -LOG_PROBS)


def test_one_compilation_over_changing_options(implementation):
    names = ("label_smoothing", "z_loss", "focal_gamma", "poly_epsilon", "entropy_weight", "temperature")

    @jax.jit
    def step(logits, values):
        options = dict(zip(names, values, strict=True))
        return jax.grad(lambda z: crossent_jax.cross_entropy(z, LABELS, implementation=implementation, **options))(logits)

    for i in range(100):
        step(LOGITS, [jnp.float32((i + 1) / 200)] * len(names))
    assert step._cache_size() == 1


def test_eager_calls_with_changing_numbers_compile_once():
    from crossent_jax._api.label_losses import loss_of_rows

    crossent_jax.cross_entropy(LOGITS, LABELS, label_smoothing=0.5, z_loss=0.5)
    before = loss_of_rows._cache_size()
    for i in range(10):
        crossent_jax.cross_entropy(LOGITS, LABELS, label_smoothing=0.1 + i / 100, z_loss=0.1 + i)
    assert loss_of_rows._cache_size() == before


def test_clean_under_debug_nans_and_leak_checking(implementation):
    hard = LOGITS.at[0].set(jnp.array([1e4, -1e4, 0.0, -jnp.inf, 30.0, 0.0, 0.0]))
    labels = LABELS.at[1].set(-100)
    options = {"ignore_index": -100, "implementation": implementation} | OPTIONS
    with jax.debug_nans(True), grid.checking_leaks():
        loss, gradient = jax.jit(jax.value_and_grad(lambda z: crossent_jax.cross_entropy(z, labels, **options)))(hard)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_labels_of_any_integer_dtype(dtype, implementation):
    labels = np.asarray(LABELS).astype(dtype)
    expected = crossent_jax.cross_entropy(LOGITS, LABELS)
    np.testing.assert_array_equal(crossent_jax.cross_entropy(LOGITS, labels, implementation=implementation), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_loss_is_float32_and_gradients_have_the_primals_dtype(dtype, implementation):
    def loss(logits, weights):
        return crossent_jax.cross_entropy(logits, LABELS, class_weights=weights, implementation=implementation)

    value, gradients = grid.quick(jax.value_and_grad(loss, argnums=(0, 1)))(LOGITS.astype(dtype), jnp.ones(CLASSES, dtype))
    assert value.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [dtype, dtype]


@pytest.mark.parametrize("axis", [0, 1, 2, -3])
def test_any_class_axis(axis, implementation):
    batch = np.stack([LOGITS, -LOGITS])
    labels = np.stack([LABELS, LABELS[::-1]])
    expected = crossent_jax.cross_entropy(batch, labels, label_smoothing=0.1, reduction="none")
    moved = np.moveaxis(batch, -1, axis)
    options = {"axis": axis, "label_smoothing": 0.1, "reduction": "none", "implementation": implementation}
    close(crossent_jax.cross_entropy(moved, labels, **options), expected, 1e-6)


def test_explain_names_the_backend_and_the_remedy():
    (decision,) = crossent_jax.explain(crossent_jax.cross_entropy, LOGITS, LABELS)
    assert decision.backend == "xla"
    assert "no forward mode" in str(decision) and "reference" in str(decision)
    (asked,) = crossent_jax.explain(jax.jit(lambda z: loss(z, implementation="reference")), LOGITS)
    assert asked.backend == "reference" and "by implementation=" in str(asked)
    assert len(crossent_jax.explain(lambda z: loss(z) + loss(2 * z), LOGITS)) == 2


def test_explain_of_nested_and_of_other_threads_is_its_own():
    """Each sees the losses inside it, and no other thread's."""
    start, seen = threading.Barrier(2), {}

    def two(z):
        inner = crossent_jax.explain(loss, z)
        assert len(inner) == 1
        return loss(z) + loss(2 * z)

    def watch(name, function):
        def slowly(z):
            start.wait()
            value = function(z)
            start.wait()
            return value

        seen[name] = len(crossent_jax.explain(slowly, LOGITS))

    threads = [threading.Thread(target=watch, args=pair) for pair in (("one", loss), ("nested", two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"one": 1, "nested": 3}  # the nested call's loss is inside it too
