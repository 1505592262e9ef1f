"""Every transform of JAX on a linear loss: the right answer, or the TypeError that the documentation names; the number of
products that a program holds; and a vocabulary split over a mesh axis, which equals the whole."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import crossent_jax
from crossent_jax import linear_cross_entropy

from . import grid

ROWS, FEATURES, CLASSES = 6, 3, 7
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "chunk_rows": 4}
HIDDEN = jax.random.normal(jax.random.key(0), (ROWS, FEATURES))
HEAD = 2 * jax.random.normal(jax.random.key(1), (FEATURES, CLASSES))
LABELS = jnp.array([0, 1, 3, 4, 5, 6])
BOTH = (HIDDEN, HEAD)
BATCHES = {
    "hidden": (jnp.stack([HIDDEN, -HIDDEN, 2 * HIDDEN]), HEAD, LABELS),
    "head": (HIDDEN, jnp.stack([HEAD, -HEAD, 2 * HEAD]), LABELS),
    "labels": (HIDDEN, HEAD, jnp.stack([LABELS, LABELS[::-1], 6 - LABELS])),
}
AXES = {"hidden": (0, None, None), "head": (None, 0, None), "labels": (None, None, 0)}
reductions = pytest.mark.parametrize("reduction", ("mean", "none"))


def loss(hidden, head, labels=LABELS, **options):
    return jnp.mean(linear_cross_entropy(hidden, head, labels, **OPTIONS, **options))


def plain(hidden, head, labels=LABELS):
    """``loss`` from its definition."""
    u = 5 * jnp.tanh(hidden @ head / 5)
    lse = jax.nn.logsumexp(u, -1)
    log_p = u - lse[:, None]
    nll = -jnp.take_along_axis(log_p, labels[:, None], -1)[:, 0]
    return jnp.mean(0.9 * nll - 0.1 * log_p.mean(-1) + 0.01 * lse**2)


@cache
def plain_gradients():
    return grid.quick(jax.value_and_grad(plain, (0, 1)))(*BOTH)


def close(a, b, tolerance=3e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def mapped_gradients(function, mapped):
    axes = AXES[mapped]

    def both(x, w, labels):
        each = jax.vmap(jax.value_and_grad(function, (0, 1)), axes)(x, w, labels)
        return each, jax.grad(lambda x, w: jax.vmap(function, axes)(x, w, labels).sum(), (0, 1))(x, w)

    return grid.quick(both)(*BATCHES[mapped])


@cache
def plain_mapped_gradients(mapped):
    return mapped_gradients(plain, mapped)


@pytest.mark.parametrize(
    "mapped, reduction, backend",
    [(mapped, reduction, "xla") for mapped in BATCHES for reduction in ("mean", "none")] + [("head", "mean", "reference")],
)
def test_vmap_of_grad_and_grad_of_vmap(mapped, reduction, backend):
    """What is shared across the map gets the sum of its gradients, each counted once."""

    def ours(*given):
        return loss(*given, reduction=reduction, implementation=backend)

    close(mapped_gradients(ours, mapped), plain_mapped_gradients(mapped), 1e-5)


@cache
def plain_gradients_of_a_sum():
    batch, head, _ = BATCHES["hidden"]
    return grid.quick(jax.grad(lambda batch, head: sum(plain(x, head) for x in batch), (0, 1)))(batch, head)


@reductions
def test_eager_jit_scan_and_checkpoint(reduction):
    def ours(hidden, head):
        return loss(hidden, head, reduction=reduction)

    found = jax.value_and_grad(ours, (0, 1))(*BOTH)
    close(found, plain_gradients())
    close(jax.jit(jax.value_and_grad(jax.checkpoint(ours), (0, 1)))(*BOTH), found, 1e-6)

    def summed(batch, head):
        return jax.lax.scan(lambda total, x: (total + jax.checkpoint(ours)(x, head), None), jnp.float32(0), batch)[0]

    close(jax.grad(summed, (0, 1))(BATCHES["hidden"][0], HEAD), plain_gradients_of_a_sum(), 1e-5)


TANGENTS = np.cos(HIDDEN), np.sin(HEAD)


def forward_modes(f, *both):
    return jax.jvp(f, both, TANGENTS), jax.linearize(f, *both)[1](*TANGENTS), jax.jacfwd(f, (0, 1))(*both)


def reverse_over_reverse(f, *both):
    """A Hessian-vector product."""

    def slope(*both):
        return sum(jnp.vdot(g, t) for g, t in zip(jax.grad(f, (0, 1))(*both), TANGENTS, strict=True))

    return jax.grad(slope, (0, 1))(*both)


def second_derivatives(f, *both):
    """Hessian-vector products, both ways."""
    return jax.jvp(jax.grad(f, (0, 1)), both, TANGENTS), reverse_over_reverse(f, *both)


@pytest.mark.parametrize("reduction, derivatives", [("mean", forward_modes), ("none", second_derivatives)])
def test_forward_mode_of_the_reference(reduction, derivatives):
    def ours(hidden, head):
        return loss(hidden, head, reduction=reduction, implementation="reference")

    close(*(grid.quick(partial(derivatives, f))(*BOTH) for f in (ours, plain)), 1e-5)


@reductions
def test_forward_mode_is_refused_elsewhere(reduction):
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: loss(x, HEAD, reduction=reduction, implementation="xla"), (HIDDEN,), (HIDDEN,))


@cache
def plain_reverse_over_reverse():
    return grid.quick(partial(reverse_over_reverse, plain))(*BOTH)


@reductions
def test_reverse_over_reverse(reduction):
    """Kept gradients are differentiated like any other number."""

    def ours(hidden, head):
        return loss(hidden, head, reduction=reduction, implementation="xla")

    close(grid.quick(partial(reverse_over_reverse, ours))(*BOTH), plain_reverse_over_reverse(), 1e-5)


FROZEN = np.cos(HEAD)


@cache
def plain_trained_and_frozen():
    return grid.quick(jax.grad(lambda hidden, head: plain(hidden, head) + plain(hidden, FROZEN), (0, 1)))(*BOTH)


@reductions
@pytest.mark.parametrize("first", ["trained", "frozen"])
def test_one_call_with_a_trained_and_with_a_frozen_head(first, reduction):
    """As with a reference policy: equal calls in one program, of which one is not differentiated in the head."""

    def total(hidden, head):
        heads = (head, FROZEN) if first == "trained" else (FROZEN, head)
        return sum(loss(hidden, each, reduction=reduction, implementation="xla") for each in heads)

    right = plain_trained_and_frozen()
    jax.clear_caches()
    close(grid.quick(jax.grad(total, (0, 1)))(*BOTH), right, 1e-5)


@reductions
def test_clean_under_debug_nans_and_leak_checking(reduction):
    hidden, labels = HIDDEN.at[0].set(jnp.array([1e4, -1e4, 0.0])), LABELS.at[1].set(-100)
    with jax.debug_nans(True), grid.checking_leaks():
        function = jax.jit(
            jax.value_and_grad(lambda x, w: loss(x, w, labels, ignore_index=-100, reduction=reduction), (0, 1))
        )
        value, gradients = function(hidden, HEAD)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    assert not gradients[0][1].any()


# --- products --------------------------------------------------------------------------------------

PRODUCTS = {
    "nothing": (None, "mean", 1),
    "hidden": ((0,), "mean", 2),
    "head": ((1,), "mean", 2),
    "both": ((0, 1), "mean", 3),
    "both, none": ((0, 1), "none", 4),
    "hidden, none": ((0,), "none", 3),
}


def products_of(function):
    return jax.jit(function).lower(*BOTH).as_text().count("stablehlo.dot_general")


def total_loss(reduction):
    def total(hidden, head):
        return jnp.sum(
            linear_cross_entropy(hidden, head, LABELS, chunk_rows=ROWS, reduction=reduction, implementation="xla")
        )

    return total


@pytest.mark.parametrize("case", PRODUCTS)
def test_number_of_products(case):
    """What is not differentiated costs no product: a frozen head two, not three."""
    wanted, reduction, products = PRODUCTS[case]
    total = total_loss(reduction)
    assert products_of(total if wanted is None else jax.value_and_grad(total, wanted)) == products


@pytest.mark.parametrize("reduction, products", [("mean", 4), ("none", 5)])
def test_a_checkpoint_around_it_costs_one_product_more(reduction, products):
    assert products_of(jax.value_and_grad(jax.checkpoint(total_loss(reduction)), (0, 1))) == products


def test_explain_says_the_scheme():
    def scheme(**options):
        (decision,) = crossent_jax.explain(linear_cross_entropy, HIDDEN, HEAD, LABELS, chunk_rows=4, **options)
        return str(decision)

    assert "gradient in forward: 3 products" in scheme() and "2 chunks of at most 4 rows" in scheme()
    assert "recompute: 4 products" in scheme(reduction="none")
    assert "any transform" in scheme(implementation="reference")


# --- a vocabulary split over a mesh axis -----------------------------------------------------------

N, D, V = 10, 3, 24
X = jax.random.normal(jax.random.key(2), (N, D))
W = jax.random.normal(jax.random.key(3), (D, V))
B = jax.random.normal(jax.random.key(4), (V,))
Y = jnp.array([0, 2, 3, 7, 11, 14, 17, 20, 23, 5])
MESHES = {"one axis": ((8,), ("model",)), "two axes": ((2, 4), ("data", "model"))}


def split_loss(x, w, b, labels, *, vocab_axis, axis_name=None, data=None, **options):
    options |= {"chunk_rows": 3, "label_smoothing": 0.1, "entropy_weight": 0.1, "head_vocab_axis": vocab_axis}
    out = linear_cross_entropy(x, w, labels, bias=b, axis_name=axis_name, **options)
    if options["reduction"] == "loss_sum":
        return (out.psum(data) if data else out).mean()
    return jax.lax.psum(out, data) if data and options["reduction"] == "sum" else out


def split_gradients(function, head):
    def total(x, w, b):
        out = function(x, w, b, Y)
        return jnp.vdot(jnp.cos(jnp.arange(out.size, dtype=out.dtype)), out.reshape(-1))

    return grid.quick(jax.value_and_grad(total, (0, 1, 2)))(X, head, B)


@cache
def whole_gradients(reduction):
    return split_gradients(partial(split_loss, vocab_axis=1, reduction=reduction), W)


SPLITS = ("mean", "none", "sum data", "loss_sum data", "none data", "mean reference", "sum vocab first")
WITHOUT_VMA = ("mean", "loss_sum data", "none data", "mean reference")


@pytest.mark.parametrize("case, check_vma", [(case, True) for case in SPLITS] + [(case, False) for case in WITHOUT_VMA])
def test_a_split_vocabulary_is_the_whole(case, check_vma):
    """Gradients of hidden, head and bias taken outside ``jax.shard_map``."""
    reduction, *words = case.split()
    backend, axis = "reference" if "reference" in words else "xla", 0 if "vocab" in words else 1
    data = "data" if "data" in words else None
    shape, names = MESHES["two axes" if data else "one axis"]
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
    specs = (P(data), P(None, "model") if axis else P("model"), P("model"), P(data))
    out_specs = P(data) if reduction == "none" else P()
    options = {"vocab_axis": axis, "reduction": reduction, "implementation": backend, "axis_name": "model", "data": data}
    shard = partial(split_loss, **options)
    split = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=check_vma)
    value, (dx, dw, db) = split_gradients(split, W if axis else W.T)
    whole = whole_gradients("mean" if reduction == "loss_sum" else reduction)  # split_loss divides a loss_sum
    close((value, (dx, dw if axis else dw.T, db)), whole, 2e-6)
